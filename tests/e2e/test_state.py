"""`state.open` and what follows: documents that services write, over a real nats-server."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker import config
from tests.support import rawnats
from tests.support.broker import configure, run_broker
from tests.support.http import SECONDS, ask
from tests.support.sse import listen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.support.broker import Broker
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client

LARGE = {"text": "x" * 2000, "n": 0}
DOCUMENTS = {
    "state": {"documents": (config.Documents(channel="orders.*"), config.Documents(channel="users.>"))}
}


@attrs.define
class World:
    broker: Broker
    nats: RawNats

    async def store(self, channel: str, value: Any, *, tenant: str = "acme") -> int:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return await self.nats.store(f"state.{tenant}.{channel}", body)


@asynccontextmanager
async def world(directory: Path, nats: NatsServer, **sections: Any) -> AsyncIterator[World]:
    settings = configure(directory / "broker", nats.url, **DOCUMENTS, **sections)
    async with run_broker(directory / "broker", settings) as broker, rawnats.connect(nats.url) as client:
        yield World(broker, client)


async def opened(client: Client, channel: str | list[str], **options: Any) -> tuple[list[Any], str]:
    """The documents of an open, up to its end, and its position."""
    await client.send("state.open", {"channel": channel, **options})
    found = []
    await client.until("state.opened")
    while (message := await client.receive())["type"] == "state":
        found.append(message["payload"])
    assert message["type"] == "state.ready"
    return found, message["payload"]["position"]


async def test_documents_and_their_changes(tmp_path: Path, nats: NatsServer) -> None:
    """All documents of a pattern, then each change, small ones as differences, and what a resume brings."""
    async with world(tmp_path, nats) as world_:
        store, broker = world_.store, world_.broker
        async with broker.client() as early:
            found, position = await opened(early, ["orders.1", "orders.9"])
            incarnation, _, sequence = position.rpartition("-")
            assert sequence == "0"
            null = {"revision": f"{incarnation}-0", "position": position, "value": None}
            assert found == [{"channel": "orders.1", **null}, {"channel": "orders.9", **null}]
            await store("orders.1", LARGE)
            assert (await early.expect("state"))["value"] == LARGE
        await store("orders.2", b"[1]")
        await store("orders.3", b"")
        await store("orders.4", {"a": None}, tenant="globex")
        await store("users.alice.x", {"mine": True})
        async with broker.client() as client:
            await client.send("state.open", {"channel": "orders.*"}, messageId="1")
            reply = await client.receive()
            assert (reply["type"], reply["messageId"]) == ("state.opened", "1")
            assert reply["payload"] == {
                "channel": ["orders.*"],
                "refused": [],
                "position": f"{incarnation}-0",
                "recovered": True,
            }
            first, second = await client.expect("state"), await client.expect("state")
            assert first == {
                "channel": "orders.1",
                "revision": f"{incarnation}-1",
                "position": f"{incarnation}-1",
                "value": LARGE,
            }
            assert second["invalid"] == "not an object"
            ready = await client.expect("state.ready")
            assert ready == {"channel": "orders.*", "position": f"{incarnation}-5"}
            await store("orders.1", LARGE | {"n": 1})
            change = await client.expect("state")
            assert change == {
                "channel": "orders.1",
                "revision": f"{incarnation}-6",
                "position": f"{incarnation}-6",
                "from": f"{incarnation}-1",
                "patch": {"n": 1},
            }
            await store("orders.2", {"fine": 1})
            assert (await client.expect("state"))["value"] == {"fine": 1}
            await store("orders.1", LARGE | {"n": None})
            assert (await client.expect("state"))["value"] == LARGE | {"n": None}
            await store("orders.1", b"")
            gone = await client.expect("state")
            assert (gone["value"], gone["position"]) == (None, f"{incarnation}-9")
            await client.send("state.close", {"channel": "orders.*"}, messageId="2")
            assert await client.expect("state.closed") == {"channel": "orders.*"}
            await store("orders.5", {})
            await client.quiet()
            found, position = await opened(client, "orders.*", position=change["position"])
            assert [(each["channel"], each["value"]) for each in found] == [
                ("orders.2", {"fine": 1}),
                ("orders.1", None),
                ("orders.5", {}),
            ]
            found, _ = await opened(client, ["orders.5", "me.x"], position=position)
            assert found == []
            await client.send("state.open", {"channel": ["orders.5", "me.x"], "position": "other-3"})
            assert not (await client.expect("state.opened"))["recovered"]
            assert [(await client.expect("state"))["channel"] for _ in range(2)] == [
                "users.alice.x",
                "orders.5",
            ]
            assert await client.expect("state.ready") == {
                "channel": ["orders.5", "users.alice.x"],
                "position": position,
            }
        answer = await ask(
            broker.running.http, "GET", "/state?channel=orders.*&channel=orders.7", token=broker.token()
        )
        assert answer.status == 200
        document = json.loads(answer.body)
        assert [each["channel"] for each in document["documents"]] == ["orders.2", "orders.5", "orders.7"]
        assert document["position"] == position


async def test_what_is_refused(tmp_path: Path, nats: NatsServer) -> None:
    """What is no document, what the token denies, positions of events, and more than a limit allows."""
    limits = {"documents_per_connection": 3}
    async with (
        world(tmp_path, nats, limits=limits) as world_,
        world_.broker.client(subscribe=[">"], deny=["orders.4"]) as client,
    ):
        for number in range(1, 5):
            await world_.store(f"orders.{number}", {"n": number})
        events = (await client.subscribe("orders.*"))["position"]
        for payload, code in (
            ({"channel": "other"}, "forbidden"),
            ({"channel": ">"}, "forbidden"),
            ({"channel": "orders.4"}, "forbidden"),
            ({"channel": "users.bob.x"}, "forbidden"),
            ({"channel": "live.x"}, "invalid_channel"),
            ({"channel": "orders..x"}, "invalid_channel"),
            ({"channel": "orders.1", "every_ms": 0}, "bad_message"),
            ({"channel": "orders.1", "position": "x"}, "invalid_position"),
            ({"channel": "orders.1", "position": events}, "invalid_position"),
        ):
            await client.send("state.open", payload)
            assert (await client.expect("error"))["code"] == code, payload
        await client.send("state.close", {"channel": "orders.1"})
        assert (await client.expect("error"))["code"] == "not_subscribed"
        found, _ = await opened(client, "orders.*")
        assert [each["value"]["n"] for each in found] == [1, 2, 3]
        await world_.store("orders.4", {"n": 5})
        await world_.store("orders.1", {"n": 5})
        assert (await client.expect("state"))["channel"] == "orders.1"
        await world_.store("orders.5", {"n": 5})
        assert await client.until("state.closed") == {"channel": "orders.*", "code": "limit_documents"}
        await client.send("state.open", {"channel": "orders.*"})
        assert (await client.expect("error"))["code"] == "limit_documents"
        found, _ = await opened(client, ["orders.1", "orders.2"])
        token = world_.broker.token(subscribe=["orders.2"])
        await client.send("authenticate", {"token": token})
        assert await client.until("state.closed") == {"channel": "orders.1", "code": "forbidden"}
        for name in ("orders.1", "orders.2"):
            await world_.store(name, {"n": 9})
        assert (await client.expect("state"))["channel"] == "orders.2"
        await client.quiet()


async def test_without_documents(tmp_path: Path, nats: NatsServer) -> None:
    """Where the configuration names none the feature is switched off, and no stream is made."""
    async with run_broker(tmp_path, configure(tmp_path, nats.url)) as broker, broker.client() as client:
        assert "state" not in client.log[0]["payload"]["features"]
        await client.send("state.open", {"channel": "a"})
        assert (await client.expect("error"))["code"] == "unknown_type"
        assert (await ask(broker.running.http, "GET", "/state?channel=a", token=broker.token())).status == 404
    async with rawnats.connect(nats.url) as client:
        assert "error" in await client.api("STREAM.INFO.STATE")


async def test_streams(tmp_path: Path, nats: NatsServer) -> None:
    """Documents over SSE, alone and beside events; a client that comes back gets what it lacks, of both."""
    async with world(tmp_path, nats) as world_:
        url, token = world_.broker.running.http, world_.broker.token()
        await world_.store("orders.1", LARGE)
        async with listen(url, state="orders.*", token=token) as stream:
            assert (await stream.until("state"))["value"] == LARGE
            assert stream.place == ""  # not all has come yet
            position = (await stream.until("state.ready"))["position"]
            assert stream.place.startswith(f"~{position}~")
            await world_.store("orders.1", LARGE | {"n": 1})
            changed = await stream.until("state")
            assert changed["patch"] == {"n": 1}
            assert stream.place.startswith(f"~{changed['position']}~")
        await world_.store("orders.2", {"a": "\n"})
        back = {"Last-Event-ID": stream.place}
        async with listen(url, state="orders.*", token=token, headers=back) as stream:
            assert (await stream.until("state.opened"))["recovered"]
            assert (await stream.until("state"))["channel"] == "orders.2"
            await stream.until("state.ready")
        async with listen(url, "orders.1", state="orders.*", token=token) as both:
            await both.until("state.ready")
            await world_.store("orders.2", b'{\n"a": 2}')
            document = await both.until("state")
            assert document["value"] == {"a": 2}
            await world_.nats.store("events.acme.orders.1", b"1")
            event = await both.until("event")
            assert both.place.startswith(f"{event['position']}~{document['position']}~")
        await world_.nats.store("events.acme.orders.1", b"2")
        await world_.store("orders.3", {})
        back = {"Last-Event-ID": both.place}
        async with listen(url, "orders.1", state="orders.*", token=token, headers=back) as both:
            await both.until("state.ready")
            assert [each["payload"]["channel"] for each in both.log if each["type"] == "state"] == [
                "orders.3"
            ]
            if not any(each["type"] == "event" for each in both.log):
                await both.until("event")
            assert [each["payload"]["event"] for each in both.log if each["type"] == "event"] == [2]
        back = {"Last-Event-ID": "x-1~"}
        async with listen(url, state="orders.*", token=token, headers=back) as stream:
            assert not (await stream.until("state.opened"))["recovered"]
        refused = await ask(url, "GET", "/sse?state=other", token=token)
        assert refused.status == 403


async def test_polls(tmp_path: Path, nats: NatsServer) -> None:
    """Documents by polls, alone and beside events; a lost answer comes again, and another session goes on."""
    async with world(tmp_path, nats) as world_:
        url, token = world_.broker.running.http, world_.broker.token()

        async def poll(**given: Any) -> Any:
            answer = await ask(url, "POST", "/poll", token=token, json={"state": ["orders.*"]} | given)
            assert answer.status == 200, answer
            return json.loads(answer.body)

        def channels(answer: Any) -> list[str]:
            return [each["channel"] for each in answer["state"]["documents"]]

        await world_.store("orders.1", LARGE)
        first = await poll()
        assert (channels(first), first["state"]["ready"], first["events"]) == (["orders.1"], True, [])
        kept = {name: first[name] for name in ("session", "position")}
        await world_.store("orders.1", LARGE | {"n": 1})
        second = await poll(**kept)
        assert [each["patch"] for each in second["state"]["documents"]] == [{"n": 1}]
        again = await poll(**kept)
        assert [each["value"]["n"] for each in again["state"]["documents"]] == [1]
        kept = {name: again[name] for name in ("session", "position")}
        assert channels(await poll(**kept, wait=0)) == []
        await world_.store("orders.2", {})
        other = await poll(position=kept["position"])
        assert (channels(other), other["state"]["recovered"]) == (["orders.2"], True)
        both = await poll(channels=["orders.1"])
        assert channels(both) == ["orders.1", "orders.2"]
        kept = {name: both[name] for name in ("session", "position")}
        await world_.nats.store("events.acme.orders.1", b"1")
        both = await poll(channels=["orders.1"], **kept)
        assert [each["event"] for each in both["events"]] == [1]
        assert channels(both) == []
        assert both["position"].startswith(both["events"][0]["position"] + "~")
        answer = await ask(url, "GET", "/poll?state=orders.2", token=token)
        assert channels(json.loads(answer.body)) == ["orders.2"]
        answer = await ask(url, "POST", "/poll", token=token, json={"state": ["other"]})
        assert answer.status == 403


async def test_a_position_is_of_a_list_and_of_rights(tmp_path: Path, nats: NatsServer) -> None:
    """Who comes back with more documents than the position is of gets all: nothing has changed of the others.

    In the session and in another one, as after a restart, and over Server-Sent Events.
    """
    async with world(tmp_path, nats) as world_:
        url, whole = world_.broker.running.http, world_.broker.token()
        less = world_.broker.token(subscribe=[">"], deny=["orders.3"])
        for number in (1, 2, 3):
            await world_.store(f"orders.{number}", {"n": number})

        async def poll(token: str = whole, **given: Any) -> Any:
            answer = await ask(url, "POST", "/poll", token=token, json={"wait": 0} | given)
            assert answer.status == 200, answer
            return json.loads(answer.body)

        def kept(answer: Any, *names: str) -> dict[str, str]:
            return {name: answer[name] for name in names or ("session", "position")}

        def told(answer: Any) -> tuple[list[str], bool, bool]:
            said = answer["state"]
            return [each["channel"][-1] for each in said["documents"]], said["recovered"], said["ready"]

        one = await poll(state=["orders.1"])
        grown = await poll(state=["orders.1", "orders.2"], **kept(one))
        assert told(grown) == (["1", "2"], False, True)
        assert told(await poll(state=["orders.2", "orders.1"], **kept(grown))) == ([], True, True)
        assert told(await poll(state=["orders.2", "orders.1"], **kept(grown, "position"))) == ([], True, True)
        assert told(await poll(state=["orders.*"], **kept(grown, "position"))) == (
            ["1", "2", "3"],
            False,
            True,
        )
        assert told(await poll(state=["orders.2"], **kept(grown))) == (["2"], False, True)

        denied = await poll(less, state=["orders.*"])
        assert told(denied) == (["1", "2"], True, True)
        assert told(await poll(state=["orders.*"], **kept(denied, "position"))) == (
            ["1", "2", "3"],
            False,
            True,
        )
        assert told(await poll(less, state=["orders.*"], **kept(denied))) == ([], True, True)
        allowed = await poll(state=["orders.*"], **kept(denied))
        assert told(allowed) == (["1", "2", "3"], False, True)
        assert told(await poll(state=["orders.*"], **kept(allowed))) == ([], True, True)

        partly = await poll(state=["orders.1", "other"])
        assert [each["channel"] for each in partly["refused"]] == ["other"]
        assert told(await poll(state=["orders.1"], **kept(partly))) == (["1"], False, True)
        assert told(await poll(state=["orders.1", "other"], **kept(partly, "position"))) == (
            ["1"],
            False,
            True,
        )
        nothing = await poll(state=["users.alice.*"], position="x-1~", wait=60)
        assert told(nothing) == ([], False, True)

        both = await poll(channels=["orders.1"], state=["orders.1"])
        await world_.nats.store("events.acme.orders.1", b"1")
        alone = await poll(channels=["orders.1"], wait=60, **kept(both))
        assert ([each["event"] for each in alone["events"]], "state" in alone) == ([1], False)
        assert "~" not in alone["position"]
        again = await poll(channels=["orders.1"], state=["orders.1"], **kept(alone))
        assert told(again) == (["1"], True, True)

        async with listen(url, state="orders.*", token=less) as stream:
            await stream.until("state.ready")
        back = {"Last-Event-ID": stream.place}
        for target, token, recovered in (
            ("orders.*", less, True),
            ("orders.*", whole, False),
            ("orders.3", whole, False),
        ):
            async with listen(url, state=target, token=token, headers=back) as other:
                assert (await other.until("state.opened"))["recovered"] is recovered, target
                await other.until("state.ready")
                came = [each["payload"]["channel"] for each in other.log if each["type"] == "state"]
                assert ("orders.3" in came) is not recovered


async def test_a_purge_is_heard(tmp_path: Path, nats: NatsServer) -> None:
    """Whatever is taken out of the stream: who follows it gets all anew, and no earlier position counts.

    By a subject, by a sequence, or as a whole; and at a broker that has heard nothing of it.
    """
    async with world(tmp_path, nats) as world_, world_.broker.client() as client:
        for number in range(1, 5):
            await world_.store(f"orders.{number}", {"n": number})
        await world_.store("users.alice.x", {})
        found, position = await opened(client, "orders.*")
        assert len(found) == 4
        purges: tuple[tuple[str, dict[str, Any], list[str]], ...] = (
            ("PURGE.STATE", {"filter": "state.acme.orders.1"}, ["orders.2", "orders.3", "orders.4"]),
            ("MSG.DELETE.STATE", {"seq": 2}, ["orders.3", "orders.4"]),
            ("PURGE.STATE", {}, []),
        )
        for path, query, left in purges:
            assert (await world_.nats.api(f"STREAM.{path}", **query))["success"]
            assert not (await client.expect("state.opened"))["recovered"]
            came = []
            while (message := await client.receive())["type"] == "state":
                came.append(message["payload"]["channel"])
            assert (message["type"], came) == ("state.ready", left)
        await world_.store("orders.7", {"n": 7})
        assert (await client.expect("state"))["channel"] == "orders.7"
        settings = configure(tmp_path / "other", nats.url, **DOCUMENTS)
        async with run_broker(tmp_path / "other", settings) as other:
            for broker in (world_.broker, other):
                async with broker.client() as again:
                    await again.send("state.open", {"channel": "orders.*", "position": position})
                    assert not (await again.until("state.opened"))["recovered"]
                    assert (await again.expect("state"))["channel"] == "orders.7"


async def test_the_pace_of_documents(tmp_path: Path, nats: NatsServer, supervisors: list[Supervisor]) -> None:
    """Over Server-Sent Events and polls, where it may change; nothing comes again for that."""
    async with world(tmp_path, nats) as world_:
        url, token = world_.broker.running.http, world_.broker.token()
        reading = supervisors[0].reading
        assert reading is not None
        await world_.store("orders.1", {"n": 1})

        def lanes() -> list[float]:
            return sorted(seconds for each in reading.view.held() for seconds in each.lanes)

        async with listen(url, state="orders.*", state_every_ms="900", token=token) as stream:
            await stream.until("state.ready")
            assert lanes() == [1.0]
        with trio.fail_after(SECONDS):
            while lanes():
                await trio.sleep(0.01)
        asked: dict[str, Any] = {"state": ["orders.*"], "wait": 0}
        for every_ms, lane, count in (({"state_every_ms": 5000}, 5.0, 1), ({}, 0.1, 0)):
            answer = (await ask(url, "POST", "/poll", token=token, json=asked | every_ms)).json
            assert (len(answer["state"]["documents"]), answer["state"]["recovered"]) == (count, True)
            assert lanes() == [lane]
            asked |= {name: answer[name] for name in ("session", "position")}
        query = f"/poll?state=orders.*&state_every_ms=200&session={asked['session']}&wait=0"
        assert (await ask(url, "GET", query, token=token)).status == 200
        assert lanes() == [1.0]
        for request in ("/sse?state=orders.*", "/poll?state=orders.*"):
            for wrong in ("0", "5001", "x"):
                answer = await ask(url, "GET", f"{request}&state_every_ms={wrong}", token=token)
                assert answer.status == 400
                assert "every_ms" in answer.problem["detail"]
