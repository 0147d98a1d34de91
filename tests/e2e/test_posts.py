"""`POST /publish`: the same publish as on a connection, by a request of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.bus.nats import NatsBus
from tests.support.broker import Broker, configure, run_broker
from tests.support.http import Answer, ask

if TYPE_CHECKING:
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from broker.bus.base import PublishAck
    from tests.support.nats import NatsServer


async def post(broker: Broker, payload: Any, *, query: str = "", **options: Any) -> Answer:
    options.setdefault("token", broker.token())
    return await ask(broker.running.http, "POST", f"/publish{query}", json=payload, **options)


async def test_an_event_arrives_with_its_publisher_and_position(broker: Broker) -> None:
    """202 says where the event stands; subscribers get it as if it came from a connection."""
    async with broker.client(user="bob") as bob:
        await bob.subscribe("orders.>")
        answer = await post(broker, {"channel": "orders.7", "event": {"n": 1}})
        assert (answer.status, answer.headers["cache-control"]) == (202, "no-store")
        assert await bob.events(1) == [
            {
                "channel": "orders.7",
                "position": answer.json["position"],
                "publisher": {"user": "alice"},
                "event": {"n": 1},
            }
        ]


async def test_an_id_makes_a_retry_harmless_whatever_it_is_sent_by(broker: Broker) -> None:
    """The second time it is a duplicate of the first, by HTTP and by WebSocket alike."""
    payload = {"channel": "orders.7", "event": 1, "id": "a"}
    first = await post(broker, payload)
    assert (await post(broker, payload)).json == {**first.json, "duplicate": True}
    async with broker.client() as alice:
        await alice.send("publish", payload)
        assert await alice.expect("published") == {**first.json, "id": "a", "duplicate": True}


async def test_a_live_event_has_no_position(broker: Broker) -> None:
    async with broker.client() as alice:
        await alice.subscribe("live.cursor")
        answer = await post(broker, {"channel": "live.cursor", "event": [1, 2]})
        assert (answer.status, answer.json) == (202, {})
        assert [each["event"] for each in await alice.events(1)] == [[1, 2]]


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "not allowed": ({"channel": "users.bob.x", "event": 1}, 403, "forbidden"),
    "another tenant": (
        {"channel": "a", "event": {"metadata": {"tenant_id": "other"}}}, 403, "forbidden",
    ),
    "no channel": ({"event": 1}, 400, "bad_message"),
    "unknown field": ({"chanel": "a", "event": 1}, 400, "bad_message"),
    "bad channel": ({"channel": "a..b", "event": 1}, 400, "invalid_channel"),
    "pattern": ({"channel": "a.>", "event": 1}, 400, "invalid_channel"),
    "huge integer": ({"channel": "a", "event": 2**64}, 400, "bad_message"),
    "too large": ({"channel": "a", "event": "x" * 20000}, 413, "too_large"),
    "no object": ({"channel": ["a"], "event": 1}, 400, "bad_message"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_what_a_connection_refuses_is_refused(broker: Broker, name: str) -> None:
    """With the protocol's code in the problem document, and a status that says as much."""
    payload, status, code = REFUSED[name]
    answer = await post(broker, payload)
    assert (answer.status, answer.problem["code"]) == (status, code)


BODIES = {
    "no JSON": (b"{", 400),
    "more than a payload": (b'{"channel":"a","event":1},"messageId":"x"', 400),
    "nothing": (b"", 400),
    "Latin-1": (b'{"channel":"a","event":"\xe4"}', 400),
    "half an emoji": (b'{"channel":"a","event":"\\ud83d"}', 400),
    "over the limit of a message": (b'"' + b"x" * 70000 + b'"', 413),
    "deep": (b"[" * 5000 + b"]" * 5000, 400),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_none(broker: Broker, name: str) -> None:
    body, status = BODIES[name]
    answer = await ask(broker.running.http, "POST", "/publish", token=broker.token(), body=body)
    assert answer.problem["status"] == status
    assert answer.problem.get("code") == ("bad_message" if status == 400 else None)


async def test_tokens(broker: Broker) -> None:
    """Without one, with a bad one and with an expired one: 401 with a challenge, and no word of the token."""
    payload = {"channel": "a", "event": 1}
    for token in (None, "a.b.c", broker.token(ttl=-100)):
        answer = await post(broker, payload, token=token)
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert token is None or token not in answer.body.decode()
    answer = await post(broker, payload, query=f"?access_token={broker.token()}", token=None)
    assert answer.status == 400
    answer = await post(broker, payload, query="?tenant=other")
    assert (answer.status, answer.problem["code"]) == (403, "forbidden")
    answer = await post(broker, payload, query="?tenants=other")
    assert "did you mean 'tenant'" in answer.problem["detail"]


async def test_rates_are_those_of_the_user(tmp_path: Path, nats: NatsServer) -> None:
    """Posts and a connection's publishes draw from one budget; 429 says when to come again."""
    limits = {"messages_burst": 3, "messages_per_minute": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as alice:
        payload = {"channel": "a", "event": 1}
        for _ in range(2):
            assert (await post(broker, payload)).status == 202
        await alice.send("publish", payload)
        await alice.expect("published")
        answer = await post(broker, payload)
        assert (answer.status, answer.problem["code"]) == (429, "rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert (await post(broker, payload, token=broker.token(user="bob"))).status == 202


async def test_nats_away(broker: Broker, nats: NatsServer) -> None:
    """503 with Retry-After."""
    await nats.kill9()
    answer = await post(broker, {"channel": "a", "event": 1})
    assert (answer.status, answer.problem["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_drain_waits_for_it(
    broker: Broker, supervisors: list[Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was under way when the broker was told to stop is stored and answered."""
    begun, draining = trio.Event(), trio.Event()
    publish = NatsBus.publish

    async def late(bus: NatsBus, subject: str, body: bytes, **options: Any) -> PublishAck:
        if subject == "events.acme.a":
            begun.set()
            await draining.wait()
        return await publish(bus, subject, body, **options)

    monkeypatch.setattr(NatsBus, "publish", late)
    answers: list[Answer] = []

    async def post_one() -> None:
        answers.append(await post(broker, {"channel": "a", "event": 1}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(post_one)
        with trio.fail_after(45):
            await begun.wait()
            broker.stop.wanted.set()
            while not supervisors[0].draining:
                await trio.sleep(0.01)
        draining.set()
    assert [answer.status for answer in answers] == [202]
