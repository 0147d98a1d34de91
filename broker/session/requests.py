"""The table of a session: what a client may ask for, and who does it.

A request is checked at once and without I/O, which makes a *wish* of its message; then the wish is carried
out, which may wait for NATS. Both may refuse it with a `BrokerError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from broker.config import Limits
    from broker.errors import CloseCode
    from broker.flow.client import Who
    from broker.flow.flow import Flow
    from broker.limits import Budget
    from broker.permissions import Principal
    from broker.wire import messages as m

M = TypeVar("M", bound="m.ClientMessage")
W = TypeVar("W")


@attrs.frozen
class Reply:
    """Send a message."""

    message: m.ServerMessage
    message_id: str | None = None


@attrs.frozen
class Close:
    """Send what is to be sent, then close with this code."""

    code: CloseCode
    reason: str


@attrs.frozen
class Call:
    """Have a wish carried out."""

    request: Request[Any, Any]
    wish: Any
    message_id: str | None


Effect: TypeAlias = Reply | Close | Call


class Standing(Protocol):
    """The subscriptions of a client."""

    def subscriptions(self) -> Mapping[str, tuple[str, ...]]:
        """Return each pattern with what is left out of it."""


class Terms(Protocol):
    """The terms on which a session grants its requests."""

    limits: Limits
    standing: Standing
    budgets: tuple[Budget, ...]
    draining: bool

    def client(self) -> Principal:
        """Return who the client is. Raise `Unauthenticated` before it has presented a token."""

    def reserve(self, text: str, left: int) -> None:
        """Count a further subscription of `left` that the connection may have.

        Raise `TooManySubscriptions`.
        """

    def recount(self) -> None:
        """Have the budgets hold the subscriptions that stand, and no others."""


class Asker(Protocol):
    """Who sends a request, with a connection or without."""

    @property
    def id(self) -> str: ...

    @property
    def session(self) -> Terms: ...

    def attach(self) -> Principal:
        """Return who it is, now that it may be served. Raise `Unavailable` and `TokenRevoked`."""

    def who(self) -> Who:
        """Return who it is, for operators."""


class Caller(Asker, Protocol):
    """The connection that sends a request."""

    @property
    def flow(self) -> Flow: ...

    @property
    def closing(self) -> bool: ...

    @property
    def kind(self) -> str:
        """The kind of its link: "websocket"."""

    @property
    def certificate(self) -> str | None:
        """The verified name in the certificate that it has shown."""

    def tell(self, message: m.ServerMessage, message_id: str | None = None) -> None:
        """Send the client a message in its turn."""

    def fell_behind(self) -> None:
        """Start or wake the sending task, if there is something to send."""

    def note_refusal(self, *, code: str, message: str | None, channel: str | None = None) -> None:
        """Note what the client may not do."""

    def position(self) -> str | None:
        """Return the live position to tell the client, once there is one."""

    async def authenticate(self, message: m.Authenticate, message_id: str | None) -> None:
        """Verify a token, and go on under it."""


@attrs.frozen(kw_only=True)
class Page(Generic[W]):
    """The form of a request without a connection: its payload is posted to `path`.

    It answers with the first of the request's replies under `status`.
    """

    path: str
    about: str
    example: str
    status: int
    perform: Callable[[Asker, W], Awaitable[m.ServerMessage]]


@attrs.frozen(kw_only=True)
class Request(Generic[M, W]):
    """A line of the table. `perform` returns the reply, or None where it has told the client itself.

    `replies` are the types of message that answer it, besides `error`; with `unasked` the first of them may
    also come by itself. With `publishes` it is counted as a publication, and not as another request; an
    `open` one needs no token.
    """

    message: type[M]
    check: Callable[[Terms, M], W]
    perform: Callable[[Caller, W, str | None], Awaitable[m.ServerMessage | None]]
    replies: tuple[type[m.ServerMessage], ...]
    unasked: bool = False
    publishes: bool = False
    open: bool = False
    page: Page[W] | None = None


Table: TypeAlias = "Mapping[str, Request[Any, Any]]"


def table(requests: Iterable[Request[Any, Any]]) -> Table:
    """Return requests by the types of their messages."""
    return {request.message.type: request for request in requests}


def as_it_is(_: Terms, message: M) -> M:
    """Return the message as the wish: there is nothing to check."""
    return message
