"""`request` and `POST /request`: a client asks a service of its tenant, over a real nats-server."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support import rawnats
from tests.support.broker import Broker, configure, run_broker
from tests.support.http import Answer, ask, opened, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.support.nats import NatsServer
    from tests.support.rawnats import Message, RawNats
    from tests.support.websocket import Client

    Service = Callable[[Message], tuple[bytes, ...]]

RIGHTS: dict[str, Any] = {"request": [">"], "deny": ["secret.>"]}
# A request that the service does not answer before it is told to.
SLOW: dict[str, Any] = {"method": "slow", "timeout_ms": 30_000}


def headers_of(message: Message) -> dict[str, str]:
    lines = message.header.decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) if ": " in line else line.split(":", 1) for line in lines if line)


def header(**fields: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


@asynccontextmanager
async def service(nats: RawNats, subject: str, work: Service) -> AsyncIterator[list[Message]]:
    """Answers each request with the body, and perhaps the header, that `work` returns; the requests."""
    asked: list[Message] = []
    received = await nats.subscribe(subject)
    await nats.flush()

    async def answer() -> None:
        async for message in received:
            asked.append(message)
            body, *rest = work(message)
            await nats.publish(message.reply, body, header=rest[0] if rest else b"")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        yield asked
        nursery.cancel_scope.cancel()


async def call(client: Client, method: str, data: Any = None, **more: Any) -> dict[str, Any]:
    """The payload of the reply, or of the error."""
    await client.send("request", {"method": method, "data": data, **more})
    while True:
        message = await client.receive()
        if message["type"] in ("reply", "error"):
            payload: dict[str, Any] = message["payload"]
            return payload


async def post(broker: Broker, payload: Any, **options: Any) -> Answer:
    options.setdefault("token", broker.token(**RIGHTS))
    return await ask(broker.running.http, "POST", "/request", json=payload, **options)


async def test_a_service_knows_who_asks(broker: Broker, publisher: RawNats) -> None:
    """What the client sends, and headers that it cannot write; the other tenant hears nothing."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with (
        service(publisher, "rpc.acme.>", lambda message: (b'{"got":%b}' % message.body,)) as asked,
        service(publisher, "rpc.globex.>", lambda _: (b'"globex"',)) as others,
        broker.client(user="al.ice", **RIGHTS) as client,
    ):
        assert "request" in client.log[0]["payload"]["features"]
        given = {"n": 1, "text": "é\n"}
        reply = await call(client, "orders.approve", given, id="a-1", traceparent=parent)
        assert reply == {"data": {"got": given}}
        (message,) = asked
        assert message.subject == b"rpc.acme.orders.approve"
        assert headers_of(message) == {
            "Broker-User": "al%2Eice",
            "Broker-Connection": client.log[0]["payload"]["connection_id"],
            "Broker-Request": "a-1",
            "traceparent": parent,
        }
        assert await call(client, "nothing") == {"data": {"got": None}}
        assert asked[1].body == b"null"
        assert "Broker-Request" not in headers_of(asked[1])
        assert (await post(broker, {"method": "a.b", "data": [1], "id": "x"})).json == {"data": {"got": [1]}}
        assert others == []


ANSWERS: dict[str, tuple[tuple[bytes, ...], dict[str, Any], int]] = {
    "json": ((b' {"a": [1.0, "\xc3\xa9"]} ',), {"data": {"a": [1.0, "é"]}}, 200),
    "empty": ((b"",), {"data": None}, 200),
    "scalar": ((b"false",), {"data": False}, 200),
    "no json": ((b"{",), {"code": "bad_answer"}, 502),
    "two values": ((b"1 2",), {"code": "bad_answer"}, 502),
    "no utf-8": ((b'"\xff"',), {"code": "bad_answer"}, 502),
    "infinite": ((b"1e999",), {"code": "bad_answer"}, 502),
    "deep": ((b"[" * 2000 + b"]" * 2000,), {"code": "bad_answer"}, 502),
    "large": ((b'"' + b"x" * 70_000 + b'"',), {"code": "too_large"}, 413),
    "refused": (
        (b"ignored", header(Nats_Service_Error="order 7 is shipped", Nats_Service_Error_Code="409")),
        {"code": "rejected", "message": "order 7 is shipped", "status": 409},
        409,
    ),
    "refused as not authorised": (
        (b"", header(Nats_Service_Error="not yours", Nats_Service_Error_Code="401")),
        {"code": "rejected", "message": "not yours", "status": 401},
        401,
    ),
    "refused by a word": (
        (b"", header(Nats_Service_Error="no", Nats_Service_Error_Code="E_SHIPPED")),
        {"code": "rejected", "message": "no"},
        502,
    ),
    "refused with 500": (
        (b"", header(Nats_Service_Error="é", Nats_Service_Error_Code="500")),
        {"code": "rejected", "message": "é", "status": 500},
        502,
    ),
    "refused with a code that HTTP has no name for": (
        (b"", header(Nats_Service_Error="payload.order: no", Nats_Service_Error_Code="499")),
        {"code": "rejected", "message": "payload.order: no", "status": 499},
        499,
    ),
    "refused with many words": (
        (b"", header(Nats_Service_Error="no" * 50_000)),
        {"code": "rejected", "message": "no" * 2047 + "n…"},
        502,
    ),
    "refused without a word": (
        (b"", header(Nats_Service_Error="", Nats_Service_Error_Code="")),
        {"code": "rejected", "message": "the service refuses the request: it says no more"},
        502,
    ),
    "a status of NATS": ((b"", b"NATS/1.0 404 No Messages\r\n\r\n"), {"code": "bad_answer"}, 502),
    "refused without words": (
        (b"", header(nats_service_error_code="7")),
        {"code": "rejected", "message": "the service refuses the request: 7", "status": 7},
        502,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_answers(name: str, broker: Broker, publisher: RawNats) -> None:
    """Each answer of a service, over WebSocket and by HTTP; none of them is retryable."""
    answer, expected, status = ANSWERS[name]
    async with (
        service(publisher, "rpc.acme.a", lambda _: answer),
        broker.client(**RIGHTS) as client,
    ):
        found = await call(client, "a")
        assert {key: found.get(key) for key in expected} == expected
        assert found.keys() - {"message", "retryable", "code", "data"} == expected.keys() & {"status"}
        assert found.get("retryable") in (None, False)
        posted = await post(broker, {"method": "a"})
        assert posted.status == status
        if status == 200:
            assert posted.json == expected
        else:
            assert posted.problem["code"] == expected["code"]
            assert posted.problem["detail"] == found["message"]
            assert "www-authenticate" not in posted.headers, "the token is all right"
        assert await call(client, "a") == found, "the connection goes on"


async def test_the_first_answer_counts(broker: Broker, publisher: RawNats) -> None:
    """A second one, and one after the time-out, reach nobody."""
    async with broker.client(**RIGHTS) as client:
        received = await publisher.subscribe("rpc.acme.>")
        await publisher.flush()
        late = await call(client, "late", timeout_ms=50)
        assert (late["code"], late["retryable"]) == ("timeout", False)
        first = await received.receive()
        await client.send("request", {"method": "twice"})
        second = await received.receive()
        for reply, body in ((first.reply, b'"late"'), (second.reply, b"1"), (second.reply, b"2")):
            await publisher.publish(reply, body)
        assert await client.expect("reply") == {"data": 1}
        await publisher.flush()
        await client.quiet()


async def test_nobody_listens(broker: Broker, publisher: RawNats, nats: NatsServer) -> None:
    """Told at once, and nothing is delivered later; nor while NATS is away."""
    async with broker.client(**RIGHTS) as client:
        for away in (False, True):
            if away:
                await nats.kill9()
                await client.until("source")
            found = await call(client, "orders.approve", {"away": away}, timeout_ms=30_000)
            assert (found["code"], found["retryable"]) == ("unavailable", True)
            assert found["retry_after_ms"] > 0
            assert (await post(broker, {"method": "a", "timeout_ms": 30_000})).status == 503
        await nats.start()
        await client.until("source")
    async with (
        rawnats.connect(nats.url) as again,
        service(again, "rpc.>", lambda _: (b'"here"',)) as asked,
        broker.client(**RIGHTS) as client,
    ):
        assert await call(client, "a") == {"data": "here"}
        assert [message.body for message in asked] == [b"null"]


async def test_nats_is_lost_while_a_request_waits(
    broker: Broker, publisher: RawNats, nats: NatsServer
) -> None:
    """The outcome is unknown: that is no `unavailable`."""
    received = await publisher.subscribe("rpc.acme.>")
    await publisher.flush()
    async with broker.client(**RIGHTS) as client:
        await client.send("request", SLOW)
        await received.receive()
        await nats.kill9()
        answers = [await client.receive(), await client.receive()]
        (error,) = [each["payload"] for each in answers if each["type"] == "error"]
        assert (error["code"], error["retryable"]) == ("timeout", False)


async def test_everything_else_goes_on(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """While requests wait others are answered, up to a number at a time."""
    received = await publisher.subscribe("rpc.acme.>")
    await publisher.flush()
    async with (
        run_broker(
            tmp_path / "b", configure(tmp_path / "b", nats.url, limits={"requests_in_flight": 3})
        ) as broker,
        broker.client(**RIGHTS) as client,
    ):
        for number in range(3):
            await client.send("request", SLOW | {"data": number}, messageId=str(number))
        waiting = [await received.receive() for _ in range(3)]
        await client.quiet()
        refusal = await call(client, "slow")
        assert (refusal["code"], "requests_in_flight" in refusal["message"]) == ("rate_limited", True)
        assert refusal["retry_after_ms"] > 0
        for message in reversed(waiting):
            await publisher.publish(message.reply, message.body)
            answer = await client.receive()
            assert (answer["type"], answer["messageId"]) == ("reply", message.body.decode())
            assert answer["payload"] == {"data": json.loads(message.body)}
        await client.send("request", SLOW)
        await received.receive()


async def test_the_end_of_a_connection_ends_its_requests(broker: Broker, publisher: RawNats) -> None:
    """The late answer goes nowhere, and everybody else is served."""
    received = await publisher.subscribe("rpc.acme.>")
    await publisher.flush()
    async with broker.client(**RIGHTS) as client:
        await client.send("request", SLOW)
        message = await received.receive()
    await publisher.publish(message.reply, b"1")
    await publisher.flush()
    async with broker.client(**RIGHTS) as client:
        await client.quiet()


async def test_a_request_by_http_ends_with_its_client(
    broker: Broker, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """Nobody waits for its answer any more, and a drain does not either."""
    received = await publisher.subscribe("rpc.acme.>")
    await publisher.flush()
    url, token = broker.running.http, broker.token(**RIGHTS)
    asked = request(url, "POST", "/request", token=token, body=json.dumps(SLOW).encode())
    async with opened(url, asked):
        await received.receive()
        assert supervisors[0].admitting == 1
    with trio.fail_after(20):
        while supervisors[0].admitting:
            await trio.sleep(0.01)


async def test_a_drain_answers_what_waits(broker: Broker, publisher: RawNats) -> None:
    """It ends the connection after the answers, and takes no further requests."""
    received = await publisher.subscribe("rpc.acme.slow")
    await publisher.flush()
    async with broker.client(**RIGHTS) as client:
        for number in range(2):
            await client.send("request", SLOW | {"data": number})
        waiting = [await received.receive() for _ in range(2)]
        broker.stop.wanted.set()
        await client.expect("connection.draining")
        while (found := await call(client, "nobody"))["message"] != "the broker is stopping; reconnect":
            assert found["code"] == "unavailable"  # until its turn comes it asks
            await trio.sleep(0.05)
        for message in waiting:
            await publisher.publish(message.reply, message.body)
            assert await client.expect("reply") == {"data": json.loads(message.body)}
        assert await client.closed() == 1012


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "private": ({"method": "users.alice.a"}, "invalid_channel"),
    "me": ({"method": "me.a"}, "invalid_channel"),
    "live": ({"method": "live.a"}, "invalid_channel"),
    "wildcard": ({"method": "a.*"}, "invalid_channel"),
    "rest": ({"method": ">"}, "invalid_channel"),
    "empty": ({"method": ""}, "invalid_channel"),
    "empty token": ({"method": "a..b"}, "invalid_channel"),
    "jetstream": ({"method": "$JS.API.INFO"}, "invalid_channel"),
    "line end": ({"method": "a\r\nPUB events.globex.a 1"}, "invalid_channel"),
    "blank": ({"method": "a b"}, "invalid_channel"),
    "denied": ({"method": "secret.a"}, "forbidden"),
    "line end in the id": ({"method": "a", "id": "a\r\nBroker-User: bob"}, "bad_message"),
    "empty id": ({"method": "a", "id": ""}, "bad_message"),
    "long id": ({"method": "a", "id": "a" * 65}, "bad_message"),
    "no time": ({"method": "a", "timeout_ms": 0}, "bad_message"),
    "much time": ({"method": "a", "timeout_ms": 30_001}, "bad_message"),
    "text for a time": ({"method": "a", "timeout_ms": "1"}, "bad_message"),
    "no method": ({}, "bad_message"),
    "unknown": ({"method": "a", "tenant": "globex"}, "bad_message"),
    "huge integer": ({"method": "a", "data": 2**64}, "bad_message"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_may_not_be_asked(name: str, broker: Broker, publisher: RawNats) -> None:
    """Told what is wrong, by both ways; nothing of it reaches NATS."""
    payload, code = REFUSED[name]
    everything = await publisher.subscribe("rpc.>")
    await publisher.flush()
    async with broker.client(**RIGHTS) as client:
        await client.send("request", payload)
        assert (await client.expect("error"))["code"] == code
    assert (await post(broker, payload)).problem["code"] == code
    await publisher.publish("rpc.end", b"")
    assert (await everything.receive()).subject == b"rpc.end"


async def test_it_takes_a_permission(broker: Broker) -> None:
    """By default there is none, whatever else a token allows; a monitoring token has none at all."""
    those: tuple[dict[str, Any], ...] = (
        {},
        {"publish": [">"], "subscribe": [">"]},
        {"request": ["orders.*"]},
    )
    for claims in those:
        async with broker.client(**claims) as client:
            found = await call(client, "documents.print")
            assert (found["code"], "permissions.request" in found["message"]) == ("forbidden", True)
    token = broker.token(tenant="*")
    answer = await ask(broker.running.http, "POST", "/request?tenant=acme", token=token, json={"method": "a"})
    assert answer.problem["code"] == "forbidden"


async def test_requests_have_a_rate_of_their_own(tmp_path: Path, nats: NatsServer) -> None:
    """Of the user, on all connections and without one; publishing goes on."""
    settings = configure(
        tmp_path / "b",
        nats.url,
        limits={"calls_per_second": 1, "calls_burst": 3},
        permissions={"publish": [">"]},
    )
    rights = RIGHTS | {"publish": [">"]}
    async with (
        run_broker(tmp_path / "b", settings) as broker,
        broker.client(**rights) as one,
        broker.client(**rights) as other,
    ):
        codes = [(await call(client, "nobody"))["code"] for client in (one, other, one, other, one)]
        codes.append((await post(broker, {"method": "nobody"})).problem["code"])
        await one.send("publish", {"channel": "a", "event": 1})
        await one.expect("published")
    assert codes[:3] == ["unavailable"] * 3
    assert "rate_limited" in codes[3:]


async def test_what_a_service_refuses_is_no_failed_message(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """It does not use up what a user may publish, as messages do that the broker refuses."""
    few = {"messages_per_minute": 1, "messages_burst": 2}
    rights = RIGHTS | {"publish": [">"]}
    refusal = b"", header(Nats_Service_Error="no")
    async with (
        run_broker(tmp_path / "b", configure(tmp_path / "b", nats.url, limits=few)) as broker,
        service(publisher, "rpc.acme.a", lambda _: refusal),
        service(publisher, "rpc.acme.b", lambda _: (b"{",)),
        service(publisher, "rpc.acme.c", lambda _: (b'"' + bytes(100_000) + b'"',)),
        broker.client(**rights) as client,
    ):
        for method in "abc" * 2:
            assert (await call(client, method))["code"] in ("rejected", "bad_answer", "too_large")
        await client.send("publish", {"channel": "a", "event": 1})
        await client.expect("published")
        assert (await call(client, "secret.a"))["code"] == "forbidden"
        await client.send("publish", {"channel": "a", "event": 1})
        assert (await client.expect("error"))["code"] == "rate_limited"
