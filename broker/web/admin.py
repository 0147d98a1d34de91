"""The admin port: metrics and the admin API for operators, on an address of its own."""

from __future__ import annotations

import hmac
from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio
from prometheus_client.exposition import choose_encoder

from broker.actors.boundary import Boundary
from broker.config import host_port
from broker.errors import BrokerError
from broker.web import heads, origins
from broker.web.listeners import accept
from broker.web.pages import Exchange, check, health, respond
from broker.web.problems import Refused, Response
from broker.web.router import refusal
from broker.web.streaming import Lines, pour
from broker.web.upgrade import bearer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from prometheus_client.registry import Collector

    from broker import config
    from broker.web.heads import Request
    from broker.web.links import Link
    from broker.web.router import Router

PAGES = ("/metrics", "/healthz", "/readyz")
API = "/api/"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ENVELOPE_BYTES = 16 * 1024  # of a body, beside the event in it
CHALLENGE = 'Bearer realm="broker admin"'

log = structlog.get_logger()


@attrs.define(eq=False)
class AdminPort:
    """Answers only where it is called by a name of its own, and to no page of another origin.

    Otherwise any page in an operator's browser could read it through a name that it lets point to
    127.0.0.1 (DNS rebinding). The API asks for `token` as well.
    """

    server: config.Server
    limits: config.Limits
    registry: Collector = attrs.field(kw_only=True)
    health: Callable[[], str | None] = attrs.field(kw_only=True)
    remarks: Callable[[], Sequence[str]] = attrs.field(kw_only=True, default=tuple)
    router: Router = attrs.field(kw_only=True)
    token: str = attrs.field(kw_only=True, repr=False)

    async def run(
        self,
        listeners: Sequence[socket.socket],
        *,
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accepts until it is cancelled, then closes `listeners`. The connections live in `nursery`."""
        await accept(listeners, self.handle, nursery=nursery, task_status=task_status)

    async def handle(self, link: Link) -> None:
        exchange = Exchange(link.peer, "admin_request_crashed")
        with Boundary(exchange):
            try:
                request, trailing = await heads.read(link, self.limits)
                answer = await self.answer(link, request, trailing)
                if isinstance(answer, Lines):
                    exchange.response = None
                    await pour(link, answer, request.version)
                else:
                    exchange.response = answer
            except Refused as refused:
                exchange.response = refused.response
            except BrokerError as error:
                exchange.response = refusal(error)
        if exchange.response and not exchange.lost:
            await respond(link, exchange.response)

    async def answer(self, link: Link, request: Request, trailing: bytes) -> Response | Lines:
        try:
            found = await self.find(link, request, trailing)
        except Refused as refused:
            found = refused.response
        return found.to(request.method) if isinstance(found, Response) else found

    async def find(self, link: Link, request: Request, trailing: bytes) -> Response | Lines:
        configured, _ = host_port(self.server.admin_listen)
        if request.host not in {*LOOPBACK, link.local_host, configured.lower()}:
            raise Refused(421, "The admin port answers to localhost and to its own address only.")
        origins.check(request, frozenset())
        if request.path.startswith(API):
            self.authorize(request, link.peer)
            most = self.limits.event_bytes + ENVELOPE_BYTES
            seconds = self.limits.body_seconds
            limit = f"limits.event_bytes and {ENVELOPE_BYTES}"
            body = partial(heads.read_body, link, request, trailing, most=most, seconds=seconds, limit=limit)
            return await self.router.answer(request, body, link.peer)
        check(request, dict.fromkeys((*PAGES, API), ("GET", "HEAD")))
        return (
            self.metrics(request)
            if request.path == "/metrics"
            else health(request, self.health, self.remarks)
        )

    def authorize(self, request: Request, peer: str) -> None:
        """Raises `Refused` (401) unless the request has the admin token."""
        given = bearer(request)
        if given is None:
            raise Refused(401, f"{API} asks for the admin token.", ("WWW-Authenticate", CHALLENGE))
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            log.warning("admin_token_refused", peer=peer)  # somebody may be guessing; the log limits its rate
            challenge = f'{CHALLENGE}, error="invalid_token"'
            raise Refused(401, "This is not the admin token.", ("WWW-Authenticate", challenge))

    def metrics(self, request: Request) -> Response:
        """The exposition format that the client asks for (Prometheus text or OpenMetrics)."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(status=200, body=encode(self.registry), media_type=media_type)
