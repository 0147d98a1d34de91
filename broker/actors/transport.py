"""What a connection needs of the link to its client. `web` implements it, tests fake it."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

if TYPE_CHECKING:
    from broker.wire.frames import Framing


@attrs.frozen(kw_only=True)
class Text:
    """One whole message of the client."""

    data: bytes


@attrs.frozen(kw_only=True)
class Control:
    """The link itself has something to say (a pong): bytes to be sent in their turn."""

    data: bytes


@attrs.frozen
class Alive:
    """The client answered a heartbeat."""


@attrs.frozen(kw_only=True)
class Closed:
    """The client is gone, or broke the link's protocol.

    `by`: "client" said so, "broker" says so and why, or the "link" just ended. `answer` is the last thing to
    be sent, when there is anybody to take it.
    """

    code: int
    by: str
    reason: str = ""
    answer: bytes = b""


@attrs.frozen
class Resting:
    """Nobody is there for now, and nothing is to be said; the next `Text` is from who has come back."""


Inbound: TypeAlias = Text | Control | Alive | Resting | Closed


@attrs.frozen(kw_only=True)
class LinkState:
    """What the kernel knows of a link, in bytes and seconds; not `known` where it does not say.

    `acknowledged`: taken by the other side's kernel, which may be a proxy's; `received`: from there, read or
    not; `pending`: sent and not acknowledged. `round_trip`: the way there and back; `silence`: since it last
    acknowledged anything. `full`: it has said that it cannot take more for now, and what is pending waits.
    """

    known: bool = True
    acknowledged: int = 0
    received: int = 0
    pending: int = 0
    round_trip: float = 0.0
    silence: float = inf
    full: bool = False


@attrs.frozen(kw_only=True)
class Hello:
    """What the request that opened the connection said.

    `peer` is the client's "HOST:PORT", an IPv6 address in brackets; port 0 where a proxy did not say it.
    """

    peer: str
    token: str | None = None
    tenant: str | None = None
    certificate: str | None = None  # the name in the one that the client has shown, verified


class LinkLost(Exception):
    """The link is gone: nothing more can be sent on it."""


class Transport(Protocol):
    """A link to one client. One task receives; sends never overlap.

    `partial_sends`: `send_nowait` takes what fits. Without it (TLS) it takes nothing, and `send_some`
    all or nothing. `answers`: the client answers a heartbeat; where none can, it lives as long as its link
    takes what it is sent. `comes_and_goes`: it is `Resting` now and then. `framing`: what becomes of the
    frames of events; None: they go out as they are.
    """

    @property
    def name(self) -> str:
        """The kind of link, for people: "websocket"."""

    @property
    def partial_sends(self) -> bool: ...

    @property
    def answers(self) -> bool: ...

    @property
    def comes_and_goes(self) -> bool: ...

    @property
    def framing(self) -> Framing | None: ...

    def adopt(self, message_bytes: int) -> None:
        """From now on a message of the client may have so many bytes."""

    async def receive(self) -> Inbound:
        """The next thing from the client; `Closed` is the last, also when TCP just ends."""

    def behind(self, *, begins: bool) -> None:
        """More is to be sent than the link has taken; or no longer."""

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Hands over what the kernel takes at once and says how many bytes; 0 is a fair answer.

        Raises `LinkLost`.
        """

    async def send_some(self, data: bytes | memoryview) -> int:
        """Waits until the link takes something; says how many bytes, at least one. Raises `LinkLost`.

        Cancelled in the middle it leaves a link that can only be aborted.
        """

    def frame(self, message: bytes) -> bytes:
        """A JSON message as this link's bytes."""

    def ping(self, position: str | None) -> bytes:
        """A heartbeat as this link's bytes, with P where it is carried; an answer arrives as `Alive`."""

    def ask(self) -> bytes:
        """Asks the client for a sign of life at once, by these bytes; it arrives as `Alive` or as `Text`."""

    def state(self) -> LinkState:
        """What has become of the bytes."""

    def close(self, code: int, reason: str) -> bytes:
        """The link's last frame."""

    async def linger(self) -> None:
        """After the last frame: waits at most 2 s for the client to close, then cuts the link."""

    def abort(self) -> None:
        """Cuts the link at once. Never blocks; may be called more than once."""
