"""Limits of what belongs together: a connection, a user, a tenant, an address, a process, or several."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.config import Allowance, TenantAllowance
from tests.e2e.test_limits import error, works
from tests.e2e.test_reload import Served, serve
from tests.faults.support.rude import listen
from tests.support import websocket
from tests.support.broker import configure, run_broker
from tests.support.metrics import scrape, scraped
from tests.support.raw import ask, open_raw
from tests.web.harness import head

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client

# A second client beside `alice` of `acme`, within each scope and out of it.
WITHIN = {
    "connection": None,
    "user": ("acme", "alice"),
    "tenant": ("acme", "bob"),
    "process": ("globex", "bob"),
}
OUTSIDE = {"connection": ("acme", "alice"), "user": ("acme", "bob"), "tenant": ("globex", "alice")}
SCOPES = ("connection", "user", "tenant", "address", "process")


@pytest.mark.parametrize("scope", ["tenant", "address"])
async def test_connections(scope: str, tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """The next one is refused: of a tenant with 4010, from an address with 429; a place freed is free."""
    limits = {scope: Allowance(connections=2)}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as first, broker.client(user="bob") as second:
            if scope == "tenant":
                async with broker.stranger() as third:
                    await third.expect("connection.established")
                    await third.send("authenticate", {"token": broker.token(user="carol")}, messageId="a")
                    refusal = await error(third)
                    assert (refusal["code"], refusal["retryable"]) == ("limit_connections", True)
                    assert refusal["retry_after_ms"] > 0
                    assert await third.closed() == 4010
                async with broker.client("globex"):
                    pass
            else:
                answer = await ask(broker.running.ws, "/ws")
                assert answer.status == 429
                assert int(answer.headers["retry-after"]) >= 1
                assert "address" in answer.problem["detail"]
                assert (await ask(broker.running.ws, "/healthz")).status == 200
            await first.quiet()
            await second.quiet()
        await scraped(broker.running.admin, lambda now: now.total("broker_connections") == 0)
        await works(broker, publisher)


async def test_the_address_is_the_clients(tmp_path: Path, nats: NatsServer) -> None:
    """Behind a trusted proxy clients are told apart by what it says of them, and not taken for the proxy."""
    settings = configure(
        tmp_path / "b",
        nats.url,
        server={"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "trusted_proxies": ("127.0.0.1/32",)},
        limits={"address": Allowance(connections=1)},
    )
    async with run_broker(tmp_path / "b", settings) as broker, AsyncExitStack() as stack:

        async def come(address: str) -> int:
            client = await stack.enter_async_context(open_raw(broker.running.ws))
            await client.send(head(x_forwarded_for=address))
            return (await listen(client, stay=False)).status

        addresses = ("192.0.2.1", "192.0.2.2", "192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")
        assert [await come(each) for each in addresses] == [101, 101, 429, 101, 429, 101]


async def test_connects_to_a_process_and_from_an_address(tmp_path: Path, nats: NatsServer) -> None:
    """Faster than allowed is 429 of the one and 503 of the other, with the time after which it is let in."""
    for scope, status in (("address", 429), ("process", 503)):
        limits = {scope: Allowance(connects_per_second=0.2)}
        settings = configure(tmp_path / scope, nats.url, limits=limits)
        async with run_broker(tmp_path / scope, settings) as broker, broker.stranger():
            answer = await ask(broker.running.ws, "/ws")
            assert answer.status == status
            assert 1 <= int(answer.headers["retry-after"]) <= 5
            assert "connects_per_second" in answer.problem["detail"]


@pytest.mark.parametrize("scope", ["user", "tenant"])
async def test_connects_with_a_token(scope: str, tmp_path: Path, nats: NatsServer) -> None:
    """Faster than allowed is `rate_limited` with the time to wait, and 4029; another one is let in."""
    limits = {scope: Allowance(connects_per_second=0.2)}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as first:
        async with broker.stranger() as second:
            await second.expect("connection.established")
            await second.send("authenticate", {"token": broker.token()})
            refusal = await error(second)
            assert (refusal["code"], refusal["retryable"]) == ("rate_limited", True)
            assert 0 < refusal["retry_after_ms"] <= 5000
            assert scope in refusal["message"]
            assert await second.closed() == 4029
        async with broker.client(*OUTSIDE[scope]) as other:
            await other.quiet()
        await first.quiet()


@pytest.mark.parametrize("scope", SCOPES[1:])
async def test_subscriptions(scope: str, tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Over all connections within a scope; what is over is refused by item, what is given back is free."""
    limits: dict[str, Any] = {scope: Allowance(subscriptions=3), "snapshot_channels": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    within = WITHIN.get(scope) or ("globex", "bob")
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as first:
        for channel in ("s.1", "s.2"):
            await publisher.store(f"events.acme.{channel}", b"1")
        await first.subscribe("a")
        for _ in range(3):  # they were to count, and come to nothing
            await first.send("subscribe", {"channel": ["s.1", "s.2"], "snapshot": True})
            assert (await error(first))["code"] == "limit_snapshot"
        await first.subscribe(["a", "b"])
        async with broker.client(*within) as second:
            answer = await second.subscribe(["a", "b", "live.c"])
            assert answer["channel"] == ["a"]
            assert [(each["channel"], each["code"]) for each in answer["refused"]] == [
                ("b", "limit_subscriptions"),
                ("live.c", "limit_subscriptions"),
            ]
            assert scope in answer["refused"][0]["message"]
            await first.subscribe(["a", "b"])  # the same again is no further one
            await first.send("subscribe", {"channel": "c", "durable": "x", "last": 0})
            assert (await error(first))["code"] == "bad_message"
            await first.send("unsubscribe", {"channel": "a"})
            await first.expect("unsubscribed")
            assert (await second.subscribe("b"))["channel"] == ["b"]
            await first.send("subscribe", {"channel": "c"})
            assert (await error(first))["code"] == "limit_subscriptions"
        # The second one's are free once the broker has noticed that it is gone.
        with trio.fail_after(45):
            while True:
                await first.send("subscribe", {"channel": ["c", "d"]})
                message = await first.receive()
                if message["type"] == "subscribed" and not message["payload"]["refused"]:
                    break
        await publisher.store("events.acme.d", b"1")
        assert (await first.until("event"))["event"] == 1
        if scope in OUTSIDE:
            async with broker.client(*OUTSIDE[scope]) as other:
                assert (await other.subscribe(["a", "b", "c"]))["refused"] == []


@pytest.mark.parametrize("key", ["messages_per_second", "bytes_per_second", "publishes_per_second"])
@pytest.mark.parametrize("scope", SCOPES)
async def test_what_clients_send(scope: str, key: str, tmp_path: Path, nats: NatsServer) -> None:
    """Above a rate `rate_limited` names it and says when to try again; outside of its scope all goes on."""
    allowance = {key: 0.2} if key != "bytes_per_second" else {key: 10}
    settings = configure(tmp_path / "b", nats.url, limits={scope: Allowance(**allowance)})
    within = WITHIN.get(scope, ("globex", "bob"))
    async with run_broker(tmp_path / "b", settings) as broker, AsyncExitStack() as stack:
        first = await stack.enter_async_context(broker.client())
        second = await stack.enter_async_context(broker.client(*within)) if within else first
        await first.send("publish", {"channel": "a", "event": 1})
        await first.expect("published")
        await second.send("publish", {"channel": "a", "event": 1}, messageId="m")
        refusal = await error(second)
        assert (refusal["code"], refusal["retryable"]) == ("rate_limited", True)
        assert 0 < refusal["retry_after_ms"] <= 8000
        assert scope in refusal["message"]
        assert key in refusal["message"]
        assert second.log[-1]["messageId"] == "m"
        if scope in OUTSIDE:
            async with broker.client(*OUTSIDE[scope]) as other:
                await other.send("publish", {"channel": "a", "event": 1})
                await other.expect("published")


async def test_persistently_over_a_limit_of_the_tenant(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """Whoever goes on all the same is closed with 4029; the others of its tenant are only slowed."""
    settings = configure(tmp_path / "b", nats.url, limits={"tenant": Allowance(messages_per_second=5)})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client(user="bob") as bob:
        async with broker.client() as client:
            for _ in range(80):
                await client.send("ping")
            assert await client.closed() == 4029
        with trio.fail_after(45):
            while True:
                await bob.send("ping")
                message = await bob.receive()
                if message["type"] == "pong":
                    break
                await trio.sleep(message["payload"]["retry_after_ms"] / 1000)


async def test_delivered_bytes(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """A tenant over its rate gets everything in order, later, and is kept; another one is not held up."""
    limits: dict[str, Any] = {
        "tenant": Allowance(delivered_bytes_per_second=20_000),
        "tenants": (TenantAllowance(name="globex", delivered_bytes_per_second=0),),
        "stall_seconds": 1,
        "heartbeat_seconds": 1,
    }
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with (
        run_broker(tmp_path / "b", settings) as broker,
        broker.client() as paced,
        broker.client("globex") as free,
    ):
        for client in (paced, free):
            await client.subscribe("a")
        for number in range(60):
            body = b'[%d,"%s"]' % (number, b"x" * 2000)
            await publisher.store("events.acme.a", body)
            await publisher.store("events.globex.a", body)
        assert [event["event"][0] for event in await free.events(60)] == list(range(60))
        assert (await scrape(broker.running.admin)).total("broker_connections_behind") == 1
        assert [event["event"][0] for event in await paced.events(60)] == list(range(60))
        await paced.quiet()


async def test_a_client_is_told_what_it_can_use(tmp_path: Path, nats: NatsServer) -> None:
    """`connection.established.limits` has what holds for a connection and a user, as far as it is set."""
    limits: dict[str, Any] = {
        "connection": Allowance(messages_per_second=20),
        "user": Allowance(subscriptions=7, publishes_per_second=0),
        "tenant": Allowance(connections=99),
        "connections_per_user": 4,
    }
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, broker.stranger() as client:
        told = (await client.expect("connection.established"))["limits"]
        assert told["connections_per_user"] == 4
        scoped = {key: value for key, value in told.items() if "." in key}
        assert scoped == {"connection.messages_per_second": 20, "user.subscriptions": 7}


# --- over several brokers --------------------------------------------------------------------------


async def let_in(served: Served, token: str) -> str:
    """What somebody is answered who shows this token."""
    async with websocket.connect(served.ws, token=None) as client:
        await client.expect("connection.established")
        await client.send("authenticate", {"token": token})
        return str((await client.receive())["type"])


async def authenticated(served: Served, stack: AsyncExitStack, **claims: Any) -> Client:
    return await stack.enter_async_context(served.client(served.token(**claims)))


async def test_users_and_tenants_over_two_processes(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """What is held and spent at one broker counts at the other soon, and no more once it is dead."""
    limits = {
        "connections_per_user": 3,
        "tenant": {"subscriptions": 4, "publishes_per_second": 1},
    }
    sections: dict[str, Any] = {"permissions": {"publish": ["*"]}, "limits": limits}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with (
        serve(tmp_path / "one", nats, **sections) as one,
        serve(tmp_path / "two", nats, **sections) as two,
        AsyncExitStack() as stack,
    ):
        clients = [await authenticated(one, stack) for _ in range(3)]
        await clients[0].subscribe(["a", "b", "c"])
        bob = await authenticated(two, stack, user="bob")

        # A report is under way; until it is there alice is let in.
        with trio.fail_after(45):
            while await let_in(two, two.token()) != "error":
                pass
        answer = await bob.subscribe(["a", "b"])
        assert (answer["channel"], len(answer["refused"])) == (["a"], 1)
        # 1 a second for both: what one broker spends is taken from the other's bucket, too.
        published = refused = 0
        began = time.monotonic()
        while (passed := time.monotonic() - began) < 5:
            for client in (bob, clients[1]):
                await client.send("publish", {"channel": "z", "event": 1})
                message = await client.receive()
                published += message["type"] == "published"
                refused += message["type"] == "error"
            await trio.sleep(0.4)
        assert refused
        assert published <= passed + 0.4 + 1 + 2.25
        assert one.running
        one.running.process.kill()
        with trio.fail_after(45):
            while await let_in(two, two.token()) == "error":
                pass
        assert (await bob.subscribe("b"))["channel"] == ["b"]


# --- reload ----------------------------------------------------------------------------------------


async def test_limits_come_and_go(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """New limits hold at once for the connections that there are, which count; then they are gone again."""
    async with (
        serve(tmp_path, nats) as served,
        served.client(served.token()) as first,
        served.client(served.token(user="bob")) as second,
    ):
        await first.subscribe(["a", "b"])
        served.write(limits={"tenant": {"connections": 2, "subscriptions": 3, "messages_per_second": 100}})
        assert (await served.hup())["changed"] == ["limits.tenant"]
        assert await served.refused(served.token(user="carol")) == 4010
        answer = await second.subscribe(["a", "b"])
        assert (answer["channel"], len(answer["refused"])) == (["a"], 1)
        served.write(limits={"tenants": [{"name": "acme", "connections": 3, "subscriptions": 0}]})
        assert (await served.hup())["changed"] == ["limits.tenants"]
        assert (await second.subscribe(["a", "b"]))["refused"] == []
        async with served.client(served.token(user="carol")) as carol:
            await carol.quiet()
            assert await served.refused(served.token(user="dave")) == 4010
        served.write(limits={"tenant": {}, "tenants": []})
        await served.hup()
        async with served.client(served.token(user="carol")), served.client(served.token(user="dave")):
            await first.quiet()
        await publisher.store("events.acme.a", b"1")
        assert (await first.expect("event"))["event"] == 1


async def test_a_suspended_tenant(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Its clients are told and closed with 4501 and kept out, no others are; later it is let in again."""
    async with serve(tmp_path, nats) as served:
        keys = [{**served.tables["auth"]["keys"][0], "tenants": ["*"]}]
        served.write(auth={"keys": keys})
        await served.hup()
        async with (
            served.client(served.token()) as gone,
            served.client(served.token(tenant="globex")) as stays,
        ):
            await gone.subscribe("a")
            await stays.subscribe("a")
            served.write(limits={"tenants": [{"name": "acme", "suspended": True}]})
            await served.hup()
            with trio.fail_after(45):
                assert await gone.closed() == 4501
            told = gone.log[-1]["payload"]
            assert (told["code"], told["retryable"]) == ("token_revoked", False)
            assert await served.refused(served.token()) == 4501
            await publisher.store("events.globex.a", b"1")
            assert (await stays.expect("event"))["event"] == 1
            served.write(limits={"tenants": []})
            await served.hup()
            async with served.client(served.token()) as back:
                await back.quiet()
            await stays.quiet()


async def test_suspended_from_the_start(tmp_path: Path, nats: NatsServer) -> None:
    """Nobody of the tenant is let in, whatever the rest of its entry says."""
    tenants = (TenantAllowance(name="acme", suspended=True, connections=5),)
    settings = configure(tmp_path / "b", nats.url, limits={"tenants": tenants})
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.stranger() as client:
            await client.expect("connection.established")
            await client.send("authenticate", {"token": broker.token()})
            assert (await error(client))["code"] == "token_revoked"
            assert await client.closed() == 4501
        async with broker.client("globex") as other:
            await other.quiet()
