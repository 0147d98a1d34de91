"""Pacing of messages to stay below the limits that the broker has announced.

Four lanes: publishes, requests to services, changes of documents, and all others; of these, pages of history
may be held back apart. Refusals are counted together, since the broker
closes the connection after 50 of them for rate, or 10 for malformed messages, within a minute.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from broker import errors
from broker.limits import TokenBucket, Window

if TYPE_CHECKING:
    from collections.abc import Mapping

Lane: TypeAlias = Literal["publishes", "calls", "changes", "requests", "history"]

SHARE = 0.8  # share of rates and bursts: what is sent evenly may arrive in bunches
RATE_REFUSALS, FORM_REFUSALS = 25, 5  # share of the 50 and the 10: messages in flight may be refused too
REFUSAL_SECONDS = 61.0
WAIT_SECONDS = 1.0  # before a retry, when the broker gives no time
LONGEST_WAIT = 300.0  # the longest wait that we accept
INSTANT = 1e-6  # seconds: less is a rounding error


@attrs.frozen(kw_only=True)
class Allowed:
    """`connection.established.limits`; the defaults are those of the protocol page, "Limits"."""

    message_bytes: float = 65536
    publish_bytes: float = inf
    subscriptions_per_connection: float = 128
    last_events: float = inf
    requests_per_second: float = 10
    requests_burst: float = 10
    messages_per_minute: float = 100
    messages_burst: float = 50
    calls_per_second: float = 10
    calls_burst: float = 50
    requests_in_flight: float = 16
    changes_per_second: float = 10
    changes_burst: float = 50
    duplicate_window_seconds: float = 600

    @classmethod
    def said(cls, limits: Mapping[str, Any]) -> Allowed:
        known = attrs.fields_dict(cls)
        return cls(**{
            name: value
            for name, value in limits.items()
            if name in known and isinstance(value, int | float) and value > 0
        })  # fmt: skip


@attrs.define(eq=False)
class Gate:
    """Time is an argument: seconds on a monotonic clock."""

    allowed: Allowed = attrs.field(factory=Allowed)
    buckets: dict[Lane, TokenBucket] = attrs.field(factory=dict)
    held: dict[Lane, float] = attrs.field(factory=dict)  # the lane is closed until then
    refusals: Window = attrs.field(factory=lambda: Window(limit=RATE_REFUSALS, seconds=REFUSAL_SECONDS))
    bad: Window = attrs.field(factory=lambda: Window(limit=FORM_REFUSALS, seconds=REFUSAL_SECONDS))

    def begin(self, allowed: Allowed, now: float) -> None:
        """Take the limits of a new connection. All but requests are counted per user."""
        self.allowed = allowed
        self.refusals.times.clear()
        self.bad.times.clear()
        self.held = {}
        rates: dict[Lane, tuple[float, float]] = {
            "publishes": (allowed.messages_per_minute / 60, allowed.messages_burst),
            "calls": (allowed.calls_per_second, allowed.calls_burst),
            "changes": (allowed.changes_per_second, allowed.changes_burst),
            "requests": (allowed.requests_per_second, allowed.requests_burst),
        }
        for lane, (rate, burst) in rates.items():
            rate, burst = SHARE * rate, max(1.0, SHARE * burst)
            if lane != "requests" and lane in self.buckets:
                self.buckets[lane].set_rate(rate=rate, burst=burst)
            else:
                self.buckets[lane] = TokenBucket(rate=rate, burst=burst, now=now)

    def opens(self, lane: Lane, now: float) -> float:
        """Return when the next message of this lane may go: `now`, or later."""
        if not self.buckets:
            self.begin(self.allowed, now)
        opens = [now, now + self.buckets[lane].wait(now), self.held.get(lane, now)]
        for window in (self.refusals, self.bad):
            recent = [each for each in window.times if each > now - window.seconds]
            if len(recent) >= window.limit:
                opens.append(recent[-window.limit] + window.seconds)
        return max(opens)

    def passes(self, lane: Lane, now: float) -> bool:
        """Return whether a message may go now, and if so count it."""
        if self.opens(lane, now) > now + INSTANT:
            return False
        self.buckets[lane].spend(now, 1)
        return True

    def count(self, lane: Lane, now: float) -> None:
        """Count a message that is sent in any case."""
        if self.buckets:
            self.buckets[lane].spend(now, 1)

    def hold(self, lane: Lane, until: float) -> None:
        self.held[lane] = max(self.held.get(lane, -inf), until)

    def refused(self, lane: Lane, payload: Mapping[str, Any], now: float) -> None:
        """Record an `error`, and pause after several for rate or malformed messages."""
        code = payload.get("code")
        if code == errors.RateLimited.code:
            self.refusals.hit(now)
            self.hold(lane, now + seconds(payload))
        elif code in (errors.BadMessage.code, errors.UnknownType.code):
            self.bad.hit(now)
        kind = errors.by_code().get(payload.get("code", ""), errors.BrokerError)
        if not (payload.get("retryable") or issubclass(kind, errors.ServiceError)):
            self.count("publishes", now)  # the broker counts failures among them


def seconds(payload: Mapping[str, Any]) -> float:
    """Return the seconds to wait after a retryable refusal."""
    wait: float = payload.get("retry_after_ms") or WAIT_SECONDS * 1000
    return min(max(wait, 0.0) / 1000, LONGEST_WAIT)
