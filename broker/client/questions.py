"""Requests of a client to services, each sent at most once.

Until it is sent, a request waits for a connection and for the broker's limits. If its time ends before that,
it is `Unavailable`: certainly not delivered. Once sent it is answered, or it is `Timeout`: nobody knows
whether the service has acted, so it is never sent again. Refused for its rate it was not sent on, and waits
for its next turn. No I/O; time is an argument.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import msgspec

from broker import errors
from broker.client.outbox import Pending, refusal
from broker.client.unanswered import Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from broker.client.items import Payload
    from broker.errors import BrokerError

Frame: TypeAlias = "tuple[str, Payload, str]"  # type, payload, messageId


@attrs.define(eq=False)
class Question:
    """A request, to be answered by the time `until`."""

    number: int
    method: str
    data: bytes
    id: str | None
    until: float
    promise: Pending[Payload]

    def payload(self, seconds: float) -> Payload:
        """Return the payload of the message, for an answer within `seconds`."""
        payload = {"method": self.method, "data": msgspec.Raw(self.data)}
        if self.id is not None:
            payload["id"] = self.id
        return payload | {"timeout_ms": max(1, int(seconds * 1000))}

    @property
    def size(self) -> int:
        """The size of the message in bytes."""
        document = {"type": "request", "payload": self.payload(10.0), "messageId": "q" + "0" * 10}
        return len(msgspec.json.encode(document))

    def uncertain(self, why: str) -> None:
        self.promise.settle(
            errors.Timeout(f"{self.method}: {why}; whether the service has acted is not known")
        )


@attrs.define(eq=False)
class Questions(Unanswered[Question]):
    """`sent` are those that the broker has not answered, even if nobody waits any more: they count there."""

    # --- the application's side --------------------------------------------------------------------

    def ask(
        self, method: str, data: bytes, request_id: str | None, until: float, on_done: Callable[[], None]
    ) -> Pending[Payload]:
        promise: Pending[Payload] = Pending(on_done)
        self.waiting.append(Question(next(self.numbers), method, data, request_id, until, promise))
        return promise

    def expire(self, promise: Pending[Any]) -> None:
        """Give a request up, whose time has ended."""
        for question in self.waiting:
            if question.promise is promise:
                why = "not sent in time: there was no connection, or too many requests before it"
                promise.settle(errors.Unavailable(f"{question.method}: {why}"))
        for question in self.sent.values():
            if question.promise is promise:
                question.uncertain("no answer in time")
        self.withdraw(promise)

    # --- the connection's side ---------------------------------------------------------------------

    def cut(self) -> None:
        """Handle a lost connection: what was sent is in doubt, the rest waits for the next one."""
        unanswered, self.sent = self.sent, {}
        for question in unanswered.values():
            question.uncertain("the connection was lost before the answer")

    def due(self, now: float) -> float:
        """Return when the next message may be sent, if one is waiting."""
        if self.full or all(now >= each.until for each in self.waiting):
            return inf
        return self.gate.opens("calls", now)

    def take(self, now: float) -> Iterator[Frame]:
        """Yield the messages that may be sent now. Those whose time has ended are left to `expire`."""
        for question in [each for each in self.waiting if now < each.until]:
            if (size := question.size) > (most := self.gate.allowed.message_bytes):
                self.waiting.remove(question)
                too_large = f"{size} bytes; the broker's `message_bytes` is {most:g}"
                question.promise.settle(errors.TooLarge(too_large))
                continue
            if self.full or not self.gate.passes("calls", now):
                return
            self.waiting.remove(question)
            message_id = f"q{next(self.numbers)}"
            self.sent[message_id] = question
            yield "request", question.payload(question.until - now), message_id

    @property
    def full(self) -> bool:
        """Whether as many wait for an answer as the broker allows."""
        return len(self.sent) >= self.gate.allowed.requests_in_flight

    def answered(self, kind: str, payload: Mapping[str, Any], message_id: str | None, now: float) -> bool:
        """Process an answer; return False for a message that is none."""
        question = self.sent.pop(message_id or "", None)
        if question is None:
            return False
        if kind != "error":
            question.promise.settle(dict(payload))
            return True
        self.gate.refused("calls", payload, now)
        if payload.get("code") != errors.RateLimited.code:
            question.promise.settle(refusal(payload))
        else:
            self.again(question)
        return True

    def largest(self) -> int:
        """Return the size of the largest request without an answer."""
        return max((each.size for each in self.sent.values()), default=0)

    def too_big(self) -> None:
        """Fail the largest request: the connection was closed for a message over the limit."""
        message_id = max(self.sent, key=lambda each: self.sent[each].size)
        refused = errors.TooLarge("the broker closed the connection: the message is over `message_bytes`")
        self.sent.pop(message_id).promise.settle(refused)

    def end(self, why: BrokerError) -> None:
        """Fail everything that waits: there will be no more answers."""
        for question in self.sent.values():
            question.uncertain(why.message)
        for question in self.waiting:
            question.promise.settle(why)
        self.sent, self.waiting = {}, []
