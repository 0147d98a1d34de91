"""The ordered feed: every record of the stream, in order, once, over any number of consumers.

An ephemeral push consumer with an explicit start counts what it delivers (as the ordered consumers of
clients do: ADR-15, ADR-17). When that count has a hole, or the consumer falls silent, a new one continues
after the last record handed over. Nothing is acknowledged and nothing is kept in NATS.
"""

from __future__ import annotations

import secrets
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

import attrs
import structlog
import trio

from broker.bus import streams
from broker.bus.api import ApiError
from broker.nats import headers, protocol
from broker.nats.link import INBOX, away

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bus.api import JetStream
    from broker.bus.base import Feed, Record, StreamState
    from broker.bus.epochs import Epochs
    from broker.bus.generations import Generations
    from broker.bus.history import History
    from broker.bus.looks import Looks
    from broker.nats.link import Link

log = structlog.get_logger("broker.bus")

Frame: TypeAlias = tuple[bytes, bytes, bytes, bytes]  # subject, reply subject, header block, body

HEARTBEAT_SECONDS = 1.0
SILENCE_SECONDS = 2.5 * HEARTBEAT_SECONDS  # two heartbeats missed
PING_SECONDS = 2.0  # for the server to answer when its consumer is silent
INACTIVE_SECONDS = 5.0  # after which the server deletes a consumer without a subscriber
BATCH = 512
HEAD_START_SECONDS = 10  # of recent events to fill the rings at the start
HEAD_START_RECORDS = 20_000
HELD_RECORDS = 131_072  # that were read and not handed over; flow control keeps the server below it
HELD_BYTES = 64 * 1024 * 1024


@attrs.define(eq=False)
class Ingest:
    """Reader of the stream for the sink.

    `arrived` queues what is read, and `hand_over` gives it to the sink without waiting, after each read. What
    has to ask NATS first is done by `mend`, in the one task of the bus, which `wake` wakes. `head` is the
    last sequence handed over, in `state.incarnation`.
    """

    jetstream: JetStream
    generations: Generations | Epochs
    looks: Looks
    history: History
    stream: str
    wake: Callable[[], None]
    held_records: int = HELD_RECORDS
    held_bytes: int = HELD_BYTES
    head_start: bool = True  # begin some seconds back, else at the end of the stream

    state: StreamState | None = None
    head: int = 0
    waiting: deque[Frame] = attrs.field(factory=deque)
    held: int = 0  # bytes of the bodies in `waiting`
    overflowed: bool = False
    verified: int = 0  # frames that were waiting when the stream was last looked at
    consumer: str | None = None
    inbox: bytes = b""
    subscription: int | None = None
    delivered: int = 0  # the consumer's count at the last frame handed over
    heard: float = 0.0  # Trio's clock: the last sign of life of this consumer, or its creation
    signed: float | None = None  # the last sign of life of any consumer, or the connection's beginning
    consumers: int = 0
    mending: bool = False
    hole: bool = False  # before the first frame in `waiting`
    damaged: bool = False  # the consumer cannot be trusted any more
    stale: bool = False
    stalled: list[str] = attrs.field(factory=list)  # where flow control is to be answered

    def arrived(self, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
        """Queue one frame.

        Beyond the bounds all are dropped, and the next consumer reads them again.
        """
        if self.overflowed:
            return
        if len(self.waiting) >= self.held_records or self.held >= self.held_bytes:
            self.overflowed = True
            return
        self.waiting.append((subject, reply, block, body))
        self.held += len(body)

    async def open(self, sink: Feed) -> None:
        """Begin or continue over a new connection, and tell the sink."""
        self.subscription = None  # that of the last connection is gone with it
        await self.replace(sink, restored=True)
        self.signed = trio.current_time()

    def hand_over(self, sink: Feed) -> bool:
        """Give the sink what has arrived, at most `BATCH` records.

        False when not all of it was: then `mend` has to be called.
        """
        if self.mending:
            return True
        if not self.stale:
            self.take(sink)
        return not (self.waiting or self.damaged or self.stale or self.overflowed)

    async def mend(self, sink: Feed) -> None:
        """Give the sink the rest of what has arrived; ask the stream about holes, replace the consumer."""
        self.mending = True
        try:
            while self.waiting and not (self.damaged or self.stale):
                await trio.lowlevel.checkpoint()
                self.take(sink)
                if self.hole:
                    self.hole, self.damaged = False, not await self.explain(sink)
            if self.damaged or self.stale or self.overflowed:
                log.warning(
                    "consumer_replaced",
                    consumer=self.consumer,
                    sound=not self.damaged,
                    overflowed=self.overflowed,
                    head=self.head,
                )
                await self.replace(sink)
            elif trio.current_time() > self.heard + SILENCE_SECONDS:
                await (await self.jetstream.up()).flush(PING_SECONDS)
                if not self.waiting:
                    log.warning("consumer_silent", consumer=self.consumer)
                    await self.replace(sink)
        finally:
            self.mending = False

    def take(self, sink: Feed) -> None:
        """Hand over a batch, up to a hole or to where the consumer cannot be trusted any more."""
        records: list[Record] = []
        times: list[int] = []
        if self.waiting:
            self.heard = self.signed = trio.current_time()
        while self.waiting and len(records) < BATCH:
            subject, reply, block, body = self.waiting[0]
            if subject == self.inbox:
                if not self.control(reply, headers.parse(block), headers.status(block)):
                    self.damaged = True
                    break
            else:
                sequence, count, time = parsed(reply)
                if count != self.delivered + 1:
                    self.damaged = True
                    break
                last = records[-1][0] if records else self.head
                if sequence > last + 1 and self.verified <= 0:
                    self.hole = True
                    break
                self.delivered = count
                times.append(time)
                records.append((sequence, headers.text(subject), body, headers.parse(block) or None))
            self.waiting.popleft()
            self.held -= len(body)
            self.verified -= 1
        if records:
            self.head = records[-1][0]
            sink.stored(records, self.head, times)
            self.generations.advance(self.head, times[-1])
        if self.stalled and (link := self.jetstream.link) is not None:
            link.put(*(protocol.publish(inbox, b"") for inbox in self.stalled))
            self.stalled.clear()

    def control(self, reply: bytes, fields: dict[str, str], status: int) -> bool:
        """Handle flow control, a heartbeat or the end of the consumer; return whether it is still sound.

        Flow control is answered when all frames before it have been handed over, so that the server sends no
        more than is consumed.
        """
        if status != 100:
            return False
        if reply:
            self.stalled.append(headers.text(reply))
        if stall := fields.get("Nats-Consumer-Stalled"):
            self.stalled.append(stall)
        return fields.get("Nats-Last-Consumer") in (None, str(self.delivered))

    async def explain(self, sink: Feed) -> bool:
        """Tell the sink what was deleted from the stream before it was read.

        The answer covers all frames that are waiting now, and precedes them. False when the stream is another
        one.
        """
        self.verified = len(self.waiting)
        state = await self.looks.look()
        if self.state is None or state.incarnation != self.state.incarnation:
            return False
        if state.first > self.head + 1:
            self.state = state
            sink.interrupted()
            sink.restored(state)
        elif not state.per_subject:
            sink.skipped(state)
        return True

    def compare(self, state: StreamState) -> None:
        """Record that the stream is another one than is being read, if its `state` says so."""
        if self.state is not None and state.incarnation != self.state.incarnation:
            self.outdated()

    def outdated(self) -> None:
        """Record that the stream has another generation than the one that is being read."""
        self.stale = True
        self.wake()

    async def replace(self, sink: Feed, *, restored: bool = False) -> None:
        """Make a new consumer after the head, or at the beginning of a new incarnation of the stream."""
        link = await self.jetstream.up()
        await self.drop(link)
        state, start = await self.resolve()
        again = self.state is not None and state.incarnation == self.state.incarnation
        await self.create(link, start)
        # The consumer is on that very stream only if the stream is still the same now.
        if (await self.looks.look()).incarnation != state.incarnation:
            raise away(f"the stream {self.stream} has just been recreated")
        if not restored and (not again or state.first > start):
            sink.interrupted()
            restored = True
        self.state = state
        if restored:
            sink.restored(state)
        if not again:
            self.head = start - 1
            sink.stored([], self.head, ())

    async def resolve(self) -> tuple[StreamState, int]:
        """Return the stream's state, and the sequence to continue from."""
        state = await self.looks.understand(await self.generations.settle())
        if self.state is None:
            return state, await self.recent(state) if self.head_start else state.last + 1
        same = state.incarnation == self.state.incarnation
        return state, self.head + 1 if same else state.first

    async def recent(self, state: StreamState) -> int:
        """Return the sequence at which a broker begins to read when it starts: a few seconds back."""
        since = datetime.now(UTC) - timedelta(seconds=HEAD_START_SECONDS)
        first = await self.history.sequence_at(since) or state.last + 1
        return max(min(first, state.last + 1), state.last + 1 - HEAD_START_RECORDS, state.first)

    async def create(self, link: Link, start: int) -> None:
        self.consumer = f"broker_{secrets.token_hex(8)}"
        self.inbox = f"{INBOX}.{secrets.token_hex(8)}".encode()
        self.delivered, self.overflowed, self.stale, self.damaged = 0, False, False, False
        self.subscription = await link.subscribe(self.inbox.decode(), self.arrived)
        await self.jetstream.call(
            f"CONSUMER.CREATE.{self.stream}.{self.consumer}",
            {"stream_name": self.stream, "config": self.consumer_config(start), "action": "create"},
        )
        self.heard = trio.current_time()
        self.consumers += 1

    def consumer_config(self, start: int) -> dict[str, object]:
        return {
            "name": self.consumer,
            "deliver_subject": self.inbox.decode(),
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "flow_control": True,
            "idle_heartbeat": streams.nanoseconds(HEARTBEAT_SECONDS),
            "inactive_threshold": streams.nanoseconds(INACTIVE_SECONDS),
            "mem_storage": True,
            "num_replicas": 1,
        }

    async def drop(self, link: Link) -> None:
        """End the last consumer and drop what it brought that was not handed over."""
        if self.subscription is not None:
            link.unsubscribe(self.subscription)
            self.subscription = None
        self.waiting.clear()
        self.stalled.clear()
        self.hole = False
        self.held = self.verified = 0
        if self.consumer is not None:
            name, self.consumer = self.consumer, None
            try:
                await self.jetstream.call(f"CONSUMER.DELETE.{self.stream}.{name}")
            except ApiError as error:  # the server has usually deleted it by itself
                log.debug("consumer_not_deleted", consumer=name, error=error.message)


def parsed(reply: bytes) -> tuple[int, int, int]:
    """Return what an acknowledgement subject says: the stream sequence, the consumer sequence, and the time
    at which NATS stored the message (ns since 1970).

    9 tokens: `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>`;
    11 and 12 with domain and account hash before the stream, and a random one at the end (ADR-15).
    """
    tokens = reply.split(b".")
    at = 5 if len(tokens) == 9 else 7
    return int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 2])
