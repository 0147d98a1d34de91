"""What a client remembers to miss nothing after a reconnection, without I/O.

This is the client's side of the protocol page, "Positions, order and loss".

A connection has one live position, and each unfinished catch-up has its own newest marked position. On the
next connection each subscription is requested from where it is complete: a live one from the live position,
or from its floor if that is higher, an unfinished catch-up from its newest event. Live subscriptions at the
same position are requested in one list. An unanswered request is repeated as it was. A durable subscription
begins at its last acknowledged position; events that were handed over since then are not handed over again.

The browser client does the same (`client/records.js`); `tests/client/resume.json` holds both to it.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from broker import subjects
from broker.errors import InvalidPosition
from broker.filters import either
from broker.wire import positions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from broker.client.items import Payload
    from broker.filters import Filter

REMEMBERED = 10_000  # channels in the cache of whether they are wanted


@attrs.frozen
class Wanted:
    """What a subscription wants of its channels: what passes a filter, at a pace."""

    filter: Filter | None = None
    every_ms: int | None = None


PLAIN = (), (Wanted(),)  # without subscriptions it was sent for one before


def finest(wanted: Collection[Wanted]) -> int | None:
    """Return the pace at which all of those get what they want: the finest.

    None where one wants everything, or filters differ: what passes one would take the place of what passes
    another.
    """
    paces = [each.every_ms for each in wanted if each.every_ms is not None]
    alike = len(paces) == len(wanted) and len({each.filter for each in wanted}) == 1
    return min(paces) if alike else None


@attrs.define(eq=False)
class Request:
    """One `subscribe`, and its state on this connection."""

    channels: list[str]
    start: Payload  # {"position": …} or {"last": …} or …; empty: from now
    lag: str | None
    durable: str | None = None
    filter: Filter | None = None
    every_ms: int | None = None
    accepted: bool = False
    catch_up: int | None = None  # the catch-up number in its frames, until it is live
    newest: str | None = None  # the newest marked position
    floor: str | None = None  # nothing up to there is handed over, until the events have passed it
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
        options = {"durable": self.durable, "lag": self.lag, "every_ms": self.every_ms}
        given: Payload = {name: value for name, value in options.items() if value is not None}
        if self.filter is not None:
            given["filter"] = msgspec.Raw(self.filter.text)
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
    meant: dict[str, tuple[Wanted, ...]] = attrs.field(factory=dict)  # likewise: what of a channel is wanted

    def ask(
        self,
        channels: Iterable[str],
        start: Payload,
        lag: str | None = None,
        durable: str | None = None,
        filter_: Filter | None = None,
        every_ms: int | None = None,
    ) -> str:
        """Record a `subscribe` and return its `messageId`. With a start it replaces what was asked before.

        Unsent requests with the same start and options are combined into one message; except with `last`,
        which counts over the list that the caller has given.
        """
        channels = list(dict.fromkeys(channels))
        if start or durable:
            self.forget(channels)
        self.changed()
        if durable is None and "last" not in start:
            for key, other in self.requests.items():
                its = other.start, other.lag, other.filter, other.every_ms
                if other.is_new and its == (start, lag, filter_, every_ms):
                    other.channels += [each for each in channels if each not in other.channels]
                    other.calls += 1
                    return key
        key = self.next_id()
        self.requests[key] = Request(
            channels, start, lag, durable, filter_, every_ms, floor=start.get("position")
        )
        return key

    def changed(self) -> None:
        """Forget what was found out about channels: the subscriptions are others now."""
        self.wanted.clear()
        self.meant.clear()

    def next_id(self) -> str:
        self.count += 1
        return str(self.count)

    def forget(self, channels: Iterable[str]) -> None:
        """Remove ended subscriptions."""
        self.changed()
        gone = {self.expanded(channel) for channel in channels}
        for key, request in list(self.requests.items()):
            request.channels = [name for name in request.channels if self.expanded(name) not in gone]
            if not request.channels:
                del self.requests[key]

    def again(self) -> None:
        """Begin a new connection: fill `requests` with what to request there, in order."""
        held = self.by_name()
        before, self.requests = self.requests, {}
        self.changed()
        live: dict[
            str, tuple[str | None, str | None]
        ] = {}  # the last lag policy counts, and the highest floor
        for request in before.values():
            if request.live and request.durable is None:
                reached = self.reached_by(request)
                for channel in request.channels:
                    _, known = live.get(channel, (None, None))
                    live[channel] = (request.lag, higher(reached, known))
        alike: dict[tuple[str | None, str | None, Wanted], list[str]] = {}
        for channel, its in live.items():
            alike.setdefault((*its, held[self.expanded(channel)]), []).append(channel)
        for (lag, position, wanted), channels in alike.items():
            start = {} if position is None else {"position": position}
            self.requests[self.next_id()] = Request(
                channels, start, lag, filter=wanted.filter, every_ms=wanted.every_ms, floor=position
            )
        for key, request in before.items():
            if request.durable is not None or not request.live:
                self.requests[key] = self.repeated(request)
                wants = [held[self.expanded(channel)] for channel in request.channels]
                self.requests[key].filter = either(each.filter for each in wants)
                self.requests[key].every_ms = finest(wants)

    def repeated(self, before: Request) -> Request:
        """Return a subscription as requested alone on another connection.

        The cursor of a durable one takes precedence over the given start, which is used if it has expired.
        """
        floor = self.reached_by(before)
        start = before.start if floor is None else {"position": floor}
        again = Request(before.channels, start, before.lag, before.durable, floor=floor, calls=before.calls)
        again.doubts = 0 if before.accepted else before.doubts
        return again

    def reached_by(self, request: Request) -> str | None:
        """Return up to where a subscription is complete; None if it has yet to begin."""
        return higher(self.position if request.live else request.newest, request.floor)

    def received(self, kind: str, payload: Mapping[str, Any], message_id: str | None) -> None:
        """Record a message from the broker; call this for each, in order."""
        request = self.requests.get(message_id or "")
        catch_up = payload.get("catch_up")
        match kind:
            case "event" if position := payload.get("position"):
                self.passed(position, catch_up)
                if catch_up is None:
                    self.position = position
                else:
                    self.moved(catch_up, position)
            case "gap":
                if payload.get("reason") == "reset":
                    self.begun_anew(payload["channel"], catch_up)
                if catch_up is not None:
                    self.moved(catch_up, payload.get("to"))
                else:
                    self.position = payload.get("to") or self.position
            case "pong" | "connection.draining" | "subscribed" | "subscription.live":
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
        self.changed()
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

    def by_name(self) -> dict[str, Wanted]:
        """Return what each subscription wants: of those to the same channel the last one counts."""
        return {
            self.expanded(each): Wanted(request.filter, request.every_ms)
            for request in self.requests.values()
            for each in request.channels
        }

    def pace(self, channel: str, event: msgspec.Raw, *, paced: bool) -> int | None:
        """Return at which pace (ms) an event comes, 0: at once; None if it passes for no subscription.

        It may have been sent for one before. What is `paced` is for those with a pace alone.
        """
        if channel not in self.meant:
            if len(self.meant) >= REMEMBERED:
                self.meant.clear()
            found = [its for name, its in self.by_name().items() if subjects.covers(name, channel)]
            self.meant[channel] = tuple(dict.fromkeys(found))
        meant = self.meant[channel]
        if meant in PLAIN and not paced:
            return 0
        value = msgspec.json.decode(event) if any(each.filter for each in meant) else None
        passing = [each for each in meant if each.filter is None or each.filter.passes(value)]
        paces = [each.every_ms or 0 for each in passing if each.every_ms is not None or not paced]
        return min(paces, default=None)

    def moved(self, catch_up: int, position: str | None) -> None:
        for request in self.marked(catch_up):
            request.newest = position or request.newest

    def passed(self, position: str, catch_up: int | None) -> None:
        """Forget floors that an event has passed: positions grow, or are of another stream."""
        for request in self.requests.values():
            floor = request.floor
            if floor is not None and request.accepted and request.catch_up == catch_up:
                request.floor = floor if not_after(position, floor) else None

    def begun_anew(self, channel: str | list[str], catch_up: int | None) -> None:
        """Let subscriptions begin below their floor: the stream has not come so far, or is another one."""
        channels = {channel} if isinstance(channel, str) else set(channel)
        for request in self.requests.values():
            ours = request.accepted and request.catch_up == catch_up
            if ours and not channels.isdisjoint(map(self.expanded, request.channels)):
                request.floor = None

    def marked(self, catch_up: int | None) -> list[Request]:
        return [each for each in self.requests.values() if each.catch_up == catch_up and catch_up is not None]

    def handed_over(self, channel: str, position: str | None, catch_up: int | None) -> bool:
        """Return whether an event is at or below the floor of every subscription that it is for.

        One with a pace has none: what was held for it may come again.
        """
        if position is None or all(request.floor is None for request in self.requests.values()):
            return False
        meant = [
            None if request.every_ms else request.floor
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


def higher(position: str | None, floor: str | None) -> str | None:
    """Return the higher of a position and a floor; a floor of another stream is void."""
    return floor if position is None or not_after(position, floor) else position


def same_stream(position: str, other: str) -> bool:
    try:
        return positions.parse(position).incarnation == positions.parse(other).incarnation
    except InvalidPosition:  # in a format of another broker
        return False
