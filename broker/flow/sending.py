"""The sending task of a connection that is behind: it writes the rest, and then reads on.

It reads one page at a time, and only while nothing is unsent, so that P stands still while something is. It
ends when the connection is up to date.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio
from msgspec import UNSET

from broker.backoff import Backoff
from broker.errors import Unavailable
from broker.eventlog.log import PAGE_BYTES, Missing, Page
from broker.eventlog.places import at, sequence_of
from broker.eventlog.tick import indices
from broker.flow.lag import nothing_comes, thin, thinning
from broker.flow.overflow import tell_dropped
from broker.signals import Signal
from broker.wire.messages import Gap, Pong, SubscriptionLive, named

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.eventlog.log import EventLog
    from broker.eventlog.selection import Selection
    from broker.eventlog.snapshots import Newer, Snapshot
    from broker.flow.flow import Flow
    from broker.flow.reader import Reader
    from broker.metrics.meters import Meters

BACKOFF = Backoff(first=0.1, longest=2.0, jitter=0.0)  # between attempts to read the stream

log = structlog.get_logger()


@attrs.define(eq=False)
class Sending:
    """Writes what waits for a flow; `progressed` is called whenever the link has accepted something.

    `spawn` runs a read of the stream beside this task. `woken` is set when there may be something to write
    again.
    """

    send_some: Callable[[bytes | memoryview], Awaitable[int]]
    flow: Flow
    catch_ups_at_once: int
    progressed: Callable[[], None]
    meters: Meters
    spawn: Callable[[Callable[[], Awaitable[None]]], None]
    clock: Callable[[], float] = trio.current_time
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    woken: Signal = attrs.Factory(Signal)
    reading: bool = False
    failures: int = 0  # consecutive failures to read the stream

    async def run(self) -> None:
        flow = self.flow
        while True:
            if flow.rest is not None:
                flow.took(await self.send_some(flow.rest[0]))
                self.progressed()
                continue
            owing = self.give_owed()
            if flow.rest is None and flow.log is not None and (flow.main is not None or flow.beside):
                self.woken.clear()
                missing = self.read_on(flow.log)
                self.progressed()  # nothing was left until now: not a stall of the client
                if missing is not None:
                    self.ask(flow.log, missing)
                if missing is not None and not owing:
                    await self.woken.wait()
                else:
                    await trio.lowlevel.checkpoint()
            elif owing or flow.rest is not None:
                await trio.lowlevel.checkpoint()
            else:
                return

    def give_owed(self) -> bool:
        """Write a page of what the client gets besides the log; return whether there is more."""
        flow = self.flow
        if flow.owed is not None and not flow.owed():
            flow.owed = None
        return flow.owed is not None

    def ask(self, events: EventLog, missing: Missing) -> None:
        """Have the stream read, one page at a time; meanwhile whatever is at hand is written."""
        if not self.reading:
            self.reading = True
            self.spawn(partial(self.fetch, events, missing))

    async def fetch(self, events: EventLog, missing: Missing) -> None:
        """Have the log read the stream; then all readers that wait for it try again."""
        try:
            await events.history.fetch(missing.selections, missing.after)
        except Unavailable as error:
            log.debug("history_unavailable", error=error.message, **self.flow.client.who())
            await trio.sleep(BACKOFF.delay(self.failures))
            self.failures += 1
        else:
            self.failures = 0
        finally:
            self.reading = False
            self.woken.set()

    # --- a page of each reader, without an await from here on --------------------------------------

    def read_on(self, events: EventLog) -> Missing | None:
        """Write a page of each reader, as long as the link accepts it.

        If nothing can be written before the stream has been read, return what is missing.
        """
        flow, found = self.flow, None
        before = self.places()
        if flow.main is not None:
            self.step_held(flow.main)
            self.step_unstored(events, flow.main)
            found = self.step_lead(events, flow.main) or self.step_stored(events, flow.main)
            flow.rejoin()
        for turn, reader in enumerate(flow.beside):  # the first one that can continue
            if flow.rest is not None or (turn and self.places() != before):
                break
            missing = self.step_beside(events, reader)
            found = found or missing
        return found if flow.rest is None and self.places() == before else None

    def places(self) -> dict[Reader, tuple[object, ...]]:
        """Return the places of all readers, whatever their order."""
        return {
            reader: (reader.place, reader.unstored, reader.lead, len(reader.held))
            for reader in self.flow.readers()
        }

    def step_held(self, main: Reader) -> None:
        """Write what lanes have had for a paced subscription meanwhile."""
        if main.held and self.flow.rest is None:
            held, main.held = list(main.held.values()), {}
            self.flow.give_held(held)

    def step_lead(self, events: EventLog, main: Reader) -> Missing | None:
        """Read what may have been held for paced subscriptions when the connection before ended."""
        flow = self.flow
        if main.lead is None or flow.rest is not None:
            return None
        paced, start = tuple(each for each in flow.stored if each in flow.lanes), main.lead
        page, _ = self.page(events, paced, start, main.place, whole=True)
        if isinstance(page, Missing):
            return page
        reached = page.end if page.lost else flow.give(page, main, start)
        main.lead = reached if paced and reached < main.place else None
        return None

    def step_unstored(self, events: EventLog, main: Reader) -> None:
        flow, end = self.flow, events.end()
        if flow.unstored and main.unstored < events.ring.floor:  # they are kept nowhere else
            main.unstored = events.ring.floor
            channel = named(each.pattern for each in flow.unstored)
            flow.client.tell(Gap(channel=channel, reason="lag"))
        if flow.rest is not None:
            return
        if not flow.unstored or main.unstored >= end:
            main.unstored = max(main.unstored, end)
            return
        start = main.unstored
        page, passed = self.page(events, flow.unstored, start, end)
        if isinstance(page, Page):
            main.unstored = flow.give(page, main, start, all_of_it=passed)

    def step_stored(self, events: EventLog, main: Reader) -> Missing | None:
        flow, end = self.flow, events.end()
        if flow.rest is not None or main.lead is not None:
            return None
        tell_dropped(flow, events, main)
        if flow.rest is not None:
            return None
        if not flow.stored:
            main.place = max(main.place, end)
        elif main.place < end:
            start = main.place
            page, passed = self.page(events, flow.stored, start, end)
            if isinstance(page, Missing):
                return page
            main.note_source(page.source)
            if page.lost:
                main.place = page.end
                self.tell_lost(events, main, flow.stored, start)
                return None
            self.tell_deleted(events, main, flow.stored, page.end)
            if passed or flow.rest is None:
                main.place = flow.give(page, main, start, all_of_it=passed)
        if main.place >= end and main.resuming:
            main.resuming = False
            self.replayed(main)
            self.announce(events, main)
        return None

    def step_beside(self, events: EventLog, reader: Reader) -> Missing | None:
        flow = self.flow
        flow.settle()
        if flow.rest is not None:
            return None
        limit, start = flow.place(), reader.place
        if reader.snapshot:
            page: Page | Missing = snapshot_page(events, reader, reader.snapshot)
        elif start < limit:
            page, _ = self.page(events, reader.selections, start, limit, whole=True)
        else:
            page = Page(end=start)
        if isinstance(page, Missing) or page.end > limit:  # a later start has set P back: flow first
            self.turn(reader)
            return page if isinstance(page, Missing) else None
        if reader.newer and not reader.snapshot:
            page = newer_only(page, reader.newer)
        reader.note_source(page.source)
        if page.lost:
            reader.place = page.end
            self.tell_lost(events, reader, reader.selections, start)
        else:
            if not reader.snapshot:
                self.tell_deleted(events, reader, reader.selections, page.end)
            if flow.rest is not None:
                return None
            ahead: tuple[bytes, ...] = ()
            if page.shares and page.end > reader.told:
                # P first: after a cut the client must not resume from before the marked events.
                ahead = (flow.client.encode(Pong(position=events.text(sequence_of(limit)))),)
                reader.told = limit
            reader.place = flow.give(page, reader, start, ahead)
        self.let_go(reader)
        if reader.snapshot is None and reader.place >= limit:
            self.finish(events, reader)
        else:
            self.turn(reader)
        return None

    def page(
        self,
        events: EventLog,
        selections: tuple[Selection, ...],
        after: int,
        upto: int,
        *,
        whole: bool = False,
    ) -> tuple[Page | Missing, bool]:
        """Return the next page without the events that lag policies leave out, and whether there are any.

        If so, the client has been told. Of paced selections it has the newest of each channel, unless that
        comes from their lane. A `whole` page has what lag policies, floors and lanes leave out.
        """
        flow, options = self.flow, self.flow.options
        floors = None if whole else flow.floors()
        policies = options.policies if options and not whole else {}
        how = thinning(selections, policies, flow.lanes)
        if not how:
            return events.read(selections, after, upto, floors=floors), False
        page = events.read(selections, after, upto, floors=floors, budget=None)
        if isinstance(page, Missing) or page.lost:
            return page, False
        page, passed = thin(page, how, floors, after=after, comes=nothing_comes if whole else self.comes)
        if passed:
            channel = named(each.pattern for each in (*how.latest, *how.few))
            start = UNSET if selections is flow.unstored else events.text(sequence_of(after))
            count = UNSET if any(each.filter for each in selections) else passed
            flow.client.tell(Gap(channel=channel, reason="lag", start=start, count=count))
        return page, passed > 0

    def comes(self, selection: Selection, channel: str, place: int) -> bool:
        """Return whether the lane of a selection has an event for the flow, or a newer one."""
        lane = self.flow.lanes.get(selection)
        return lane is not None and lane.holds(self.flow, channel, place)

    def turn(self, reader: Reader) -> None:
        """Let other catch-ups continue; they take turns, a few at a time."""
        flow = self.flow
        if len(flow.beside) > 1 and reader in flow.beside:
            others = [each for each in flow.beside if each is not reader]
            others.insert(min(self.catch_ups_at_once, len(flow.beside)) - 1, reader)
            flow.beside = tuple(others)

    def let_go(self, reader: Reader) -> None:
        """Release a snapshot once the reader is past it."""
        if reader.snapshot and reader.place >= at(reader.snapshot.head):
            reader.snapshot = None
        if reader.newer and reader.place >= at(reader.newer.head):
            reader.newer = None

    def finish(self, events: EventLog, reader: Reader) -> None:
        """End a catch-up that has reached P: its selections join the flow."""
        flow = self.flow
        self.replayed(reader)
        flow.beside = tuple(each for each in flow.beside if each is not reader)
        for selection in reader.selections:
            flow.join(selection)
        self.announce(events, reader)

    # --- what the client is told -------------------------------------------------------------------

    def replayed(self, reader: Reader) -> None:
        """Record that a resume or a catch-up has ended."""
        self.meters.replays[reader.source].observe(self.clock() - reader.began)

    def announce(self, events: EventLog, reader: Reader) -> None:
        groups, reader.groups = reader.groups, []
        for group in groups:
            self.flow.client.tell(
                SubscriptionLive(
                    channel=group.channel(),
                    position=events.text(self.flow.position()),
                    catch_up=UNSET if reader.number is None else reader.number,
                )
            )

    def tell_lost(
        self, events: EventLog, reader: Reader, selections: tuple[Selection, ...], start: int
    ) -> None:
        """Report what the stream no longer holds."""
        floors = self.flow.floors() or {}
        hit = [each.pattern for each in selections if floors.get(each, 0) < reader.place]
        if hit:
            self.flow.client.tell(
                Gap(
                    channel=named(hit),
                    reason="trimmed",
                    start=events.text(sequence_of(start)),
                    end=events.text(sequence_of(reader.place)),
                    catch_up=UNSET if reader.number is None else reader.number,
                )
            )

    def tell_deleted(
        self, events: EventLog, reader: Reader, selections: tuple[Selection, ...], end: int
    ) -> None:
        """Report deletions among the events up to a place, before these are given to a reader.

        This moves no place: if the link does not accept the events, they are read again, without another gap.
        """
        after, upto = max(sequence_of(reader.place), reader.warned), sequence_of(end)

        def admits(channel: str) -> bool:
            return any(each.admits(channel) for each in selections)

        if after >= upto or not events.feed.deleted(after, upto, admits):
            return
        reader.warned = upto
        self.flow.client.tell(
            Gap(
                channel=named(each.pattern for each in selections),
                reason="trimmed",
                start=events.text(sequence_of(reader.place)),
                catch_up=UNSET if reader.number is None else reader.number,
            )
        )


def snapshot_page(events: EventLog, reader: Reader, snapshot: Snapshot) -> Page:
    """Return the next events of a snapshot; the catch-up continues after its head."""
    shares = []
    size = 0
    for tick, left in snapshot.after(reader.place):
        if tick.matcher is not events:  # other readers may be in the next log already
            tick.move(events)
        if mask := tick.share(reader.selections, after=reader.place) & left:
            shares.append((tick, mask))
            size += tick.size
        if size >= PAGE_BYTES:
            return Page(end=tick.head, shares=shares, source=reader.source)
    return Page(end=at(snapshot.head), shares=shares, source=reader.source)


def newer_only(page: Page, newer: Newer) -> Page:
    """Return the page without the events up to the head of `newer` that have been superseded."""
    shares = []
    for tick, mask in page.shares:
        for index in indices(mask):
            sequence = sequence_of(tick.places[index])
            if sequence <= newer.head and sequence not in newer.sequences:
                mask &= ~(1 << index)
        if mask:
            shares.append((tick, mask))
    return attrs.evolve(page, shares=shares)
