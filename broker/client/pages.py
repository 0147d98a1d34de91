"""Pages of history that a client reads, each asked for until the broker answers.

To read is to change nothing: what was lost with its connection, or refused for now, is sent again. No I/O;
time is an argument.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from broker.client.gate import seconds
from broker.client.outbox import Pending, refusal
from broker.client.unanswered import Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from broker.client.items import Payload
    from broker.errors import BrokerError

Frame: TypeAlias = "tuple[str, Payload, str]"  # type, payload, messageId

AT_ONCE = 4  # pages under way


@attrs.define(eq=False)
class Asked:
    """A page that is asked for."""

    number: int
    payload: Payload
    promise: Pending[Payload]


@attrs.define(eq=False)
class Pages(Unanswered[Asked]):
    """`waiting` and `sent` together are the pages without an answer, `waiting` in their order."""

    def ask(self, payload: Payload, on_done: Callable[[], None]) -> Pending[Payload]:
        promise: Pending[Payload] = Pending(on_done)
        self.waiting.append(Asked(next(self.numbers), payload, promise))
        return promise

    def cut(self) -> None:
        """Handle a lost connection: what had no answer is asked for on the next one."""
        unanswered, self.sent = self.sent, {}
        for each in unanswered.values():
            self.again(each)

    def due(self, now: float) -> float:
        """Return when the next one may be sent, if one is waiting."""
        if not self.waiting or len(self.sent) >= AT_ONCE:
            return inf
        return max(self.gate.opens("requests", now), self.gate.held.get("history", now))

    def take(self, now: float) -> Iterator[Frame]:
        """Yield the messages that may be sent now."""
        while self.due(now) <= now and self.gate.passes("requests", now):
            asked = self.waiting.pop(0)
            message_id = f"h{next(self.numbers)}"
            self.sent[message_id] = asked
            yield "history", asked.payload, message_id

    def answered(self, kind: str, payload: Mapping[str, Any], message_id: str | None, now: float) -> bool:
        """Process an answer; return False for a message that is none."""
        asked = self.sent.pop(message_id or "", None)
        if asked is None:
            return False
        if kind != "error":
            asked.promise.settle(dict(payload))
            return True
        self.gate.refused("history", payload, now)
        if payload.get("retryable"):
            self.gate.hold("history", now + seconds(payload))
            self.again(asked)
        else:
            asked.promise.settle(refusal(payload))
        return True

    def end(self, why: BrokerError) -> None:
        """Fail everything that waits: there will be no more answers."""
        for each in (*self.sent.values(), *self.waiting):
            each.promise.settle(why)
        self.sent, self.waiting = {}, []
