"""Why did this client not get that event: explain, trace, closes and the audit trail of a running broker."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import h11
import pytest
import trio

from broker.features import audit
from tests.support.broker import configure, run_broker
from tests.support.metrics import scrape
from tests.support.raw import open_raw
from tests.support.sse import listen
from tests.web.harness import BINARY, TEXT, frame, head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.broker import Broker
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client

PATIENCE_SECONDS = 45
BIG = frame(TEXT, b"x" * 70_000)


@pytest.fixture
def admin(broker: Broker, tmp_path: Path) -> Admin:
    return Admin(broker, tmp_path / "broker")


class Admin:
    """An operator with the admin token."""

    def __init__(self, broker: Broker, directory: Path) -> None:
        self.url = broker.running.admin
        self.token = (directory / "admin.token").read_text().strip()

    @asynccontextmanager
    async def ask(
        self, method: str, path: str, body: Any = None, **query: Any
    ) -> AsyncIterator[tuple[int, trio.MemoryReceiveChannel[bytes]]]:
        """The status, and the body's pieces as they come."""
        client = h11.Connection(h11.CLIENT)
        content = b"" if body is None else json.dumps(body).encode()
        target = f"/api/v1/{path}" + (f"?{urlencode(query)}" if query else "")
        fields = [("Host", "localhost"), ("Authorization", f"Bearer {self.token}")]
        if content:
            fields += [("Content-Length", str(len(content))), ("Content-Type", "application/json")]
        async with open_raw(self.url) as raw:
            request = h11.Request(method=method, target=target, headers=fields)
            await raw.stream.send_all(client.send(request) + (client.send(h11.Data(data=content)) or b""))
            send, receive = trio.open_memory_channel[bytes](1000)
            status: list[int] = []
            begun = trio.Event()

            async def read() -> None:
                with send:
                    while True:
                        event = client.next_event()
                        if event is h11.NEED_DATA:
                            client.receive_data(bytes(await raw.stream.receive_some()))
                        elif isinstance(event, h11.Response):
                            status.append(event.status_code)
                            begun.set()
                        elif isinstance(event, h11.Data):
                            await send.send(bytes(event.data))
                        elif isinstance(event, h11.EndOfMessage):
                            return

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await begun.wait()
                yield status[0], receive
                nursery.cancel_scope.cancel()

    async def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        async with self.ask(method, path, body, **query) as (status, pieces):
            answer = json.loads(b"".join([piece async for piece in pieces]))
            assert status == 200, answer
            return answer

    async def until(self, found: Callable[[Any], bool], path: str, **query: Any) -> Any:
        """The answer to a question, once it is as expected."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not found(answer := await self.call("GET", path, **query)):
                await trio.sleep(0.05)
        return answer

    @asynccontextmanager
    async def trace(self, **query: Any) -> AsyncIterator[Callable[[], Any]]:
        """A trace that runs; the next line of it."""
        async with self.ask("GET", "trace", **query) as (status, pieces):
            assert status == 200, await pieces.receive()
            waiting = b""

            async def line() -> Any:
                nonlocal waiting
                with trio.fail_after(PATIENCE_SECONDS):
                    while b"\n" not in waiting:
                        waiting += await pieces.receive()
                first, _, waiting = waiting.partition(b"\n")
                return json.loads(first)

            assert (await line())["kind"] == "tracing"
            yield line


async def answer(client: Client, channel: str | list[str]) -> dict[str, Any]:
    """What a subscribe is answered with."""
    await client.send("subscribe", {"channel": channel}, messageId="s")
    while (message := await client.receive()).get("messageId") != "s":
        pass
    return message


async def test_explain_says_what_happens_then(broker: Broker, publisher: RawNats, admin: Admin) -> None:
    """The answer is that of a client with the same token; the stream is looked at; no token is shown."""
    await publisher.store("events.acme.orders.7", b"1")
    token = broker.token(subscribe=["orders.>"], publish=[])
    for channel, allowed in (("orders.7", True), ("stock.7", False), ("me.>", True)):
        found = await admin.call("POST", "explain", {"token": token, "channel": channel})
        assert found["allowed"] is allowed
        assert token not in json.dumps(found)
        async with broker.client(token=token) as client:
            reply = await answer(client, channel)
            assert (reply["type"] == "subscribed") is allowed
    starts = (await admin.call("POST", "explain", {"token": token, "channel": "orders.*"}))["steps"][-2]
    assert "at most 1 kept" in starts["detail"]
    other = await admin.call("POST", "explain", {"token": token, "channel": "orders.7", "publish": True})
    assert not other["allowed"]
    forged = f"{token.rpartition('.')[0]}.{'A' * 43}"
    bad = await admin.call("POST", "explain", {"token": forged, "channel": "orders.7"})
    assert (bad["steps"][-1]["step"], bad["steps"][-1]["ok"]) == ("signature", False)


async def test_trace_follows_events(broker: Broker, publisher: RawNats, admin: Admin) -> None:
    """Events, live ones and dead letters of the tenant, with who got them; others' are not there."""
    async with (
        broker.client(user="bob") as bob,
        broker.client(user="eve", subscribe=[">"], deny=["orders.secret"]) as eve,
    ):
        await bob.subscribe(["orders.>"])
        await eve.subscribe(["orders.>"])
        async with admin.trace(tenant="acme", channel="orders.>") as line:
            await publisher.store("events.globex.orders.1", b"1")
            await publisher.store("events.acme.stock", b"1")
            await publisher.store("events.acme.orders.secret", b'{"type":"x","payload":{}}')
            found = await line()
            assert (found["channel"], found["form"], found["outcomes"]) == (
                "orders.secret", "envelope", {"written": 1},
            )  # fmt: skip
            assert [(each["connections"], each["denied"]) for each in found["audiences"]] == [
                (1, False),
                (1, True),
            ]
            assert [each["user"] for each in found["connections"]] == ["bob"]
            await publisher.store("events.acme.orders.2", b"{")
            letter = await line()
            assert (letter["kind"], letter["reason"], letter["bytes"]) == ("dead_letter", "not_json", 1)
            await publisher.store("events._all.orders.3", b"2")
            everybody = await line()
            assert (everybody["broadcast"], everybody["outcomes"]) == (True, {"written": 2})


async def test_trace_without_clients_and_its_ends(broker: Broker, publisher: RawNats, admin: Admin) -> None:
    """A tenant with no client is followed too, its live channels as well; number and time are bounds."""
    async with admin.trace(tenant="lonely", channel="live.>", limit=2) as line:
        for number in (b"1", b"2"):
            await publisher.publish("live.lonely.x", number)
            assert (await line())["outcomes"] == {}
        assert (await line()) == {"kind": "end", "reason": "limit"}
    async with admin.trace(tenant="lonely", channel=">", seconds=0.1) as line:
        assert (await line()) == {"kind": "end", "reason": "seconds"}
    for query in ({"tenant": "_all", "channel": ">"}, {"tenant": "acme", "channel": "a..b"}):
        async with admin.ask("GET", "trace", **query) as (status, _):
            assert status == 400


async def test_a_trace_ends_with_its_reader(broker: Broker, admin: Admin, supervisors: list[Any]) -> None:
    """When the reader has gone nothing is traced any more."""
    followers = supervisors[0].tenants.followers
    async with admin.trace(tenant="acme", channel=">"):
        assert len(followers) == 1
    with trio.fail_after(PATIENCE_SECONDS):
        while followers:
            await trio.sleep(0.01)


async def test_closes(broker: Broker, admin: Admin) -> None:
    """Each end is kept with who, how long, by whom and why; it can be searched."""
    async with broker.client(user="bob") as client:
        await client.subscribe(["a"])
    async with broker.stranger() as stranger:
        await stranger.send("authenticate", {"token": "x"})
        assert await stranger.closed() == 4500
    async with broker.client(user="eve") as eve:
        ended = await admin.call(
            "DELETE", "connections", tenant="acme", user="eve", code=4501, reason="enough"
        )
        assert ended == {"disconnected": 1}
        assert await eve.closed() == 4501
    found = await admin.until(lambda answer: len(answer["closes"]) == 3, "closes")
    by_user = {each["user"]: each for each in found["closes"]}
    assert (by_user["bob"]["by"], by_user["bob"]["tenant"]) == ("link", "acme")
    assert by_user["bob"]["messages"] >= 1
    assert by_user["bob"]["position"]
    assert (by_user[None]["code"], by_user[None]["by"], by_user[None]["tenant"]) == (4500, "broker", None)
    assert (by_user["eve"]["code"], by_user["eve"]["by"], by_user["eve"]["reason"]) == (
        4501,
        "operator",
        "enough",
    )
    assert by_user["eve"]["transport"] == "websocket"
    only = await admin.call("GET", "closes", code=4500)
    assert [each["user"] for each in only["closes"]] == [None]


async def test_why_a_stream_was_refused(broker: Broker, admin: Admin) -> None:
    """A request for events that was answered by a problem is listed with the protocol's code."""
    token = broker.token(user="kim", subscribe=["orders.>"])
    async with listen(broker.running.http, "billing", token=token) as stream:
        assert stream.status == 403
    found = await admin.until(lambda answer: answer["closes"], "closes")
    assert [(each["user"], each["reason"]) for each in found["closes"]] == [("kim", "refused: forbidden")]


async def test_who_closed(broker: Broker, admin: Admin) -> None:
    """A frame that breaks the rules is answered by our Close; the same code may be the client's own."""
    for code in (1002, 1009, 4711):
        async with broker.client(user=f"said {code}") as client:
            await client.socket.aclose(code=code)
    frames = {1002: b"\xff" * 8, 1003: frame(BINARY, b"x"), 1007: frame(TEXT, b"\xff"), 1009: BIG}
    for code, data in frames.items():
        async with open_raw(broker.running.ws) as client:
            await client.upgrade(head(authorization=f"Bearer {broker.token(user=f'heard {code}')}"))
            await client.send(data)
            assert (await client.closed())[0] == code
    async with broker.client(user="cut"):
        pass
    expected = {f"said {code}": (code, "client") for code in (1002, 1009, 4711)}
    expected |= {f"heard {code}": (code, "broker") for code in frames} | {"cut": (1006, "link")}
    found = await admin.until(lambda answer: len(answer["closes"]) == len(expected), "closes")
    assert {each["user"]: (each["code"], each["by"]) for each in found["closes"]} == expected
    metrics = await scrape(broker.running.admin)
    ended = "broker_connections_closed_total"
    assert metrics.total(ended, by="broker") == len(frames)
    assert (metrics.total(ended, by="client"), metrics.total(ended, by="link")) == (3, 1)


async def test_audit(broker: Broker, publisher: RawNats, admin: Admin) -> None:
    """Connections, refusals and what operators did are records in a stream, listed newest first by pages."""
    token = broker.token(user="bob", subscribe=["a"], publish=[])
    async with broker.client(token=token) as client:
        for _ in range(20):
            await answer(client, "secret")
        await answer(client, ["a", "hidden"])
    await admin.call("DELETE", "connections", tenant="acme", user="nobody", reason="tidy")
    async with broker.stranger() as stranger:
        await stranger.send("authenticate", {"token": token[:-4]})
        assert await stranger.closed() == 4500
    ended = await admin.until(lambda answer: bool(answer["records"]), "audit", tenant="acme", kind="ended")
    (end,) = ended["records"]
    assert (end["user"], end["by"]) == ("bob", "link")
    assert end["seconds"] >= 0
    (begin,) = (await admin.call("GET", "audit", tenant="acme", kind="authenticated"))["records"]
    assert begin["connection"] == end["connection"]
    assert begin["peer"].startswith("127.0.0.1:")
    assert begin["transport"] == "websocket"
    refused = (await admin.call("GET", "audit", tenant="acme", kind="refused"))["records"]
    assert {each["code"] for each in refused} == {"forbidden"}
    assert 1 <= len(refused) < 20
    await admin.until(lambda answer: bool(answer["records"]), "audit", tenant="_broker", kind="refused")
    (action,) = (await admin.call("GET", "audit", kind="admin"))["records"]
    assert (action["action"], action["status"]) == ("DELETE /api/v1/connections", 200)
    assert action["on"] == {"tenant": "acme", "user": "nobody", "code": 1012, "reason": "tidy"}
    listed: list[Any] = []
    after: dict[str, int] = {}
    while True:
        page = await admin.call("GET", "audit", limit=2, **after)
        listed += page["records"]
        if page["next"] is None:
            break
        after = {"cursor": page["next"]}
    assert len(listed) >= 5
    assert [each["time"] for each in listed] == sorted((each["time"] for each in listed), reverse=True)
    assert (await admin.call("GET", "audit", since="2099-01-01T00:00:00Z"))["records"] == []
    text = json.dumps(listed)
    assert not any(part in text for part in token.split(".")[1:])


async def test_the_ends_of_a_drain_are_kept(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Connections that end because the broker does are in the trail when it is gone."""
    settings = configure(tmp_path / "broker", nats.url)
    async with run_broker(tmp_path / "broker", settings) as broker, broker.client() as client:
        await client.subscribe(["a"])
        broker.stop.wanted.set()
        assert await client.closed() == 1012
    info = await publisher.api("STREAM.INFO.AUDIT", subjects_filter="audit.acme.ended")
    assert info["state"]["subjects"] == {"audit.acme.ended": 1}


async def test_a_flood_of_records_is_bounded(
    tmp_path: Path, nats: NatsServer, monkeypatch: pytest.MonkeyPatch, supervisors: list[Any]
) -> None:
    """What the queue cannot hold while NATS is away is counted, and connections are not held up."""
    monkeypatch.setattr(audit, "QUEUE", 3)
    monkeypatch.setattr(audit, "GATHER_SECONDS", 0.0)
    async with run_broker(tmp_path / "broker", configure(tmp_path / "broker", nats.url)) as broker:
        trail = supervisors[0].audit
        async with broker.client() as client:
            await client.subscribe(["a"])
            with trio.fail_after(PATIENCE_SECONDS):
                while trail.waiting:  # that it has connected
                    await trio.sleep(0.05)
            await nats.kill9()
            await client.until("source")
            for number in range(5):
                trail.note("admin", tenant=None, number=number)
            assert trail.dropped == 2
            await nats.start()
            with trio.fail_after(PATIENCE_SECONDS):
                while trail.waiting:
                    await trio.sleep(0.05)


async def test_without_an_audit_trail(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Any]
) -> None:
    """Switched off, nothing waits and no stream is made."""
    settings = configure(tmp_path / "broker", nats.url, audit={"enabled": False})
    async with run_broker(tmp_path / "broker", settings) as broker, broker.client():
        assert not supervisors[0].audit.waiting
        async with Admin(broker, tmp_path / "broker").ask("GET", "audit") as (status, _):
            assert status == 404
