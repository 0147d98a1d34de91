"""A keyed stream in memory, late and failing as the scripted bus that it belongs to.

`tests/contract` holds it to what it stands for.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import attrs
import trio

from broker.bus.base import Count, OutcomeUnknown, Stale, StreamState
from broker.errors import Unavailable
from broker.nats import link

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from broker.bus.base import AnyPut, Feed, KeyedPut, Record
    from broker.errors import BrokerError
    from tests.support.scripted_bus import ScriptedBus


@attrs.define(eq=False)
class ScriptedKeyed:
    """`log` is all that was ever stored, of which the newest of each subject is still there.

    Loads are answered by a replica that may lack the newest records, but none up to the asked sequence.
    """

    bus: ScriptedBus
    incarnation: str = "key0"
    log: list[Record] = attrs.Factory(list)
    rows: dict[str, Record] = attrs.Factory(dict)  # by subject
    last: int = 0
    sent: int = 0  # how far the feed has come
    fed: str | None = None  # the incarnation that the feed knows
    forgotten: int = 0  # up to here deletions cannot be seen any more
    up: bool = False
    feed: Feed | None = None
    arrived: trio.Event = attrs.Factory(trio.Event)
    slowest: float = 0.02  # for the feed, in seconds
    ends: dict[str, float] = attrs.Factory(dict)  # when the message of a subject vanishes

    # --- what happens to NATS

    def store(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        self.last += 1
        record = (self.last, subject, body, headers or None)
        self.ends.pop(subject, None)
        if life := (headers or {}).get("Nats-TTL"):
            self.ends[subject] = trio.current_time() + float(life.removesuffix("s"))
        self.log.append(record)
        self.rows[subject] = record
        self.wake()
        return self.last

    def expire(self) -> None:
        """What has lived long enough vanishes; of what was no marker a marker is left."""
        for subject, end in list(self.ends.items()):
            if end <= trio.current_time():
                del self.ends[subject]
                if self.rows[subject][2]:
                    self.store(subject, b"", {"Nats-Marker-Reason": "MaxAge"})
                else:
                    self.forgotten = max(self.forgotten, self.rows.pop(subject)[0])

    def forget(self) -> None:
        """The deletions of up to now expire, but for those that are just being delivered."""
        self.forgotten = self.sent if self.up else self.last
        self.rows = {
            subject: each for subject, each in self.rows.items() if each[2] or each[0] > self.forgotten
        }

    def purge(self, filter_: str) -> None:
        """Take keys out of the stream without a word."""
        self.rows = {subject: each for subject, each in self.rows.items() if not matches(filter_, subject)}
        self.log = [each for each in self.log if not matches(filter_, each[1])]

    def interrupted(self) -> None:
        if self.up and self.feed:
            self.up = False
            self.feed.interrupted()
        self.wake()

    def interrupt(self) -> None:
        """The feed begins again, for a reason of its own."""
        self.interrupted()

    def remake(self) -> None:
        """The stream is deleted, and made anew."""
        self.interrupted()
        self.incarnation = f"key{int(self.incarnation.removeprefix('key')) + 1}"
        self.last = self.sent = self.forgotten = 0
        self.log, self.rows, self.ends = [], {}, {}

    def wake(self) -> None:
        self.arrived.set()
        self.arrived = trio.Event()

    # --- the feed

    async def run(self, feed: Feed) -> None:
        self.feed = feed
        try:
            await self.feed_on(feed)
        finally:
            self.up = False

    async def feed_on(self, feed: Feed) -> None:
        while True:
            if self.bus.away or not self.bus.up:
                await trio.sleep(self.bus.random.uniform(0, 0.05))
                continue
            if not self.up:
                self.begin(feed)
            arrived = self.arrived
            await trio.sleep(self.bus.random.uniform(0, self.slowest))
            while self.up and (batch := self.unsent()):
                self.sent = batch[-1][0]
                feed.stored(batch, self.sent, [0] * len(batch))
                await trio.lowlevel.checkpoint()
            if self.up:
                with trio.move_on_at(min(self.ends.values(), default=inf)):
                    await arrived.wait()
                self.expire()

    def begin(self, feed: Feed) -> None:
        self.up = True
        feed.restored(self.state())
        if self.fed is None:
            self.sent = self.last
        if self.fed != self.incarnation:
            self.fed = self.incarnation
            feed.stored([], self.sent, ())

    def unsent(self) -> list[Record]:
        found = sorted(each for each in self.rows.values() if each[0] > self.sent)
        return found[: self.bus.random.randint(1, 40)]

    def state(self) -> StreamState:
        first = min((each[0] for each in self.rows.values()), default=self.last + 1)
        return StreamState(incarnation=self.incarnation, first=first, last=self.last, per_subject=1)

    # --- requests

    async def load(
        self, filters: Sequence[str], *, at_least: int, take: Callable[[list[Record]], None]
    ) -> str:
        await self.bus.delay()
        if self.last < at_least:
            raise link.away("scripted: the stream ends before that")
        upto = self.bus.random.randint(at_least, self.last)
        found: dict[str, Record] = {}
        for record in self.log:
            if record[0] <= upto and any(matches(each, record[1]) for each in filters):
                found[record[1]] = record
        rows = [each for each in found.values() if each[2] or each[0] > self.forgotten]
        incarnation = self.incarnation
        rows.sort(key=lambda each: each[1])  # pages have no order
        while rows:
            page, rows = rows[: (size := self.bus.random.randint(1, 400))], rows[size:]
            take(sorted(page, key=lambda each: each[0]))
            await self.bus.delay()
        return incarnation

    async def get(self, subject: str) -> Record | None:
        await self.bus.delay()
        return self.rows.get(subject)

    async def put(self, subject: str, body: bytes, *, headers: Mapping[str, str], revision: int) -> int:
        [sequence] = await self.put_all([(subject, body, headers, revision)])
        return sequence

    async def put_each(self, puts: Sequence[AnyPut]) -> list[int | Stale | BrokerError]:
        for subject, body, headers, _ in puts:
            self.bus.check(subject, body, headers)
        await self.bus.delay()
        found: list[int | Stale | BrokerError] = []
        for subject, body, headers, revision in puts:
            there = self.rows.get(subject)
            if revision is not None and (there[0] if there else 0) != revision:
                found.append(Stale())
            else:
                found.append(self.store(subject, body, headers))
        try:
            self.bus.acknowledge()
        except Unavailable as error:
            raise OutcomeUnknown("scripted") from error
        return found

    async def put_all(self, puts: Sequence[KeyedPut]) -> list[int]:
        for subject, body, headers, _ in puts:
            self.bus.check(subject, body, headers)
        await self.bus.delay()
        for subject, _, _, revision in puts:
            there = self.rows.get(subject)
            if (there[0] if there else 0) != revision:
                raise Stale
        found = [self.store(subject, body, headers) for subject, body, headers, _ in puts]
        try:
            self.bus.acknowledge()
        except Unavailable as error:
            raise OutcomeUnknown("scripted") from error
        return found

    async def count(self) -> Count:
        await self.bus.delay()
        return Count(incarnation=self.incarnation, last=self.last, messages=len(self.rows))

    async def keys(self, filter_: str, *, at_least: int) -> list[str]:
        await self.bus.delay()
        if self.last < at_least:
            raise link.away("scripted: the stream ends before that")
        return [each for each in self.rows if matches(filter_, each)]

    async def remembers(self, sequence: int) -> bool:
        await self.bus.delay()
        return sequence >= self.forgotten


def matches(filter_: str, subject: str) -> bool:
    """NATS's own rule, which knows no walls."""
    wanted, tokens = filter_.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or token not in ("*", tokens[index]):
            return False
    return len(wanted) == len(tokens)
