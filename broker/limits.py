"""Rates and quotas. The clock is an argument: seconds on any monotonic clock."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class TokenBucket:
    """Admits `rate` a second on average and `burst` at once."""

    __slots__ = ("burst", "level", "rate", "time")

    def __init__(self, *, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.level = burst
        self.time = now

    def adopt(self, *, rate: float, burst: float) -> None:
        """Goes on with other bounds."""
        self.rate, self.burst = rate, burst

    def take(self, now: float) -> float:
        """Takes one and answers 0; or takes nothing and answers after how many seconds there is one."""
        self.level = min(self.burst, self.level + (now - self.time) * self.rate)
        self.time = now
        if self.level >= 1:
            self.level -= 1
            return 0.0
        return (1 - self.level) / self.rate

    def full(self, now: float) -> bool:
        """Whether nothing of the burst is in use: the bucket may be forgotten and made anew."""
        return self.level + (now - self.time) * self.rate >= self.burst


class Window:
    """Counts what happened within the last `seconds`."""

    __slots__ = ("limit", "seconds", "times")

    def __init__(self, *, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self.times: deque[float] = deque()

    def hit(self, now: float) -> bool:
        """Notes one; whether that makes `limit` of them."""
        self.times.append(now)
        while self.times[0] <= now - self.seconds:
            self.times.popleft()
        return len(self.times) >= self.limit

    def count(self, now: float) -> int:
        """How many there have been."""
        return sum(time > now - self.seconds for time in self.times)


class Quota:
    """At most `limit` at a time of each key."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: Counter[Hashable] = Counter()

    def acquire(self, key: Hashable) -> bool:
        if self.held[key] >= self.limit:
            return False
        self.held[key] += 1
        return True

    def release(self, key: Hashable) -> None:
        self.held[key] -= 1
        if self.held[key] <= 0:
            del self.held[key]
