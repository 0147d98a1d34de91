"""File descriptors: the limit of the process, and a reserve that clients cannot exhaust.

Each connection takes a descriptor. Without free ones nothing can be opened: no connection to NATS, no answer
to a health check, no file. So the public port stops short of the limit: from the first threshold on it
answers `/healthz` and `/readyz` and refuses other requests with 503, from the second on it cuts new
connections. The rest is reserved for the admin port, NATS, name resolution, key sets and files.
"""

from __future__ import annotations

import resource
from typing import Final

import attrs

RESERVE: Final = 128  # at most so many are reserved
SHARE: Final = 4  # of a small limit only a quarter is reserved


@attrs.frozen(kw_only=True)
class Descriptors:
    """The maximum number of descriptors of the process (`limit`)."""

    limit: int

    @property
    def reserve(self) -> int:
        return min(RESERVE, self.limit // SHARE)

    @property
    def crowded(self) -> int:
        """Return the first descriptor that is refused; the kernel allocates the lowest free one (POSIX)."""
        return self.limit - self.reserve

    @property
    def full(self) -> int:
        """Return the first descriptor that is cut."""
        return self.limit - self.reserve // 2

    def fault(self, connections: int) -> str | None:
        """Return why there cannot be so many connections, and the remedy; None if there can."""
        if connections <= self.crowded:
            return None
        return (
            f"limits.connections is {connections}, but {self.limit} open files allow {self.crowded}: raise "
            f"LimitNOFILE= of the service (`ulimit -n` in a shell) to {connections + RESERVE}, or lower "
            "limits.connections"
        )


UNBOUNDED: Final = Descriptors(limit=1 << 30)


def claim() -> Descriptors:
    """Raise the soft limit of this process, and so of its children, to the hard limit; return that limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # some systems have a further bound
            pass
    return UNBOUNDED if soft == resource.RLIM_INFINITY else Descriptors(limit=soft)
