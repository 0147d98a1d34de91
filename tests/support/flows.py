"""Flows without I/O: a link is a number of bytes that it takes, and time stands still."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker import config, subjects
from broker.eventlog.log import EventLog
from broker.eventlog.places import at
from broker.flow.flow import Flow, Start
from broker.flow.sending import Sending
from broker.metrics.meters import Meters
from broker.ranges import NOTHING
from broker.wire import codec, frames
from broker.wire.messages import Pong, ServerMessage
from tests.support.scripted import parse_frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.eventlog.history import Checked
    from broker.eventlog.selection import Selection
    from broker.eventlog.snapshots import Snapshot
    from broker.eventlog.tick import Tick
    from broker.filters import Filter
    from broker.flow.client import Notice, Who
    from broker.flow.reader import Reader
    from broker.ranges import Ranges
    from broker.wire.frames import Framing
    from broker.wire.messages import Lag

ENDLESS = 10**9


@attrs.define(eq=False)
class Feed:
    quiet: int | None = None
    gone: Ranges = NOTHING

    def quiet_at(self) -> int | None:
        return self.quiet

    def deleted(self, after: int, upto: int, admits: Callable[[str], bool]) -> bool:
        return any(self.gone.within(after + 1, upto)) and admits("a")


@attrs.define(eq=False)
class Link:
    """A client that takes `room` more bytes, and its flow's `Client`. `whole`: nothing at once, as TLS."""

    room: int = ENDLESS
    whole: bool = False
    lost: bool = False
    user: str = "u"
    framing: Framing | None = None
    taken: bytearray = attrs.Factory(bytearray)
    calls: Counter[str] = attrs.Factory(Counter)
    flow: Flow = attrs.field(init=False)
    sending: Sending = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.flow = Flow(send=self.send, client=self, whole=self.whole, framing=self.framing)
        self.sending = Sending(
            send_some=self.send_some,
            flow=self.flow,
            catch_ups_at_once=2,
            progressed=lambda: None,
            meters=Meters(),
            spawn=lambda work: self.spawn(work),
            clock=lambda: 0.0,
        )

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        trio.lowlevel.spawn_system_task(work)

    def send(self, data: bytes | memoryview) -> int:
        if self.lost:
            raise BrokenPipeError
        if self.whole:
            return 0
        if not (taken := self.take(data)) and data:
            raise BlockingIOError
        return taken

    async def send_some(self, data: bytes | memoryview) -> int:
        return self.take(data)

    def take(self, data: bytes | memoryview) -> int:
        taken = min(self.room, len(data))
        self.room -= taken
        self.taken += data[:taken]
        return taken

    def who(self) -> Who:
        return {"connection": "c", "peer": "", "tenant": "t", "user": self.user}

    def held_up(self) -> None:
        self.fell_behind()

    def fell_behind(self) -> None:
        self.calls["fell_behind"] += 1
        self.sending.woken.set()

    def link_lost(self) -> None:
        self.calls["link_lost"] += 1

    def crashed(self, error: Exception) -> None:
        raise error

    def heed_notice(self, notice: Notice) -> None:
        self.calls["heed_notice"] += 1

    def too_slow(self) -> None:
        self.calls["too_slow"] += 1

    def send_away(self) -> None:
        self.calls["send_away"] += 1

    def encode(self, message: ServerMessage) -> bytes:
        return frames.text(codec.encode(message))

    def tell(self, message: ServerMessage) -> None:
        self.flow.push(self.encode(message))

    def ping(self) -> None:
        """Tell P."""
        assert self.flow.log
        self.tell(Pong(position=self.flow.log.text(self.flow.position())))

    def write(self, *, pages: int = ENDLESS) -> None:
        """Do what the sending task does while the ring has all: send what waits, as far as it is taken."""
        flow = self.flow
        while pages and (flow.rest or (flow.log and (flow.main or flow.beside))):
            if flow.rest:
                sent = self.take(flow.rest[0])
                flow.took(sent)
                if not sent:
                    return
            elif flow.log:
                assert self.sending.read_on(flow.log) is None, "below the ring"
                pages -= 1

    def messages(self) -> list[dict[str, Any]]:
        """Return the whole messages so far."""
        data, found = bytearray(self.taken), []
        while (frame := parse_frame(data)) is not None:
            found.append(json.loads(frame[1]))
        return found

    def events(self) -> list[Any]:
        return [each["payload"]["event"] for each in self.messages() if each["type"] == "event"]


@attrs.define(eq=False)
class Bench:
    """One tenant's log. Each event's body is its number: its sequence, or -n for the nth unstored one."""

    bounds: config.Ring = attrs.Factory(config.Ring)
    feed: Feed = attrs.Factory(Feed)
    sequence: int = 0
    unstored: int = 0
    now: float = 0.0
    log: EventLog = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.log = self.make(position=0)

    def make(self, *, position: int, incarnation: str = "inc") -> EventLog:
        return EventLog(
            bounds=self.bounds,
            incarnation=incarnation,
            position=position,
            clock=lambda: self.now,
            feed=self.feed,
        )

    def attach(self, **how: Any) -> Link:
        link = Link(**how)
        link.flow.attach(self.log)
        return link

    def join(
        self,
        link: Link,
        pattern: str,
        *,
        deny: tuple[str, ...] = (),
        wanted: Filter | None = None,
        policy: Lag | None = None,
        start: Start | None = None,
        every_ms: int | None = None,
    ) -> Selection:
        """Subscribe: from now on, or from a start on."""
        selection = self.log.acquire(pattern, deny, wanted)
        link.flow.subscribe(
            [selection],
            start=start,
            again=start is not None,
            policy=policy,
            listed=False,
            now=0.0,
            every_ms=every_ms,
        )
        self.log.release(selection)
        return selection

    def catch_up(self, link: Link, pattern: str, *, after: int, snapshot: Snapshot | None = None) -> Reader:
        """Subscribe to a start in the past beside the flow."""
        before = link.flow.beside
        if not (link.flow.stored or before):
            self.join(link, "nothing")
        self.join(link, pattern, start=Start(place=at(after), snapshot=snapshot))
        (reader,) = (each for each in link.flow.beside if each not in before)
        return reader

    def records(self, *channels: str, size: int = 0) -> list[Checked]:
        found: list[Checked] = []
        for channel in channels:
            if subjects.is_live(channel):
                self.unstored += 1
                body, sequence = -self.unstored, 0
            else:
                self.sequence += 1
                body = sequence = self.sequence
            found.append((channel, (sequence, channel, b"%d" % body + b" " * size, None)))
        return found

    def publish(self, *channels: str, size: int = 0, between: Callable[[], None] = lambda: None) -> Tick:
        """Send one tick as the tenant does; `between` is called where that may yield."""
        tick = self.log.append(self.records(*channels, size=size))
        for data, mask, flows in self.log.shares(tick):
            for flow in flows:
                if flow.mask and flow.main is None:
                    flow.mask = 0
                    sent = flow.try_send(data)
                    if sent < len(data):
                        flow.short(tick, mask, data, sent)
                else:
                    flow.mask = 0
                between()
        self.log.finish()
        self.give_due()
        return tick

    def give_due(self) -> None:
        """Write what is due in lanes, as the tenant does."""
        for flow, due in self.log.lanes.due().items():
            flow.give_due(due)

    def go(self, seconds: float) -> None:
        """Let time pass, and write what becomes due."""
        until = self.now + seconds
        while (due := self.log.lanes.next()) <= until:
            self.now = max(self.now, due)
            self.give_due()
        self.now = until
