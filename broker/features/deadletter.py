"""Dead letters: stored messages that are not events, each kept once in a stream of their own.

Every broker sees every one of them; a message id made of the original position lets the stream keep one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.errors import TooLarge, Unavailable
from broker.features.port import Feature
from broker.metrics.meters import LETTER_REASONS, zeros
from broker.signals import Signal
from broker.subjects import BROKER

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from broker.bus.base import Bus
    from broker.features.port import Letter
    from broker.subjects import Names

WAITING = 1000  # beyond it the oldest are only counted: they are still in the events stream
RETRY_SECONDS = 1.0
KNOWN = 4 * WAITING  # letters remembered as already taken, since every replay reads them again
MAX_SUBJECT_BYTES = 1024  # of ours; the server closes a connection over a protocol line of more than 4,096

log = structlog.get_logger()


@attrs.define(eq=False)
class DeadLetters(Feature):
    """Stores dead letters under `deadletter.<tenant>.<channel>`, with reason and origin in the headers."""

    bus: Bus
    names: Names
    noticed: Callable[[Letter], None]  # called once for each
    counts: Counter[str] = attrs.Factory(lambda: zeros(LETTER_REASONS))
    waiting: deque[Letter] = attrs.Factory(deque)
    arrived: Signal = attrs.Factory(Signal)
    known: dict[tuple[str, int], None] = attrs.Factory(dict)

    def rejected(self, letter: Letter) -> None:
        """Queue a letter, which `run` stores. A live message (sequence 0) is only counted and logged."""
        sequence, subject, body, _ = letter.record
        where = letter.incarnation, sequence
        if where in self.known:
            return
        if sequence:
            self.known[where] = None
            if len(self.known) > KNOWN:
                del self.known[next(iter(self.known))]
        self.counts[letter.reason] += 1
        log.warning(
            "dead_letter", tenant=letter.tenant, subject=subject, sequence=sequence, reason=letter.reason,
            detail=letter.detail, bytes=len(body),
        )  # fmt: skip
        self.noticed(letter)
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
            await self.arrived.wait()

    async def store(self, letter: Letter) -> None:
        sequence, subject, body, _ = letter.record
        detail = letter.detail.encode("ascii", "backslashreplace").decode().replace("\n", " ")
        # As the bus sends it: bytes that are not UTF-8 are escaped; a header may not contain a line end.
        subject = subject.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        subject = subject.replace("\r", "\\r")
        target = self.names.deadletter + subject.removeprefix(self.names.events)
        if len(target.encode()) > MAX_SUBJECT_BYTES:
            target = f"{self.names.deadletter}.{BROKER}.long"  # the header has the whole subject
        headers = {
            "Broker-Reason": letter.reason,
            "Broker-Detail": detail,
            "Broker-Subject": subject,
            "Broker-Sequence": str(sequence),
        }
        message_id = f"_broker:{letter.incarnation}-{sequence}"
        try:
            await self.bus.publish(target, body, headers=headers, message_id=message_id)
        except TooLarge:  # due to the headers: leave out the body, which is still in the events stream
            headers["Broker-Body"] = f"{len(body)} bytes, left out"
            await self.bus.publish(target, b"", headers=headers, message_id=message_id)
