"""What the parts of a broker have in common: each hears when NATS is there and which settings hold.

The supervisor runs all parts and tells them. None asks another for what it can be told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.bus.base import StreamState
    from broker.config import Config


class Part:
    """A part of the broker. Each of these does nothing unless a part says otherwise.

    `channel` is the beginning of the brokers' own channels that it listens to, `<prefix>.<channel>…`.
    """

    channel: str | None = None

    async def run(self) -> None:
        """Do what there is to do in the background; begun again after a crash."""

    async def reached(self) -> None:
        """Learn what there is to learn from NATS before any event is served. Raise `Unavailable`."""

    def up(self, state: StreamState) -> None:
        """Hear that NATS is there, for the first time or again."""

    def down(self) -> None:
        """Hear that NATS is out of reach."""

    def settings_changed(self, config: Config) -> None:
        """Go on with another configuration."""

    def heard(self, channel: str, body: bytes) -> None:
        """Take what a broker, perhaps this one, has said under `channel`."""

    async def flush(self) -> None:
        """Write what is not written yet: the broker stops."""
