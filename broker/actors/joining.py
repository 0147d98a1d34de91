"""How subscriptions begin: a start resolved, then everything else in one step without an await.

While a connection has no stored subscription, a start sets its live position, and the connection is simply
behind: a resume. Otherwise it becomes a catch-up beside the live flow.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio
from msgspec import UNSET

from broker import subjects
from broker.actors.outlet import NO_LAGS, CatchUp, Group
from broker.errors import SnapshotTooLarge, Unavailable
from broker.features.starts import Beginning, Scope
from broker.ring import indices
from broker.wire import effects
from broker.wire.effects import After, Last
from broker.wire.messages import Gap, Subscribed, named
from broker.wire.positions import Position

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.actors.fanout import Fanout
    from broker.actors.outlet import Outlet
    from broker.actors.services import Services
    from broker.features.cursors import Cursor
    from broker.features.snapshots import Snapshot
    from broker.features.starts import Lost
    from broker.permissions import Principal
    from broker.routing import Topic
    from broker.wire.effects import Join, Start
    from broker.wire.messages import ServerMessage

REACH_SECONDS = 5.0  # another broker may be ahead of this one, by milliseconds


@attrs.frozen
class Joined:
    """What is to be said: `subscribed`, and perhaps gaps. `cursor` is held, where the wish was durable."""

    messages: list[ServerMessage]
    cursor: Cursor | None


async def join(
    services: Services, principal: Principal, outlet: Outlet, wish: Join, unchanged: Callable[[], bool]
) -> Joined:
    """Makes the subscriptions, if the permissions that they were checked with are `unchanged` by then.

    Raises `Unavailable`, `SnapshotTooLarge` and `TooManySubscriptions` (durable names); then nothing
    has changed.
    """
    fanout = outlet.fanout
    if fanout is None:
        raise Unavailable("the broker has not reached NATS yet", retry_after=1.0)
    topics = {pattern: fanout.acquire(pattern, deny) for pattern, deny in wish.patterns.items()}
    joiner = Joiner(services, principal, outlet, fanout, wish, topics)
    joined = False
    try:
        await joiner.prepare()
        if outlet.fanout is not fanout:
            raise Unavailable("the stream began anew meanwhile; subscribe again", retry_after=0.1)
        if not unchanged():
            raise Unavailable("the permissions changed meanwhile; subscribe again", retry_after=0.1)
        messages = joiner.act()
        joined = True
        return Joined(messages, joiner.cursor)
    finally:
        if joiner.cursor and not joined:
            services.cursors.release(joiner.cursor)
        for topic in topics.values():
            fanout.release(topic)


@attrs.define(eq=False)
class Joiner:
    """One `subscribe` on its way. It holds its topics, so that what arrives meanwhile knows them."""

    services: Services
    principal: Principal
    outlet: Outlet
    fanout: Fanout
    wish: Join
    topics: dict[str, Topic]
    beginning: Beginning | None = None
    snapshot: Snapshot | None = None
    cursor: Cursor | None = None

    async def prepare(self) -> None:
        """Everything that needs NATS; a snapshot last, since it is one of P as that is then."""
        if any(topic.live for topic in self.topics.values()):
            for subject in self.services.tenants.live_filters(self.principal.tenant):
                await self.services.live_subjects.hold(subject)
        if any(not topic.live for topic in self.topics.values()):
            if self.wish.durable is not None:
                await self.from_cursor(self.wish.durable)
            elif self.wish.start:
                await self.resolve(self.wish.start)

    async def resolve(self, start: Start) -> None:
        if isinstance(start, effects.Snapshot):
            self.snapshot = await self.take_snapshot()
        else:
            self.beginning = await self.services.starts.resolve(start, self.scope())
            await self.reach(self.beginning.after)

    async def from_cursor(self, name: str) -> None:
        """Starts where the user's acknowledgements stand; a new cursor stands where this start does."""
        who = self.principal
        self.cursor = await self.services.cursors.hold(who.tenant, who.user, name, self.begin_cursor)
        if self.snapshot:  # P has moved on while the cursor was made; that is for good, so this must not fail
            with suppress(Unavailable, SnapshotTooLarge):
                self.snapshot = await self.take_snapshot()
        elif not self.beginning:
            await self.resolve(After(self.cursor.position))

    async def begin_cursor(self) -> Position:
        if self.wish.start:
            await self.resolve(self.wish.start)
        after = self.beginning.after if self.beginning else self.outlet.position()
        return Position(self.fanout.incarnation, after)

    def scope(self) -> Scope:
        last = self.wish.start.count if isinstance(self.wish.start, Last) else 0
        return Scope(
            tenant=self.principal.tenant,
            incarnation=self.fanout.incarnation,
            patterns={
                pattern: deny for pattern, deny in self.wish.patterns.items() if not subjects.is_live(pattern)
            },
            head=self.outlet.position(),
            floor=self.floor(),
            held=self.held(last),
        )

    def floor(self) -> int:
        """The position below which the stream is read: where the ring begins, or P when that is lower."""
        return min(self.fanout.ring.floor_head, self.outlet.position())

    def held(self, count: int) -> list[int]:
        """The sequences of the newest `count` events for the wish in the ring, up to P."""
        found: list[int] = []
        limit = self.outlet.position()
        ring = self.fanout.ring
        for tick in reversed(ring.after(ring.floor)):
            if len(found) >= count:
                break
            mask = tick.share(self.floors()) & (1 << tick.before(limit)) - 1
            found = [tick.sequences[index] for index in indices(mask)] + found
        return found

    def floors(self) -> dict[Topic, int]:
        return {topic: 0 for topic in self.topics.values() if not topic.live}

    async def reach(self, position: int) -> None:
        """Waits until this broker has seen what another one has already shown the client."""
        with trio.move_on_after(REACH_SECONDS):
            while self.fanout.position() < position and self.outlet.fanout is self.fanout:
                await self.services.tenants.advanced.park()
            return
        raise Unavailable("this broker is behind the position; try again", retry_after=1.0)

    async def take_snapshot(self) -> Snapshot:
        """The newest event of each channel at P."""
        limits = self.services.config.limits
        most = limits.catch_ups_per_connection
        if sum(each.snapshot is not None for each in self.outlet.catch_ups) >= most:
            raise SnapshotTooLarge(f"{most} snapshots are under way on this connection; wait for one to end")
        tenant = self.services.tenants.get(self.principal.tenant)
        if tenant.fanout is not self.fanout:
            raise Unavailable("the tenant begins anew; subscribe again", retry_after=0.1)
        return await self.fanout.snapshots.take(self.floors(), self.scope, most=limits.snapshot_channels)

    # --- without an await from here on --------------------------------------------------------------

    def act(self) -> list[ServerMessage]:
        outlet, wish = self.outlet, self.wish
        outlet.settle()
        if wish.start or wish.durable is not None:
            for pattern in self.topics:
                outlet.leave(pattern)
        number: int | None = None
        for pattern, topic in self.topics.items():
            if topic.live and outlet.find(pattern) is None:
                outlet.join(topic, self.fanout.count)
                self.hold(topic)
        stored = {pattern: topic for pattern, topic in self.topics.items() if not topic.live}
        if stored and self.snapshot:
            number = self.begin_catch_up(stored, position=0)
            live = False
        elif stored and self.beginning:
            after = self.beginning.after
            if (outlet.stored or outlet.catch_ups) and after < outlet.position():
                number = self.begin_catch_up(stored, position=after)
                live = False
            else:
                live = self.begin_flow(stored, after)
        else:
            live = self.begin_now(stored)
        self.note_lag()
        lost = self.beginning.lost if self.beginning else ()
        reply = Subscribed(
            channel=list(self.topics),
            refused=wish.refused,
            position=self.fanout.text(outlet.position()),
            recovered=not lost,
            live=live,
            catch_up=UNSET if number is None else number,
        )
        return [reply, *(self.gap(list(stored), each, number) for each in lost)]

    def hold(self, topic: Topic) -> None:
        """The outlet keeps the topic from here on; `leave` and `detach` release it."""
        topic.uses += 1

    def begin_catch_up(self, stored: dict[str, Topic], *, position: int) -> int:
        self.outlet.numbers += 1
        number = self.outlet.numbers
        catch_up = CatchUp(
            number,
            position=position,
            told=self.outlet.position(),
            began=trio.current_time(),
            warned=self.beginning.warned if self.beginning else 0,
            snapshot=self.snapshot,
        )
        for topic in stored.values():
            self.hold(topic)
            catch_up.topics[topic] = 0
        catch_up.groups.append(Group(stored, listed=self.wish.listed, number=number))
        self.outlet.catch_ups.append(catch_up)
        return number

    def begin_flow(self, stored: dict[str, Topic], after: int) -> bool:
        """Joins the main flow after a position; sets P when there is no flow yet. Whether it is live."""
        outlet = self.outlet
        first = not outlet.stored
        for topic in stored.values():
            outlet.join(topic, after)
            self.hold(topic)
        if first and after < self.fanout.position():
            backlog = outlet.backlog or outlet.fall_behind(memoryview(b""))
            backlog.cursor, backlog.position, backlog.resuming = -1, after, True
            backlog.began = trio.current_time()
            backlog.warned = self.beginning.warned if self.beginning else 0
            self.fanout.strict.discard(outlet)
        return self.live_unless_resuming(stored)

    def begin_now(self, stored: dict[str, Topic]) -> bool:
        """Joins at P what is new; what stands already stays where it is."""
        outlet = self.outlet
        live = True
        joined: dict[str, Topic] = {}
        for pattern, topic in stored.items():
            running = [each for each in outlet.catch_ups if topic in each.topics]
            for catch_up in running:
                catch_up.groups.append(Group([pattern], listed=self.wish.listed, number=catch_up.number))
                live = False
            if not running:
                joined[pattern] = topic
                if topic not in outlet.stored:
                    outlet.join(topic, outlet.position())
                    self.hold(topic)
        return self.live_unless_resuming(joined) and live

    def live_unless_resuming(self, stored: dict[str, Topic]) -> bool:
        backlog = self.outlet.backlog
        if not stored or backlog is None or not backlog.resuming:
            return True
        backlog.waiting.append(Group(stored, listed=self.wish.listed))
        return False

    def note_lag(self) -> None:
        lag = self.wish.lag
        lags = {pattern: held for pattern, held in self.outlet.lags.items() if pattern not in self.topics}
        for pattern, topic in self.topics.items():
            if lag and lag != ("drop" if topic.live else "replay"):
                lags[pattern] = lag
        self.outlet.lags = lags or NO_LAGS
        self.outlet.watch()

    def gap(self, channels: list[str], lost: Lost, number: int | None) -> Gap:
        return Gap(
            channel=channels if self.wish.listed else named(channels),
            reason=lost.reason,
            start=UNSET if lost.start is None else self.fanout.text(lost.start),
            end=UNSET if lost.end is None else self.fanout.text(lost.end),
            count=UNSET if lost.count is None else lost.count,
            catch_up=UNSET if number is None else number,
        )
