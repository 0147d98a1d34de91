"""Exponential back-off: how long to wait before the next attempt."""

from __future__ import annotations

from random import SystemRandom

import attrs

MAX_DOUBLINGS = 30

random = SystemRandom()  # an application may have seeded the global generator alike in many processes


@attrs.frozen(kw_only=True)
class Backoff:
    """A bound that doubles from `first` to `longest` seconds, and a random delay below it.

    `jitter` is the share of the bound that is random: 1 is full jitter, for many clients of one server; 0 is
    none. The caller counts its failures, and resets the count when an attempt succeeds.
    """

    first: float = 0.5
    longest: float = 20.0
    jitter: float = 1.0

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after `failures` earlier failures in a row and the present one."""
        bound = min(self.longest, self.first * 2.0 ** min(failures, MAX_DOUBLINGS))
        return bound * random.uniform(1 - self.jitter, 1)
