"""The port of a flow to its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

import attrs

if TYPE_CHECKING:
    from broker.wire.messages import ServerMessage, Source


class Who(TypedDict):
    """The identity of a client in log lines and records."""

    connection: str
    peer: str
    tenant: str | None
    user: str | None


@attrs.frozen
class Notice:
    """A notice to all clients: a message, and a `reason` for which unstored events may be missing."""

    message: Source | None
    reason: Literal["source", "lag"] | None


class Client(Protocol):
    """The connection of a flow. Called in the middle of other work: no method may block or raise.

    `lost`: nothing can be sent any more.
    """

    @property
    def lost(self) -> bool: ...

    def who(self) -> Who:
        """Return its identity, for operators."""

    def held_up(self) -> None:
        """Start sending: bytes are left, from now on, that the link did not accept."""

    def fell_behind(self) -> None:
        """Start sending, if there is something to send."""

    def link_lost(self) -> None:
        """End it: its link has ended."""

    def crashed(self, error: Exception) -> None:
        """End it, and nothing else: its link is lost, or something is wrong that nobody expects."""

    def too_slow(self) -> None:
        """End it: more data is unsent than a subscription with lag "close" allows."""

    def send_away(self) -> None:
        """End it: its tenant cannot be served; the client may return later."""

    def tell(self, message: ServerMessage) -> None:
        """Send the client a message in its turn."""

    def encode(self, message: ServerMessage) -> bytes:
        """Return a message as the bytes of its link."""

    def heed_notice(self, notice: Notice) -> None:
        """Send the client what all clients are told."""


class Nobody:
    """The client of a flow that has ended, in case its last piece of work is still running."""

    lost = True

    def who(self) -> Who:
        return {"connection": "", "peer": "", "tenant": None, "user": None}

    def encode(self, _: ServerMessage) -> bytes:
        return b""

    def nothing(self, *_: object) -> None: ...

    held_up = fell_behind = link_lost = crashed = too_slow = send_away = tell = heed_notice = nothing


NOBODY = Nobody()
