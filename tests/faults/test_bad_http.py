"""Bad input, HTTP: whatever comes instead of a handshake is answered by its status, or cut off.

The tables are those of `tests/web`, where each stands alone; here they come to a broker at work.
Left out: trusted proxies, which there are none of, so that X-Forwarded-For is never believed; 429, which is
in `test_limits`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio
from wsproto.events import Ping

from tests.faults.support.http import get
from tests.faults.support.rude import (
    JUNK,
    TOO_LATE,
    Row,
    Told,
    bad_input,
    listen,
    note,
    pour,
)
from tests.faults.support.world import CLIENTS, PATIENCE_SECONDS
from tests.support.raw import open_raw
from tests.web.harness import head
from tests.web.test_heads import GOOD, with_line
from tests.web.test_heads import ROWS as HEADS
from tests.web.test_upgrade import LISTED, ORIGINS, REFUSED

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report
    from tests.web.harness import Client

CONNECTIONS = 120
PER_USER = 10
STORM_RATE, STORM_SECONDS = 500, 3
CHUNK = 1 << 16
LETTERS = (
    "host", "upgrade", "connection", "sec-websocket-version", "sec-websocket-key", "origin",
    "sec-websocket-protocol", "sec-websocket-extensions", "authorization", "cookie", "user-agent",
)  # fmt: skip

UNREAD = ("sec-websocket-extensions", "cookie", "user-agent")
ITEMS: dict[str, tuple[bytes, int]] = {
    **HEADS,
    **{f"non-ASCII {name}": (head(**{name: "a\u00e9"}), 101 if name in UNREAD else 400) for name in LETTERS},
    **{f"NUL in {name}": (head(**{name: "a\0"}), 400) for name in LETTERS},
    **{f"bare LF in {name}": (head(**{name: "a\nb"}), 400) for name in LETTERS},
    **{f"bare CR in {name}": (head(**{name: "a\rb"}), 400) for name in LETTERS},
    **{f"origin, {name}": (head(origin=origin), status) for name, (origin, status) in ORIGINS.items()},
    **{f"contradiction, {name}": (request, 400) for name, request in REFUSED.items()},
    "upgrade with a long body": (head(content_length="1000000") + b"x" * 1_000_000, 400),
    "POST with a body": (head(method="POST", content_length="5") + b"hello", 400),
    "admin path": (head("/metrics"), 404),
    "expectation": (with_line(b"Expect: 100-continue"), 101),
}
# Requests of clients without WebSocket: the request line, a body or none, and the answer.
REQUESTS: dict[str, tuple[str, bytes | None, int]] = {
    "events of nothing": ("GET /sse", None, 400),
    "events of no channel": ("GET /sse?channel=a..b", None, 400),
    "events of others": ("GET /sse?channel=users.other.x", None, 403),
    "events with a body": ("GET /sse?channel=a", b"x", 400),
    "events by POST": ("POST /sse?channel=a", None, 405),
    "events, unknown parameter": ("GET /sse?chanel=a", None, 400),
    "events, two starts": ("GET /sse?channel=a&last=1&snapshot=true", None, 400),
    "events, too many channels": ("GET /sse?" + "&".join(f"channel={n}" for n in range(1001)), None, 414),
    "events, half a percent": ("GET /sse?channel=%ff", None, 400),
    "poll without channels": ("GET /poll", None, 400),
    "poll of no JSON": ("POST /poll", b"\xff", 400),
    "poll of no object": ("POST /poll", b"[]", 400),
    "poll of much": ("POST /poll", b"[" * 70_000, 413),
    "poll, deep": ("POST /poll", b"[" * 60_000, 400),
    "poll for an hour": ("POST /poll", b'{"channels":["a"],"wait":3600}', 400),
    "poll from nowhere": ("POST /poll", b'{"channels":["a"],"position":"x"}', 400),
    "poll of others": ("POST /poll", b'{"channels":["users.other.x"]}', 403),
    "publish nothing": ("POST /publish", None, 400),
    "publish no JSON": ("POST /publish", b'{"channel":', 400),
    "publish, deep": ("POST /publish", b'{"channel":"a","event":' + b"[" * 2000 + b"]" * 2000 + b"}", 400),
    "publish much": ("POST /publish", b'{"channel":"a","event":"' + b"x" * 20_000 + b'"}', 413),
    "publish to others": ("POST /publish", b'{"channel":"users.other.x","event":1}', 403),
    "publish by GET": ("GET /publish", None, 405),
    "acknowledge nothing": ("POST /acknowledge", b"{}", 400),
    "acknowledge elsewhere": ("POST /acknowledge", b'{"durable":"d","position":"other-1"}', 400),
    "preflight of a stranger": ("OPTIONS /poll", None, 403),
}
# A poll is read before its token: a page that goes says so without one.
UNREADABLE_POLLS = (
    "poll without channels", "poll of no JSON", "poll of no object", "poll of much", "poll, deep",
    "poll for an hour",
)  # fmt: skip
# What 200 MB of junk come after, what they are, and the answer.
FLOODS = {
    "after an upgrade": (GOOD, b"\xff" * CHUNK, Told(status=101, close=1002)),
    "after a request": (head("/healthz"), b"\xff" * CHUNK, Told(status=200)),
    "after a bad request": (head("/nowhere"), b"\0" * CHUNK, Told(status=404)),
    "as a body": (head(content_length=f"{JUNK}"), b"A" * CHUNK, Told(status=400)),
    "as a head": (b"GET /ws HTTP/1.1\r\n", b"a: b\r\n" * (CHUNK // 6), Told(status=431)),
}


@pytest.mark.fault("http")
async def test_bad_http(open_world: OpenWorld, report: Report) -> None:
    """Each request that is none gets its status or silence; floods and storms are refused, nothing stays."""
    server = {"origins": list(LISTED.origins), "query_token": True}
    limits = {
        "head_seconds": 2,
        "body_seconds": 2,
        "connections": CONNECTIONS,
        "connections_per_user": PER_USER,
    }
    log = {"level": "debug"}
    async with (
        open_world(churning=0, server=server, limits=limits, log=log) as world,
        bad_input(world) as row,
    ):
        for name, (request, status) in ITEMS.items():
            told = await row.told(request, stay=False)
            assert told.status == status, name
            if status not in (0, 101):
                assert told.headers["content-type"] == "application/problem+json", name
                assert json.loads(told.body)["status"] == status, name
            await row.works(name)
        await without_websocket(row)
        await a_byte_now_and_then(row)
        await connect_and_leave(row)
        await not_trusted(row)
        await over_the_limits(row)
        await storm(row)
        with row.bounded():
            sent = [await flood(row, name) for name in FLOODS]
    note(report, "HTTP", row, junk_taken=f"{sum(sent) >> 20} MiB")


async def without_websocket(row: Row) -> None:
    """Streams, polls and publishes have their own ways to be wrong; so have their bodies and their ends."""

    def request(line: str, body: bytes | None, *more: str, token: bool = True) -> bytes:
        lines = [f"{line} HTTP/1.1", "Host: broker.example", *more]
        lines += [f"Authorization: {row.bearer()}"] if token else []
        lines += [f"Content-Length: {len(body)}"] if body is not None else []
        return "\r\n".join([*lines, "\r\n"]).encode() + (body or b"")

    for name, (line, body, status) in REQUESTS.items():
        origin = ("Origin: https://stranger.example",) if line.startswith("OPTIONS") else ()
        told = await row.told(request(line, body, *origin))
        assert (told.status, told.headers["content-type"]) == (status, "application/problem+json"), name
        if status != 405 and "body" not in name and not origin and status != 414:
            told = await row.told(request(line, body, token=False))
            read_first = "parameter" in name or "percent" in name or name in UNREADABLE_POLLS
            assert told.status == (status if read_first else 401), name
        await row.works(name)
    early = request("POST /publish", b"x" * 100)[:-50]
    chunked = request("POST /poll", None, "Transfer-Encoding: chunked")
    assert (await row.told(chunked + b"zz\r\n")).status == 400
    assert (await row.told(early)).status == 408
    for _ in range(50):
        for line in ("GET /sse?channel=a", "GET /poll?channel=a..b"):
            async with open_raw(row.url) as client:
                await client.send(request(line, None))
    await row.alone()
    await row.works("streams whose clients have left")


async def a_byte_now_and_then(row: Row) -> None:
    """The deadline is for the whole head, however it drips: 408."""
    async with open_raw(row.url) as client, trio.open_nursery() as nursery:

        async def drip() -> None:
            for byte in GOOD:
                await pour(client, bytes([byte]))
                await trio.sleep(0.5)

        nursery.start_soon(drip)
        assert (await listen(client)).status == 408
        nursery.cancel_scope.cancel()
    await row.works("a byte now and then")


async def connect_and_leave(row: Row) -> None:
    """Without a word, within the head, and after it: nothing is said, as nobody is there."""
    for said in (b"", GOOD[:60], GOOD):
        for _ in range(100):
            async with open_raw(row.url) as client:
                await client.send(said)
        await row.alone()
        await row.works(f"connect and leave after {len(said)} bytes")


async def not_trusted(row: Row) -> None:
    """Whoever says that it is somebody else is let in as itself: the log has the peer of the socket."""
    claim = head(x_forwarded_for="192.0.2.1", forwarded="for=192.0.2.1", x_real_ip="192.0.2.1")
    async with open_raw(row.url) as client:
        await client.send(claim)
        assert (await listen(client, stay=False)).status == 101
        assert isinstance(client.stream, trio.SocketStream)
        host, port = client.stream.socket.getsockname()
    await row.ended(f'"{host}:{port}"')
    assert not row.logged("192.0.2.1")
    await row.works("X-Forwarded-For")


async def over_the_limits(row: Row) -> None:
    """Exactly as many get in as there is room for, of the process (503) and of a user (4010)."""
    await row.alone()
    assert len(row.world.clients) == CLIENTS
    room = CONNECTIONS - CLIENTS
    async with AsyncExitStack() as stack:
        statuses = []
        for _ in range(room + 30):
            client = await stack.enter_async_context(open_raw(row.url))
            await client.send(GOOD)
            told = await listen(client, stay=False)
            assert told.status == 101 or int(told.headers["retry-after"]) >= 1
            statuses.append(told.status)
        assert statuses == [101] * room + [503] * 30
        assert (await get(row.url.replace("ws:", "http:"), "/healthz"))[0] == 200
        await row.world.flows()
    await row.alone()
    await row.works("over the limit of connections")
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for _ in range(PER_USER):
            nursery.start_soon(answer_pings, await stack.enter_async_context(row.member("crowd")))
        for _ in range(5):
            told = await row.told(head(authorization=row.bearer("crowd")))
            assert (told.errors, told.close) == (("limit_connections",), 4010)
        await row.works("over the limit of a user")
        nursery.cancel_scope.cancel()
    await row.alone()


async def answer_pings(client: Client) -> None:
    """Is alive, whoever asks."""
    client.patience = math.inf
    while (event := await client.event()) is not None:
        if isinstance(event, Ping):
            await client.send(client.frames.send(event.response()))


async def storm(row: Row) -> None:
    """500 connects a second, some of which stay for a while: each is let in or told to come again."""
    statuses = Counter[int]()

    async def come(number: int) -> None:
        await trio.sleep(number / STORM_RATE)
        async with AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(open_raw(row.url))
            except OSError:  # cut before the connect was through on our side
                statuses[0] += 1
                return
            await pour(client, GOOD)
            told = await listen(client, stay=False)
            assert told.status != 503 or int(told.headers["retry-after"]) >= 1
            statuses[told.status] += 1
            await trio.sleep(number % 2)

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for number in range(STORM_RATE * STORM_SECONDS):
                nursery.start_soon(come, number)
    assert {101, 503} <= statuses.keys() <= {101, 503, *TOO_LATE}
    assert statuses.total() == STORM_RATE * STORM_SECONDS
    await row.alone()
    await row.works("a storm")


async def flood(row: Row, name: str) -> int:
    """200 MB of junk: answered at its beginning; then its link is gone, or it is all out. How much was."""
    request, chunk, expected = FLOODS[name]
    sent: list[int] = []
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_raw(row.url) as client, trio.open_nursery() as nursery:

            async def junk() -> None:
                sent.append(await pour(client, request, *[chunk] * (JUNK // len(chunk) + 1)))

            nursery.start_soon(junk)
            told = await listen(client)
            assert (told.status, told.close) == (expected.status, expected.close), name
            await row.works(f"200 MB of junk {name}, while they come")
    await row.works(f"200 MB of junk {name}")
    return sent[0]
