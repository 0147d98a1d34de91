"""The port of a connection to the link of its client. `links` implements it; tests use a fake."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

if TYPE_CHECKING:
    from broker.wire.frames import Framing


@attrs.frozen(kw_only=True)
class Text:
    """One whole message from the client."""

    data: bytes


@attrs.frozen(kw_only=True)
class Control:
    """A reply of the link itself (a pong): bytes to be sent in their turn."""

    data: bytes


@attrs.frozen
class Alive:
    """The client answered a heartbeat."""


@attrs.frozen(kw_only=True)
class Closed:
    """The client is gone, or violated the protocol of the link.

    `by`: "client" if the client closed, "broker" if the broker did and states why, "link" if it just ended.
    `answer` is the last data to be sent, if anybody can receive it.
    """

    code: int
    by: str
    reason: str = ""
    answer: bytes = b""


@attrs.frozen
class Resting:
    """Nobody is there at the moment, and nothing is sent; the next `Text` means that the client is back."""


Inbound: TypeAlias = Text | Control | Alive | Resting | Closed


@attrs.frozen(kw_only=True)
class LinkState:
    """The kernel's view of a link, in bytes and seconds; not `known` where there is none.

    `acknowledged`: bytes that the peer's kernel (perhaps a proxy's) has acknowledged; `received`: bytes from
    the peer, read or not; `pending`: sent and not acknowledged. `round_trip`: the round-trip time; `silence`:
    the time since the last acknowledgement. `full`: the peer's receive window is closed, and the pending
    bytes wait.
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
    """The request that opened the connection.

    `peer` is the client's "HOST:PORT", an IPv6 address in brackets; port 0 if a proxy did not state it.
    `response` is the link's answer, which is sent together with the first message.
    """

    peer: str
    token: str | None = None
    tenant: str | None = None
    certificate: str | None = None  # the verified name in the client's certificate
    response: bytes = b""


class LinkLost(OSError):
    """The link is gone: nothing more can be sent on it."""


class Transport(Protocol):
    """A link to one client. One task receives; sends never overlap. What is no coroutine returns at once and
    does not fail in any state, also after the end; but for `send_nowait`.

    `partial_sends`: `send_nowait` takes what fits. Without it (TLS) it takes nothing, and `send_some` all or
    nothing. `answers`: the client can answer a heartbeat; otherwise it counts as alive while the link accepts
    what is sent. `comes_and_goes`: it is `Resting` now and then. `framing`: the conversion of event frames;
    None: they are sent unchanged.
    """

    @property
    def name(self) -> str:
        """Return the kind of link, for people: "websocket"."""

    @property
    def partial_sends(self) -> bool: ...

    @property
    def answers(self) -> bool: ...

    @property
    def comes_and_goes(self) -> bool: ...

    @property
    def framing(self) -> Framing | None: ...

    def limit_messages(self, message_bytes: int) -> None:
        """Limit the client's messages to so many bytes from now on."""

    async def receive(self) -> Inbound:
        """Return the next input from the client; `Closed` is the last, also when TCP just ends.

        Asked again after the end of the link, it returns `Closed` again; so it does after `abort`.
        """

    def behind(self, *, begins: bool) -> None:
        """Note that more is to be sent than the link has accepted, or no longer."""

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Send what the link accepts at once and return the number of bytes, as a non-blocking socket does.

        Raises `BlockingIOError` if that is none (some return 0), and another `OSError` from the end of the
        link on, each time. Without `partial_sends` it may return 0 instead, and `send_some` raises.
        """

    async def send_some(self, data: bytes | memoryview) -> int:
        """Wait until the link accepts something; return the number of bytes, at least 1.

        Raises `LinkLost` each time, also when the link is cut while it waits.
        If it is cancelled midway, the link can only be aborted.
        """

    def frame(self, message: bytes) -> bytes:
        """Return a JSON message as bytes of this link."""

    def ping(self, position: str | None) -> bytes:
        """Return a heartbeat as bytes of this link, with P where carried; an answer arrives as `Alive`."""

    def ask(self) -> bytes:
        """Return bytes that request a sign of life at once; it arrives as `Alive` or as `Text`."""

    def state(self) -> LinkState:
        """Return what has become of the bytes sent."""

    def close(self, code: int, reason: str) -> bytes:
        """Return the last frame of the link."""

    async def linger(self) -> None:
        """After the last frame, wait at most 2 s for the client to close. The link is then to be cut."""

    def abort(self) -> None:
        """Cut the link at once. Never blocks; may be called more than once."""
