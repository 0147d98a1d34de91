"""Publishes and acknowledgements of a client, kept until the broker answers.

A publish has an id, so that sending it again after a reconnection does not store it twice within the
duplicate window of the stream. After that, and for live channels, which have no such window, the outcome is
reported as unknown. Of the acknowledgements of a durable subscription only the newest counts. No I/O; time
is an argument.
"""

from __future__ import annotations

import time
from bisect import insort
from itertools import count
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from uuid import uuid4

import attrs
import msgspec

from broker import errors, subjects
from broker.client.gate import Gate, seconds
from broker.client.items import Duplicate, Published, UnknownOutcome
from broker.client.resume import not_after
from broker.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from broker.client.items import Payload
    from broker.client.resume import Resume

T = TypeVar("T")
Frame: TypeAlias = "tuple[str, Payload, str]"  # type, payload, messageId

UNECHOED = 1_000  # ids of the newest publishes without echo
IN_FLIGHT = 16  # unanswered publishes: many refusals for rate would end the connection
# Subtracted from the duplicate window: a retry takes a while to arrive, and the broker itself retries for
# some seconds.
MARGIN, MARGIN_SECONDS = 0.1, 30.0


@attrs.define(eq=False)
class Pending(Generic[T]):
    """A promise of the broker's answer. `on_done` is called once, when there is an outcome."""

    on_done: Callable[[], None] | None
    outcome: T | BrokerError | None = None
    withdrawn: bool = False

    def settle(self, outcome: T | BrokerError) -> None:
        if self.outcome is None:
            self.outcome = outcome
            if self.on_done:
                self.on_done()

    def result(self) -> T:
        """Return the answer. Raises the `BrokerError` that came instead."""
        if isinstance(self.outcome, BrokerError):
            raise self.outcome
        if self.outcome is None:
            raise RuntimeError("there is no answer yet")
        return self.outcome


@attrs.define(eq=False)
class Publish:
    """A publish. `unsure`: an earlier attempt had no answer, or one that leaves the outcome open."""

    number: int
    channel: str
    event: bytes
    id: str
    promise: Pending[Published]
    echo: bool = True
    sent_at: float = inf
    first_sent: tuple[float, float] | None = None  # on the monotonic clock, and on the wall's
    unsure: bool = False

    @property
    def payload(self) -> Payload:
        payload = {"channel": self.channel, "event": msgspec.Raw(self.event), "id": self.id}
        return payload if self.echo else payload | {"echo": False}

    @property
    def size(self) -> int:
        """The size of the message in bytes."""
        document = {"type": "publish", "payload": self.payload, "messageId": "p" + "0" * 10}
        return len(msgspec.json.encode(document))

    def perhaps(self, why: str) -> None:
        self.promise.settle(UnknownOutcome(f"{self.channel}: {why}", event_id=self.id))

    def fails(self, error: BrokerError) -> None:
        """Fail the publish: there will be no further attempt."""
        if self.unsure:
            self.perhaps(f"an earlier try had no answer; now {error.message}")
        else:
            self.promise.settle(error)


@attrs.define(eq=False)
class Acknowledgement:
    """The position to acknowledge for a durable name, and who waits for that."""

    wanted: str
    sent: str | None = None
    message_id: str = ""
    not_before: float = -inf
    promises: list[tuple[str, Pending[str]]] = attrs.field(factory=list)


@attrs.define(eq=False)
class Outbox:
    """`waiting` and `sent` together are the publishes without an answer, in their order.

    `unechoed` has the channels of the newest publishes without echo, by id: another connection, as after a
    cut, is sent them.
    """

    gate: Gate = attrs.field(factory=Gate)
    wall: Callable[[], float] = time.time
    waiting: list[Publish] = attrs.field(factory=list)
    sent: dict[str, Publish] = attrs.field(factory=dict)
    acknowledgements: dict[str, Acknowledgement] = attrs.field(factory=dict)
    numbers: Iterator[int] = attrs.field(factory=lambda: count(1))
    not_before: float = -inf
    acknowledges: bool = False  # one may be sent as far as the gate allows
    pace: float = 0.0  # seconds between publishes, once the broker has refused some for rate
    unechoed: dict[str, str] = attrs.field(factory=dict)

    # --- the application's side --------------------------------------------------------------------

    def publish(
        self, channel: str, event: bytes, event_id: str | None, echo: bool, on_done: Callable[[], None]
    ) -> Pending[Published]:
        if event_id is not None and any(each.id == event_id for each in (*self.sent.values(), *self.waiting)):
            raise errors.Conflict(f"{subjects.shown(event_id)}: another event with this id is in flight")
        promise: Pending[Published] = Pending(on_done)
        event_id = event_id or uuid4().hex
        if not echo:
            self.unechoed[event_id] = channel
            if len(self.unechoed) > UNECHOED:
                del self.unechoed[next(iter(self.unechoed))]
        self.waiting.append(Publish(next(self.numbers), channel, event, event_id, promise, echo))
        return promise

    def withdraw(self, promise: Pending[Any]) -> None:
        """Withdraw a publish or acknowledgement: if it is not in flight, it will not be sent."""
        promise.withdrawn = True
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

    def cut(self, now: float) -> None:
        """Handle a lost connection: requeue what had no answer, if it may be sent again."""
        unanswered = list(self.sent.values())
        self.sent, self.not_before, self.pace = {}, -inf, 0.0
        for each in self.acknowledgements.values():
            each.sent = None
        for publish in unanswered:
            publish.unsure = True
            if subjects.is_live(publish.channel):
                publish.perhaps(
                    "the connection was lost before the answer, and a live event is not sent again"
                )
            elif not publish.promise.withdrawn:
                insort(self.waiting, publish, key=attrgetter("number"))
        self.waiting = [each for each in self.waiting if not self.too_late(each, now)]

    def due(self, now: float) -> float:
        """Return when the next message may be sent, if one is waiting."""
        held = [each.not_before for each in self.acknowledgements.values() if each.not_before > -inf]
        if self.acknowledges:
            held.append(self.gate.opens("requests", now))
        if self.waiting and len(self.sent) < IN_FLIGHT:
            held.append(max(self.not_before, self.gate.opens("publishes", now)))
        return min(held, default=inf)

    def take(self, resume: Resume, now: float) -> Iterator[Frame]:
        """Yield the messages that may be sent now."""
        self.acknowledges = False
        for durable, entry in self.acknowledgements.items():
            if now < entry.not_before:
                continue
            entry.not_before = -inf
            if entry.sent is not None or not resume.reached(durable, entry.wanted):
                continue
            if not self.gate.passes("requests", now):
                self.acknowledges = True
                break
            entry.sent, entry.message_id = entry.wanted, f"a{next(self.numbers)}"
            yield "acknowledge", {"durable": durable, "position": entry.sent}, entry.message_id
        while self.waiting and len(self.sent) < IN_FLIGHT and now >= self.not_before:
            if self.too_late(self.waiting[0], now) or self.too_large(self.waiting[0]):
                self.waiting.pop(0)
                continue
            if not self.gate.passes("publishes", now):
                return
            publish = self.waiting.pop(0)
            message_id = f"p{next(self.numbers)}"
            self.sent[message_id] = publish
            publish.sent_at = now
            publish.first_sent = publish.first_sent or (now, self.wall())
            if self.pace:
                self.not_before = now + self.pace
            yield "publish", publish.payload, message_id

    def too_late(self, publish: Publish, now: float) -> bool:
        """Give up publishes that may be stored and whose duplicate window has passed."""
        if not publish.unsure or self.age(publish, now) <= self.resend_seconds:
            return False
        publish.perhaps("no answer within the stream's duplicate window: a retry could store it twice")
        return True

    def too_large(self, publish: Publish) -> bool:
        """Give up publishes over a limit that the broker has announced."""
        allowed, size = self.gate.allowed, len(publish.event)
        limit, most = "publish_bytes", allowed.publish_bytes
        if size <= most:
            limit, most, size = "message_bytes", allowed.message_bytes, publish.size
        if size > most:
            publish.fails(errors.TooLarge(f"{size} bytes; the broker's `{limit}` is {most:g}"))
        return size > most

    def age(self, publish: Publish, now: float) -> float:
        """Return the time since it was first sent, by the clock that shows more: one stops while a machine
        sleeps.
        """
        if publish.first_sent is None:
            return 0.0
        monotonic, wall = publish.first_sent
        return max(now - monotonic, self.wall() - wall)

    @property
    def resend_seconds(self) -> float:
        window = self.gate.allowed.duplicate_window_seconds
        return window - max(MARGIN * window, MARGIN_SECONDS)

    def answered(self, kind: str, payload: Mapping[str, Any], message_id: str | None, now: float) -> bool:
        """Process an answer; return False for a message that is none, or a refusal that nobody waits for."""
        if publish := self.sent.pop(message_id or "", None):
            self.publish_answered(publish, kind, payload, now)
            return True
        for durable, entry in self.acknowledgements.items():
            if entry.sent is not None and entry.message_id == message_id:
                return self.acknowledge_answered(durable, entry, entry.sent, kind, payload, now)
        return False

    def publish_answered(self, publish: Publish, kind: str, payload: Mapping[str, Any], now: float) -> None:
        if kind != "error":
            self.published(publish, payload.get("position"), bool(payload.get("duplicate")))
        else:
            self.gate.refused("publishes", payload, now)
            if payload.get("retryable"):
                self.publish_refused(publish, payload, now)
            else:
                publish.fails(refusal(payload))
        if not self.waiting and not self.sent:
            self.pace = 0.0

    def published(self, publish: Publish, position: str | None, duplicate: bool) -> None:
        if duplicate and not publish.unsure:
            taken = f"{publish.channel}: another event has the id {subjects.shown(publish.id)}"
            publish.promise.settle(Duplicate(taken, event_id=publish.id, position=position))
        else:
            publish.promise.settle(Published(position=position, duplicate=duplicate))

    def publish_refused(self, publish: Publish, payload: Mapping[str, Any], now: float) -> None:
        """Handle a retryable refusal: send again, unless it is a live event that may have been sent."""
        wait = seconds(payload)
        self.not_before = max(self.not_before, now + wait)
        if payload.get("code") == errors.RateLimited.code:
            self.pace = max(self.pace, wait)
        elif subjects.is_live(publish.channel):
            return publish.perhaps(f"{refusal(payload).message}; and a live event is not sent again")
        else:
            publish.unsure = True  # NATS may have it, with only the answer lost
        if not publish.promise.withdrawn:
            insort(self.waiting, publish, key=attrgetter("number"))
        return None

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
        if kind == "error":
            self.gate.refused("requests", payload, now)
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

    def sent_at(self) -> float:
        """Return since when at least one has no answer."""
        return min((each.sent_at for each in self.sent.values()), default=inf)

    def largest(self) -> int:
        """Return the size of the largest publish in flight."""
        return max((each.size for each in self.sent.values()), default=0)

    def too_big(self) -> None:
        """Fail the largest publish in flight: the connection was closed for a message over the limit."""
        message_id = max(self.sent, key=lambda each: self.sent[each].size)
        refused = errors.TooLarge("the broker closed the connection: the message is over `message_bytes`")
        self.sent.pop(message_id).fails(refused)

    def end(self, why: BrokerError) -> None:
        """Fail everything that waits: there will be no more answers."""
        for publish in self.sent.values():
            publish.unsure = True
        publishes = [*self.sent.values(), *self.waiting]
        promises = [promise for entry in self.acknowledgements.values() for _, promise in entry.promises]
        self.sent, self.waiting, self.acknowledgements = {}, [], {}
        for each in publishes:
            each.fails(why)
        for promise in promises:
            promise.settle(why)


def refusal(payload: Mapping[str, Any]) -> BrokerError:
    """Return the error in an `error` message."""
    kind = errors.by_code().get(payload.get("code", ""), BrokerError)
    made = kind(payload.get("message", "refused"))
    if isinstance(made, errors.Rejected):
        made.status = payload.get("status")
    made.paths = payload.get("paths")
    if "conflict" in payload:
        made.conflict = [
            errors.Contradiction(channel=each["channel"], revision=each["revision"], paths=each["paths"])
            for each in payload["conflict"]
        ]
    if "retry_after_ms" in payload:
        made.retry_after = payload["retry_after_ms"] / 1000
    return made
