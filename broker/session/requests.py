"""The table of a session: the requests of a client, and what carries them out.

A request is checked at once and without I/O, which turns its message into a *wish*. Then the wish is carried
out, which may wait for NATS. Either step may refuse it with a `BrokerError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

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
    """Send what is unsent, then close with this code."""

    code: CloseCode
    reason: str


@attrs.frozen
class Call:
    """Carry out a wish."""

    request: AnyRequest
    wish: Any
    message_id: str | None


Effect: TypeAlias = Reply | Close | Call


class Standing(Protocol):
    """The subscriptions of a client."""

    def subscriptions(self) -> Mapping[str, tuple[str, ...]]:
        """Return each pattern with the patterns denied within it."""

    def filtered(self) -> set[str]:
        """Return the patterns of those that have a filter."""


class Terms(Protocol):
    """The terms on which a session grants requests."""

    limits: Limits
    standing: Standing
    budgets: tuple[Budget, ...]
    draining: bool

    def client(self) -> Principal:
        """Return the principal. Raise `Unauthenticated` before a token has been presented."""

    def spend(self, costs: Collection[str], now: float) -> None:
        """Count one of each of these rates. Raise `RateLimited`."""

    def reserve(self, text: str, left: int) -> None:
        """Count one more subscription, of the `left` that the connection may still have.

        Raise `TooManySubscriptions`.
        """

    def recount(self) -> None:
        """Have the budgets hold exactly the existing subscriptions."""


class Asker(Protocol):
    """The sender of a request, with or without a connection."""

    @property
    def id(self) -> str: ...

    @property
    def session(self) -> Terms: ...

    def attach(self) -> Principal:
        """Return the principal, once it may be served. Raise `Unavailable` and `TokenRevoked`."""

    def who(self) -> Who:
        """Return its identity, for operators."""


class Caller(Asker, Protocol):
    """The connection that sends a request."""

    @property
    def flow(self) -> Flow: ...

    @property
    def closing(self) -> bool: ...

    @property
    def kind(self) -> str:
        """Return the kind of its link: "websocket"."""

    @property
    def certificate(self) -> str | None:
        """Return the verified name in the client's certificate."""

    @property
    def close_code(self) -> int:
        """Return how it has ended, once it is `closing`."""

    @property
    def ended_by(self) -> str:
        """Return who has ended it: "broker", "operator" or "client", or "link" if it was lost."""

    def tell(self, message: m.ServerMessage, message_id: str | None = None) -> None:
        """Send the client a message in its turn."""

    def fell_behind(self) -> None:
        """Start or wake the sending task, if there is something to send."""

    def note_refusal(self, *, code: str, message: str | None, channel: str | None = None) -> None:
        """Tell the features what the client was refused, and why."""

    def position(self) -> str | None:
        """Return the live position to tell the client, once there is one."""

    async def authenticate(self, message: m.Authenticate, message_id: str | None) -> None:
        """Verify a token, and continue under it."""


@attrs.frozen(kw_only=True)
class Page(Generic[W]):
    """The form of a request without a connection: its payload is posted to `path`.

    With `query` it is a GET, whose query has `channel` and these fields of the payload. The reply is a
    `reply`, or else the first of the request's `replies`, with `status`. The fields `without` are refused:
    they need a connection.
    """

    path: str
    about: str
    status: int
    example: str = ""
    query: tuple[str, ...] | None = None
    perform: Callable[[Asker, W], Awaitable[m.ServerMessage | m.Documents | m.Members]]
    reply: type[m.Documents] | type[m.Members] | None = None
    without: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Request(Generic[M, W]):
    """A line of the table. `perform` returns the reply, or None if it has told the client itself.

    `replies` are the message types of the reply, besides `error`; with `unasked` the first of them may also
    be sent without a request. Each costs one of the rates `costs` of the client's budgets, or else of its
    requests. An `open` one needs no token. While one that `waits` is carried out, the client is heard.
    """

    message: type[M]
    check: Callable[[Terms, M], W]
    perform: Callable[[Caller, W, str | None], Awaitable[m.ServerMessage | None]]
    replies: tuple[type[m.ServerMessage], ...]
    unasked: bool = False
    costs: tuple[str, ...] = ()
    waits: bool = False
    open: bool = False
    page: Page[W] | None = None


AnyRequest: TypeAlias = Request[Any, Any]
Requests: TypeAlias = tuple[AnyRequest, ...]
Table: TypeAlias = "Mapping[str, AnyRequest]"


def table(requests: Iterable[AnyRequest]) -> Table:
    """Return requests by the types of their messages. Raise `ValueError` for two of one type."""
    found: dict[str, AnyRequest] = {}
    for request in requests:
        if found.setdefault(request.message.type, request) is not request:
            raise ValueError(f"two requests have the type {request.message.type}")
    return found


def as_it_is(_: Terms, message: M) -> M:
    """Return the message as the wish, without a check."""
    return message
