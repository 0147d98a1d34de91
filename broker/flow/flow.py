"""A connection's place in the log of its tenant: what it has been given, and what it still gets.

No I/O but for the link's `send`, which takes what the kernel takes at once.
"""

from __future__ import annotations

from itertools import compress, islice
from typing import TYPE_CHECKING

import attrs
from msgspec import UNSET

from broker.eventlog.places import at, sequence_of
from broker.eventlog.tick import bits
from broker.flow import lag
from broker.flow.pipe import Pipe
from broker.flow.reader import Group, Reader, swapped
from broker.wire.frames import mark
from broker.wire.messages import Gap, named

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from broker.eventlog.log import EventLog, Page
    from broker.eventlog.selection import Selection
    from broker.eventlog.snapshots import Snapshot
    from broker.eventlog.tick import Tick
    from broker.flow.client import Client
    from broker.wire.frames import Framing
    from broker.wire.messages import Lag


@attrs.frozen(kw_only=True)
class Start:
    """Where subscriptions begin: after a place, or with a snapshot of P.

    Of what was deleted up to the position `warned` the client has been told.
    """

    place: int = 0
    snapshot: Snapshot | None = None
    warned: int = 0


@attrs.frozen
class Begun:
    """How subscriptions have begun: whether they are live, and else the number of their catch-up, if any."""

    live: bool
    number: int | None = None


class Options:
    """What only few connections have.

    `policies` of lag that are not the default; `floors`: places of selections that are given nothing up to
    there; `dropped`: selections of which something was let go, `count` events (None: not known), and the
    client has not been told; `catch_ups`: so many have been begun; `waits`: so many bytes wait, where a
    policy is `strict`.
    """

    __slots__ = ("catch_ups", "count", "dropped", "floors", "policies", "strict", "waits")

    def __init__(self) -> None:
        self.policies: dict[Selection, Lag] = {}
        self.floors: dict[Selection, int] = {}
        self.dropped: tuple[Selection, ...] = ()
        self.count: int | None = 0
        self.catch_ups = 0
        self.strict = False
        self.waits = 0


class Flow(Pipe):
    """A connection in the log.

    `framing`: what its link makes of the frames of events, if anything. `mask` is its share of the running
    tick until that is written. `stored` and `unstored` are its selections; `main` reads them while it is
    behind (None: it is up to date, and nothing is unsent), `beside` are its catch-ups.
    """

    __slots__ = ("beside", "framing", "log", "main", "mask", "options", "stored", "unstored")

    def __init__(
        self, *, send: Callable[[bytes], int], client: Client, whole: bool, framing: Framing | None = None
    ) -> None:
        super().__init__(send=send, client=client, whole=whole)
        self.framing = framing
        self.log: EventLog | None = None
        self.mask = 0
        self.stored: tuple[Selection, ...] = ()
        self.unstored: tuple[Selection, ...] = ()
        self.main: Reader | None = None
        self.beside: tuple[Reader, ...] = ()
        self.options: Options | None = None

    # --- P, and what is written --------------------------------------------------------------------

    def place(self) -> int:
        """Return P's place: all of the stored flow up to there has been written."""
        if self.main is not None:
            return self.main.place
        if self.log is None:
            return 0
        if self.mask and self.log.running:
            return self.log.running.base
        return self.log.end()

    def position(self) -> int:
        """Return P, for a frame that is written next."""
        self.settle()
        return sequence_of(self.place())

    def push(self, frame: bytes) -> None:
        """Write a reply, a heartbeat or the like in its turn: after the events up to P, before others."""
        self.settle()
        self.write((frame,))

    def settle(self) -> None:
        """Write the share of the running tick now, so that what follows comes after it."""
        log = self.log
        if self.mask and self.main is None and log and log.running:
            mask, self.mask = self.mask, 0
            frames = log.framed_share(log.running, mask, self.framing)
            data = b"".join(frames)
            sent = self.try_send(data)
            if sent < len(data):
                self.short(log.running, mask, data, sent)
            else:
                log.traffic.add(len(frames), len(data))

    def short(self, tick: Tick, mask: int, data: bytes, sent: int) -> None:
        """The link has not taken all of a share of the running tick: read on after what it has."""
        log = self.joined()
        frames = log.framed_share(tick, mask, self.framing)
        main = self.fall_behind(tick.head)
        written = self.keep(frames, data, sent)
        left = sum(map(len, frames[written:]))
        log.traffic.add(written, len(data) - left)
        if left:
            main.place = main.unstored = nth_place([(tick, mask)], written)
            if self.options:
                self.options.waits = left

    def give(
        self,
        page: Page,
        reader: Reader,
        after: int,
        ahead: Sequence[bytes] = (),
        *,
        all_of_it: bool = False,
    ) -> int:
        """Write what comes next after a place, with what must precede it. Return the place that is reached.

        What the link does not take is read again later, but for the rest of a frame: by then it may have been
        deleted, or be passed over. Or `all_of_it` is kept.
        """
        events = self.render(page, reader)
        frames = [*ahead, *events]
        if not frames:
            return page.end
        if all_of_it or self.rest is not None:
            self.write(frames)
            written = len(frames)
        else:
            written = self.offer(frames)
        given = max(0, written - len(ahead))
        size = sum(map(len, events[:given]))
        if self.log:
            self.log.traffic.add(given, size)
        if self.options and reader is self.main:
            self.options.waits = max(0, self.options.waits - size)
        if written == len(frames):
            return page.end
        return nth_place(page.shares, given) if given else after

    def held_up(self) -> None:
        if self.main is None and self.log is not None:
            self.fall_behind(self.log.end())
        self.client.fell_behind()

    def fall_behind(self, place: int) -> Reader:
        """From now on read the log, from a place on."""
        self.main = Reader(place, unstored=place)
        self.mask = 0
        if self.options:
            self.options.waits = 0
        return self.main

    def render(self, page: Page, reader: Reader) -> list[bytes]:
        """Return the events of a page as they are written for a reader."""
        frames = [frame for tick, mask in page.shares for frame in tick.select(mask)]
        if reader.number is not None:
            frames = [mark(frame, reader.number) for frame in frames]
        if self.framing is not None:
            frames = [self.framing(frame, reader.number is not None) for frame in frames]
        return frames

    def rejoin(self) -> bool:
        """Be up to date again, if it is; nothing may be awaited between the test and that."""
        main, log = self.main, self.log
        if main is None or log is None or self.rest is not None or main.groups:
            return False
        if main.place < log.end() or main.unstored < log.end():
            return False
        self.main = None
        self.mask = 0  # the running tick is in the ring and was read there
        if self.options:
            self.options.floors.clear()
            self.options.waits = 0
        return True

    # --- more waits than may -----------------------------------------------------------------------

    def overflows(self, size: int, limit: int) -> bool:
        """Note that a share of so many bytes waits; whether that is more than the lag policies allow."""
        main, options, log = self.main, self.options, self.log
        if main is None or options is None or log is None or not options.strict or main.resuming:
            return False
        running = log.running
        if running and main.place > running.base:  # it has read that far already
            left = len(running.frames) - running.before(main.place)
            size = size * left // len(running.frames)
        options.waits += size
        if self.stored and sequence_of(main.place) < sequence_of(log.ring.floor):
            return True
        return options.waits + self.unsent >= limit

    def overflow(self) -> None:
        """End the connection, or let go of what may be dropped."""
        main, options, log = self.main, self.options, self.log
        if main is None or options is None or log is None:
            return
        if "close" in options.policies.values():
            self.client.too_slow()
            return
        dropped = [each for each in self.stored if options.policies.get(each) == "drop"]
        if not dropped:
            return
        options.waits = 0
        count = log.count(dropped, options.floors, main.place)
        if count == 0:
            return
        options.floors.update(dict.fromkeys(dropped, log.end()))
        options.count = None if count is None or options.count is None else options.count + count
        options.dropped = tuple(dropped)

    def tell_dropped(self, log: EventLog, main: Reader) -> None:
        """Say what was let go since the link took something: one gap, however often that was."""
        options = self.options
        if options is None or not options.dropped:
            return
        dropped, count = [each for each in options.dropped if each in self.stored], options.count
        options.dropped, options.count = (), 0
        start, everything = main.place, len(dropped) == len(self.stored)
        if not dropped:
            return
        if everything:
            main.place = max(start, min(options.floors[each] for each in dropped))
        self.client.tell(
            Gap(
                channel=named(each.pattern for each in dropped),
                reason="lag",
                start=log.text(sequence_of(start)),
                end=log.text(sequence_of(main.place)) if everything else UNSET,
                count=UNSET if count is None else count,
            )
        )

    # --- subscriptions: whatever had to wait for NATS did so before --------------------------------

    def subscribe(
        self,
        selections: Collection[Selection],
        *,
        start: Start | None,
        again: bool,
        policy: Lag | None,
        listed: bool,
        now: float,
    ) -> Begun:
        """Begin subscriptions at a start, or at P. The selections are held from here on.

        What stands already goes on, unless it is to begin `again`.
        """
        log = self.joined()
        self.settle()
        if again:
            for each in selections:
                self.leave(each.pattern)
        for each in selections:
            if each.unstored and self.find(each.pattern) is None:
                each.uses += 1
                self.join(each, floor=log.end())
        stored = [each for each in selections if not each.unstored]
        if not stored:
            begun = Begun(live=True)
        elif start is None:
            begun = self.go_on(stored, listed=listed)
        else:
            begun = self.begin(stored, start, listed=listed, now=now)
        self.set_policies(selections, policy)
        return begun

    def begin(self, stored: list[Selection], start: Start, *, listed: bool, now: float) -> Begun:
        """Begin subscriptions in the past: as a resume while there is no stored flow, else beside it."""
        group = Group(stored, listed=listed)
        for each in stored:
            each.uses += 1
        behind = start.snapshot is not None or sequence_of(start.place) < sequence_of(self.place())
        if behind and (start.snapshot or self.stored or self.beside):
            options = self.opt()
            options.catch_ups += 1
            reader = Reader(
                start.place,
                began=now,
                told=self.place(),
                number=options.catch_ups,
                selections=tuple(stored),
                snapshot=start.snapshot,
                warned=start.warned,
            )
            reader.groups.append(group)
            self.beside = (*self.beside, reader)
            return Begun(live=False, number=options.catch_ups)
        if behind:
            main = self.main or self.fall_behind(self.place())
            main.place, main.resuming, main.began = start.place, True, now
        for each in stored:
            self.join(each, floor=start.place)
        if behind and self.main is not None:
            self.main.warned = start.warned
        return self.live_with(group)

    def go_on(self, stored: list[Selection], *, listed: bool) -> Begun:
        """Join at P what is new; what stands already stays where it is."""
        live, joined = True, []
        for each in stored:
            reader = next((reader for reader in self.beside if each in reader.selections), None)
            if reader:
                reader.groups.append(Group([each], listed=listed))
                live = False
                continue
            joined.append(each)
            if each not in self.stored:
                each.uses += 1
                self.join(each)
        begun = self.live_with(Group(joined, listed=listed)) if joined else Begun(live=True)
        return begun if live else Begun(live=False)

    def live_with(self, group: Group) -> Begun:
        """Say whether what has joined is live: at once, or with the resume that is under way."""
        if self.main is None or not self.main.resuming:
            return Begun(live=True)
        self.main.groups.append(group)
        return Begun(live=False)

    def join(self, selection: Selection, *, floor: int = 0) -> None:
        """Make a selection part of the flow, from P on, or from `floor` on where that is higher."""
        if selection.unstored:
            self.unstored = (*self.unstored, selection)
        else:
            self.stored = (*self.stored, selection)
        selection.members[self] = None
        if self.main is not None and not selection.unstored:
            self.main.warned = 0  # of what is gone it has not been told
        if self.main is not None and floor > (self.main.unstored if selection.unstored else self.main.place):
            self.opt().floors[selection] = floor

    def set_policies(self, selections: Iterable[Selection], policy: Lag | None) -> None:
        if policy is None and self.options is None:
            return
        options = self.opt()
        for each in selections:
            if policy is None or policy == lag.default(each):
                options.policies.pop(each, None)
            else:
                options.policies[each] = policy
        options.strict = any(lag.strict(each, policy) for each, policy in options.policies.items())

    def policy(self, selection: Selection) -> Lag:
        return (self.options and self.options.policies.get(selection)) or lag.default(selection)

    def leave(self, pattern: str) -> None:
        """End a subscription: no frame of it follows."""
        self.settle()
        selection = self.find(pattern)
        if selection is not None and self.log is not None:
            self.drop(selection)
            self.log.release(selection)

    def drop(self, selection: Selection) -> None:
        """Take a selection out of wherever it is."""
        selection.members.pop(self, None)
        self.swap(selection, None)
        self.beside = tuple(reader for reader in self.beside if reader.selections)

    def retune(self, pattern: str, deny: tuple[str, ...]) -> None:
        """Leave other channels out of a subscription, from what is not written yet on."""
        self.settle()
        old = self.find(pattern)
        if old is None or self.log is None:
            return
        new = self.log.acquire(pattern, deny)
        member = old.members.pop(self, self) is None
        self.swap(old, new)
        if member:
            new.members[self] = None
        self.log.release(old)

    def swap(self, old: Selection, new: Selection | None) -> None:
        """Put one selection in the place of another, or none."""
        self.stored = swapped(self.stored, old, new)
        self.unstored = swapped(self.unstored, old, new)
        for reader in self.readers():
            reader.swap(old, new)
        if options := self.options:
            options.dropped = swapped(options.dropped, old, new)
            policy, floor = options.policies.pop(old, None), options.floors.pop(old, None)
            if new is not None and policy is not None:
                options.policies[new] = policy
            if new is not None and floor is not None:
                options.floors[new] = floor

    def opt(self) -> Options:
        if self.options is None:
            self.options = Options()
        return self.options

    # --- questions ---------------------------------------------------------------------------------

    def readers(self) -> Iterator[Reader]:
        if self.main is not None:
            yield self.main
        yield from self.beside

    def selections(self) -> Iterator[Selection]:
        """Yield all selections, each once: a subscription has one, wherever it is."""
        yield from self.stored
        yield from self.unstored
        for reader in self.beside:
            yield from reader.selections

    def subscriptions(self) -> dict[str, tuple[str, ...]]:
        """Return the pattern of each subscription, with what is left out of it."""
        return {each.pattern: each.deny for each in self.selections()}

    def find(self, pattern: str) -> Selection | None:
        """Return the selection of a subscription, wherever it is."""
        return next((each for each in self.selections() if each.pattern == pattern), None)

    def floors(self) -> Mapping[Selection, int] | None:
        return self.options.floors if self.options else None

    def sent(self, patterns: Collection[str]) -> int:
        """Return the newest position written for some subscriptions: P, or that of their catch-up."""
        found = [
            reader.place
            for reader in self.beside
            if any(each.pattern in patterns for each in reader.selections)
        ]
        beside = {each.pattern for reader in self.beside for each in reader.selections}
        if any(pattern not in beside for pattern in patterns):
            found.append(self.place())
        return sequence_of(max(found))

    # --- life --------------------------------------------------------------------------------------

    def attach(self, log: EventLog) -> None:
        """Take its place in a tenant, with no subscription yet."""
        self.enter(log)
        if self.rest is not None:  # it is still sending what came before its tenant was known
            self.fall_behind(log.end())

    def joined(self) -> EventLog:
        """Return its log, where it must have one."""
        if self.log is None:
            raise LookupError("the connection has no place in a tenant")
        return self.log

    def enter(self, log: EventLog) -> None:
        self.log = log
        if self.framing is not None:
            log.framings[self.framing] += 1

    def quit(self, log: EventLog) -> None:
        self.mask = 0
        if self.framing is not None:
            log.framings[self.framing] -= 1
            if not log.framings[self.framing]:
                del log.framings[self.framing]

    def detach(self) -> None:
        """End all subscriptions, and leave the tenant. What is unsent stays."""
        log, self.log = self.log, None
        if log is None:
            return
        for each in list(self.selections()):
            each.members.pop(self, None)
            log.release(each)
        self.stored = self.unstored = self.beside = ()
        self.main = self.options = None
        self.quit(log)

    def move(self, log: EventLog) -> None:
        """Go on in the next log of the tenant, after what it was given by the one before.

        What lies between it reads from the ring or the stream. Places and floors in another incarnation of
        the stream mean nothing, and those of unstored events nothing in another log.
        """
        old = self.joined()
        same = old.incarnation == log.incarnation
        reached = at(sequence_of(self.place())) if same else 0
        self.quit(old)
        for each in list(self.selections()):
            new = log.acquire(each.pattern, each.deny)
            member = each.members.pop(self, self) is None
            self.swap(each, new)
            if member:
                new.members[self] = None
        self.enter(log)
        main = self.main or self.fall_behind(reached)
        main.place, main.unstored = reached, log.end()
        for reader in self.beside:
            reader.place, reader.told = at(sequence_of(reader.place)) if same else 0, 0
            if not same:
                reader.snapshot = reader.newer = None
            elif reader.snapshot:
                reader.snapshot.base.move(log)
        if not same:
            for reader in self.readers():
                reader.warned = 0
        if self.options:
            if not same:
                self.options.dropped, self.options.count = (), 0
            floors = self.options.floors
            self.options.floors = {
                each: floor for each, floor in floors.items() if same and not each.unstored
            }
        self.client.fell_behind()
        self.tell_of_loss(log, same_stream=same)

    def tell_of_loss(self, log: EventLog, *, same_stream: bool) -> None:
        """Say what a new log cannot bring: unstored events that were on the way, or the old stream's."""
        if self.unstored:
            channel = named(each.pattern for each in self.unstored)
            self.client.tell(Gap(channel=channel, reason="source"))
        if same_stream:
            return
        start = log.text(0)
        if self.stored:
            channel = named(each.pattern for each in self.stored)
            self.client.tell(Gap(channel=channel, reason="reset", end=start))
        for reader in self.beside:
            channel = named(each.pattern for each in reader.selections)
            number = UNSET if reader.number is None else reader.number
            self.client.tell(Gap(channel=channel, reason="reset", end=start, catch_up=number))


def nth_place(shares: Iterable[tuple[Tick, int]], count: int) -> int:
    """Return the place of an event of some shares: the first is 1."""
    places = (place for tick, mask in shares for place in compress(tick.places, bits(mask)))
    return next(islice(places, count - 1, None))
