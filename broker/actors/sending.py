"""The sending task of a connection, while there is something that its link did not take at once.

It sends the rest of a frame, then replies, then reads on: live events, stored ones from the ring or the
stream, and catch-ups in turn. It ends when the connection is up to date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import structlog
import trio
from msgspec import UNSET

from broker.actors.chunks import Chunk, Reading, from_pages
from broker.errors import Unavailable
from broker.metrics.meters import STREAM
from broker.wire.messages import Gap, Pong, SubscriptionLive, named

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from broker.actors.fanout import Fanout
    from broker.actors.outlet import Backlog, CatchUp, Group, Outlet
    from broker.actors.tenant import Tenant
    from broker.metrics.meters import Meters
    from broker.routing import Topic

RETRY_SECONDS = 0.1, 2.0  # between attempts to read the stream: at first, at most

log = structlog.get_logger()


@attrs.define(eq=False)
class Sending:
    """Sends what waits in an outlet; `progressed` is called whenever the link has taken something."""

    send_some: Callable[[memoryview], Awaitable[int]]
    outlet: Outlet
    tenant: Callable[[], Tenant | None]
    catch_ups_at_once: int
    progressed: Callable[[], None]
    meters: Meters
    pause: float = RETRY_SECONDS[0]

    async def run(self) -> None:
        outlet = self.outlet
        while True:
            backlog = outlet.backlog
            if backlog and backlog.left:
                sent = await self.send_some(backlog.left)
                backlog.left = backlog.left[sent:]
                self.progressed()
            elif backlog and backlog.replies:
                backlog.left = memoryview(b"".join(backlog.replies))
                backlog.replies.clear()
            elif backlog:
                await self.read_on(backlog)
                if outlet.catch_ups and not backlog.left:
                    await self.catch_up()
                self.progressed()  # until now nothing was left: the client waited for us
                await trio.lowlevel.checkpoint()
            elif outlet.catch_ups:
                await self.catch_up()
                self.progressed()
                await trio.lowlevel.checkpoint()
            else:
                return

    # --- the main flow -----------------------------------------------------------------------------

    async def read_on(self, backlog: Backlog) -> None:
        """Sends the next chunk of the main flow, or finds that there is none."""
        outlet = self.outlet
        self.tell_lost_live(backlog)
        if backlog.left:
            return  # the link is full: what follows would take the place of what was told
        if chunk := outlet.next_live(backlog):
            self.tell_passed(chunk, outlet.live)
            outlet.give(chunk, backlog, live=True)
            if backlog.left:
                return
        chunk = outlet.next_stored(backlog)
        if chunk is None and outlet.fanout:
            chunk = await self.stored_from_stream(backlog, outlet.fanout)
        if chunk is None:
            return
        self.tell_gone(backlog, chunk, outlet.stored)
        if backlog.left:
            return  # likewise; it is read again
        self.tell_passed(chunk, outlet.stored, start=backlog.position)
        outlet.give(chunk, backlog)
        groups = outlet.rejoin()
        if backlog.resuming and outlet.backlog is None:
            self.replayed(backlog)
        for group in groups:
            self.announce(group)

    def replayed(self, reader: Backlog | CatchUp) -> None:
        """A resume or a catch-up has come to its end."""
        self.meters.replays[reader.source].observe(trio.current_time() - reader.began)

    def tell_lost_live(self, backlog: Backlog) -> None:
        """Live events are kept nowhere but in the ring: those that have left it are gone."""
        outlet = self.outlet
        if outlet.live and outlet.fanout and backlog.live_cursor < outlet.fanout.ring.floor:
            backlog.live_cursor = outlet.fanout.ring.floor
            channel = named(topic.pattern for topic in outlet.live)
            outlet.client.tell(Gap(channel=channel, reason="lag"))

    def tell_passed(self, chunk: Chunk, topics: Mapping[Topic, int], *, start: int | None = None) -> None:
        """Says what a chunk leaves out, ahead of it. It moves no position: what follows does."""
        outlet = self.outlet
        if chunk.passed and outlet.fanout:
            thinned = [topic.pattern for topic in topics if topic.live or topic.pattern in outlet.lags]
            outlet.client.tell(
                Gap(
                    channel=named(thinned),
                    reason="lag",
                    start=UNSET if start is None else outlet.fanout.text(start),
                    count=len(chunk.passed),
                )
            )

    def tell_gone(
        self,
        reader: Backlog | CatchUp,
        chunk: Chunk,
        topics: Mapping[Topic, int],
        *,
        number: int | None = None,
    ) -> None:
        """Says ahead of a chunk that events among its own were deleted. That moves no position either."""
        outlet, tenant = self.outlet, self.tenant()
        after = max(reader.position, reader.warned)
        if tenant is None or outlet.fanout is None or after >= chunk.position:
            return

        def admits(channel: str) -> bool:
            return any(topic.admits(channel) for topic in topics)

        if topics and tenant.intake.gone.between(tenant.name, after, chunk.position, admits):
            reader.warned = chunk.position
            outlet.client.tell(
                Gap(
                    channel=named(topic.pattern for topic in topics),
                    reason="trimmed",
                    start=outlet.fanout.text(reader.position),
                    catch_up=UNSET if number is None else number,
                )
            )

    async def stored_from_stream(self, backlog: Backlog, fanout: Fanout) -> Chunk | None:
        """The next chunk from the stream; None when things have changed meanwhile: look again."""
        outlet = self.outlet
        version, after = outlet.version, backlog.position
        found = await self.from_stream(fanout, outlet.reading(outlet.stored), after=after)
        if found is None or outlet.fanout is not fanout or outlet.version != version:
            return None
        if backlog.left or backlog.replies or backlog.position != after:
            return None
        chunk, trimmed = found
        backlog.source = STREAM
        if trimmed > after:
            start, backlog.position = fanout.text(after), trimmed
            channel = named(topic.pattern for topic in outlet.stored)
            outlet.client.tell(Gap(channel=channel, reason="trimmed", start=start, end=fanout.text(trimmed)))
            return None
        return chunk

    def announce(self, group: Group) -> None:
        fanout = self.outlet.fanout
        if group.patterns and fanout:
            self.outlet.client.tell(
                SubscriptionLive(
                    channel=group.channel(),
                    position=fanout.text(self.outlet.position()),
                    catch_up=UNSET if group.number is None else group.number,
                )
            )

    # --- catch-ups ---------------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Sends the next chunk of one catch-up, or ends it; they take turns, a few at a time."""
        outlet = self.outlet
        current = outlet.catch_ups[0]
        if not current.snapshot and current.position > outlet.position():
            outlet.catch_ups.append(outlet.catch_ups.pop(0))  # a later start has set P back: it comes first
            return
        chunk = await self.next_of(current)
        if chunk is None or current not in outlet.catch_ups:
            return
        if outlet.backlog and (outlet.backlog.left or outlet.backlog.replies):
            return
        outlet.settle()
        if not current.snapshot:
            self.tell_gone(current, chunk, current.topics, number=current.number)
        self.tell_position(current, chunk)
        if outlet.backlog and outlet.backlog.left:
            return  # what had to come first filled the link
        left = outlet.hand_over(chunk)
        current.move(chunk.position)
        if left and outlet.backlog:
            outlet.backlog.left = left
        elif left:
            outlet.fall_behind(left)
        if not current.snapshot and current.position == outlet.position():
            self.finish(current)
        elif len(outlet.catch_ups) > 1:
            last = min(self.catch_ups_at_once, len(outlet.catch_ups)) - 1
            outlet.catch_ups.insert(last, outlet.catch_ups.pop(0))

    def tell_position(self, current: CatchUp, chunk: Chunk) -> None:
        """P advances unseen while the live channels are quiet; marked events never pass the P that was told.

        Otherwise a client that is cut off now would resume before them, and get them twice.
        """
        outlet = self.outlet
        if outlet.fanout and chunk.positions and chunk.positions[-1] > current.told:
            current.told = outlet.position()
            outlet.client.tell(Pong(position=outlet.fanout.text(current.told)))

    async def next_of(self, current: CatchUp) -> Chunk | None:
        outlet = self.outlet
        if current.snapshot:
            return outlet.next_of_snapshot(current, current.snapshot)
        chunk, fanout = outlet.next_of(current), outlet.fanout
        if chunk or fanout is None:
            return chunk
        after, topics = current.position, dict(current.topics)
        found = await self.from_stream(fanout, Reading(every=topics, latest={}, few={}), after=after)
        if found is None or outlet.fanout is not fanout or current.topics.keys() != topics.keys():
            return None
        if current.position > outlet.position():
            return None
        chunk, trimmed = found
        current.source = STREAM
        if trimmed > after:
            current.move(trimmed)
            channel = named(topic.pattern for topic in topics)
            outlet.client.tell(
                Gap(
                    channel=channel,
                    reason="trimmed",
                    start=fanout.text(after),
                    end=fanout.text(trimmed),
                    catch_up=current.number,
                )
            )
            return None
        chunk.limit(outlet.position())
        return current.choose(chunk)

    def finish(self, current: CatchUp) -> None:
        """A catch-up has come to P: its topics join the live flow."""
        outlet = self.outlet
        outlet.settle()
        self.replayed(current)
        outlet.catch_ups.remove(current)
        for topic in current.topics:
            outlet.join(topic, current.position)
        for group in current.groups:
            self.announce(group)

    # --- the stream --------------------------------------------------------------------------------

    async def from_stream(self, fanout: Fanout, reading: Reading, *, after: int) -> tuple[Chunk, int] | None:
        """What comes next in the stream below the ring, and up to where the stream was cut off.

        None after a while when the stream cannot be read.
        """
        patterns = [topic.pattern for topic in (*reading.every, *reading.latest)]
        if not patterns:
            return None
        try:
            span = await fanout.history.span(patterns, after=after, below=fanout.ring.floor_head)
        except Unavailable as error:
            if self.outlet.fanout is fanout:  # else the connection may have ended meanwhile
                log.debug("history_unavailable", error=error.message, **self.outlet.client.who())
            await trio.sleep(self.pause)
            self.pause = min(self.pause * 2, RETRY_SECONDS[1])
            return None
        self.pause = RETRY_SECONDS[0]
        return from_pages(span.ticks, reading, after=after, upto=span.upto), span.trimmed
