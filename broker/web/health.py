"""`/healthz` and `/readyz`, on both ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from broker.http.responses import Response, problem
from broker.links.route import GET, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker.links.exchange import Exchange


@attrs.frozen
class Health:
    """`reason` says why no event can travel through the broker now; `remarks` what else does not work."""

    reason: Callable[[], str | None]
    remarks: Callable[[], Sequence[str]] = tuple

    def routes(self) -> list[Route[Exchange, Response]]:
        """Return the routes, which are served even when file descriptors run short."""
        handlers = {"/healthz": self.live, "/readyz": self.ready}
        return [
            Route(path=path, methods=GET, handle=handle, reserved=True) for path, handle in handlers.items()
        ]

    async def live(self, _: Exchange) -> Response:
        return lines("ok")

    async def ready(self, _: Exchange) -> Response:
        """Answer 200 with the remarks, a line each, or 503 with the reason."""
        reason = self.reason()
        if reason is not None:
            return problem(503, reason, ("Retry-After", "1"))
        return lines("ok", *self.remarks())


def lines(*texts: str) -> Response:
    body = "".join(f"{text}\n" for text in texts).encode()
    return Response(status=200, body=body, media_type="text/plain; charset=utf-8")
