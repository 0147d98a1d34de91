"""The admin port: metrics and health, under its own names only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.web.harness import head
from tests.web.routes import TOKEN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.web.harness import Answer


async def test_metrics(ask: Callable[[bytes], Awaitable[Answer]]) -> None:
    """Prometheus reads its own format, or OpenMetrics where it asks for it."""
    plain = await ask(head("/metrics", host="localhost:8081"))
    assert plain.status == 200
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"\nbroker_connections 7.0\n" in plain.body
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    open_metrics = await ask(head("/metrics", host="localhost", accept=accept))
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.body.endswith(b"\nbroker_connections 7.0\n# EOF\n")


async def test_health(ask: Callable[[bytes], Awaitable[Answer]], reasons: list[str]) -> None:
    """Alive always, ready unless there is a reason, which is said."""
    assert (await ask(head("/readyz", host="127.0.0.1"))).body == b"ok\n"
    reasons.append("No event came back for 5 s.")
    answer = await ask(head("/readyz", host="127.0.0.1"))
    assert (answer.status, answer.problem["detail"]) == (503, "No event came back for 5 s.")
    assert (await ask(head("/healthz", host="127.0.0.1"))).status == 200


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/none", "/api/openapi.json"])
async def test_head(ask: Callable[[bytes], Awaitable[Answer]], path: str) -> None:
    """Says what GET would, without a word of it; so does HTTP/1.0, without `Host`."""
    whole = await ask(head(path, host="localhost", authorization=f"Bearer {TOKEN}"))
    assert len(whole.body) == int(whole.headers["content-length"])
    for request in (
        head(path, host="localhost", authorization=f"Bearer {TOKEN}", method="HEAD"),
        head(path, host=None, authorization=f"Bearer {TOKEN}", method="HEAD", version="HTTP/1.0"),
    ):
        only = await ask(request)
        assert (only.status, only.body) == (whole.status, b"")
        assert only.headers["content-type"] == whole.headers["content-type"]
        assert only.headers["content-length"] == whole.headers["content-length"]
    old = await ask(head(path, host=None, authorization=f"Bearer {TOKEN}", version="HTTP/1.0"))
    assert (old.status, len(old.body)) == (whole.status, len(whole.body))


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8081", "[::1]", "metrics.example"])
async def test_own_names(ask: Callable[[bytes], Awaitable[Answer]], host: str) -> None:
    """Loopback's names, and the name it was configured with, on any port: somebody forwards it."""
    assert (await ask(head("/healthz", host=host))).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.2", "[::2]", "broker.example"]
)
async def test_other_names(ask: Callable[[bytes], Awaitable[Answer]], host: str) -> None:
    """A name that was made to point here reads nothing, not even what there is."""
    for path in ("/metrics", "/healthz", "/none"):
        answer = await ask(head(path, host=host))
        assert answer.problem["status"] == 421


async def test_refused(ask: Callable[[bytes], Awaitable[Answer]]) -> None:
    """No clients here, and only GET."""
    assert (await ask(head("/ws", host="localhost"))).status == 404
    assert (await ask(head("/metrics", host="localhost", method="POST"))).status == 405
    assert (await ask(b"\x80" * 10)).status == 0
