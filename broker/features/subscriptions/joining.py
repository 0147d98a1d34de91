"""How subscriptions begin: a start is resolved with NATS, then all else happens in one step without an await.

While a connection has no stored subscription, a start sets its live position, and the connection is simply
behind: a resume. Otherwise the start becomes a catch-up beside the live flow.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import attrs
import trio
from msgspec import UNSET

from broker import subjects
from broker.errors import SnapshotTooLarge, TooManyFilters, Unavailable
from broker.eventlog.places import at, sequence_of
from broker.eventlog.starts import Beginning, Scope
from broker.eventlog.tick import indices
from broker.flow.flow import Start
from broker.wire.messages import Gap, Subscribed, named
from broker.wire.positions import Position
from broker.wire.starts import After, Last, Snapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.eventlog import snapshots
    from broker.eventlog.log import EventLog
    from broker.eventlog.selection import Selection
    from broker.eventlog.starts import Lost, Starts
    from broker.features.subscriptions.live import LiveSubjects
    from broker.features.subscriptions.wishes import Join
    from broker.flow.flow import Flow
    from broker.permissions import Principal
    from broker.session.requests import Caller
    from broker.wire.messages import ServerMessage
    from broker.wire.starts import Start as Wished

REACH_SECONDS = 5.0  # another broker may be milliseconds ahead of this one


@attrs.frozen(kw_only=True)
class Sources:
    """What starts are resolved with.

    `log_of` returns the current log of a tenant; `advanced` is unparked whenever a tenant has advanced.
    """

    starts: Starts
    live: LiveSubjects
    log_of: Callable[[str], EventLog]
    advanced: trio.lowlevel.ParkingLot


class Durables(Protocol):
    """The cursors of durable names."""

    def check_free(self, caller: Caller, name: str) -> None:
        """Raise `Conflict` if a subscription of the connection has this name."""

    async def hold(
        self, caller: Caller, principal: Principal, name: str, begin: Callable[[], Awaitable[Position]]
    ) -> Position:
        """Take a name for a connection; return its position. `begin` returns the position of a new cursor.

        Raise `Unavailable` and `TooManySubscriptions`.
        """

    def release(self, caller: Caller, name: str) -> None:
        """Give back a name that was taken in vain."""

    def begin(self, caller: Caller, name: str, patterns: set[str]) -> None:
        """Record which subscriptions began under a name."""

    def left(self, caller: Caller) -> None:
        """Give back the names without a subscription."""


@attrs.define(eq=False)
class Joiner:
    """A `subscribe` in progress. It holds its selections, so that events that arrive meanwhile match them."""

    sources: Sources
    durables: Durables
    principal: Principal
    caller: Caller
    log: EventLog
    wish: Join
    selections: list[Selection] = attrs.Factory(list)
    beginning: Beginning | None = None
    lead: int | None = None  # from where paced subscriptions read what may have been held
    snapshot: snapshots.Snapshot | None = None
    taken: str | None = None  # the durable name, once it is taken

    async def join(self) -> list[ServerMessage]:
        """Begin the subscriptions, if the permissions by which they were checked still hold.

        Return the replies: `subscribed`, and perhaps gaps. Raise `Conflict`, `Unavailable`,
        `SnapshotTooLarge`, `TooManyFilters` and `TooManySubscriptions` (durable names), with nothing changed.
        """
        log, wanted = self.log, self.wish.filter
        most = self.caller.session.limits.filters_per_tenant
        if wanted is not None and wanted not in log.filters and len(log.filters) >= most:
            raise TooManyFilters(f"the clients of the tenant have their {most} different filters")
        self.selections = [log.acquire(pattern, deny, wanted) for pattern, deny in self.wish.patterns.items()]
        joined = False
        try:
            await self.prepare()
            if self.flow.log is not log:
                raise Unavailable("the stream was recreated meanwhile; subscribe again", retry_after=0.1)
            if not self.unchanged():
                raise Unavailable("the permissions changed meanwhile; subscribe again", retry_after=0.1)
            messages = self.act()
            joined = True
            return messages
        finally:
            if self.taken is not None and not joined:
                self.durables.release(self.caller, self.taken)
            for selection in self.selections:
                log.release(selection)

    @property
    def flow(self) -> Flow:
        return self.caller.flow

    def unchanged(self) -> bool:
        """Return whether the permissions are still those by which the wish was checked."""
        now, then = self.caller.session.client(), self.principal
        return (now.subscribe, now.deny) == (then.subscribe, then.deny)

    async def prepare(self) -> None:
        """Do everything that needs NATS; a snapshot last, since it is taken at P as it then stands."""
        if any(each.unstored for each in self.selections):
            await self.sources.live.hold(self.principal.tenant)
        if self.stored():
            if self.wish.durable is not None:
                await self.from_cursor(self.wish.durable)
            elif self.wish.start:
                await self.resolve(self.wish.start)

    async def resolve(self, start: Wished) -> None:
        if isinstance(start, Snapshot):
            self.snapshot = await self.get_snapshot()
        else:
            if isinstance(start, Last) and self.wish.filter is not None:
                await self.evaluate(start.count)
            self.beginning = await self.sources.starts.resolve(start, self.scope())
            if isinstance(start, After) and self.wish.every_ms is not None:
                self.lead = await self.sources.starts.lead(start.position, self.beginning, self.wish.every_ms)
            await self.reach(self.beginning.after)

    async def from_cursor(self, name: str) -> None:
        """Start from the user's acknowledgements; a new cursor is set to the start given, if any."""
        position = await self.durables.hold(self.caller, self.principal, name, self.begin_cursor)
        self.taken = name
        if self.snapshot:  # P has advanced while the cursor was created: this must not fail any more
            with suppress(Unavailable, SnapshotTooLarge):
                self.snapshot = await self.get_snapshot()
        elif not self.beginning:
            await self.resolve(After(position))

    async def begin_cursor(self) -> Position:
        if self.wish.start:
            await self.resolve(self.wish.start)
        after = self.beginning.after if self.beginning else self.position()
        return Position(self.log.incarnation, after)

    def scope(self) -> Scope:
        last = self.wish.start.count if isinstance(self.wish.start, Last) else 0
        return Scope(
            tenant=self.principal.tenant,
            incarnation=self.log.incarnation,
            patterns={
                pattern: deny for pattern, deny in self.wish.patterns.items() if not subjects.is_live(pattern)
            },
            head=self.position(),
            floor=self.floor(),
            held=self.held(last),
            filter=self.wish.filter,
        )

    async def evaluate(self, count: int) -> None:
        """Evaluate the filter over the ring until `count` events have passed, while other tasks run."""
        stored, ring = self.stored(), self.log.ring
        for tick in reversed(ring.after(ring.floor)):
            count -= tick.share(stored).bit_count()
            if count <= 0:
                break
            await trio.lowlevel.checkpoint()

    def floor(self) -> int:
        """Return the position below which the stream is read: the beginning of the ring, or P if lower."""
        return min(sequence_of(self.log.ring.floor), self.position())

    def held(self, count: int) -> list[int]:
        """Return the sequences of the newest `count` matching events in the ring, up to P."""
        found: list[int] = []
        limit, ring, stored = self.flow.place(), self.log.ring, self.stored()
        for tick in reversed(ring.after(ring.floor)):
            if len(found) >= count:
                break
            mask = tick.share(stored, upto=limit) if tick.base < limit else 0
            found = [sequence_of(tick.places[index]) for index in indices(mask)] + found
        return found

    def stored(self) -> list[Selection]:
        return [each for each in self.selections if not each.unstored]

    def position(self) -> int:
        return sequence_of(self.flow.place())

    async def reach(self, position: int) -> None:
        """Wait until this broker has received what another one has already sent to the client."""
        with trio.move_on_after(REACH_SECONDS):
            while self.log.position() < position and self.flow.log is self.log:
                await self.sources.advanced.park()
            return
        raise Unavailable("this broker is behind the position; try again", retry_after=1.0)

    async def get_snapshot(self) -> snapshots.Snapshot:
        """Return the newest event of each channel at P."""
        limits = self.caller.session.limits
        most = limits.catch_ups_per_connection
        if sum(each.snapshot is not None for each in self.flow.beside) >= most:
            raise SnapshotTooLarge(f"{most} snapshots are under way on this connection; wait for one to end")
        if self.sources.log_of(self.principal.tenant) is not self.log:
            raise Unavailable("the tenant was restarted; subscribe again", retry_after=0.1)
        return await self.log.snapshots.get(self.stored(), self.scope, most=limits.snapshot_channels)

    # --- without an await from here on --------------------------------------------------------------

    def act(self) -> list[ServerMessage]:
        flow, wish, beginning = self.flow, self.wish, self.beginning
        start = None
        if self.snapshot:
            start = Start(snapshot=self.snapshot)
        elif beginning:
            lead = None if self.lead is None else at(self.lead)
            start = Start(place=at(beginning.after), lead=lead, warned=beginning.warned)
        begun = flow.subscribe(
            self.selections,
            start=start,
            again=wish.start is not None or wish.durable is not None,
            policy=wish.lag,
            every_ms=wish.every_ms,
            listed=wish.listed,
            now=trio.current_time(),
        )
        if self.taken is not None:
            self.durables.begin(self.caller, self.taken, {each.pattern for each in self.stored()})
        lost = beginning.lost if beginning else ()
        reply = Subscribed(
            channel=list(wish.patterns),
            refused=wish.refused,
            position=self.log.text(flow.position()),
            recovered=not lost,
            live=begun.live,
            catch_up=UNSET if begun.number is None else begun.number,
        )
        return [reply, *(self.gap(each, begun.number) for each in lost)]

    def gap(self, lost: Lost, number: int | None) -> Gap:
        channels = [each.pattern for each in self.stored()]
        return Gap(
            channel=channels if self.wish.listed else named(channels),
            reason=lost.reason,
            start=UNSET if lost.start is None else self.log.text(lost.start),
            end=UNSET if lost.end is None else self.log.text(lost.end),
            count=UNSET if lost.count is None else lost.count,
            catch_up=UNSET if number is None else number,
        )
