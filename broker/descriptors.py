"""File descriptors: as many as the system allows, and some that the crowd cannot take.

A connection is a descriptor. Where they run out nothing can be opened any more: no connection to NATS, no
answer to a health check, no file. So the public port stops short of the limit: at the first mark it answers
`/healthz` and `/readyz` and refuses the rest with 503, at the second one it cuts what comes. What is above is
kept for the admin port, NATS, names, keys and files.
"""

from __future__ import annotations

import resource
from typing import Final

import attrs

RESERVE: Final = 128  # descriptors that are no client's, at most
SHARE: Final = 4  # of a small limit a quarter is kept


@attrs.frozen(kw_only=True)
class Descriptors:
    """How many descriptors the process may have (`limit`)."""

    limit: int

    @property
    def reserve(self) -> int:
        return min(RESERVE, self.limit // SHARE)

    @property
    def crowded(self) -> int:
        """From this one on clients are refused. The kernel gives out the lowest that is free (POSIX)."""
        return self.limit - self.reserve

    @property
    def full(self) -> int:
        """From this one on they are cut."""
        return self.limit - self.reserve // 2

    def fault(self, connections: int) -> str | None:
        """Return why so many connections cannot be had, and what to do; None when they can."""
        if connections <= self.crowded:
            return None
        return (
            f"limits.connections is {connections}, but {self.limit} open files allow {self.crowded}: raise "
            f"LimitNOFILE= of the service (`ulimit -n` in a shell) to {connections + RESERVE}, or lower "
            "limits.connections"
        )


UNBOUNDED: Final = Descriptors(limit=1 << 30)


def claim() -> Descriptors:
    """Raise the soft limit of this process, and so of its children, to the hard one; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # some systems have another bound beside it
            pass
    return UNBOUNDED if soft == resource.RLIM_INFINITY else Descriptors(limit=soft)
