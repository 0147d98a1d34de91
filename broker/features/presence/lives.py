"""Which brokers are alive. A broker that can no longer say so itself judges nobody. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

RENEW_SECONDS = 2.0
LEASE_SECONDS = 10.0
GAP_SECONDS = 6.0  # without a lease of ours, after which others may have taken us for dead


class Lives:
    """The brokers as their leases show them. All times are Trio's clock.

    `heard` has when the last lease of each broker came, `since` from when on our own ones have come through
    the stream without a break: who sees its own sees those of others. `died` has when this broker noticed
    that another one is dead, and `marks` up to which sequence its messages are those of a dead one: what it
    writes later, should it come back, counts again.
    """

    def __init__(self, broker: str) -> None:
        self.broker = broker
        self.heard: dict[str, float] = {}
        self.since: float | None = None
        self.died: dict[str, float] = {}
        self.marks: dict[str, int] = {}

    @property
    def alive(self) -> int:
        """How many brokers have been heard and have not died."""
        return sum(heard > float("-inf") for name, heard in self.heard.items() if name not in self.died)

    def lease(self, broker: str, now: float) -> bool:
        """Take a lease. Return whether it is ours and came so late that others may have judged us."""
        before = self.heard.get(broker)
        self.heard[broker] = now
        self.died.pop(broker, None)
        if broker != self.broker:
            return False
        late = before is not None and now > before + GAP_SECONDS
        if self.since is None or before is None or now > before + LEASE_SECONDS:
            self.since = now
        return late

    def met(self, broker: str) -> None:
        """Note that there is, or was, a broker."""
        if broker and broker not in self.heard:
            self.heard[broker] = float("-inf")

    def forget(self, broker: str) -> None:
        """Note that nothing of a broker is left."""
        self.heard.pop(broker, None)
        self.died.pop(broker, None)

    def begin(self) -> None:
        """Begin with another stream, whose sequences are others."""
        self.since = None
        self.marks.clear()

    def interrupted(self) -> None:
        """Note that nothing is heard any more."""
        self.since = None

    def judges(self, now: float) -> bool:
        """Return whether a broker that is not heard here is dead."""
        if self.since is None or now < self.since + LEASE_SECONDS:
            return False
        return now <= self.heard[self.broker] + GAP_SECONDS

    def dying(self, now: float, head: int) -> Iterator[str]:
        """Yield the brokers that are found to be dead now; all is known up to the sequence `head`."""
        if self.since is None or not self.judges(now):
            return
        for broker, heard in list(self.heard.items()):
            if broker not in self.died and now > max(heard, self.since) + LEASE_SECONDS:
                self.died[broker] = now
                self.marks[broker] = head
                yield broker

    def lost(self, broker: str, revision: int) -> bool:
        """Return whether a broker that wrote a message has died since."""
        return revision <= self.marks.get(broker, 0)

    def overdue(self, now: float, linger: float) -> Iterator[str]:
        """Yield the dead brokers whose members have been waited for long enough."""
        if self.judges(now):
            yield from (broker for broker, died in list(self.died.items()) if now >= died + linger)
