"""What a client has said and wants confirmed: publishes and acknowledgements, kept until the broker answers.

A publish has an id, so that sending it again after a cut stores nothing twice. Of the acknowledgements of a
durable subscription only the newest counts. No I/O, and the time is an argument.
"""

from __future__ import annotations

from bisect import insort
from itertools import count
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from uuid import uuid4

import attrs

from broker import errors, subjects
from broker.client.items import Published
from broker.client.resume import not_after
from broker.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from broker.client.items import Payload
    from broker.client.resume import Resume

T = TypeVar("T")
Frame: TypeAlias = "tuple[str, Payload, str]"  # type, payload, messageId

IN_FLIGHT = 16  # publishes that wait for their answer: many refusals for rate would end the connection
RESEND_SECONDS = 540.0  # less than the stream compares ids for: `stream.duplicate_window` is 10 min
WAIT_SECONDS = 1.0  # before what was refused for now is sent again, when the broker does not say


@attrs.define(eq=False)
class Pending(Generic[T]):
    """A promise of the broker's answer. `on_done` is called once, when there is an outcome."""

    on_done: Callable[[], None] | None
    outcome: T | BrokerError | None = None

    def settle(self, outcome: T | BrokerError) -> None:
        if self.outcome is None:
            self.outcome = outcome
            if self.on_done:
                self.on_done()

    def result(self) -> T:
        """What was promised. Raises the `BrokerError` that came instead."""
        if isinstance(self.outcome, BrokerError):
            raise self.outcome
        if self.outcome is None:
            raise RuntimeError("there is no answer yet")
        return self.outcome


@attrs.define(eq=False)
class Publish:
    number: int
    payload: Payload
    promise: Pending[Published]
    first_sent: float | None = None


@attrs.define(eq=False)
class Acknowledgement:
    """How far a durable name is to be acknowledged, and who waits for it."""

    wanted: str
    sent: str | None = None
    message_id: str = ""
    not_before: float = -inf
    promises: list[tuple[str, Pending[str]]] = attrs.field(factory=list)


@attrs.define(eq=False)
class Outbox:
    """`waiting` and `sent` together are the publishes without an answer, in their order."""

    waiting: list[Publish] = attrs.field(factory=list)
    sent: dict[str, Publish] = attrs.field(factory=dict)
    acknowledgements: dict[str, Acknowledgement] = attrs.field(factory=dict)
    numbers: Iterator[int] = attrs.field(factory=lambda: count(1))
    not_before: float = -inf
    pace: float = 0.0  # seconds from one publish to the next, once the broker has refused some for their rate

    # --- the application's side --------------------------------------------------------------------

    def publish(
        self, channel: str, event: Any, event_id: str | None, on_done: Callable[[], None]
    ) -> Pending[Published]:
        promise: Pending[Published] = Pending(on_done)
        payload = {"channel": channel, "event": event, "id": event_id or uuid4().hex}
        self.waiting.append(Publish(next(self.numbers), payload, promise))
        return promise

    def withdraw(self, promise: Pending[Any]) -> None:
        """Nobody waits any more: a publish that was not sent will not be."""
        self.waiting = [each for each in self.waiting if each.promise is not promise]
        for entry in self.acknowledgements.values():
            entry.promises = [each for each in entry.promises if each[1] is not promise]

    def acknowledge(self, durable: str, position: str, on_done: Callable[[], None] | None) -> Pending[str]:
        promise: Pending[str] = Pending(on_done)
        entry = self.acknowledgements.setdefault(durable, Acknowledgement(position))
        if not not_after(position, entry.wanted):
            entry.wanted = position
        if on_done:
            entry.promises.append((position, promise))
        return promise

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(
            self.sent or self.waiting or any(each.promises for each in self.acknowledgements.values())
        )

    # --- the connection's side ---------------------------------------------------------------------

    def again(self, now: float) -> None:
        """The connection is a new one: what had no answer on the last one is to be sent there."""
        unanswered = list(self.sent.values())
        self.sent, self.not_before, self.pace = {}, -inf, 0.0
        for each in self.acknowledgements.values():
            each.sent = None
        for publish in unanswered:
            if subjects.is_live(publish.payload["channel"]):
                publish.promise.settle(errors.Unavailable("the connection was lost; perhaps it was sent"))
            elif now - (publish.first_sent or now) > RESEND_SECONDS:
                late = "no answer for so long that another try could store it twice"
                publish.promise.settle(errors.Unavailable(late))
            else:
                insort(self.waiting, publish, key=attrgetter("number"))

    def due(self) -> float:
        """When there is something to send that is held back now."""
        held = [each.not_before for each in self.acknowledgements.values() if each.not_before > -inf]
        if self.waiting and len(self.sent) < IN_FLIGHT:
            held.append(self.not_before)
        return min(held, default=inf)

    def take(self, resume: Resume, now: float) -> Iterator[Frame]:
        """What can be sent."""
        for durable, entry in self.acknowledgements.items():
            if now < entry.not_before:
                continue
            entry.not_before = -inf
            if entry.sent is None and resume.reached(durable, entry.wanted):
                entry.sent, entry.message_id = entry.wanted, f"a{next(self.numbers)}"
                yield "acknowledge", {"durable": durable, "position": entry.sent}, entry.message_id
        while self.waiting and len(self.sent) < IN_FLIGHT and now >= self.not_before:
            publish = self.waiting.pop(0)
            message_id = f"p{next(self.numbers)}"
            self.sent[message_id] = publish
            publish.first_sent = publish.first_sent or now
            if self.pace:
                self.not_before = now + self.pace
            yield "publish", publish.payload, message_id

    def answered(self, kind: str, payload: Mapping[str, Any], message_id: str | None, now: float) -> bool:
        """Whether this message is an answer for here. A refusal that nobody waits for is none."""
        if publish := self.sent.pop(message_id or "", None):
            self.publish_answered(publish, kind, payload, now)
            return True
        for durable, entry in self.acknowledgements.items():
            if entry.sent is not None and entry.message_id == message_id:
                return self.acknowledge_answered(durable, entry, entry.sent, kind, payload, now)
        return False

    def publish_answered(self, publish: Publish, kind: str, payload: Mapping[str, Any], now: float) -> None:
        if kind != "error":
            position, duplicate = payload.get("position"), bool(payload.get("duplicate"))
            publish.promise.settle(Published(position=position, duplicate=duplicate))
        elif payload.get("retryable"):
            self.not_before = max(self.not_before, now + seconds(payload))
            if payload.get("code") == errors.RateLimited.code:
                self.pace = max(self.pace, seconds(payload))
            insort(self.waiting, publish, key=attrgetter("number"))
        else:
            publish.promise.settle(refusal(payload))
        if not self.waiting and not self.sent:
            self.pace = 0.0

    def acknowledge_answered(
        self,
        durable: str,
        entry: Acknowledgement,
        sent: str,
        kind: str,
        payload: Mapping[str, Any],
        now: float,
    ) -> bool:
        entry.sent = None
        if kind == "error" and payload.get("retryable"):
            entry.not_before = now + seconds(payload)
            return True
        outcome = refusal(payload) if kind == "error" else sent
        answered = [promise for at, promise in entry.promises if at == sent or not_after(at, sent)]
        entry.promises = [each for each in entry.promises if each[1] not in answered]
        if entry.wanted == sent:
            del self.acknowledgements[durable]
        for promise in answered:
            promise.settle(outcome)
        return kind != "error" or bool(answered)

    def too_big(self) -> None:
        """The connection was closed for a message over the limit: it is the largest."""
        if self.sent:
            largest = max(self.sent, key=lambda each: len(repr(self.sent[each].payload)))
            refused = errors.TooLarge("the broker closed the connection: the message is over `message_bytes`")
            self.sent.pop(largest).promise.settle(refused)

    def end(self, why: BrokerError) -> None:
        """Nothing will be answered any more."""
        promises: list[Pending[Any]] = [each.promise for each in (*self.sent.values(), *self.waiting)]
        promises += [promise for entry in self.acknowledgements.values() for _, promise in entry.promises]
        self.sent, self.waiting, self.acknowledgements = {}, [], {}
        for promise in promises:
            promise.settle(why)


def seconds(payload: Mapping[str, Any]) -> float:
    """How long to wait after a refusal that passes."""
    wait: float = payload.get("retry_after_ms", WAIT_SECONDS * 1000) / 1000
    return wait


def refusal(payload: Mapping[str, Any]) -> BrokerError:
    """The error that an `error` message tells of."""
    kind = errors.by_code().get(payload.get("code", ""), BrokerError)
    made = kind(payload.get("message", "refused"))
    if "retry_after_ms" in payload:
        made.retry_after = payload["retry_after_ms"] / 1000
    return made
