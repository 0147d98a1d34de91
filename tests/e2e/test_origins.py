"""Pages of other origins: by one exact list they may use everything, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.broker import Broker, configure, run_broker
from tests.support.http import Answer, ask
from tests.support.sse import listen, target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nats import NatsServer

PAGE, OTHER = "https://app.example", "https://app.example:8443"
REQUESTS = {
    "publish": ("POST", "/publish", b'{"channel":"a","event":1}', 202),
    "publish nonsense": ("POST", "/publish", b"{", 400),
    "acknowledge nonsense": ("POST", "/acknowledge", b'{"durable":"d","position":"x"}', 400),
    "poll": ("POST", "/poll", b'{"channels":["a"]}', 200),
    "poll by query": ("GET", "/poll?channel=a", None, 200),
    "poll nonsense": ("GET", "/poll", None, 400),
    "events of nothing": ("GET", "/sse", None, 400),
    "events of others": ("GET", "/sse?channel=users.bob.x", None, 403),
}


@pytest.fixture
async def broker(tmp_path: Path, nats: NatsServer) -> AsyncIterator[Broker]:
    settings = configure(tmp_path / "broker", nats.url, server={"origins": (PAGE,)})
    async with run_broker(tmp_path / "broker", settings) as running:
        yield running


def readable(answer: Answer, origin: str) -> bool:
    """Whether a browser gives the answer to a page."""
    shared = answer.headers.get("access-control-allow-origin")
    assert shared in (None, origin)
    assert "access-control-allow-credentials" not in answer.headers
    return shared == origin and answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("name", REQUESTS)
async def test_answers_can_be_read_by_the_listed_page_alone(broker: Broker, name: str) -> None:
    """Refusals too; another page gets 403 and cannot read even that; without an origin nothing is said."""
    method, path, body, status = REQUESTS[name]
    url, token = broker.running.http, broker.token()
    listed = await ask(url, method, path, token=token, body=body, headers={"Origin": PAGE})
    assert (listed.status, readable(listed, PAGE)) == (status, True)
    other = await ask(url, method, path, token=token, body=body, headers={"Origin": OTHER})
    assert (other.status, readable(other, OTHER)) == (403, False)
    none = await ask(url, method, path, token=token, body=body)
    assert (none.status, readable(none, PAGE)) == (status, False)


async def test_a_stream_can_be_read(broker: Broker) -> None:
    headers = {"Origin": PAGE}
    async with listen(broker.running.http, "a", token=broker.token(), headers=headers) as sse:
        await sse.until("subscribed")
        assert sse.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("path", ["/sse", "/poll", "/publish", "/acknowledge"])
async def test_preflight(broker: Broker, path: str) -> None:
    """Says what the page may send: a token, JSON, and where it was; to pages that may."""
    url = broker.running.http
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = await ask(url, "OPTIONS", path, headers={"Origin": PAGE} | wish)
    assert (answer.status, answer.body, readable(answer, PAGE)) == (204, b"", True)
    assert answer.headers["access-control-allow-headers"] == "Authorization, Content-Type, Last-Event-ID"
    assert "OPTIONS" not in answer.headers["access-control-allow-methods"]
    answer = await ask(url, "OPTIONS", path, headers={"Origin": OTHER} | wish)
    assert (answer.status, readable(answer, OTHER)) == (403, False)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/sse", "GET, HEAD, OPTIONS"),
        ("GET", "/publish", "POST, OPTIONS"),
        ("GET", "/acknowledge", "POST, OPTIONS"),
        ("HEAD", "/publish", "POST, OPTIONS"),
        ("DELETE", "/poll", "GET, HEAD, POST, OPTIONS"),
        ("OPTIONS", "/ws", "GET, HEAD"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
    ],
)
async def test_other_methods(broker: Broker, method: str, path: str, allow: str) -> None:
    answer = await ask(broker.running.http, method, path, token=broker.token())
    assert (answer.status, answer.headers["allow"]) == (405, allow)


async def test_queries_are_never_logged(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    """What stands in an address of any of these pages is in no line of the log."""
    url = broker.running.http
    for path in ("/sse", "/poll", "/publish", "/acknowledge", "/nowhere"):
        await ask(url, "GET", target(path, ["hidden"], tenant="secret"), token=broker.token())
    said = capsys.readouterr()
    assert "request_refused" in said.out + said.err
    assert "hidden" not in said.out + said.err
    assert "secret" not in said.out + said.err
