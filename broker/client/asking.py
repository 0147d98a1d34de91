"""Subscribe and unsubscribe requests of one connection, in few messages and within the broker's limits.

`Resume` has the subscriptions that the application wants; here they become `subscribe` and `unsubscribe`
messages. Only a few are in flight at a time, so that requests made meanwhile are combined. An unsubscribe is
repeated until the broker confirms it, before anything new is requested: it would count against a limit.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import msgspec

from broker import errors
from broker.client.gate import seconds
from broker.client.items import Message
from broker.client.resume import Request
from broker.errors import BadMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from broker.client.gate import Gate
    from broker.client.items import Payload
    from broker.client.resume import Resume
    from broker.errors import BrokerError

Frame: TypeAlias = "tuple[str, Payload, str]"  # type, payload, messageId

UNDER_WAY = 4  # unanswered `subscribe` messages at a time
DOUBTS = 3  # connections that end without an answer before a request is given up
SMALL = 1024  # bytes that no broker or proxy refuses
AROUND_BYTES = 512  # bytes of a message beside its list of channels


@attrs.define(eq=False)
class Asking:
    resume: Resume
    gate: Gate
    delay: Callable[[int], float]  # the wait after so many refusals
    held: set[str] = attrs.field(factory=set)  # full names of the subscriptions that the broker has
    asked: dict[str, list[str]] = attrs.field(factory=dict)  # in flight: messageId → full names
    leaving: dict[str, None] = attrs.field(factory=dict)  # unsubscribed by the application, and not confirmed
    left: list[str] = attrs.field(factory=list)  # those of them in flight
    left_id: str = ""
    sent_at: dict[str, float] = attrs.field(factory=dict)  # messageId → time of sending, until it is answered
    one_by_one: bool = False  # an unsubscribe of several was refused as a whole
    list_bytes: float = inf  # longer ones were refused on the way
    refused: list[Message] = attrs.field(factory=list)  # refusals to report for requests that are not sent

    def again(self) -> None:
        """Begin a new connection, which has no subscriptions."""
        self.held, self.asked, self.leaving, self.left, self.one_by_one = set(), {}, {}, [], False
        self.sent_at = {}

    def unsubscribe(self, channels: Iterable[str]) -> None:
        names = [self.resume.expanded(each) for each in channels]
        self.resume.forget(names)
        self.resume.let_go = True
        under_way = {name for asked in self.asked.values() for name in asked}
        self.leaving |= dict.fromkeys(name for name in names if name in self.held or name in under_way)

    def due(self, now: float) -> float:
        """Return when the next message may be sent, if one is waiting."""
        if self.left:
            return inf
        if self.leaving:
            return self.gate.opens("requests", now) if self.to_leave() else inf
        waiting = [each.not_before for each in self.resume.requests.values() if not each.sent]
        if not waiting or len(self.asked) >= UNDER_WAY:
            return inf
        return max(min(waiting), self.gate.opens("requests", now))

    def take(self, now: float) -> Iterator[Frame]:
        """Yield the messages that may be sent now."""
        if self.leaving:
            wanted = {
                self.resume.expanded(c) for each in self.resume.requests.values() for c in each.channels
            }
            self.leaving = {name: None for name in self.leaving if name not in wanted}
        if (names := self.to_leave()) or self.left:
            if not self.left and self.gate.passes("requests", now):
                self.left, self.left_id = names, f"u{self.resume.next_id()}"
                self.sent_at[self.left_id] = now
                yield "unsubscribe", {"channel": names}, self.left_id
            return
        if self.leaving:  # its subscribe is in flight: unsubscribe after the answer
            return
        for key, request in list(self.resume.requests.items()):
            if request.sent or now < request.not_before:
                continue
            if request.start.get("last", 0) > (most := self.gate.allowed.last_events):
                self.refuse(key, BadMessage(f"last: must be 1 to {most:g}"))
                continue
            if len(self.asked) >= UNDER_WAY or not self.gate.passes("requests", now):
                return
            self.cut(request)
            request.sent = True
            self.sent_at[key] = now
            self.asked[key] = [self.resume.expanded(each) for each in request.channels]
            yield "subscribe", request.payload, key

    def refuse(self, key: str, error: BrokerError) -> None:
        payload = {"code": error.code, "message": error.message, "retryable": False}
        self.resume.drop(key)
        self.refused.append(Message(type="error", payload=payload, message_id=key))

    def to_leave(self) -> list[str]:
        names = [name for name in self.leaving if name in self.held]
        return names[:1] if self.one_by_one else names[: self.fitting(names)]

    def cut(self, request: Request) -> None:
        """Cut a request to what fits into one message, and queue the rest. A durable one is never cut."""
        most = self.fitting(request.channels)
        if most < len(request.channels) and request.durable is None:
            self.split(request, most)

    def split(self, request: Request, most: int) -> None:
        rest = Request(
            request.channels[most:],
            request.start,
            request.lag,
            filter=request.filter,
            every_ms=request.every_ms,
            floor=request.floor,
            calls=request.calls,
        )
        request.channels = request.channels[:most]
        self.resume.requests[self.resume.next_id()] = rest

    def fitting(self, channels: list[str]) -> int:
        """Return how many of these the broker accepts in one message, at least one."""
        allowed = self.gate.allowed
        room = min(self.list_bytes, max(allowed.message_bytes - AROUND_BYTES, 0))
        for count, channel in enumerate(channels):
            room -= len(msgspec.json.encode(channel)) + 1
            if count and (room < 0 or count >= allowed.subscriptions_per_connection):
                return count
        return len(channels)

    def answered(self, kind: str, payload: Mapping[str, Any], message_id: str | None, now: float) -> bool:
        """Record an answer; return True when it does not concern the application."""
        self.sent_at.pop(message_id or "", None)
        if kind == "unsubscribed" and message_id != self.left_id:
            channel = payload["channel"]
            self.forget([channel] if isinstance(channel, str) else channel)
        elif message_id is not None and message_id == self.left_id and self.left:
            return self.left_answered(kind, payload, now)
        elif message_id in self.asked:
            return self.subscribe_answered(kind, payload, message_id, now)
        return False

    def subscribe_answered(self, kind: str, payload: Mapping[str, Any], key: str, now: float) -> bool:
        names = self.asked.pop(key)
        request = self.resume.requests.get(key)
        if kind == "subscribed":
            self.held.update(payload["channel"])
        elif kind == "error":
            self.gate.refused("requests", payload, now)
            if payload.get("retryable"):  # it may be in force all the same
                self.held.update(names)
            if request is not None and payload.get("retryable"):
                request.sent = False
                request.not_before = now + seconds(payload) + self.delay(request.tries)
                request.tries += 1
            elif request is not None and self.taken_apart(request, payload):
                request.sent = False
                return True
        under_way = {name for asked in self.asked.values() for name in asked}
        for name in names:
            if name not in self.held and name not in under_way:
                self.leaving.pop(name, None)
        return False

    def taken_apart(self, request: Request, payload: Mapping[str, Any]) -> bool:
        """Split a request of several calls whose snapshot is too large, and return whether that was done."""
        several = request.calls > 1 and len(request.channels) > 1
        if several and payload.get("code") == errors.SnapshotTooLarge.code:
            self.split(request, len(request.channels) // 2)
            return True
        return False

    def left_answered(self, kind: str, payload: Mapping[str, Any], now: float) -> bool:
        names, self.left = self.left, []
        if kind == "error":
            self.gate.refused("requests", payload, now)
            if payload.get("retryable"):
                self.gate.hold("requests", now + seconds(payload))
                return True
            if len(names) > 1:  # one of them had ended meanwhile, and none was taken
                self.one_by_one = True
                return True
        self.forget(names)
        self.one_by_one = self.one_by_one and bool(self.leaving)
        return kind == "error"

    def doubt(self) -> None:
        """Count an unanswered connection against its requests, and refuse those that never get an answer."""
        for key in self.asked:
            if request := self.resume.requests.get(key):
                request.doubts += 1
                if request.doubts >= DOUBTS:
                    self.refuse(key, BadMessage(f"no answer after {DOUBTS} tries"))

    def forget(self, names: Iterable[str]) -> None:
        """Record that the broker holds these subscriptions no longer."""
        for name in names:
            self.held.discard(name)
            self.leaving.pop(name, None)

    def size(self, key: str) -> int:
        """Return the size of the list in a message that is under way, in bytes."""
        return len(msgspec.json.encode(self.asked[key]))

    def shorten(self, key: str) -> bool:
        """Cut lists shorter after this one ended the connection; return whether any try remains."""
        size, request = self.size(key), self.resume.requests.get(key)
        if size < SMALL:  # too small to be the reason
            return True
        if request is not None and request.durable is not None:
            return False
        self.list_bytes = max(min(self.list_bytes, size) // 2, SMALL)
        return True
