"""The interface that all parts of a broker share: background work, the state of NATS, and the settings.

The supervisor runs the parts and notifies them. No part asks another for something it is notified of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.bus.base import StreamState
    from broker.config import Config


class Part:
    """A part of the broker. Every method does nothing unless a part overrides it.

    `channel` is the prefix of the brokers' own channels to which the part listens, `<prefix>.<channel>…`.
    """

    channel: str | None = None

    async def run(self) -> None:
        """Do the part's background work; restarted after a crash."""

    async def reached(self) -> None:
        """Read what the part needs from NATS before any event is served. Raise `Unavailable`."""

    def up(self, state: StreamState) -> None:
        """Note that NATS is available, for the first time or again."""

    def down(self) -> None:
        """Note that NATS is out of reach."""

    def settings_changed(self, config: Config) -> None:
        """Apply another configuration."""

    def heard(self, channel: str, body: bytes) -> None:
        """Process a message that a broker, possibly this one, published on `channel`."""

    async def flush(self) -> None:
        """Write what has not been written yet; called when the broker stops."""
