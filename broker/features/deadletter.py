"""Dead letters: stored messages that are no events, kept once in a stream of their own.

Each broker sees each of them; the message id, made of where it stood, lets the stream keep one.
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

WAITING = 1000  # beyond it the oldest are only counted: they still stand in the events stream
RETRY_SECONDS = 1.0
KNOWN = 4 * WAITING  # of which it is remembered that they were put: replays read them again and again
MAX_SUBJECT_BYTES = 1024  # of ours; the server ends a connection whose command line is over 4,096

log = structlog.get_logger()


@attrs.define(eq=False)
class DeadLetters(Feature):
    """Stores dead letters under `deadletter.<tenant>.<channel>`, with why and whence in the headers."""

    bus: Bus
    names: Names
    noticed: Callable[[Letter], None]  # hears of each, once
    counts: Counter[str] = attrs.Factory(lambda: zeros(LETTER_REASONS))
    waiting: deque[Letter] = attrs.Factory(deque)
    arrived: Signal = attrs.Factory(Signal)
    known: dict[tuple[str, int], None] = attrs.Factory(dict)

    def rejected(self, letter: Letter) -> None:
        """Notes a letter; `run` stores it. Of a live message (sequence 0) there is nothing to store."""
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
        # As the bus sends it: a byte that is not UTF-8 becomes text, in a header too, where no line may end.
        subject = subject.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        subject = subject.replace("\r", "\\r")
        target = self.names.deadletter + subject.removeprefix(self.names.events)
        if len(target.encode()) > MAX_SUBJECT_BYTES:
            target = f"{self.names.deadletter}.{BROKER}.long"  # the header has it whole
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
