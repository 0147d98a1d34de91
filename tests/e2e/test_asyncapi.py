"""What a real broker says on a connection is what its AsyncAPI document says that it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from broker.web import asyncapi
from broker.wire import messages as m
from tests.support import described
from tests.support.broker import configure, run_broker
from tests.support.raw import ask

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.broker import Broker
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


async def test_it_is_served(broker: Broker) -> None:
    """Anybody may have it, from pages of any origin."""
    answer = await ask(broker.running.http, "/asyncapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert json.loads(answer.body) == described.document()


async def test_every_message_of_a_real_session(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """A session in which every type comes: each is as described, and each reply is one of those promised."""
    sent: dict[str, str] = {}
    settings = configure(tmp_path / "b", nats.url, auth={"expiring_seconds": 4000.0})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:

        async def say(kind: str, **payload: object) -> None:
            message = {"type": kind, "payload": payload, "messageId": str(len(sent))}
            described.validator(kind).validate(message)
            sent[str(len(sent))] = kind
            await client.socket.send_message(json.dumps(message))

        await publisher.store("events.acme.a", b"1")
        await say("subscribe", channel="a", durable="d")
        await client.until("subscribed")
        await say("publish", channel="a", event={"n": 1}, id="x")
        position = (await client.until("event"))["position"]
        await say("acknowledge", durable="d", position=position)
        await client.until("acknowledged")
        await say("subscribe", channel=["b", "live.x"], snapshot=True)
        await client.until("subscription.live")
        await publisher.publish("live.acme.x", b"1")
        await client.until("event")
        await say("subscribe", channel=["c", "bad..name"], position="elsewhere-3")
        await client.until("gap")
        await say("unsubscribe", channel=["b"])
        await client.until("unsubscribed")
        await say("ping")
        await client.until("pong")
        await say("authenticate", token=broker.token())
        await client.until("connection.authenticated")
        await say("unsubscribe", channel="never")
        assert (await client.until("error"))["code"] == "not_subscribed"
        await nats.restart()
        while (await client.until("source"))["state"] != "restored":
            pass
        broker.stop.wanted.set()
        await client.until("connection.draining")
        codes = described.document()["components"]["schemas"]["CloseCode"]["oneOf"]
        assert await client.closed() in [each["const"] for each in codes]
    for message in client.log:
        described.check(message)
        if (asked := sent.get(message.get("messageId", ""))) is not None:
            kind = asyncapi.SERVER_MESSAGES[message["type"]]
            assert kind in (*asyncapi.REPLIES[m.CLIENT_MESSAGES[asked]], m.Error), message
    assert {message["type"] for message in client.log} == set(asyncapi.SERVER_MESSAGES)
