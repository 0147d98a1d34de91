"""What both ports do with a request: is there such a page, and how an answer is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from broker.web.problems import Refused, Response, problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker.web.heads import Request
    from broker.web.links import Link

log = structlog.get_logger()

SEND_SECONDS = 10.0


def check(request: Request, pages: Sequence[str]) -> None:
    """Raises `Refused` (400, 404, 405) unless this is a GET of one of `pages`, without a body."""
    if request.has_body:
        raise Refused(400, "No request with a body is served here.")
    if request.path not in pages:
        raise Refused(404, f"There is {', '.join(pages)}.")
    if request.method != "GET":
        raise Refused(405, "Only GET is served here.", ("Allow", "GET"))


def health(request: Request, reason: Callable[[], str | None]) -> Response:
    """`/healthz`: we live. `/readyz`: 503 with the `reason` why no event can travel now, if any."""
    fault = reason() if request.path == "/readyz" else None
    if fault is not None:
        return problem(503, fault, ("Retry-After", "1"))
    return Response(status=200, body=b"ok\n", media_type="text/plain; charset=utf-8")


async def respond(link: Link, response: Response) -> None:
    """Sends the whole answer and leaves the client the time to read it. Raises `LinkLost`."""
    if response.status >= 400:
        log.debug("request_refused", peer=link.peer, status=response.status)
    with trio.move_on_after(SEND_SECONDS):
        await link.send_all(response.encode())
        await link.linger()
