"""The public port: accepts connections, and hands each request to the handler of its route."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.actors.boundary import Boundary
from broker.actors.transport import LinkLost
from broker.descriptors import UNBOUNDED
from broker.http.responses import Refused, Response
from broker.links.exchange import ClientExchange
from broker.links.route import find
from broker.web import origins, proxies, proxy_protocol
from broker.web.headroom import Headroom
from broker.web.listeners import accept
from broker.web.origins import Origins

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Mapping, Sequence

    from broker import config
    from broker.descriptors import Descriptors
    from broker.links.exchange import Backend
    from broker.links.route import ClientRoute, Found
    from broker.links.tcp import Link

log = structlog.get_logger()


@attrs.define(eq=False)
class PublicPort:
    """Serves `routes`. In `development`, pages of this machine are allowed beside `server.origins`."""

    backend: Backend
    routes: Mapping[str, ClientRoute]
    development: bool = attrs.field(kw_only=True, default=False)
    ssl_context: ssl.SSLContext | None = attrs.field(kw_only=True, default=None)
    descriptors: Descriptors = attrs.field(kw_only=True, default=UNBOUNDED)
    origins: Origins = attrs.field(init=False)
    headroom: Headroom = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.origins = Origins(loopback=self.development)
        self.headroom = Headroom(self.descriptors)

    async def run(
        self,
        listeners: Sequence[socket.socket],
        *,
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until cancelled, then close `listeners`. The connections live in `nursery`."""
        self.backend.nursery = nursery
        await accept(
            listeners,
            self.handle,
            nursery=nursery,
            context=lambda: self.ssl_context,
            full=self.descriptors.full,
            task_status=task_status,
        )

    async def handle(self, link: Link) -> Awaitable[None] | None:
        """Answer a request, or return what the link is used for from then on. Raises `LinkLost`."""
        backend = self.backend
        exchange = ClientExchange(link, backend.limits, backend.responses, "request_crashed", backend=backend)
        serving = None
        with Boundary(exchange):
            try:
                found = await self.find(exchange)
            except Refused as refused:
                found = refused.response
            if isinstance(found, Response):
                exchange.response = found
            else:
                exchange.response, serving = None, found
        if exchange.lost:
            raise LinkLost
        if exchange.response:
            await exchange.answer(exchange.response)
        return serving

    async def find(self, exchange: ClientExchange) -> Found:
        """Read the request and have its route handle it. Raises `Refused` and `LinkLost`."""
        link, server = exchange.link, exchange.backend.server
        trusted = proxies.networks(server.trusted_proxies)
        plain = self.ssl_context is None and not server.proxy_protocol
        await exchange.read(None if plain else partial(begin, link, server))
        request = exchange.request = proxies.believe(link, exchange.request, trusted)
        route = find(request, self.routes)
        if not route.reserved:
            self.headroom.check(link)
        if route.cross_origin:
            exchange.headers = self.origins.admit(request, link.peer, server.origins)
        if request.method == "OPTIONS":
            return origins.preflight(route.methods)
        return await route.handle(exchange)


async def begin(link: Link, server: config.Server) -> None:
    """Take what precedes HTTP: the PROXY protocol header of a trusted proxy, where it is on, and TLS."""
    if server.proxy_protocol and proxies.trusted(link.peer, proxies.networks(server.trusted_proxies)):
        try:
            link.peer = await proxy_protocol.read(link) or link.peer
        except proxy_protocol.Malformed as error:
            log.warning("proxy_header_refused", peer=link.peer, reason=str(error))
            raise LinkLost from None
    await link.open()
