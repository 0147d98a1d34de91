"""Dead letters: stored messages that are no events, kept once in a stream of their own.

Each broker sees each of them; the message id, made of where it stood, lets the stream keep one.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.errors import TooLarge, Unavailable

if TYPE_CHECKING:
    from broker.bus.base import Bus, Record
    from broker.subjects import Names

WAITING = 1000  # beyond it the oldest are only counted: they still stand in the events stream
RETRY_SECONDS = 1.0

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Letter:
    """A record and why it is no event: `reason` is a word, `detail` a sentence."""

    record: Record
    incarnation: str
    reason: str
    detail: str


@attrs.define(eq=False)
class DeadLetters:
    """Stores dead letters under `deadletter.<tenant>.<channel>`, with why and whence in the headers."""

    bus: Bus
    names: Names
    counts: Counter[str] = attrs.Factory(Counter)
    waiting: deque[Letter] = attrs.Factory(deque)
    arrived: trio.Event = attrs.Factory(trio.Event)

    def put(self, letter: Letter) -> None:
        """Notes a letter; `run` stores it. Of a live message (sequence 0) there is nothing to store."""
        sequence, subject, body, _ = letter.record
        self.counts[letter.reason] += 1
        log.warning(
            "dead_letter", subject=subject, sequence=sequence, reason=letter.reason, detail=letter.detail,
            bytes=len(body),
        )  # fmt: skip
        if not sequence:
            return
        if len(self.waiting) >= WAITING:
            self.waiting.popleft()
            self.counts["not_kept"] += 1
        self.waiting.append(letter)
        self.arrived.set()

    async def run(self) -> None:
        while True:
            while self.waiting:
                letter = self.waiting.popleft()
                try:
                    await self.store(letter)
                except Unavailable:
                    self.waiting.appendleft(letter)
                    await trio.sleep(RETRY_SECONDS)
            self.arrived = trio.Event()
            await self.arrived.wait()

    async def store(self, letter: Letter) -> None:
        sequence, subject, body, _ = letter.record
        detail = letter.detail.encode("ascii", "backslashreplace").decode().replace("\n", " ")
        target = self.names.deadletter + subject.removeprefix(self.names.events)
        headers = {
            "Broker-Reason": letter.reason,
            "Broker-Detail": detail,
            "Broker-Subject": subject,
            "Broker-Sequence": str(sequence),
        }
        message_id = f"_broker:{letter.incarnation}-{sequence}"
        try:
            await self.bus.publish(target, body, headers=headers, message_id=message_id)
        except TooLarge:  # with the headers it is: then without the body, which still stands where it came in
            headers["Broker-Body"] = f"{len(body)} bytes, left out"
            await self.bus.publish(target, b"", headers=headers, message_id=message_id)
