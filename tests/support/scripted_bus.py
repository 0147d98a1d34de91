"""NATS in memory, late and failing, for tests under the fake clock, where no real I/O is possible.

`tests/contract` holds it to what it stands for.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import Counter, deque
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from broker.bus.base import Entry, Mark, Page, PublishAck, Stale, StreamState, Usage, Value
from broker.errors import Timeout, TooLarge, Unavailable
from broker.nats import link
from broker.nats.headers import block
from broker.nats.protocol import NO_SUBJECT
from broker.ranges import Ranges
from tests.support.scripted_keyed import ScriptedKeyed, matches

Service: TypeAlias = "Callable[[bytes, Mapping[str, str]], Awaitable[tuple[Mapping[str, str], bytes]]]"

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from broker.bus.base import Archive, Message, Put, Record, Sink, Standing

CANARIES = "_broker.canary."
EVENTS, OTHERS = "events.", ("deadletter.", "audit.")  # the subjects of the streams
MOST_BYTES = 1 << 20  # of a message


@attrs.define(eq=False, kw_only=True)
class ScriptedBus:
    """A stream in memory. Everything takes a random time, and requests fail at a random rate.

    Each read is answered by a replica that may be up to `late` seconds behind what `run` has delivered, and
    behind what was deleted. From `leave` to `come_back` NATS is away.
    """

    random: random.Random
    failures: float = (
        0.0  # how often a request is `Unavailable`, and how often what it has stored all the same
    )
    crashes: float = 0.0  # how often one breaks in a way that nobody expects, under a connection
    late: float = 0.0
    stalls: float = 0.0  # how often the feed comes to rest with something in hand
    incarnation: str = "inc0"
    records: list[Record] = attrs.Factory(list)
    stored_times: dict[int, float] = attrs.Factory(dict)  # Unix seconds by sequence
    ids: dict[str, int] = attrs.Factory(dict)  # sequences by the ids of messages
    delivered: list[tuple[float, int]] = attrs.Factory(list)  # when, up to which sequence
    last_sequence: int = 0
    first: int = 1
    per_subject: int = 0  # so many messages of each subject are kept; it does not do that itself
    sent: int = 0  # how far `run` has come
    deleted: dict[int, tuple[float, Record]] = attrs.Factory(dict)  # by sequence: when, and what it was
    sink: Sink | None = None
    fed: str | None = None  # the incarnation that the sink knows
    contact: list[tuple[float, bool]] = attrs.Factory(list)  # when NATS came in reach, or went out of it
    away: bool = False
    arrived: trio.Event = attrs.Factory(trio.Event)
    subscribed: set[str] = attrs.Factory(set)
    unstored: deque[Record] = attrs.Factory(deque)  # live messages on their way to the sink
    reads: int = 0
    sings: bool = True  # whether canaries come back
    silent: float = 0.0  # for how many seconds the feed has given no sign
    services: dict[str, Service] = attrs.Factory(dict)  # by subject
    noted: list[Message] = attrs.Factory(list)  # of the other streams: the audit trail, dead letters
    by_key: dict[str, ScriptedKeyed] = attrs.Factory(dict)
    cursors: ScriptedValues = attrs.field(init=False)
    control: ScriptedValues = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.cursors = ScriptedValues(self.delay, self.acknowledge)
        self.control = ScriptedValues(self.delay, self.acknowledge, expires=True)

    @property
    def up(self) -> bool:
        """Whether the sink knows that NATS is in reach."""
        return bool(self.contact) and self.contact[-1][1]

    # --- what happens to NATS

    def put(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        self.last_sequence += 1
        self.records.append((self.last_sequence, subject, body, headers))
        self.stored_times[self.last_sequence] = time.time()
        self.arrived.set()
        return self.last_sequence

    def put_live(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Hands a message to the sink once for each subscription that wants it."""
        if not self.away:
            wanted = sum(matches(each, subject) for each in self.subscribed)
            self.unstored.extend([(0, subject, body, headers)] * wanted)
            if self.up and self.sink:
                self.hand_over_live(self.sink)

    def delete(self, sequences: Collection[int]) -> None:
        """Takes messages out. Where they were the first ones the stream begins later."""
        for record in self.records:
            if record[0] in sequences:
                self.deleted[record[0]] = trio.current_time(), record
        self.records = [record for record in self.records if record[0] not in self.deleted]
        self.first = self.records[0][0] if self.records else self.last_sequence + 1

    def leave(self) -> None:
        """NATS goes away, and stays away."""
        self.away = True
        if self.up and self.sink:
            self.contact.append((trio.current_time(), False))
            self.sink.interrupted()
        for each in self.by_key.values():
            each.interrupted()

    def come_back(self) -> None:
        self.away = False
        self.arrived.set()

    def interrupt(self) -> None:
        """NATS is away for a moment: what arrives meanwhile comes after it."""
        self.leave()
        self.come_back()

    def lose_end(self, count: int) -> None:
        """The store comes back without its newest `count` sequences, in another generation."""
        self.leave()
        self.last_sequence = max(self.first - 1, self.last_sequence - count)
        self.records = [record for record in self.records if record[0] <= self.last_sequence]
        self.deleted = {each: told for each, told in self.deleted.items() if each <= self.last_sequence}
        self.ids = {key: sequence for key, sequence in self.ids.items() if sequence <= self.last_sequence}
        self.renew()

    def remake(self) -> None:
        """The stream is deleted, and made anew."""
        self.leave()
        self.first, self.last_sequence = 1, 0
        self.records, self.deleted, self.ids = [], {}, {}
        self.renew()

    def renew(self) -> None:
        self.incarnation = f"inc{int(self.incarnation.removeprefix('inc')) + 1}"
        self.sent = self.first - 1
        self.delivered = [(-math.inf, self.sent)]
        self.come_back()

    # --- the feed

    async def run(self, sink: Sink, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.sink = sink
        task_status.started()
        while True:
            if self.up:
                await self.arrived.wait()
                self.arrived = trio.Event()
                await trio.sleep(self.random.uniform(0, 0.02))
            else:
                await self.reach(sink)
            if self.up:
                self.hand_over_live(sink)
            while self.up and (batch := self.unsent()[: self.random.randint(1, 40)]):
                generation = self.incarnation
                if self.random.random() < self.stalls:  # what is under way may be deleted meanwhile
                    await trio.sleep(self.random.uniform(0, 3))
                    if generation != self.incarnation or not self.up:
                        continue
                self.hand_over(batch, sink)
                await trio.lowlevel.checkpoint()

    async def reach(self, sink: Sink) -> None:
        """Tells the sink that NATS is in reach, once it is."""
        while True:
            while self.away:
                await self.arrived.wait()
                self.arrived = trio.Event()
            try:
                await sink.reached()
            except Unavailable:
                await trio.sleep(self.random.uniform(0, 0.1))
                continue
            if not self.away:
                break
        self.contact.append((trio.current_time(), True))
        sink.restored(self.now())
        if self.fed != self.incarnation:
            if self.fed is None:
                self.sent = self.last_sequence
                self.delivered.append((-math.inf, self.sent))
            self.fed = self.incarnation
            sink.stored([], self.sent, ())

    def hand_over_live(self, sink: Sink) -> None:
        while self.unstored:
            sink.live([self.unstored.popleft()])

    def hand_over(self, batch: list[Record], sink: Sink) -> None:
        missing = batch[-1][0] - self.sent > len(batch)
        if min(self.first, batch[0][0]) > self.sent + 1:
            sink.interrupted()
            sink.restored(self.now())
        elif missing and not self.per_subject:
            sink.skipped(self.now())
        self.sent = batch[-1][0]
        self.delivered.append((trio.current_time(), self.sent))
        sink.stored(batch, self.sent, self.moments(batch))

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

    @property
    def heard(self) -> float | None:
        return None if self.fed is None else trio.current_time() - self.silent

    # --- requests

    async def delay(self) -> None:
        self.reads += 1
        await trio.sleep(self.random.uniform(0, 0.05))
        self.acknowledge()
        if "Connection" in trio.lowlevel.current_task().name and self.random.random() < self.crashes:
            raise RuntimeError("a scripted crash of a request")

    def acknowledge(self) -> None:
        """The answer to a request, which may be lost when the request was not."""
        if self.away or self.random.random() < self.failures:
            raise link.away("scripted")

    def replica(self) -> list[Record]:
        """What one of the stream's replicas holds now."""
        if not self.late:
            return self.records
        since = trio.current_time() - self.random.uniform(0, self.late)
        there = max(sequence for at, sequence in self.delivered if at <= since)
        found = self.records[: bisect_right(self.records, there, key=itemgetter(0))]
        late = [record for at, record in self.deleted.values() if at > since and record[0] <= there]
        return sorted(found + late, key=itemgetter(0)) if late else found

    def store(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None, message_id: str | None
    ) -> PublishAck:
        """What the stream of a subject does with a message."""
        if subject.startswith(CANARIES):
            if self.sings:
                self.put_live(subject.replace(CANARIES, "_broker.seen."), body)
            return PublishAck(sequence=1, duplicate=False)
        if message_id is not None and message_id in self.ids:
            return PublishAck(sequence=self.ids[message_id], duplicate=True)
        if subject.startswith(EVENTS):
            sequence = self.put(subject, body, headers)
        elif subject.startswith(OTHERS):
            self.noted.append((subject, body, message_id or ""))
            sequence = len(self.noted)
        else:
            raise link.away(f"nobody answers on {subject}")
        if message_id is not None:
            self.ids[message_id] = sequence
        return PublishAck(sequence=sequence, duplicate=False)

    async def publish(
        self,
        subject: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
    ) -> PublishAck:
        check(subject, body, headers)
        await self.delay()
        ack = self.store(subject, body, headers, message_id)
        self.acknowledge()
        return ack

    async def publish_all(self, messages: Sequence[Message]) -> None:
        for subject, body, _ in messages:
            check(subject, body)
        await self.delay()
        refusal = None
        for subject, body, message_id in messages:
            try:
                self.store(subject, body, None, message_id)
            except Unavailable as error:
                refusal = error
        if refusal is not None:
            raise refusal
        self.acknowledge()

    async def publish_live(
        self, subject: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        check(subject, body, headers)
        await self.delay()
        self.put_live(subject, body, headers)

    async def request(
        self, subject: str, body: bytes, *, headers: Mapping[str, str], seconds: float
    ) -> tuple[Mapping[str, str], bytes]:
        check(subject, body, headers)
        await self.delay()
        if (service := self.services.get(subject)) is None:
            raise Unavailable(f"no service answers on {subject}", retry_after=1.0)
        with trio.move_on_after(seconds):
            return await service(body, headers)
        raise Timeout("the service did not answer in time")

    async def subscribe_live(self, subject: str) -> None:
        await self.delay()
        self.subscribed.add(subject)

    async def unsubscribe_live(self, subject: str) -> None:
        await trio.lowlevel.checkpoint()
        self.subscribed.discard(subject)

    async def probe(self) -> None:
        await self.delay()

    async def prepare_audit(self) -> None:
        await self.delay()

    @property
    def streams(self) -> list[str]:
        return []

    async def examine(self, stream: str) -> Standing:
        raise AssertionError("nobody looks at a scripted stream's settings")

    async def adopt(self, stream: str) -> Standing:
        raise AssertionError("a scripted stream is nobody's")

    async def state(self) -> StreamState:
        await self.delay()
        return self.now()

    async def read(self, subject: str, *, after: int, limit: int) -> Page:
        await self.delay()
        records = self.replica()
        start = bisect_right(records, after, key=itemgetter(0))
        found = [record for record in records[start:] if matches(subject, record[1])]
        most = min(limit, self.random.randint(1, limit))
        return self.page(found[:most], pending=len(found[most:]))

    async def next(self, subject: str, *, after: Sequence[int]) -> Page:
        await self.delay()
        found = {}
        for start in after:  # each may be answered by another replica
            following = (each for each in self.replica() if each[0] > start and matches(subject, each[1]))
            if record := next(following, None):
                found[record[0]] = record
        return self.page([found[sequence] for sequence in sorted(found)], pending=0)

    async def get(self, sequences: Sequence[int]) -> Page:
        await self.delay()
        return self.page([record for record in self.replica() if record[0] in sequences], pending=0)

    def page(self, records: list[Record], pending: int) -> Page:
        return Page(records=records, pending=pending, times=self.moments(records))

    def moments(self, records: list[Record]) -> list[int]:
        return [int(self.stored_times.get(record[0], 0.0) * 1e9) for record in records]

    async def last(self, subjects: Sequence[str], *, up_to: int) -> list[Record]:
        await self.delay()
        newest = {record[1]: record for record in self.replica() if record[0] <= up_to}
        return sorted((newest[each] for each in subjects if each in newest), key=itemgetter(0))

    async def subjects(self, subject: str, *, limit: int) -> list[str] | None:
        await self.delay()
        found = {record[1] for record in self.records if matches(subject, record[1])}
        return sorted(found) if len(found) <= limit else None

    async def usage(self) -> Usage:
        await self.delay()
        size = sum(len(record[1]) + len(record[2]) for record in self.records)
        return Usage(
            messages=len(self.records), bytes=size, first=self.first, last=self.last_sequence, max_bytes=None
        )

    async def tally(self, subject: str, *, token: int) -> Counter[str]:
        await self.delay()
        return Counter(record[1].split(".")[token] for record in self.records if matches(subject, record[1]))

    async def sequence_at(self, time: datetime) -> int | None:
        await self.delay()
        since = time.timestamp()
        return next((each[0] for each in self.records if self.stored_times.get(each[0], 0.0) >= since), None)

    def keyed(self, stream: str) -> ScriptedKeyed:
        return self.by_key.setdefault(stream, ScriptedKeyed(self))

    def check(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        check(subject, body, headers)

    def archive(self, stream: str) -> Archive:
        assert stream == "EVENTS", "nobody looks into the other streams"
        return ScriptedArchive(self)


@attrs.define(eq=False)
class ScriptedArchive:
    """The stream for operators."""

    bus: ScriptedBus

    async def matching(self, subject: str) -> list[Entry]:
        await self.bus.delay()
        return [self.entry(each) for each in self.bus.records if matches(subject, each[1])]

    def entry(self, record: Record) -> Entry:
        sequence, subject, body, headers = record
        stored = datetime.fromtimestamp(self.bus.stored_times[sequence], UTC)
        return Entry(sequence=sequence, subject=subject, time=stored, headers=headers or {}, body=body)

    async def after(self, subject: str, sequence: int, *, limit: int) -> list[Entry]:
        return [each for each in await self.matching(subject) if each.sequence > sequence][:limit]

    async def before(self, subject: str, sequence: int | None, *, limit: int) -> list[Entry]:
        end = math.inf if sequence is None else sequence
        return [each for each in reversed(await self.matching(subject)) if each.sequence < end][:limit]

    async def sequence_at(self, time: datetime) -> int | None:
        return await self.bus.sequence_at(time)

    async def get(self, sequence: int) -> Entry | None:
        return next((each for each in await self.matching(">") if each.sequence == sequence), None)

    async def delete(self, sequence: int) -> bool:
        there = await self.get(sequence) is not None
        self.bus.delete([sequence])
        return there

    async def purge(self, subject: str) -> int:
        found = await self.matching(subject)
        self.bus.delete({each.sequence for each in found})
        return len(found)


@attrs.define(eq=False)
class ScriptedValues:
    """A bucket in memory, as late as its bus, and as often without an answer."""

    delay: Callable[[], Awaitable[None]]
    acknowledge: Callable[[], None] = lambda: None
    expires: bool = False  # whether a value may be put for a time
    incarnation: str = "inc0"
    values: dict[str, Value] = attrs.Factory(dict)
    ends: dict[str, float] = attrs.Factory(dict)  # when a value goes, by Trio's clock
    last: int = 0

    def held(self) -> dict[str, Value]:
        """The values that have not gone yet."""
        now = trio.current_time()
        for key in [key for key, end in self.ends.items() if end <= now]:
            del self.values[key], self.ends[key]
        return self.values

    def replace(self, key: str, data: bytes, revision: int, ttl: float | None = None) -> int | None:
        there = self.held().get(key)
        if (there.revision if there else 0) != revision:
            return None
        self.last += 1
        self.values[key] = Value(data=data, revision=self.last)
        self.ends.pop(key, None)
        if ttl is not None:
            self.ends[key] = trio.current_time() + ttl
        return self.last

    async def get(self, key: str) -> Value | None:
        await self.delay()
        return self.held().get(key)

    async def put(self, key: str, data: bytes, *, revision: int, ttl: float | None = None) -> int:
        await self.delay()
        if ttl is not None and not self.expires:
            raise link.away("values of this bucket stay")
        replaced = self.replace(key, data, revision, ttl)
        self.acknowledge()
        if replaced is None:
            raise Stale
        return replaced

    async def put_all(self, puts: Sequence[Put]) -> list[int | None]:
        await self.delay()
        found = [self.replace(*each) for each in puts]
        self.acknowledge()
        return found

    async def count(self, prefix: str) -> int:
        await self.delay()
        return sum(key.startswith(prefix + ".") for key in self.held())

    async def news(self, prefix: str, mark: Mark | None) -> tuple[list[bytes], Mark]:
        await self.delay()
        if mark is None or mark.incarnation != self.incarnation or mark.sequence > self.last:
            mark = Mark(incarnation=self.incarnation, sequence=0)
        under = [value for key, value in self.held().items() if key.startswith(prefix + ".")]
        found = sorted(under, key=lambda value: value.revision)
        news = [each.data for each in found if each.revision > mark.sequence]
        return news, Mark(incarnation=self.incarnation, sequence=self.last)


def check(subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    """Raises `ValueError` for what would break NATS's protocol, and `TooLarge`."""
    if NO_SUBJECT.search(subject):
        raise ValueError(f"{subject!r} is not a subject")
    if len(block(headers)) + len(body) > MOST_BYTES:
        raise TooLarge("more than NATS takes")
