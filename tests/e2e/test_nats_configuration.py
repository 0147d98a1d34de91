"""The server configurations in config/nats, loaded by a real nats-server, and what its users may do."""

from __future__ import annotations

import asyncio
import json
import subprocess
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import nats
import pytest
import trio
from nats import micro
from structlog.testing import capture_logs

from broker import config
from tests.faults.support.http import get
from tests.support import command
from tests.support.admin import Admin
from tests.support.broker import configure, run_broker
from tests.support.configured import (
    Credentials,
    Nkeys,
    Passwords,
    cluster,
    granted,
    secret,
    single,
)
from tests.support.rawnats import connect
from tests.support.scripted_keyed import matches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.broker import Broker
    from tests.support.configured import Node
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client

ANSWER_SECONDS = 5.0  # a cluster without a leader answers nothing
PATIENCE_SECONDS = 60
LOGINS = [Passwords, Nkeys, Credentials]
SERVICE = Path(__file__).parents[1] / "browser" / "service.js"


@attrs.define
class Attempt:
    """What became of a service's publications and subscriptions."""

    stored: list[str] = attrs.field(factory=list)
    refused: list[str] = attrs.field(factory=list)  # as the server put it


async def attempt(
    node: Node,
    login: dict[str, Any],
    publish: list[str | tuple[str, str]] = [],  # noqa: B006  never changed
    subscribe: list[str] = [],  # noqa: B006
) -> Attempt:
    """A service publishes into each subject, and waits for the ack (or has it sent to the one beside it)."""
    result = Attempt()

    async def main() -> None:
        forbidden: dict[str, asyncio.Event] = {}

        async def objected(error: Exception) -> None:
            result.refused.append(str(error))
            for subject, event in forbidden.items():
                if f'publish to "{subject}"'.lower() in str(error).lower():
                    event.set()

        client: Any = await nats.connect(f"nats://{node.address}", error_cb=objected, **login)
        for subject in subscribe:
            await client.subscribe(subject, future=asyncio.Future())
        jetstream = client.jetstream(timeout=ANSWER_SECONDS)

        async def one(subject: str | tuple[str, str]) -> None:
            if isinstance(subject, tuple):
                await client.publish(subject[0], b'"hello"', reply=subject[1])
                return
            forbidden[subject] = asyncio.Event()
            refused = asyncio.create_task(forbidden[subject].wait())
            stored = asyncio.create_task(jetstream.publish(subject, b'"hello"'))
            await asyncio.wait((refused, stored), return_when=asyncio.FIRST_COMPLETED)
            refused.cancel()
            if not stored.done():
                stored.cancel()
                return
            with suppress(nats.errors.TimeoutError, nats.js.errors.NoStreamResponseError):
                await stored
                result.stored.append(subject)

        await asyncio.gather(*map(one, publish))
        await client.flush()
        await client.close()

    await trio.to_thread.run_sync(asyncio.run, main())
    return result


@asynccontextmanager
async def gateway(directory: Path, node: Node, logins: Passwords, **sections: Any) -> AsyncIterator[Broker]:
    """A broker that logs in as the broker, and is refused nothing by NATS."""
    settings = configure(directory / "broker", f"nats://{node.address}", nats=logins.broker(), **sections)
    with capture_logs() as logs:
        async with run_broker(directory / "broker", settings) as broker:
            yield broker
    assert [line for line in logs if line["event"] == "nats_refused"] == []


@pytest.mark.parametrize("kind", LOGINS)
async def test_a_broker_works_with_each_login(tmp_path: Path, kind: type[Passwords]) -> None:
    """It makes its streams, and everything that clients can ask for works, with its permissions alone."""
    logins = kind(directory=tmp_path)
    async with single(logins) as node, gateway(tmp_path, node, logins) as broker:
        async with broker.client("acme") as client:
            await client.subscribe([">", "live.>"], durable="d")
            done = await attempt(node, logins.service("acme"), ["events.acme.a", ("live.acme.b", "x")])
            assert (done.stored, done.refused) == (["events.acme.a"], [])
            seen = await client.events(2)
            assert {event["channel"] for event in seen} == {"a", "live.b"}
            position = next(event["position"] for event in seen if "position" in event)
            await client.send("acknowledge", {"durable": "d", "position": position}, messageId="1")
            await client.until("acknowledged")
            for channel in ("c", "live.c"):
                await client.send("publish", {"channel": channel, "event": 1})
            got = [await client.receive() for _ in range(4)]
            assert sorted(message["type"] for message in got) == ["event", "event", "published", "published"]
        for start in (
            {"position": position},
            {"last": 1},
            {"since": "2020-01-01T00:00:00Z"},
            {"durable": "d"},
        ):
            async with broker.client("acme") as client:
                await client.subscribe("c", **start)
                assert [event["channel"] for event in await client.events(1)] == ["c"]
        async with broker.client("acme") as client:
            await client.subscribe(">", snapshot=True)
            assert {event["channel"] for event in await client.events(2)} == {"a", "c"}


async def test_the_broker_may_do_what_it_does(tmp_path: Path) -> None:
    """Everything, the admin API included, works with its permissions, and none of them is to spare."""
    logins = Passwords(directory=tmp_path)
    # Only over a hole in the feed, and under load.
    seldom = {f"$JS.API.CONSUMER.DELETE.{each}.*" for each in ("EVENTS", "STATE", "PRESENCE")} | {"$JS.FC.>"}
    documents = (
        config.Documents(channel="orders.>", owner="service"),
        config.Documents(channel="boards.>"),
    )
    async with single(logins) as node:
        operator = logins.service("operator")
        url = f"nats://{operator['user']}:{operator['password']}@{node.address}"
        async with connect(url) as listening:
            messages = await listening.subscribe(">")
            async with gateway(tmp_path, node, logins, state={"documents": documents}) as broker:
                await administer(broker, listening, tmp_path)
            async with gateway(tmp_path, node, logins, state={"documents": documents}) as broker:
                await change_documents(broker)
            seen = set()
            while messages.statistics().current_buffer_used:
                seen.add(messages.receive_nowait().subject.decode())
    for pattern in set(granted()["broker"][0]) - seldom:
        assert any(matches(pattern, subject) for subject in seen), pattern


async def administer(broker: Broker, publisher: RawNats, directory: Path) -> None:
    """What clients and operators seldom do."""
    async with broker.client("acme") as client:
        await client.subscribe("b", durable="d")
        await client.send("publish", {"channel": "live.b", "event": 1})
        await client.until("published")
        await client.send("presence.enter", {"channel": "present", "session": "s"})
        await client.until("presence.entered")
    admin = await Admin.of(broker.running.admin, directory / "broker")
    for _ in range(3):
        await publisher.request("events.acme.a", b"no json")
    with trio.fail_after(PATIENCE_SECONDS):
        while len((await admin.ask("GET", "/dead-letters"))["letters"]) < 3:
            await trio.sleep(0.05)
    await admin.ask("POST", "/publish", '{"tenant":"acme","channel":"b","event":1}', status=202)
    await admin.ask("GET", "/history?tenant=acme")
    await admin.ask("GET", "/dead-letters/1")
    await admin.ask("POST", "/dead-letters/1/replay", '{"event":{}}')
    await admin.ask("DELETE", "/dead-letters/2")
    await admin.ask("DELETE", "/dead-letters")
    await admin.ask("POST", "/revocations", '{"tenant":"acme","user":"bob"}', status=201)
    await admin.ask("DELETE", "/revocations?tenant=acme&user=bob")
    await admin.ask("GET", "/audit")
    async with broker.client("acme", request=[">"]) as client:
        await client.send("request", {"method": "a", "timeout_ms": 100})
        await client.until("error")


async def change_documents(broker: Broker) -> None:
    """What clients do with documents; who listens here to everything is their service, and says nothing."""
    async with broker.client("acme", subscribe=[">"], change=[">"]) as client:
        with trio.fail_after(PATIENCE_SECONDS):
            code = "unavailable"
            while code == "unavailable":
                await client.send(
                    "state.change", {"id": "s-1", "channel": "orders.1", "patch": {}, "was": None}
                )
                code = (await client.until("error"))["code"]
        assert code == "unknown_outcome"
        await client.send("state.change", {"id": "s-1", "channel": "boards.1", "patch": {}, "was": None})
        await client.until("state.changed")
        await client.send("state.open", {"channel": "boards.>"})
        await client.until("state.ready")
        await client.send("presence.watch", {"channel": "present"})
        while not (await client.until("presence"))["set"]:  # who was there when the broker before this ended
            pass


@pytest.mark.parametrize("kind", LOGINS)
async def test_each_user_keeps_to_its_own(tmp_path: Path, kind: type[Passwords]) -> None:
    """A tenant's service reaches its tenant's clients and nothing else, an announcer all clients.

    Neither by publishing, nor by where it lets the server send an acknowledgement, nor by listening.
    """
    logins = kind(directory=tmp_path)
    wrong = ["events.globex.a", "events._all.a", "events._broker.a", "live.globex.a", "live._all.a"]
    wrong += ["live._broker.a", "deadletter.acme.a", "audit.acme.a", "$KV.broker_cursors.a"]
    wrong += ["_broker.control", "_broker.usage.x", "_broker.canary.x", "_broker.seen.x"]
    wrong += ["$KV.broker_control.a", "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.INFO.EVENTS"]
    wrong += ["$JS.API.DIRECT.GET.EVENTS", "$JS.API.CONSUMER.CREATE.EVENTS.x", "$JS.FC.EVENTS.x"]
    wrong += ["_INBOX_broker.x", "_INBOX.x", "$SYS.REQ.SERVER.PING"]
    wrong += ["rpc.globex.a", "$SRV.PING", "changes.globex.a", "state.globex.a"]
    listening = [">", "events.>", "events.acme.>", "live.>", "_INBOX_broker.>", "$KV.>", "$JS.>", "audit.>"]
    listening += ["_broker.>", "rpc.>", "rpc.globex.>", "changes.>", "changes.globex.>", "state.acme.>"]
    async with (
        single(logins) as node,
        gateway(tmp_path, node, logins) as broker,
        broker.client("acme") as client,
        broker.client("globex") as other,
    ):
        for each in (client, other):
            await each.subscribe([">", "live.>"])
        for user in ("acme", "announcer"):
            mine = "acme" if user == "acme" else "_all"
            publish = [
                f"events.{mine}.ok",
                *(each for each in wrong if f".{mine}." not in each),
                "rpc.acme.a",
                "changes.acme.a",
                "state.acme.a",
            ]
            publish += ["rpc.acme.a"] if user == "acme" else ["events.acme.a", "rpc.acme.a"]
            done = await attempt(node, logins.service(user), [*publish], listening)
            assert done.stored == publish[:1]
            for subject in publish[1:]:
                assert (
                    f'permissions violation for publish to "{subject.lower()}"' in str(done.refused).lower()
                )
            for subject in listening:
                assert (
                    f'permissions violation for subscription to "{subject.lower()}"'
                    in str(done.refused).lower()
                )
        # An acknowledgement is JSON, and as good an event as any.
        tricks: list[str | tuple[str, str]] = [("events.acme.ok", subject) for subject in wrong]
        await attempt(node, logins.service("acme"), tricks)
        done = await attempt(node, logins.service("acme"), ["events.acme.end"])
        assert done.stored == ["events.acme.end"]
        seen = [event["channel"] for event in await client.events(3 + len(tricks))]
        assert seen == ["ok"] * (2 + len(tricks)) + ["end"]
        assert [event["channel"] for event in await other.events(1)] == ["ok"]
        for each in (client, other):
            await each.quiet()


@attrs.define(eq=False)
class Service:
    """A service by nats-py's `nats.micro`, on a loop of its own; `asked` is what it heard, and of whom."""

    asked: list[tuple[str, dict[str, str]]] = attrs.field(factory=list)
    refused: list[str] = attrs.field(factory=list)  # as the server put it
    stop: Callable[[], object] = lambda: None

    async def run(
        self,
        node: Node,
        login: dict[str, Any],
        subject: str,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        started = partial(trio.from_thread.run_sync, task_status.started)
        await trio.to_thread.run_sync(asyncio.run, self.serve(node, login, subject, started))

    async def serve(
        self, node: Node, login: dict[str, Any], subject: str, started: Callable[[], object]
    ) -> None:
        async def objected(error: Exception) -> None:
            self.refused.append(str(error))

        async def handler(request: micro.request.Request) -> None:
            self.asked.append((request.subject, request.headers or {}))
            if "Broker-User" not in (request.headers or {}):
                return
            if request.subject.endswith(".refused"):
                await request.respond_error("409", "order 7 is shipped")
            else:
                await request.respond(b'{"got":%b}' % request.data)
                await request.respond(b'"twice"')

        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self.stop = lambda: loop.call_soon_threadsafe(stop.set)
        client: Any = await nats.connect(f"nats://{node.address}", error_cb=objected, **login)
        service = await micro.add_service(client, name="orders", version="1.0.0")
        await service.add_endpoint(name="orders", subject=subject, handler=handler)
        await client.flush()
        started()
        await stop.wait()
        await client.close()


@asynccontextmanager
async def serving(node: Node, login: dict[str, Any], subject: str) -> AsyncIterator[Service]:
    service = Service()
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run, node, login, subject)
        try:
            yield service
        finally:
            service.stop()


async def first_call(client: Client, method: str, **more: Any) -> dict[str, Any]:
    """The reply of a service that has just begun: a server that is busy may know of it a little later."""
    with trio.fail_after(PATIENCE_SECONDS):
        while (found := await call(client, method, **more)).get("code") == "unavailable":
            await trio.sleep(0.05)
    return found


async def call(client: Client, method: str, **more: Any) -> dict[str, Any]:
    """The payload of the reply, or of the error."""
    await client.send("request", {"method": method, "data": 7, **more})
    while (message := await client.receive())["type"] not in ("reply", "error"):
        pass
    payload: dict[str, Any] = message["payload"]
    return payload


@pytest.mark.parametrize("kind", LOGINS)
async def test_a_service_answers_its_tenant_alone(tmp_path: Path, kind: type[Passwords]) -> None:
    """With the login of its tenant, by the NATS services API; nobody but the broker reaches it."""
    logins = kind(directory=tmp_path)
    async with (
        single(logins) as node,
        gateway(tmp_path, node, logins) as broker,
        broker.client("acme", user="ann", request=[">"]) as client,
        broker.client("globex", request=[">"]) as other,
    ):
        assert (await call(client, "orders.ship"))["code"] == "unavailable"
        async with serving(node, logins.service("acme"), "rpc.acme.>") as service:
            assert await first_call(client, "orders.ship", id="x-1") == {"data": {"got": 7}}
            refused = await call(client, "orders.refused")
            assert (refused["code"], refused["status"]) == ("rejected", 409)
            assert refused["message"] == "order 7 is shipped"
            # The second answer to one request is refused by the server.
            assert all('publish to "_r_.' in each for each in service.refused)
            assert (await call(other, "orders.ship"))["code"] == "unavailable"
            asked = [("rpc.acme.orders.ship", "ann"), ("rpc.acme.orders.refused", "ann")]
            assert [(subject, headers["Broker-User"]) for subject, headers in service.asked] == asked
            async with serving(node, logins.service("globex"), "rpc.globex.>") as elsewhere:
                assert await first_call(other, "orders.ship") == {"data": {"got": 7}}
                await attempt(node, logins.service("announcer"), [("events._all.a", "rpc.acme.a")])
                tricks: list[str | tuple[str, str]] = ["rpc.acme.a", "rpc.globex.a"]
                tricks += [("events.acme.a", "rpc.globex.a"), ("events.acme.a", "rpc.acme.a")]
                done = await attempt(node, logins.service("acme"), tricks)
                assert len(done.refused) == 2
                # Its own account hears where it has an acknowledgement sent, which names no user. By then the
                # acknowledgements of earlier events are sent too.
                with trio.fail_after(PATIENCE_SECONDS):
                    while len(service.asked) == len(asked):
                        await trio.sleep(0.02)
                assert await call(client, "orders.ship") == {"data": {"got": 7}}
                assert await call(other, "orders.ship") == {"data": {"got": 7}}
                assert [headers for _, headers in service.asked[2:-1]] == [{}]
                assert [subject for subject, _ in elsewhere.asked] == ["rpc.globex.orders.ship"] * 2


async def test_a_service_in_javascript(tmp_path: Path, node: str, modules: Path) -> None:
    """By `@nats-io/services`, with the same login."""
    logins = Passwords(directory=tmp_path)
    async with (
        single(logins) as server,
        gateway(tmp_path, server, logins) as broker,
        broker.client("acme", user="ann", request=[">"]) as client,
        trio.open_nursery() as nursery,
    ):
        login = json.dumps({"servers": server.address, "user": "acme", "pass": "s-acme-secret"})
        run = partial(trio.run_process, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=modules.parent)
        service: trio.Process = await nursery.start(run, [node, str(SERVICE), login])
        assert service.stdin
        assert service.stdout
        with trio.fail_after(PATIENCE_SECONDS):
            assert await service.stdout.receive_some() == b"ready\n"
            assert await first_call(client, "orders.ship") == {"data": {"user": "ann", "got": 7}}
            refused = await call(client, "orders.refused")
            assert (refused["code"], refused["status"], refused["message"]) == ("rejected", 409, "no")
            await service.stdin.aclose()


async def test_a_cluster_of_three(tmp_path: Path) -> None:
    """Three copies over three nodes, services at any; each killed in turn, events and the broker go on."""
    logins = Passwords(directory=tmp_path)
    async with cluster(logins) as nodes:
        urls = tuple(f"nats://{node.address}" for node in nodes)
        settings = configure(
            tmp_path / "broker", urls[0], nats=logins.broker() | {"urls": urls}, stream={"replicas": 3}
        )
        async with run_broker(tmp_path / "broker", settings) as broker, broker.client("acme") as client:
            await client.subscribe("a")
            await answered_from(nodes[2], logins, broker)
            for number, node in enumerate(nodes[:2]):
                await published(nodes[2 - number], logins)
                assert (await client.until("event"))["channel"] == "a"
                if number == 0:
                    await node.kill()
                    await published(nodes[1], logins)
                    assert (await client.until("event"))["channel"] == "a"
                    for file in node.directory.glob("*.ports"):
                        file.unlink()
                    await node.start()


async def answered_from(node: Node, logins: Passwords, broker: Broker) -> None:
    """A service at this node answers: asked until the others know of it."""
    async with (
        serving(node, logins.service("acme"), "rpc.acme.>"),
        broker.client("acme", request=[">"]) as client,
    ):
        with trio.fail_after(PATIENCE_SECONDS):
            while (answer := await call(client, "orders.ship")).get("code") == "unavailable":
                await trio.sleep(0.1)
        assert answer == {"data": {"got": 7}}


async def published(node: Node, logins: Passwords) -> None:
    """One event, stored: tried until the cluster has a leader."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not (await attempt(node, logins.service("acme"), ["events.acme.a"])).stored:
            await trio.sleep(0.1)


async def test_the_broker_is_bounded_too(tmp_path: Path) -> None:
    """Its login throws no history away, and there is no stream of others that it could touch."""
    logins = Passwords(directory=tmp_path)
    wrong = ["$JS.API.STREAM.DELETE.EVENTS", "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.CREATE.OTHER"]
    wrong += [
        "$JS.API.STREAM.DELETE.KV_broker_cursors",
        "$JS.API.CONSUMER.CREATE.AUDIT.x",
        "$SYS.REQ.SERVER.PING",
    ]
    async with single(logins) as node:
        login = logins.service("broker") | {"inbox_prefix": b"_INBOX_broker"}
        done = await attempt(node, login, [*wrong], ["_INBOX.>", "events.>", "$KV.>"])
        assert len(done.refused) == len(wrong) + 3


def test_the_permissions_are_read_as_they_stand() -> None:
    """What the tests give to credentials is what the file gives to passwords."""
    found = granted()
    assert set(found) == {"broker", "acme", "announcer"}
    assert found["acme"] == (
        ["events.acme.>", "live.acme.>"],
        ["_INBOX.>", "rpc.acme.>", "changes.acme.>", "$SRV.>"],
        True,
    )
    assert found["announcer"] == (["events._all.>", "live._all.>"], ["_INBOX.>"], False)
    assert found["broker"][1:] == (["_INBOX_broker.>", "live.>", "_broker.>"], False)


async def test_an_operator_finds_the_way_out(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, held: list[int]
) -> None:
    """What is wrong with a stream, and the command that mends it, is in the log and in /readyz."""
    await publisher.api("STREAM.CREATE.EVENTS", name="EVENTS", subjects=["events.>"])
    secret(tmp_path / "key", "0123456789abcdef" * 4)
    [port] = held
    (tmp_path / "broker.toml").write_text(
        f"""
        server = {{listen = "127.0.0.1:0", admin_listen = "127.0.0.1:{port}", data_dir = "state"}}
        nats = {{urls = ["{nats.url}"]}}
        stream = {{max_bytes = "64MiB"}}
        auth = {{keys = [{{name = "main", secret_file = "key", tenants = ["*"]}}]}}
        """
    )
    advice = (
        "the stream EVENTS has allow_direct=False, not True. Set stream.name to use another one, or change "
        "this one: `nats stream edit EVENTS --allow-direct`"
    )
    async with command.start("serve", "--config", tmp_path / "broker.toml") as running:
        assert advice in await running.until("nats_unreachable", "stderr")
        with trio.fail_after(PATIENCE_SECONDS):
            while advice not in (await get(f"http://127.0.0.1:{port}", "/readyz"))[1].decode():
                await trio.sleep(0.05)
        config = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
        await publisher.api("STREAM.UPDATE.EVENTS", **config | {"allow_direct": True})
        await running.until("ready", "stderr")
