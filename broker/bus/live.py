"""Live messages: plain NATS subscriptions, renewed on every connection, and a bounded queue."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import trio

from broker.nats import headers
from broker.nats.link import away

if TYPE_CHECKING:
    from broker.bus.base import Record, Sink
    from broker.nats.link import Link

HELD_MESSAGES = 65_536
HELD_BYTES = 32 * 1024 * 1024
BATCH = 512


@attrs.define(eq=False)
class Live:
    """The subscriptions, and the messages that have arrived.

    Of subjects that overlap each delivers the message.
    """

    held_messages: int = HELD_MESSAGES
    held_bytes: int = HELD_BYTES
    subscriptions: dict[str, int | None] = attrs.field(factory=dict)  # None: not yet on this connection
    waiting: deque[tuple[bytes, bytes, bytes]] = attrs.field(factory=deque)
    held: int = 0
    lost: bool = False
    lock: trio.Lock = attrs.field(factory=trio.Lock)

    def arrived(self, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:  # noqa: ARG002  one shape for all
        """Queue one message, or drop it when too many are waiting."""
        if len(self.waiting) >= self.held_messages or self.held >= self.held_bytes:
            self.lost = True
        else:
            self.waiting.append((subject, block, body))
            self.held += len(body)

    def hand_over(self, sink: Sink) -> None:
        """Give the sink the next messages, at most `BATCH`, and tell it when later ones were dropped."""
        records: list[Record] = []
        while self.waiting and len(records) < BATCH:
            subject, block, body = self.waiting.popleft()
            self.held -= len(body)
            records.append((0, headers.text(subject), body, headers.parse(block) or None))
        if records:
            sink.live(records)
        if self.lost and not self.waiting:
            self.lost = False
            sink.live_lost()

    async def subscribe(self, link: Link, subject: str) -> None:
        """Subscribe on this and every later connection. Raises `Unavailable` unless NATS confirms it."""
        try:
            number = await self.make(link, subject)
            await link.flush()
            if refusal := link.refusal(subject, number):
                raise away(f"NATS does not permit a subscription to {subject}: {refusal}")
        except BaseException:  # cancelled too: nobody would end it
            self.end(link, subject)
            raise

    async def make(self, link: Link, subject: str) -> int:
        async with self.lock:
            number = self.subscriptions.setdefault(subject, None)
            if number is None:
                number = self.subscriptions[subject] = await link.subscribe(subject, self.arrived)
            return number

    async def unsubscribe(self, link: Link | None, subject: str) -> None:
        async with self.lock:
            self.end(link, subject)

    def end(self, link: Link | None, subject: str) -> None:
        number = self.subscriptions.pop(subject, None)
        if link is not None and number is not None:
            link.unsubscribe(number)

    def forget(self) -> None:
        """Record that the connection is gone, and its subscriptions with it."""
        for subject in self.subscriptions:
            self.subscriptions[subject] = None

    async def renew(self, link: Link) -> None:
        """Renew all subscriptions on a new connection."""
        async with self.lock:
            for subject, number in list(self.subscriptions.items()):
                if number is None:
                    self.subscriptions[subject] = await link.subscribe(subject, self.arrived)
        await link.flush()
