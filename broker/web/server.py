"""The public port: WebSocket clients, and whether we live and are ready."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import attrs
import structlog
import trio

from broker.actors.transport import LinkLost
from broker.errors import BrokerError, Unavailable
from broker.web import heads, origins, proxies, proxy_protocol, upgrade
from broker.web.listeners import accept
from broker.web.pages import check, health, respond
from broker.web.problems import Refused, problem
from broker.web.websocket import WebSocketTransport

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractContextManager

    from broker import config
    from broker.actors.transport import Hello, Transport
    from broker.web.heads import Request
    from broker.web.links import Link

PAGES = ("/ws", "/healthz", "/readyz")

log = structlog.get_logger()

Serve: TypeAlias = "Callable[[Transport, Hello], Awaitable[None]]"


@attrs.define(eq=False)
class PublicPort:
    """Takes connections from the sockets to the actors.

    What `serve` returns has a client for as long as it runs, and cuts its link at the end. `admission` keeps
    a place for a peer on its way to `serve`, or raises why there is none now: `Unavailable` is 503, other
    errors, which are about this client, 429. `health` says why no event can travel now.
    """

    server: config.Server
    limits: config.Limits
    serve: Serve = attrs.field(kw_only=True)
    admission: Callable[[str], AbstractContextManager[None]] = attrs.field(kw_only=True)
    health: Callable[[], str | None] = attrs.field(kw_only=True)
    ssl_context: ssl.SSLContext | None = attrs.field(kw_only=True, default=None)
    responses: Counter[int] = attrs.field(kw_only=True, factory=Counter)  # by status

    async def run(
        self,
        listeners: Sequence[socket.socket],
        *,
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accepts until it is cancelled, then closes `listeners`. The connections live in `nursery`."""
        await accept(
            listeners,
            self.handle,
            nursery=nursery,
            context=lambda: self.ssl_context,
            task_status=task_status,
        )

    async def handle(self, link: Link) -> Awaitable[None] | None:
        opened = await self.open(link)
        if opened is None:
            return None
        hello, trailing = opened
        transport = WebSocketTransport(link, self.limits.message_bytes)
        transport.feed(trailing)
        return self.serve(transport, hello)

    async def open(self, link: Link) -> tuple[Hello, bytes] | None:
        """Brings the link to WebSocket: what the client said, and what it sent after that. Or answers it."""
        try:
            request, trailing = await heads.read(link, self.limits, partial(self.begin, link))
            request = self.believe(link, request)
            check(request, PAGES)
            if request.path == "/ws":
                opening = self.welcome(request, link.peer)
                with self.admission(link.peer):
                    await link.send_all(opening.response)
                    self.responses[101] += 1
                certificate = link.certificate
                hello = attrs.evolve(opening.hello, certificate=certificate) if certificate else opening.hello
                return hello, trailing
            response = health(request, self.health)
        except Refused as refused:
            response = refused.response
        except BrokerError as error:
            status = 503 if isinstance(error, Unavailable) else 429
            retry = "Retry-After", f"{math.ceil(error.retry_after or 1)}"
            response = problem(status, error.message, retry)
        self.responses[response.status] += 1
        await respond(link, response)
        return None

    async def begin(self, link: Link) -> None:
        """What comes before HTTP: the word of a trusted proxy on the client, where it is to say so; TLS."""
        trusted = proxies.networks(self.server.trusted_proxies)
        if self.server.proxy_protocol and proxies.trusted(link.peer, trusted):
            try:
                link.peer = await proxy_protocol.read(link) or link.peer
            except proxy_protocol.Malformed as error:
                log.warning("proxy_header_refused", peer=link.peer, reason=str(error))
                raise LinkLost from None
        await link.open()

    def believe(self, link: Link, request: Request) -> Request:
        """The request as the client made it, and the client's address, by the headers of trusted proxies."""
        trusted = proxies.networks(self.server.trusted_proxies)
        if not proxies.trusted(link.peer, trusted):
            return request
        forwarded_for = request.headers.get("x-forwarded-for")
        if forwarded_for is not None:
            link.peer = proxies.client(link.peer, forwarded_for, trusted)
        return proxies.outer(request)

    def welcome(self, request: Request, peer: str) -> upgrade.Upgrade:
        """The handshake, when it holds."""
        origins.check(request, frozenset(self.server.origins))
        return upgrade.decide(request, peer=peer, query_token=self.server.query_token)
