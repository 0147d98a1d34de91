"""What a real broker says on a connection is what its AsyncAPI document says that it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio

from broker import config
from broker.web import asyncapi, requests
from broker.wire import messages as m
from tests.support import described, http
from tests.support.broker import configure, run_broker
from tests.support.polling import until_one_waits
from tests.support.raw import ask
from tests.support.requests import TABLE
from tests.support.sse import listen

if TYPE_CHECKING:
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.support.broker import Broker
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


DOCUMENTS = {"state": {"documents": (config.Documents(channel=">"),)}}


async def test_it_is_served(tmp_path: Path, nats: NatsServer) -> None:
    """Anybody may have it, from pages of any origin."""
    async with run_broker(tmp_path / "b", configure(tmp_path / "b", nats.url, **DOCUMENTS)) as broker:
        answer = await ask(broker.running.http, "/asyncapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert json.loads(answer.body) == described.document()


async def test_every_message_of_a_real_session(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """A session in which every type comes: each is as described, and each reply is one of those promised."""
    sent: dict[str, str] = {}
    settings = configure(tmp_path / "b", nats.url, **DOCUMENTS)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client(ttl=6) as client:
        full: dict[str, Any] = {"subscribe": [">", "live.>"], "publish": [">"], "request": [">"]}
        full["change"] = [">"]

        async def say(kind: str, **payload: object) -> None:
            message = {"type": kind, "payload": payload, "messageId": str(len(sent))}
            described.validator(kind).validate(message)
            sent[str(len(sent))] = kind
            await client.socket.send_message(json.dumps(message))

        await publisher.store("events.acme.a", b"1")
        await client.until("connection.expiring")
        await say("authenticate", token=broker.token(**full))
        await client.until("connection.authenticated")
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
        answers = await publisher.subscribe("rpc.acme.a")
        await publisher.flush()
        await say("request", method="a", data={"n": 1}, timeout_ms=30_000, id="r")
        await publisher.publish((await answers.receive()).reply, b"[1]")
        await client.until("reply")
        await say("history", channel="a", before=position, limit=1)
        await client.until("history")
        await say("state.open", channel=["d", "bad..name"], every_ms=100)
        await client.until("state.ready")
        await publisher.store("state.acme.d", b'{"n": 1}')
        await client.until("state")
        await say("state.change", id="s-1", channel="d", patch={"n": 2}, was={"n": 1})
        made = (await client.until("state.changed"))["revisions"]["d"]
        await say("state.change", id="s-2", channel="d", patch={"n": 3}, was={"n": 1})
        assert (await client.until("error"))["conflict"][0]["paths"] == {"/n": 2}
        base = int(made.rpartition("-")[2]) - 1
        await publisher.store(
            "state.acme.d", b"{}", header=f"NATS/1.0\r\nBroker-Base: {base}\r\n\r\n".encode()
        )
        await client.until("state.lost")
        await say("state.close", channel=["d"])
        await client.until("state.closed")
        await say("presence.watch", channel="e")
        await client.until("presence.watched")
        await say("presence.enter", channel="e", session="s", state={"n": 1}, away="hidden")
        await client.until("presence.entered")
        await say("presence.update", channel="e", state=2, for_ms=200)
        await client.until("presence.updated")
        while not (await client.until("presence"))["set"]:
            pass
        await say("presence.leave", channel="e")
        await client.until("presence.left")
        await say("presence.unwatch", channel="e")
        await client.until("presence.unwatched")
        await say("ping")
        await client.until("pong")
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
            assert kind in (*TABLE[asked].replies, m.Error), message
    assert {message["type"] for message in client.log} == set(asyncapi.SERVER_MESSAGES)


async def post(broker: Broker, operation: str, document: Any, *, described_so: bool = True) -> Any:
    """A request whose body is, or is not, as described; its answer is."""
    assert described.asked(operation).is_valid(document) == described_so
    path = f"/{operation.removeprefix('post_')}"
    answer = await http.ask(broker.running.http, "POST", path, token=broker.token(), json=document)
    described.check_answer(operation, answer.status, answer.headers["content-type"], answer.json)
    assert described_so or answer.status == 400
    return answer.json | ({} if answer.status < 400 else {"status": answer.status})


async def test_posts(broker: Broker) -> None:
    """Published, acknowledged, and what is refused."""
    event = {"channel": "a", "event": {"n": 1}, "id": "x"}
    position = (await post(broker, "post_publish", event))["position"]
    assert (await post(broker, "post_publish", event))["duplicate"]
    assert await post(broker, "post_publish", {"channel": "live.a", "event": None}) == {}
    refused = await post(broker, "post_publish", {"channel": "users.bob.x", "event": 1})
    assert (refused["status"], refused["code"]) == (403, "forbidden")
    await post(broker, "post_publish", {"channel": "a"}, described_so=False)
    kept = await post(broker, "post_acknowledge", {"durable": "d", "position": position})
    assert kept == {"durable": "d", "position": position}
    refused = await post(broker, "post_acknowledge", {"durable": "d", "position": "other-1"})
    assert refused["code"] == "invalid_position"
    await post(broker, "post_acknowledge", {"durable": "d"}, described_so=False)


async def test_posted_requests(broker: Broker) -> None:
    """What no service answers, and what is no request."""
    refused = await post(broker, "post_request", {"method": "a", "data": None})
    assert (refused["status"], refused["code"]) == (403, "forbidden")
    await post(broker, "post_request", {"data": 1}, described_so=False)


async def test_polls(supervisors: list[Supervisor], broker: Broker, publisher: RawNats) -> None:
    """Events, gaps, refusals, the end of the broker; by body and by query."""
    await publisher.store("events.acme.a", b"1")
    await broker.caught_up()
    await post(broker, "post_poll", {"channels": []}, described_so=False)
    await post(broker, "post_poll", {"channels": ["a"], "wait": 61}, described_so=False)
    found = await post(broker, "post_poll", {"channels": ["a", "b..c"], "position": "other-1"})
    assert (found["recovered"], [each["reason"] for each in found["gaps"]]) == (False, ["reset"])
    assert [each["channel"] for each in found["refused"]] == ["b..c"]
    assert [each["event"] for each in found["events"]] == [1]
    for target, status in (("/poll?channel=a&last=1", 200), ("/poll?channel=a..b", 400), ("/poll", 400)):
        answer = await http.ask(broker.running.http, "GET", target, token=broker.token())
        described.check_answer("get_poll", answer.status, answer.headers["content-type"], answer.json)
        assert answer.status == status
    waiting = {name: found[name] for name in ("session", "position")} | {
        "channels": ["a", "b..c"],
        "wait": 60,
    }
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            assert "reconnect_after_ms" in await post(broker, "post_poll", waiting)

        nursery.start_soon(wait)
        await until_one_waits(supervisors[0])
        broker.stop.wanted.set()


async def test_frames_of_streams(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Every type that a stream has: each is as described, and one of those promised."""
    settings = configure(tmp_path / "b", nats.url, **DOCUMENTS)
    async with run_broker(tmp_path / "b", settings) as broker:
        url, token = broker.running.http, broker.token()
        await publisher.store("events.acme.a", b"1")
        async with (
            listen(url, "a", "live.x", "b..c", token=token, durable="e") as sse,
            listen(url, "a", token=token, snapshot="true") as snapshot,
            listen(url, "a", token=token, headers={"Last-Event-ID": "other-1"}) as reset,
            listen(url, "a", token=broker.token(ttl=2)) as brief,
            listen(url, token=token, state="a") as documents,
        ):
            await documents.until("state.ready")
            await brief.until("connection.expiring")
            expiring = brief.log[-1]
            await sse.until("subscribed")
            await publisher.publish("live.acme.x", b"1")
            await sse.until("event")
            await snapshot.until("subscription.live")
            await reset.until("gap")
            await nats.restart()
            while (await sse.until("source"))["state"] != "restored":
                pass
            broker.stop.wanted.set()
            for each in (sse, snapshot, reset):
                await each.ended()
            log = [*sse.log, *snapshot.log, *reset.log, *documents.log, expiring]
    promised = described.document()["operations"]["get_sse"]["reply"]["messages"]
    for message in log:
        described.check(message)
        assert {"$ref": f"#/channels/sse/messages/{message['type']}"} in promised
    never = {"unsubscribed", "state.closed", "error"}  # these take a renewed token, or a broken broker
    assert {message["type"] for message in log} == {kind.type for kind in requests.STREAMED} - never


async def test_a_stream_that_is_refused(broker: Broker) -> None:
    for target in ("/sse", "/sse?channel=users.bob.x", "/sse?channel=a&last=x"):
        answer = await http.ask(broker.running.http, "GET", target, token=broker.token())
        described.check_answer("get_sse", answer.status, answer.headers["content-type"], answer.json)
