"""One request and its response: what a handler is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

import attrs
import structlog
import trio

from broker.actors.transport import Hello, LinkLost
from broker.errors import BrokerError
from broker.http import credentials, heads
from broker.http.refusals import from_error
from broker.http.responses import Refused, problem
from broker.links.tcp import LINGER_SECONDS

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from broker import config
    from broker.actors.transport import Transport
    from broker.http.heads import Request
    from broker.http.queries import Query
    from broker.http.responses import Headers, Response
    from broker.links.tcp import Link

T = TypeVar("T")
Serve: TypeAlias = "Callable[[Transport, Hello], Awaitable[None]]"

FAILED = problem(500, "Internal error; see the broker's log.")
SEND_SECONDS = 10.0
SLOW_BYTES = 4096  # per second: a client as slow as this still gets a long response whole

log = structlog.get_logger()


@attrs.define(eq=False)
class Exchange:
    """One request on a link and its response.

    An exception ends the exchange alone: `response` is the answer then (500), and None once one has been sent
    or has begun. `event` names a crash in the log. `headers` go with every response.
    """

    link: Link
    limits: config.Limits
    responses: Counter[int]  # by status
    event: str
    request: Request = attrs.field(init=False)
    trailing: bytes = b""  # followed the head
    headers: Headers = ()
    response: Response | None = FAILED
    lost: bool = False

    def crashed(self, error: Exception) -> None:
        if isinstance(error, LinkLost):
            self.lost = True
            return
        log.error(self.event, exc_info=error, peer=self.link.peer)

    async def read(self, begin: Callable[[], Awaitable[None]] | None) -> Request:
        """Read the head of the request, after `begin`, if any. Raises `Refused` and `LinkLost`."""
        self.request, self.trailing = await heads.read(self.link, self.limits, begin)
        return self.request

    async def body(self, most: int | None = None, limit: str = "limits.message_bytes") -> bytes:
        """Return the body, at most `most` bytes (`limits.message_bytes` by default). Raises `Refused`."""
        return await heads.read_body(
            self.link,
            self.request,
            self.trailing,
            most=self.limits.message_bytes if most is None else most,
            seconds=self.limits.body_seconds,
            limit=limit,
        )

    def begin(self, status: int) -> None:
        """Record that a response with this status has begun: no other can be sent."""
        self.response = None
        self.responses[status] += 1

    async def answer(self, response: Response) -> None:
        """Send a whole response, and leave the client time to read it. Raises `LinkLost`."""
        self.begin(response.status)
        if response.status >= 400:
            log.debug("request_refused", peer=self.link.peer, status=response.status)
        request = getattr(self, "request", None)  # there is none where its head is refused
        data = response.beside(self.headers).to(request.method if request else "").encode()
        allowance = len(data) / SLOW_BYTES
        with trio.move_on_after(SEND_SECONDS + allowance):
            await self.link.send_all(data)
            await self.link.linger(LINGER_SECONDS + allowance)  # the kernel still holds most of it


@attrs.define(eq=False, kw_only=True)
class Backend:
    """What is behind the public port. A reload replaces `server` and `limits`.

    `serve` has a client for as long as it runs and cuts its link at the end. `admission` holds a place for a
    peer on its way to `serve`, or for one request, from the call to the end of a `with`, or raises why there
    is none.
    """

    server: config.Server
    limits: config.Limits
    serve: Serve
    admission: Callable[[str], AbstractContextManager[None]]
    responses: Counter[int]  # by status
    nursery: trio.Nursery = attrs.field(init=False)  # of the connections


@attrs.define(eq=False)
class ClientExchange(Exchange):
    """A request on the public port."""

    backend: Backend = attrs.field(kw_only=True)

    def token(self, query: Query, offered: str | None = None) -> str | None:
        """Return the token, if any; a WebSocket client may have `offered` it. Raises `Refused`."""
        query_token = self.backend.server.query_token
        return credentials.token_of(self.request, query, query_token=query_token, offered=offered)

    def credentials(self, query: Query) -> tuple[str, str | None]:
        """Return the token, and the tenant if one is asked for. Raises `Refused`: 401 without a token."""
        token = self.token(query)
        if token is None:
            raise credentials.missing()
        return token, credentials.tenant_of(query)

    def hello(self, token: str | None, tenant: str | None, response: bytes = b"") -> Hello:
        return Hello(
            peer=self.link.peer,
            token=token,
            tenant=tenant,
            certificate=self.link.certificate,
            response=response,
        )

    async def while_connected(self, work: Awaitable[T]) -> T:
        """Return the result of work that is for this client alone. Raises `LinkLost` once it has closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.link.cancel_when_closed, nursery.cancel_scope)
            result = await work
            nursery.cancel_scope.cancel()
            return result
        raise LinkLost

    def place(self) -> AbstractContextManager[None]:
        """Hold a place for the client, from now to the end of a `with`. Raises `Refused` without one."""
        try:
            return self.backend.admission(self.link.peer)
        except BrokerError as error:
            raise Refused.by(from_error(error)) from None
