"""The admin port: metrics for operators, on an address of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio
from prometheus_client.exposition import choose_encoder

from broker.config import host_port
from broker.web import heads
from broker.web.listeners import accept
from broker.web.pages import check, health, respond
from broker.web.problems import Refused, Response

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from prometheus_client.registry import Collector

    from broker import config
    from broker.web.heads import Request
    from broker.web.links import Link

PAGES = ("/metrics", "/healthz", "/readyz")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@attrs.define(eq=False)
class AdminPort:
    """Answers only where it is called by a name of its own.

    Otherwise any page in an operator's browser could read it through a name that it lets point to
    127.0.0.1 (DNS rebinding).
    """

    server: config.Server
    limits: config.Limits
    registry: Collector = attrs.field(kw_only=True)
    health: Callable[[], str | None] = attrs.field(kw_only=True)

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
        try:
            request, _ = await heads.read(link, self.limits)
            configured, _ = host_port(self.server.admin_listen)
            if request.host not in {*LOOPBACK, link.local_host, configured.lower()}:
                raise Refused(421, "The admin port answers to localhost and to its own address only.")
            check(request, PAGES)
            metrics = request.path == "/metrics"
            response = self.metrics(request) if metrics else health(request, self.health)
        except Refused as refused:
            response = refused.response
        await respond(link, response)

    def metrics(self, request: Request) -> Response:
        """The exposition format that the client asks for (Prometheus text or OpenMetrics)."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(status=200, body=encode(self.registry), media_type=media_type)
