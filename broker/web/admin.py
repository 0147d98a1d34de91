"""The admin port: metrics, health, the documentation and the admin API, on an address of its own."""

from __future__ import annotations

import hmac
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio
from prometheus_client.exposition import choose_encoder

from broker.actors.boundary import Boundary
from broker.config import host_port
from broker.errors import BrokerError
from broker.http.credentials import bearer
from broker.http.responses import Refused, Response
from broker.links.exchange import Exchange
from broker.links.route import GET, Route, find
from broker.web import docs, origins
from broker.web.listeners import accept
from broker.web.router import refusal
from broker.web.streaming import Lines, pour

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from prometheus_client.registry import Collector

    from broker import config
    from broker.http.heads import Request
    from broker.links.tcp import Link
    from broker.web.health import Health
    from broker.web.router import Router

API = "/api/"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ENVELOPE_BYTES = 16 * 1024  # of a body, beside the event in it
CHALLENGE = 'Bearer realm="broker admin"'

log = structlog.get_logger()


@attrs.define(eq=False)
class AdminPort:
    """Answers only under its own names, and to no page of another origin.

    Otherwise any page in an operator's browser could read it through a name that points to 127.0.0.1 (DNS
    rebinding). The API needs `token` as well.
    """

    server: config.Server
    limits: config.Limits
    registry: Collector = attrs.field(kw_only=True)
    health: Health = attrs.field(kw_only=True)
    router: Router = attrs.field(kw_only=True)
    token: str = attrs.field(kw_only=True, repr=False)

    @property
    def routes(self) -> dict[str, Route[Exchange, Response]]:
        metrics = Route(path="/metrics", methods=GET, handle=self.metrics)
        return {each.path: each for each in (metrics, *self.health.routes(), *docs.routes())}

    async def run(
        self,
        listeners: Sequence[socket.socket],
        *,
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until cancelled, then close `listeners`. The connections live in `nursery`."""
        await accept(listeners, self.handle, nursery=nursery, task_status=task_status)

    async def handle(self, link: Link) -> None:
        exchange = Exchange(link, self.limits, Counter(), "admin_request_crashed")
        with Boundary(exchange):
            try:
                found = await self.find(exchange)
                if isinstance(found, Lines):
                    exchange.response = None
                    await pour(link, found, exchange.request.version)
                else:
                    exchange.response = found
            except Refused as refused:
                exchange.response = refused.response
            except BrokerError as error:
                exchange.response = refusal(error)
        if exchange.response and not exchange.lost:
            await exchange.answer(exchange.response)

    async def find(self, exchange: Exchange) -> Response | Lines:
        """Read the request and return what answers it. Raises `Refused`, `BrokerError` and `LinkLost`."""
        link = exchange.link
        request = await exchange.read(link.open)
        configured, _ = host_port(self.server.admin_listen)
        if request.host not in {*LOOPBACK, link.local_host, configured.lower()}:
            raise Refused(421, "The admin port is served under localhost and its own address only.")
        origins.check(request, frozenset())
        if not request.path.startswith(API):
            return await find(request, self.routes, others=[API]).handle(exchange)
        self.authorize(request, link.peer)
        most, limit = self.limits.event_bytes + ENVELOPE_BYTES, f"limits.event_bytes and {ENVELOPE_BYTES}"
        return await self.router.answer(request, partial(exchange.body, most, limit), link.peer)

    def authorize(self, request: Request, peer: str) -> None:
        """Raises `Refused` (401) unless the request has the admin token."""
        given = bearer(request)
        if given is None:
            raise Refused(
                401, f"Missing token: {API} needs the admin token.", ("WWW-Authenticate", CHALLENGE)
            )
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            log.warning("admin_token_refused", peer=peer)  # a guess, perhaps; the log limits its rate
            challenge = f'{CHALLENGE}, error="invalid_token"'
            raise Refused(401, "Invalid token: this is not the admin token.", ("WWW-Authenticate", challenge))

    async def metrics(self, exchange: Exchange) -> Response:
        """Answer in the exposition format that the client accepts: Prometheus text or OpenMetrics."""
        encode, media_type = choose_encoder(exchange.request.headers.get("accept", ""))
        return Response(status=200, body=encode(self.registry), media_type=media_type)
