"""The ways in through nginx and haproxy, which buffer as they do by default, compress, and soon give up."""

from __future__ import annotations

import json
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import h11
import pytest
import trio

from tests.support.broker import Broker, configure, run_broker
from tests.support.http import SECONDS
from tests.support.outer_proxies import haproxy, needs_haproxy, needs_nginx, nginx
from tests.support.polling import until_none_waits
from tests.support.sse import Parser, target
from tests.support.websocket import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

HEARTBEAT_SECONDS, PATIENCE_SECONDS = 0.5, 2  # the broker's, and after how long of silence a proxy gives up
NGINX_HTTP = f"""
gzip on; gzip_types *; gzip_proxied any; gzip_min_length 1;
proxy_read_timeout {PATIENCE_SECONDS}s;
proxy_send_timeout {PATIENCE_SECONDS}s;
"""
HAPROXY_DEFAULTS = """
  compression algo gzip
  compression type text/event-stream application/json
"""


@attrs.define(eq=False)
class Exchange:
    """A request and what of its answer has come, taken out of chunks and decompressed."""

    stream: trio.SocketStream
    peer: h11.Connection
    status: int
    encoding: str | None
    inflate: Any = attrs.Factory(lambda: zlib.decompressobj(wbits=31))
    parser: Parser = attrs.Factory(Parser)
    messages: list[dict[str, Any]] = attrs.Factory(list)

    async def some(self) -> bytes:
        """What comes next; nothing at the end."""
        match await following(self.stream, self.peer):
            case h11.Data() as part:
                data = bytes(part.data)
                return self.inflate.decompress(data) if self.encoding == "gzip" else data
        return b""

    async def until(self, kind: str) -> dict[str, Any]:
        """The payload of the next message of this type."""
        with trio.fail_after(SECONDS):
            while True:
                while self.messages:
                    if (message := self.messages.pop(0))["type"] == kind:
                        payload: dict[str, Any] = message["payload"]
                        return payload
                await self.listen()

    async def listen(self) -> None:
        data = await self.some()
        assert data, "the stream has ended"
        self.messages += [json.loads(text) for text, _ in self.parser.feed(data)]


async def following(stream: trio.SocketStream, peer: h11.Connection) -> Any:
    while (event := peer.next_event()) is h11.NEED_DATA:
        peer.receive_data(await stream.receive_some())
    return event


@asynccontextmanager
async def exchange(
    broker: Broker, front: int, method: str, path: str, body: Any = None
) -> AsyncIterator[Exchange]:
    """A request through the proxy, of a client that takes what is compressed."""
    headers = [
        ("Host", "chat.example"),
        ("Accept-Encoding", "gzip"),
        ("Authorization", f"Bearer {broker.token()}"),
    ]
    data = b"" if body is None else json.dumps(body).encode()
    headers += [("Content-Length", str(len(data)))] if data else []
    peer = h11.Connection(h11.CLIENT)
    async with await trio.open_tcp_stream("127.0.0.1", front) as stream:
        for event in (
            h11.Request(method=method, target=path, headers=headers),
            *([h11.Data(data=data)] if data else []),
            h11.EndOfMessage(),
        ):
            await stream.send_all(peer.send(event) or b"")
        with trio.fail_after(SECONDS):
            response = await following(stream, peer)
        encoding = dict(response.headers).get(b"content-encoding", b"").decode()
        yield Exchange(stream, peer, response.status_code, encoding)


async def asked(broker: Broker, front: int, path: str, body: Any) -> tuple[int, Any]:
    """Status and JSON of a whole answer."""
    async with exchange(broker, front, "POST", path, body) as link:
        received = b""
        with trio.fail_after(SECONDS):
            while data := await link.some():
                received += data
        return link.status, json.loads(received) if link.status < 300 else None


@pytest.fixture
async def broker(tmp_path: Path, nats: NatsServer) -> AsyncIterator[Broker]:
    limits = {"heartbeat_seconds": HEARTBEAT_SECONDS}
    async with run_broker(tmp_path / "b", configure(tmp_path / "b", nats.url, limits=limits)) as running:
        yield running


UPGRADING = [pytest.param("nginx", marks=needs_nginx), pytest.param("haproxy", marks=needs_haproxy)]


@pytest.fixture(params=[*UPGRADING, pytest.param("nginx by HTTP/1.0", marks=needs_nginx)])
async def front(request: pytest.FixtureRequest, tmp_path: Path, broker: Broker) -> AsyncIterator[int]:
    """A proxy before the broker; its port."""
    back = urlsplit(broker.running.http).port
    if request.param == "nginx":
        proxy = nginx(tmp_path, back, http=NGINX_HTTP)
    elif request.param == "nginx by HTTP/1.0":  # as it is by default
        proxy = nginx(tmp_path, back, http=NGINX_HTTP, upgrading="")
    else:
        proxy = haproxy(tmp_path, back, mode="http", seconds=PATIENCE_SECONDS, defaults=HAPROXY_DEFAULTS)
    async with proxy as port:
        yield port


async def test_events_come_at_once(broker: Broker, front: int, publisher: RawNats) -> None:
    """One by one, though the proxy buffers and compresses: nothing else comes that could push them out."""
    async with exchange(broker, front, "GET", target("/sse", ["a", "live.a"])) as sse:
        assert sse.status == 200
        await sse.until("subscribed")
        for number in range(3):
            await publisher.publish("live.acme.a", b"%d" % number)
            assert (await sse.until("event"))["event"] == number
            await publisher.store("events.acme.a", b"%d" % number)
            assert (await sse.until("event"))["event"] == number


async def test_a_quiet_stream_is_kept(broker: Broker, front: int, publisher: RawNats) -> None:
    """Heartbeats pass the proxy, which would else give it up."""
    async with exchange(broker, front, "GET", target("/sse", ["a"])) as sse:
        await sse.until("subscribed")
        until = trio.current_time() + 2 * PATIENCE_SECONDS
        while trio.current_time() < until:
            await sse.listen()
        await publisher.store("events.acme.a", b"1")
        assert (await sse.until("event"))["event"] == 1


@pytest.mark.parametrize("front", UPGRADING, indirect=True)
async def test_a_quiet_websocket_is_kept(broker: Broker, front: int, publisher: RawNats) -> None:
    """By the broker's pings, and the client's answers."""
    async with connect(f"ws://127.0.0.1:{front}/ws", token=broker.token()) as client:
        await client.subscribe("a")
        await trio.sleep(2 * PATIENCE_SECONDS)
        await publisher.store("events.acme.a", b"1")
        [event] = await client.events(1)
        assert event["event"] == 1


async def test_polls(supervisors: list[Supervisor], broker: Broker, front: int, publisher: RawNats) -> None:
    """They work, and one that the proxy has given up before its time loses nothing."""
    _, first = await asked(broker, front, "/poll", {"channels": ["a", "live.a"]})
    known = {"channels": ["a", "live.a"], "session": first["session"], "position": first["position"]}
    assert (await asked(broker, front, "/poll", known | {"wait": 60}))[0] == 504
    await until_none_waits(supervisors[0])  # else a live event may be in an answer that nobody gets
    await publisher.publish("live.acme.a", b"1")
    await publisher.store("events.acme.a", b"2")
    found: list[Any] = []
    while len(found) < 2:
        status, answer = await asked(broker, front, "/poll", known | {"wait": 1})
        assert (status, answer["gaps"]) == (200, [])
        known |= {"session": answer["session"], "position": answer["position"]}
        found += [each["event"] for each in answer["events"]]
    assert sorted(found) == [1, 2]
    status, answer = await asked(broker, front, "/publish", {"channel": "a", "event": 3})
    assert (status, "position" in answer) == (202, True)
