"""Presence in memory: one stream that several brokers share, brokers that may be killed, and clients."""

from __future__ import annotations

import json
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker import config
from broker.bus.base import OutcomeUnknown, Stale, StreamState
from broker.errors import BrokerError, Unavailable
from broker.features.presence.feature import Presence
from broker.features.presence.wishes import Enter, Update, Watching
from broker.permissions import Principal
from broker.subjects import Names
from tests.support.scripted_keyed import matches

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from broker.bus.base import AnyPut, Feed, Record
    from broker.wire import messages as m
    from broker.wire.positions import Position

TENANT = "acme"
ROOM = "orders.7"


@attrs.define(eq=False)
class Stream:
    """What NATS keeps in memory: `rows` are the newest messages of each subject, `ends` when they vanish."""

    random: random.Random
    epoch: int = 0
    last: int = 0
    rows: dict[str, Record] = attrs.Factory(dict)
    ends: dict[str, float] = attrs.Factory(dict)
    down: bool = False
    news: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)

    def store(self, subject: str, body: bytes, headers: Mapping[str, str]) -> int:
        self.last += 1
        self.rows[subject] = (self.last, subject, body, headers)
        self.ends.pop(subject, None)
        if life := headers.get("Nats-TTL"):
            self.ends[subject] = trio.current_time() + float(life.removesuffix("s"))
        self.news.unpark_all()
        return self.last

    def lose(self) -> None:
        """Its servers restart."""
        self.epoch, self.last, self.rows, self.ends = self.epoch + 1, 0, {}, {}
        self.news.unpark_all()

    async def age(self) -> None:
        while True:
            await trio.sleep(0.25)
            for subject, end in list(self.ends.items()):
                if end <= trio.current_time() and not self.down:
                    del self.ends[subject]
                    if self.rows[subject][2]:
                        self.store(subject, b"", {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": "60s"})
                    else:
                        del self.rows[subject]


@attrs.define(eq=False)
class Access:
    """`bus.base.Keyed` of one broker. While it is `cut` nothing passes, either way."""

    stream: Stream
    cut: bool = False
    frozen: bool = False  # the process stands still
    up: bool = False
    known: int | None = None
    sent: int = 0

    @property
    def reaches(self) -> bool:
        return not (self.cut or self.stream.down)

    async def pause(self) -> None:
        await trio.sleep(self.stream.random.uniform(0, 0.05))
        while self.frozen:
            await trio.sleep(0.1)

    async def run(self, feed: Feed) -> None:
        stream = self.stream
        while True:
            await self.pause()
            if not self.reaches:
                if self.up:
                    self.up = False
                    feed.interrupted()
                await trio.sleep(0.1)
                continue
            if not self.up or self.known != stream.epoch:
                if self.up:
                    feed.interrupted()
                self.up = True
                feed.restored(
                    StreamState(incarnation=f"e{stream.epoch}", first=1, last=stream.last, per_subject=1)
                )
                if self.known != stream.epoch:
                    self.sent = stream.last if self.known is None else 0
                    self.known = stream.epoch
                    feed.stored([], self.sent, ())
            batch = sorted(each for each in stream.rows.values() if each[0] > self.sent)[:50]
            if batch:
                self.sent = batch[-1][0]
                feed.stored(batch, self.sent, [0] * len(batch))
            else:
                with trio.move_on_after(1.0):
                    await stream.news.park()

    async def load(
        self, filters: Sequence[str], *, at_least: int, take: Callable[[list[Record]], None]
    ) -> str:
        await self.pause()
        self.check()
        if self.stream.last < at_least:
            raise Unavailable("scripted: another stream")
        found = [each for each in self.stream.rows.values() if any(matches(f, each[1]) for f in filters)]
        epoch = f"e{self.stream.epoch}"
        await self.pause()
        take(sorted(found))
        return epoch

    async def get(self, subject: str) -> Record | None:
        await self.pause()
        self.check()
        return self.stream.rows.get(subject)

    async def put_each(self, puts: Sequence[AnyPut]) -> list[int | Stale | BrokerError]:
        self.check()
        await self.pause()
        if not self.reaches:
            if self.stream.random.random() < 0.5:
                self.store(puts)
            raise OutcomeUnknown("scripted")
        found = self.store(puts)
        await self.pause()
        if not self.reaches:
            raise OutcomeUnknown("scripted")
        return found

    def store(self, puts: Sequence[AnyPut]) -> list[int | Stale | BrokerError]:
        found: list[int | Stale | BrokerError] = []
        for subject, body, headers, revision in puts:
            there = self.stream.rows.get(subject)
            if revision is not None and (there[0] if there else 0) != revision:
                found.append(Stale())
            else:
                found.append(self.stream.store(subject, body, headers))
        return found

    def check(self) -> None:
        if not self.reaches:
            raise Unavailable("scripted")

    async def remembers(self, sequence: int) -> bool:
        await self.pause()
        return False


@attrs.define(eq=False)
class Broker:
    stream: Stream
    linger: float
    name: str
    access: Access = attrs.field(init=False)
    presence: Presence = attrs.field(init=False)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    alive: bool = True
    bad: float | None = None  # since when it does not reach NATS, or stands still
    connections: dict[Connection, None] = attrs.Factory(dict)

    def __attrs_post_init__(self) -> None:
        self.access = Access(self.stream)
        keyed: Any = self.access
        limits = config.Limits(presence_linger_seconds=self.linger)
        self.presence = Presence(keyed, Names(), self.name, limits)

    async def run(self) -> None:
        with self.scope:
            await self.presence.run()

    def kill(self) -> None:
        self.alive = False
        self.scope.cancel()
        for each in list(self.connections):
            each.lose()

    async def drain(self) -> None:
        """Ends in order."""
        self.alive = False
        for each in list(self.connections):
            each.end(1012, by="broker")
        with trio.move_on_after(5):
            await self.presence.flush()
        self.scope.cancel()


numbers = count()


class Flow:
    rest = None
    framing = None

    def __init__(self, take: Any) -> None:
        self.take = take
        self.client = self

    def push(self, data: bytes) -> None:
        while data:
            size, head = data[1], 2
            if size == 126:
                size, head = int.from_bytes(data[2:4]), 4
            elif size == 127:
                size, head = int.from_bytes(data[2:10]), 10
            self.take(json.loads(data[head : head + size]))
            data = data[head + size :]

    def crashed(self, error: Exception) -> None:
        raise error


class Connection:
    """A connection of a client to a broker, as the feature sees it, and what it shows."""

    closing = False
    close_code = 1006
    ended_by = "link"

    def __init__(self, broker: Broker, user: str, left: Any = None) -> None:
        self.broker = broker
        self.id = f"c{next(numbers)}"
        self.left = left
        self.principal = Principal(
            tenant=TENANT,
            user=user,
            encoded_user=user,
            expires_at=inf,
            life=inf,
            subscribe=(">",),
            publish=(),
        )
        self.flow = Flow(self.take)
        self.members: dict[tuple[str, str], dict[str, Any]] = {}
        self.position: str | None = None
        self.departures: list[tuple[float, tuple[str, str]]] = []
        self.counts = (0, 0)
        self.began = trio.current_time()
        self.ended = inf
        self.open = False  # a whole set is under way
        broker.connections[self] = None

    # --- Caller

    @property
    def session(self) -> Connection:
        return self

    def client(self) -> Principal:
        return self.principal

    def attach(self) -> Principal:
        return self.principal

    def tell(self, message: m.ServerMessage, message_id: str | None = None) -> None:
        if message.type == "presence.left" and self.left is not None:
            self.left()

    # --- what a client does

    async def enter(self, session: str, state: Any, *, away: bool = False) -> None:
        wish = Enter(channel=ROOM, session=session, state=json.dumps(state).encode(), away=away)
        await self.broker.presence.enter(self, wish, None)  # type: ignore[arg-type]

    async def update(self, state: Any) -> None:
        wish = Update(channel=ROOM, state=json.dumps(state).encode(), away=False, seconds=None)
        await self.broker.presence.update(self, wish, None)  # type: ignore[arg-type]

    async def leave(self) -> None:
        await self.broker.presence.leave(self, ROOM, None)  # type: ignore[arg-type]

    async def watch(self, position: Position | None, held: dict[tuple[str, str], dict[str, Any]]) -> None:
        self.members = dict(held)
        wish = Watching(channel=ROOM, position=position)
        await self.broker.presence.watch(self, wish, None)  # type: ignore[arg-type]

    def take(self, message: dict[str, Any]) -> None:
        assert message["type"] == "presence"
        frame = message["payload"]
        before = set(self.members)
        if frame.get("whole") and not self.open:
            self.members = {}
        for each in frame["set"]:
            self.members[each["user"], each["session"]] = each
        for each in frame["gone"]:
            self.members.pop((each["user"], each["session"]), None)
        self.open = bool(frame.get("whole")) and not frame.get("complete")
        self.position, self.counts = frame["position"], (frame["users"], frame["sessions"])
        if not self.open:
            for key in before - set(self.members):
                self.departures.append((trio.current_time(), key))

    def lose(self) -> None:
        """Its broker is no more."""
        self.closing, self.ended = True, trio.current_time()
        self.broker.connections.pop(self, None)

    def end(self, code: int = 1006, by: str = "link") -> None:
        if not self.closing:
            self.closing, self.close_code, self.ended_by = True, code, by
            self.ended = trio.current_time()
            self.broker.presence.detach(self)  # type: ignore[arg-type]
            self.broker.connections.pop(self, None)
