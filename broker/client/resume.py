"""What a client remembers to miss nothing after a reconnection, without I/O.

This is the client's side of the protocol page, "Positions, order and loss".

A connection has one live position, and each unfinished catch-up has its own newest marked position. On the
next connection the live subscriptions are requested in one list from the live position, and each unfinished
catch-up from where it was. An unanswered request is repeated as it was. A durable subscription begins at its
last acknowledged position; events that were handed over since then are not handed over again.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import attrs

from broker import subjects
from broker.errors import InvalidPosition
from broker.wire import positions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from broker.client.items import Payload

REMEMBERED = 10_000  # channels in the cache of whether they are wanted


@attrs.define(eq=False)
class Request:
    """One `subscribe`, and its state on this connection."""

    channels: list[str]
    start: Payload  # {"position": …} or {"last": …} or …; empty: from now
    lag: str | None
    durable: str | None = None
    accepted: bool = False
    catch_up: int | None = None  # the catch-up number in its frames, until it is live
    newest: str | None = None  # the newest marked position
    floor: str | None = None  # of a durable one: handed over before this connection
    sent: bool = False
    calls: int = 1  # of the application that share this message
    tries: int = 0  # retryable refusals
    doubts: int = 0  # connections that ended without an answer to it
    not_before: float = -inf

    @property
    def live(self) -> bool:
        """Whether the live position alone describes it."""
        return self.accepted and self.catch_up is None

    @property
    def is_new(self) -> bool:
        """Whether others can be combined with it."""
        return not (self.sent or self.accepted or self.tries or self.durable)

    @property
    def payload(self) -> Payload:
        options = {"durable": self.durable, "lag": self.lag}
        given = {name: value for name, value in options.items() if value is not None}
        return {"channel": self.channels, **self.start, **given}


@attrs.define(eq=False)
class Resume:
    """The subscriptions of a client, and the position of each.

    `requests` are keyed by the `messageId` of their `subscribe`. `private` is what `me` stands for.
    """

    position: str | None = None
    private: str | None = None
    requests: dict[str, Request] = attrs.field(factory=dict)
    count: int = 0
    let_go: bool = False  # an unsubscribe was made: its events may still arrive
    wanted: dict[str, bool] = attrs.field(
        factory=dict
    )  # the cache: channel → wanted, until subscriptions change

    def ask(
        self, channels: Iterable[str], start: Payload, lag: str | None = None, durable: str | None = None
    ) -> str:
        """Record a `subscribe` and return its `messageId`. With a start it replaces what was asked before.

        Unsent requests with the same start are combined into one message; except with `last`, which counts
        over the list that the caller has given.
        """
        channels = list(dict.fromkeys(channels))
        if start or durable:
            self.forget(channels)
        self.wanted.clear()
        if durable is None and "last" not in start:
            for key, other in self.requests.items():
                if other.is_new and (other.start, other.lag) == (start, lag):
                    other.channels += [each for each in channels if each not in other.channels]
                    other.calls += 1
                    return key
        key = self.next_id()
        self.requests[key] = Request(channels, start, lag, durable)
        return key

    def next_id(self) -> str:
        self.count += 1
        return str(self.count)

    def forget(self, channels: Iterable[str]) -> None:
        """Remove ended subscriptions."""
        self.wanted.clear()
        gone = {self.expanded(channel) for channel in channels}
        for key, request in list(self.requests.items()):
            request.channels = [name for name in request.channels if self.expanded(name) not in gone]
            if not request.channels:
                del self.requests[key]

    def again(self) -> None:
        """Begin a new connection: fill `requests` with what to request there, in order."""
        before, self.requests = self.requests, {}
        self.wanted.clear()
        lags: dict[str, str | None] = {}  # the last request counts
        for request in before.values():
            if request.live and request.durable is None:
                lags |= dict.fromkeys(request.channels, request.lag)
        start = {} if self.position is None else {"position": self.position}
        for lag in dict.fromkeys(lags.values()):
            channels = [channel for channel, its in lags.items() if its == lag]
            self.requests[self.next_id()] = Request(channels, start, lag)
        for key, request in before.items():
            if request.durable is not None:
                self.requests[key] = self.durably(request)
            elif not request.live:
                begin = request.start if request.newest is None else {"position": request.newest}
                again = Request(request.channels, begin, request.lag, calls=request.calls)
                again.doubts = request.doubts
                self.requests[key] = again

    def durably(self, before: Request) -> Request:
        """Return a durable subscription as requested on another connection.

        Its cursor takes precedence over the given start, which is used if the cursor has expired meanwhile.
        """
        reached = self.position if before.live else before.newest
        floor = before.floor if reached is None or not_after(reached, before.floor) else reached
        start = before.start if floor is None else {"position": floor}
        again = Request(before.channels, start, before.lag, before.durable, floor=floor)
        again.doubts = 0 if before.accepted else before.doubts
        return again

    def received(self, kind: str, payload: Mapping[str, Any], message_id: str | None) -> None:
        """Record a message from the broker; call this for each, in order."""
        request = self.requests.get(message_id or "")
        catch_up = payload.get("catch_up")
        match kind:
            case "event" if catch_up is not None:
                self.moved(catch_up, payload.get("position"))
            case "gap" if catch_up is not None:
                self.moved(catch_up, payload.get("to"))
            case "gap":
                self.position = payload.get("to") or self.position
            case "event" | "pong" | "connection.draining" | "subscribed" | "subscription.live":
                self.position = payload.get("position") or self.position
        if kind == "connection.authenticated":
            self.private = payload.get("private")
        elif kind == "subscribed" and request is not None:
            request.accepted, request.catch_up = True, catch_up
            self.forget(refused["channel"] for refused in payload.get("refused", ()))
        elif kind == "subscription.live":
            for other in self.marked(catch_up):
                other.catch_up = None
        elif kind == "unsubscribed" and message_id is None:
            channel = payload["channel"]
            self.forget([channel] if isinstance(channel, str) else channel)
        elif kind == "error" and request is not None and not payload.get("retryable"):
            self.drop(message_id or "")

    def drop(self, message_id: str) -> None:
        """Remove a request that the broker refused for good."""
        self.wanted.clear()
        self.requests.pop(message_id)

    def wants(self, channel: str) -> bool:
        """Return whether an event of this channel belongs to a present subscription."""
        if not self.let_go:
            return True
        if channel not in self.wanted:
            if len(self.wanted) >= REMEMBERED:
                self.wanted.clear()
            self.wanted[channel] = any(
                subjects.covers(self.expanded(each), channel)
                for request in self.requests.values()
                for each in request.channels
            )
        return self.wanted[channel]

    def moved(self, catch_up: int, position: str | None) -> None:
        for request in self.marked(catch_up):
            request.newest = position or request.newest

    def marked(self, catch_up: int | None) -> list[Request]:
        return [each for each in self.requests.values() if each.catch_up == catch_up and catch_up is not None]

    def handed_over(self, channel: str, position: str | None, catch_up: int | None) -> bool:
        """Return whether all subscriptions of an event had handed it over before this connection."""
        if position is None or all(request.floor is None for request in self.requests.values()):
            return False
        meant = [
            request.floor
            for request in self.requests.values()
            if request.catch_up == catch_up
            and any(subjects.covers(self.expanded(each), channel) for each in request.channels)
        ]
        return bool(meant) and all(not_after(position, floor) for floor in meant)

    def holds(self, durable: str) -> bool:
        """Return whether there is a subscription under this name."""
        return any(request.durable == durable for request in self.requests.values())

    def reached(self, durable: str, position: str) -> bool:
        """Return whether the subscription has reached `position` on this connection, so that it can be
        acknowledged.
        """
        for request in self.requests.values():
            if request.durable == durable and request.accepted:
                at = self.position if request.catch_up is None else request.newest
                return at is not None and (not same_stream(at, position) or not_after(position, at))
        return False

    def expanded(self, channel: str) -> str:
        """Return a channel with `me.…` written out, as the broker names it."""
        user = self.private and self.private.partition(".")[2]
        return subjects.expand_me(channel, user) if user else channel


def not_after(position: str, other: str | None) -> bool:
    """Return whether `position` is at or before `other`; False when they cannot be compared."""
    if other is None or not same_stream(position, other):
        return False
    return positions.parse(position).sequence <= positions.parse(other).sequence


def same_stream(position: str, other: str) -> bool:
    try:
        return positions.parse(position).incarnation == positions.parse(other).incarnation
    except InvalidPosition:  # in a format of another broker
        return False
