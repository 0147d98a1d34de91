"""The public port over its table of routes: what each route gets without asking, and what ends with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from broker.config import Server
from broker.errors import Unavailable
from broker.http.responses import Refused, Response
from broker.links.route import GET, Route
from tests.web.harness import head, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.links.exchange import ClientExchange
    from broker.links.route import Found

LISTED = Server(origins=("https://app.example",))
PLAIN: dict[str, Any] = {"upgrade": None, "connection": None}


async def new(exchange: ClientExchange) -> Response:
    """Answers within a place."""
    with exchange.place():
        return Response(status=200, body=exchange.request.query.encode(), media_type="text/plain")


async def refusing(_: ClientExchange) -> Response:
    raise Refused(418, "Short and stout.")


async def crashing(_: ClientExchange) -> Response:
    raise ZeroDivisionError


async def crashing_late(exchange: ClientExchange) -> Awaitable[None]:
    exchange.begin(200)
    await exchange.link.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    raise ZeroDivisionError


HANDLERS: dict[str, Callable[[ClientExchange], Awaitable[Found]]] = {
    "/new": new,
    "/refusing": refusing,
    "/crashing": crashing,
    "/crashing_late": crashing_late,
}
ROUTES = [
    Route(path=path, methods=(*GET, "OPTIONS"), handle=handle, cross_origin=True)
    for path, handle in HANDLERS.items()
]


async def test_a_new_route() -> None:
    """A new resource is a route with a handler: origins, preflights, methods and bodies are the port's."""
    async with running(server=LISTED, routes=ROUTES) as port:
        answer = await port.ask(head("/new?x", origin="https://app.example", **PLAIN))
        assert (answer.status, answer.body) == (200, b"x")
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert (await port.ask(head("/new?x", method="HEAD", **PLAIN))).body == b""
        assert (await port.ask(head("/new", origin="https://evil.example", **PLAIN))).status == 403
        answer = await port.ask(head("/new", method="OPTIONS", origin="https://app.example", **PLAIN))
        assert (answer.status, answer.headers["access-control-allow-methods"]) == (204, "GET, HEAD")
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
        assert (await port.ask(head("/new", method="POST", **PLAIN))).status == 405
        answer = await port.ask(head("/new", content_length="1", **PLAIN) + b"a")
        assert (answer.status, answer.problem["detail"]) == (400, "Unexpected body: GET /new takes none.")
        port.refusal = Unavailable("No room.", retry_after=2.0)
        answer = await port.ask(head("/new", origin="https://app.example", **PLAIN))
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        port.refusal = None
        await port.works()


@pytest.mark.parametrize(
    ("path", "status", "logged"),
    [("/refusing", 418, 0), ("/crashing", 500, 1), ("/crashing_late", 200, 1)],
)
async def test_a_handler_that_fails(path: str, status: int, logged: int) -> None:
    """Each failure is one answer, and none where the handler's own has begun; others go on."""
    async with running(server=LISTED, routes=ROUTES) as port:
        for _ in range(3):
            with capture_logs() as logs:
                answer = await port.ask(head(path, origin="https://app.example", **PLAIN))
            assert answer.status == status
            assert [each["event"] for each in logs].count("request_crashed") == logged
            if status == 200:
                assert answer.body == b""
            else:
                assert answer.problem["status"] == status
                assert answer.headers["access-control-allow-origin"] == "https://app.example"
            await port.works()
