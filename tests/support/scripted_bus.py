"""A bus in memory that is late and fails, for tests under the fake clock, where no real I/O is possible."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING

import attrs
import trio

from broker.bus.base import Mark, Page, PublishAck, Stale, StreamState, Usage, Value
from broker.errors import Unavailable
from broker.ranges import Ranges

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from broker.bus.base import Archive, Message, Put, Record, Sink, Standing

CANARIES = "_broker.canary."


@attrs.define(eq=False, kw_only=True)
class ScriptedBus:
    """A stream in memory. Everything takes a random time, and reads fail at a random rate.

    Each read is answered by a replica that may be up to `late` seconds behind what `run` has delivered, and
    behind what was deleted.
    """

    random: random.Random
    failures: float = 0.0  # how often a request is `Unavailable`
    crashes: float = 0.0  # how often one breaks in a way that nobody expects, under a connection
    late: float = 0.0
    stalls: float = 0.0  # how often the feed comes to rest with something in hand
    incarnation: str = "inc0"
    records: list[Record] = attrs.Factory(list)
    delivered: list[tuple[float, int]] = attrs.Factory(list)  # when, up to which sequence
    last_sequence: int = 0
    first: int = 1
    per_subject: int = 0  # so many messages of each subject are kept; it does not do that itself
    sent: int = 0  # how far `run` has come
    deleted: dict[int, tuple[float, Record]] = attrs.Factory(dict)  # by sequence: when, and what it was
    sink: Sink | None = None
    arrived: trio.Event = attrs.Factory(trio.Event)
    reads: int = 0
    sings: bool = True  # whether canaries come back
    silent: float = 0.0  # for how many seconds the feed has given no sign
    noted: list[Message] = attrs.Factory(list)  # of the audit trail
    cursors: ScriptedValues = attrs.field(init=False)
    control: ScriptedValues = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.cursors, self.control = ScriptedValues(self.delay), ScriptedValues(self.delay)

    def put(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        self.last_sequence += 1
        self.records.append((self.last_sequence, subject, body, headers))
        self.arrived.set()
        return self.last_sequence

    def put_live(self, subject: str, body: bytes) -> None:
        assert self.sink
        self.sink.live([(0, subject, body, None)])

    async def run(self, sink: Sink, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.sink = sink
        sink.restored(self.now())
        self.sent = self.last_sequence
        self.delivered.append((-math.inf, self.sent))
        sink.stored([], self.sent, None)
        task_status.started()
        while True:
            await self.arrived.wait()
            self.arrived = trio.Event()
            await trio.sleep(self.random.uniform(0, 0.02))
            while batch := self.unsent()[: self.random.randint(1, 40)]:
                stepped, generation = batch[-1][0] - self.sent > len(batch), self.incarnation
                if self.random.random() < self.stalls:  # what is under way may be deleted meanwhile
                    await trio.sleep(self.random.uniform(0, 3))
                    if generation != self.incarnation:
                        continue
                self.sent = batch[-1][0]
                self.delivered.append((trio.current_time(), self.sent))
                if stepped:
                    sink.skipped(self.now())
                sink.stored(batch, self.sent, time.time())
                await trio.lowlevel.checkpoint()

    def now(self) -> StreamState:
        """The stream as its leader knows it."""
        gone = sorted(sequence for sequence in self.deleted if sequence >= self.first)
        return StreamState(
            incarnation=self.incarnation,
            first=self.first,
            last=self.last_sequence,
            deleted=Ranges.of(gone),
            per_subject=self.per_subject,
        )

    def unsent(self) -> list[Record]:
        return self.records[bisect_right(self.records, self.sent, key=itemgetter(0)) :]

    def delete(self, sequences: Collection[int]) -> None:
        """Takes messages out. Where they were the first ones the stream begins later."""
        for record in self.records:
            if record[0] in sequences:
                self.deleted[record[0]] = trio.current_time(), record
        self.records = [record for record in self.records if record[0] not in self.deleted]
        self.first = self.records[0][0] if self.records else self.last_sequence + 1

    def lose_end(self, count: int) -> None:
        """The store comes back without its newest `count` sequences, in another generation."""
        assert self.sink
        self.sink.interrupted()
        self.last_sequence = max(self.first - 1, self.last_sequence - count)
        self.records = [record for record in self.records if record[0] <= self.last_sequence]
        self.deleted = {each: told for each, told in self.deleted.items() if each <= self.last_sequence}
        self.incarnation = f"inc{int(self.incarnation.removeprefix('inc')) + 1}"
        self.sent = self.first - 1
        self.delivered = [(-math.inf, self.sent)]
        self.sink.restored(self.now())
        self.sink.stored([], self.sent, None)
        self.arrived.set()

    async def delay(self) -> None:
        self.reads += 1
        await trio.sleep(self.random.uniform(0, 0.05))
        if self.random.random() < self.failures:
            raise Unavailable("scripted")
        if "Connection" in trio.lowlevel.current_task().name and self.random.random() < self.crashes:
            raise RuntimeError("a scripted crash of a request")

    def replica(self) -> list[Record]:
        """What one of the stream's replicas holds now."""
        if not self.late:
            return self.records
        since = trio.current_time() - self.random.uniform(0, self.late)
        there = max(sequence for at, sequence in self.delivered if at <= since)
        found = self.records[: bisect_right(self.records, there, key=itemgetter(0))]
        late = [record for at, record in self.deleted.values() if at > since and record[0] <= there]
        return sorted(found + late, key=itemgetter(0)) if late else found

    def interrupt(self) -> None:
        """NATS is away for a moment: what arrives meanwhile comes after it."""
        assert self.sink
        self.sink.interrupted()
        self.sink.restored(self.now())

    async def publish(
        self,
        subject: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
    ) -> PublishAck:
        await self.delay()
        if subject.startswith(CANARIES):
            if self.sings:
                self.put_live(subject.replace(CANARIES, "_broker.seen."), body)
            return PublishAck(sequence=1, duplicate=False)
        return PublishAck(sequence=self.put(subject, body, headers), duplicate=False)

    @property
    def heard(self) -> float | None:
        return trio.current_time() - self.silent

    async def probe(self) -> None:
        await self.delay()

    async def publish_all(self, messages: Sequence[Message]) -> None:
        await trio.lowlevel.checkpoint()
        self.noted += messages

    async def prepare_audit(self) -> None: ...

    @property
    def streams(self) -> list[str]:
        return []

    async def examine(self, stream: str) -> Standing:
        raise AssertionError("nobody looks at a scripted stream's settings")

    async def adopt(self, stream: str) -> Standing:
        raise AssertionError("a scripted stream is nobody's")

    async def publish_live(
        self, subject: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        self.put_live(subject, body)

    async def subscribe_live(self, subject: str) -> None:
        await self.delay()

    async def unsubscribe_live(self, subject: str) -> None: ...

    async def state(self) -> StreamState:
        await self.delay()
        return self.now()

    async def read(self, subject: str, *, after: int, limit: int) -> Page:
        await self.delay()
        records = self.replica()
        start = bisect_right(records, after, key=lambda record: record[0])
        found = [record for record in records[start:] if subjects_match(subject, record[1])]
        most = min(limit, self.random.randint(1, limit))
        return Page(records=found[:most], pending=len(found[most:]))

    async def last(self, subjects: Sequence[str], *, up_to: int) -> list[Record]:
        await self.delay()
        newest = {record[1]: record for record in self.replica() if record[0] <= up_to}
        return sorted((newest[each] for each in subjects if each in newest), key=lambda record: record[0])

    async def subjects(self, subject: str, *, limit: int) -> list[str] | None:
        await self.delay()
        found = {record[1] for record in self.records if subjects_match(subject, record[1])}
        return sorted(found) if len(found) <= limit else None

    async def usage(self) -> Usage:
        size = sum(len(record[2]) for record in self.records)
        return Usage(
            messages=len(self.records), bytes=size, first=self.first, last=self.last_sequence, max_bytes=None
        )

    async def tally(self, subject: str, *, token: int) -> Counter[str]:
        return Counter(
            record[1].split(".")[token] for record in self.records if subjects_match(subject, record[1])
        )

    async def sequence_at(self, time: datetime) -> int | None:
        return None

    def archive(self, stream: str) -> Archive:
        raise AssertionError("nobody looks into a scripted stream")


@attrs.define(eq=False)
class ScriptedValues:
    """A bucket in memory, as late as its bus."""

    delay: Callable[[], Awaitable[None]]
    values: dict[str, Value] = attrs.Factory(dict)
    last: int = 0

    async def get(self, key: str) -> Value | None:
        await self.delay()
        return self.values.get(key)

    async def put(self, key: str, data: bytes, *, revision: int, ttl: float | None = None) -> int:
        await self.delay()
        held = self.values.get(key)
        if (held.revision if held else 0) != revision:
            raise Stale
        self.last += 1
        self.values[key] = Value(data=data, revision=self.last)
        return self.last

    async def put_all(self, puts: Sequence[Put]) -> list[int | None]:
        await self.delay()
        found: list[int | None] = []
        for key, data, revision in puts:
            held = self.values.get(key)
            if (held.revision if held else 0) != revision:
                found.append(None)
                continue
            self.last += 1
            self.values[key] = Value(data=data, revision=self.last)
            found.append(self.last)
        return found

    async def count(self, prefix: str) -> int:
        await self.delay()
        return sum(key.startswith(prefix + ".") for key in self.values)

    async def news(self, prefix: str, mark: Mark | None) -> tuple[list[bytes], Mark]:
        await self.delay()
        after = mark.sequence if mark else 0
        under = [value for key, value in self.values.items() if key.startswith(prefix + ".")]
        found = sorted(under, key=lambda value: value.revision)
        return [each.data for each in found if each.revision > after], Mark(
            incarnation="inc", sequence=self.last
        )


def subjects_match(pattern: str, subject: str) -> bool:
    """NATS's own rule, which knows no walls."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or token not in ("*", tokens[index]):
            return False
    return len(wanted) == len(tokens)
