"""The admin API's way in: its token, its paths, and what it takes for a body."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from broker.http.heads import Request
from broker.web.router import Action, Endpoint, Router
from tests.support.sse import Chunks
from tests.web.harness import head
from tests.web.routes import TOKEN, Said, broken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.web.harness import Answer

    Ask = Callable[..., Awaitable[Answer]]

WALL = "/api/v1/walls/north"


def request(target: str = WALL, body: bytes = b"", method: str = "GET", **headers: str | None) -> bytes:
    """A request with the token; a body has its length."""
    given: dict[str, Any] = {"upgrade": None, "connection": None, "authorization": f"Bearer {TOKEN}"}
    if body:
        given["content_length"] = str(len(body))
    return head(target, method=method, **{"host": "localhost", **given, **headers}) + body


async def test_a_body_with_a_length(ask: Ask) -> None:
    """A body becomes the value that the route declares, and the answer is JSON."""
    answer = await ask(request(method="PUT", body=b'{"colour": "red"}'))
    assert (answer.status, json.loads(answer.body)) == (202, {"text": "north red 100"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers


async def test_a_body_in_chunks(ask: Ask) -> None:
    """Chunks are put together, whatever their extensions and trailers say."""
    chunks = b'5;a=b\r\n{"col\r\n0c\r\nour": "red"}\r\n0\r\nx: y\r\n\r\n'
    answer = await ask(request(method="PUT", transfer_encoding="chunked") + chunks)
    assert json.loads(answer.body) == {"text": "north red 100"}


async def test_lines(ask: Ask) -> None:
    """They go in chunks, to HTTP/1.0 up to the close; HEAD has none of them."""
    target = "/api/v1/count"
    lines = "".join(f'{{"text":"{number}"}}\n' for number in range(3)).encode()
    answer = await ask(request(target))
    assert (answer.status, answer.headers["transfer-encoding"]) == (200, "chunked")
    chunks = Chunks()
    assert (chunks.feed(answer.body), chunks.complete) == (lines, True)
    old = await ask(request(target, version="HTTP/1.0"))
    assert (old.status, "transfer-encoding" in old.headers, old.body) == (200, False, lines)
    only = await ask(request(target, method="HEAD"))
    assert (only.status, only.headers["transfer-encoding"], only.body) == (200, "chunked", b"")
    assert "content-length" not in {**answer.headers, **old.headers, **only.headers}


async def test_expect(ask: Ask) -> None:
    """A client that asks before it sends its body (curl does) is told to go on."""
    answer = await ask(
        request(method="PUT", body=b"{}", expect="100-continue", content_length="17")[:-2]
    )  # as far as it goes before it is told
    assert answer.status == 100
    assert b"408" in answer.body.split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"colour": "red"', {}, 400),
        (b"[1]", {}, 400),
        (b"\xff", {}, 400),
        (b'{"colour": "\xff"}', {}, 400),
        (b"{}", {}, 400),
        (b'{"colour": 7}', {}, 400),
        (b'{"colour": "red", "percent": 101}', {}, 400),
        (b"zz\r\n", {"transfer_encoding": "chunked", "content_length": None}, 400),
        (b"5\r\nabcdefgh", {"transfer_encoding": "chunked", "content_length": None}, 400),
        (b"1" * 20_000, {"transfer_encoding": "chunked", "content_length": None}, 400),
        (b"0\r\n\r\n", {"transfer_encoding": "chunked", "content_length": "5"}, 400),
        (b"4e20\r\n" + b"x" * 20_000, {"transfer_encoding": "chunked", "content_length": None}, 413),
        (b"", {"content_length": "17385"}, 413),
        (b"", {"content_length": "99999999999999999999"}, 413),
        (b"", {"content_length": "17384"}, 408),
        (b"", {"transfer_encoding": "chunked"}, 408),
        (b'{"colour":', {"content_length": "17"}, 408),
    ],
)
async def test_bad_bodies(ask: Ask, body: bytes, headers: dict[str, Any], status: int) -> None:
    """What is no JSON, framed wrongly, too long or too slow is answered as just that."""
    answer = await ask(request(method="PUT", body=body, **headers))
    assert answer.problem["status"] == status
    assert '"' not in answer.problem["detail"]
    assert (await ask(request(method="PUT", body=b'{"colour": "red"}'))).status == 202


async def test_a_body_that_ends_early(ask: Ask) -> None:
    """A client that ends its side in the middle of a body is told so at once."""
    answer = await ask(request(method="PUT", transfer_encoding="chunked") + b"5\r\nab", end=True)
    assert answer.status == 400


async def test_fields_by_name(ask: Ask) -> None:
    """An unknown field is refused by the name of the nearest known one, in a body and in a query."""
    answer = await ask(request(method="PUT", body=b'{"color": "red"}'))
    assert answer.problem["detail"] == "color: unknown field; did you mean 'colour'?"
    answer = await ask(request("/api/v1/paint/north?color=red"))
    assert answer.problem["detail"] == "color: unknown field; did you mean 'colour'?"
    answer = await ask(request("/api/v1/paint/north?colour=red&percent=x"))
    assert (
        answer.problem["detail"]
        == "Invalid query: Expected `int`, got `str` - at `percent`; see /api/openapi.json"
    )


async def test_paths(ask: Ask) -> None:
    """Names in a path are percent-decoded; a wrong path or method is answered with what there is."""
    answer = await ask(request("/api/v1/paint/a%2Fb%C3%A4?colour=red&percent=7"))
    assert json.loads(answer.body) == {"text": "a/bä red 7"}
    answer = await ask(request("/api/v1/wals/north"))
    assert answer.status == 404
    hint = "/api/openapi.json lists all; did you mean '/api/v1/walls/{wall}'?"
    assert answer.problem["detail"] == f"Unknown path: /api/v1/wals/north; {hint}"
    answer = await ask(request(method="DELETE"))
    assert (answer.status, answer.headers["allow"]) == (405, "PUT, GET, HEAD")
    refused = "DELETE is not allowed for /api/v1/walls/north; allowed methods: PUT, GET, HEAD."
    assert answer.problem["detail"] == refused
    assert (await ask(request("/api/v1/paint/%ff?colour=red"))).status == 400
    assert (await ask(request("/api/v1/walls/"))).status == 404
    assert (await ask(request("/api/v1/later?x=1"))).status == 400
    assert (await ask(request("/api/v1/later", body=b"{}"))).status == 400
    assert (await ask(request("/api"))).status == 404


async def test_errors(ask: Ask) -> None:
    """What the broker refuses keeps its meaning; what breaks is a 500 and takes nothing with it."""
    answer = await ask(request())
    assert (answer.status, answer.problem["detail"]) == (404, "north: there is no such wall")
    answer = await ask(request("/api/v1/later"))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    with structlog.testing.capture_logs() as logs:
        assert (await ask(request("/api/v1/broken"))).problem["status"] == 500
    assert logs[0]["event"] == "admin_request_crashed"
    assert (await ask(request())).status == 404


async def test_the_token(ask: Ask) -> None:
    """Nothing under /api/ without the token, not even what there is; a wrong one is never logged."""
    for target in (WALL, "/api/openapi.json", "/api/none"):
        answer = await ask(request(target, authorization=None))
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert (await ask(request(authorization=f"Basic {TOKEN}"))).status == 401
    assert (await ask(request(authorization="Bearer"))).status == 400
    with structlog.testing.capture_logs() as logs:
        answer = await ask(request(authorization="Bearer guess-of-somebody"))
        assert answer.status == 401
        assert "invalid_token" in answer.headers["www-authenticate"]
    [refused] = [each for each in logs if each["event"] == "admin_token_refused"]
    assert refused["peer"].startswith("127.0.0.1:")
    assert "guess" not in str(logs)
    assert (await ask(request("/metrics", authorization=None))).status == 200


async def test_origins(ask: Ask) -> None:
    """A page of another origin is refused whatever it knows; there is no CORS."""
    for target in (WALL, "/metrics"):
        for origin in ("http://evil.example", "null", "http://localhost:1", "http://127.0.0.1:8081"):
            answer = await ask(request(target, host="localhost:8081", origin=origin))
            assert answer.status == 403
            assert "access-control-allow-origin" not in answer.headers
    assert (await ask(request(WALL, host="localhost:8081", origin="http://localhost:8081"))).status == 404
    assert (await ask(request(method="OPTIONS", origin="http://localhost"))).status == 405


async def test_what_breaks_in_the_middle_was_done_too() -> None:
    """An action that ends in an error nobody expected is told of as well: some of it may have happened."""
    told: list[Action] = []
    route = Endpoint(method="DELETE", path="/api/v1/broken", summary="Breaks", handle=broken, answer=Said)
    wish = Request(
        method="DELETE",
        version="1.1",
        path="/api/v1/broken",
        query="",
        host="localhost",
        port=None,
        headers={},
    )
    with pytest.raises(ZeroDivisionError):
        await Router([route], acted=told.append).answer(wish, nothing, "127.0.0.1:1")
    assert told == [Action("127.0.0.1:1", "DELETE /api/v1/broken", {}, 500)]


async def nothing() -> bytes:
    return b""
