"""Revocation and suspension over real brokers and a real nats-server."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import jwt
import msgspec
import trio

from broker.features.control import Ban
from broker.operations import bans, reports
from broker.wire.times import parse_time
from tests.faults.support.proxy import run_proxy
from tests.support.broker import configure, run_broker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import pytest

    from broker.actors.supervisor import Supervisor
    from tests.support.broker import Broker
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


def ban(kind: Any, name: str = "", *, tenant: str = "acme", until: float | None = None) -> Ban:
    return Ban(kind=kind, tenant=tenant, name=name, at=time.time(), until=until)


async def within(supervisor: Supervisor, call: Callable[..., Awaitable[Any]], *given: Any) -> Any:
    """What a call returns that is made from a task of the broker, as the admin port makes it."""
    send, receive = trio.open_memory_channel[Any](1)

    async def made() -> None:
        await send.send(await call(*given))

    nursery = supervisor.services.nursery
    nursery.parent_task.context.run(nursery.start_soon, made)
    return await receive.receive()


async def turned_away(broker: Broker, token: str) -> None:
    """A client with this token is told that it was revoked, and closed."""
    async with broker.stranger() as client:
        await client.expect("connection.established")
        await client.send("authenticate", {"token": token}, messageId="a")
        error = await client.expect("error")
        assert (error["code"], error["retryable"], client.log[-1]["messageId"]) == (
            "token_revoked",
            False,
            "a",
        )
        assert await client.closed() == 4501


async def test_a_revoked_token_on_every_broker_and_after_a_restart(
    tmp_path: Path, nats: NatsServer, supervisors: list[Supervisor]
) -> None:
    """Its connections end with 4501 on all brokers, others stay; a broker that starts later knows it too."""
    settings = configure(tmp_path / "b", nats.url)
    async with run_broker(tmp_path / "b", settings) as one:
        token, other = one.token(), one.token(user="alice")
        claims = one.token(user="carol")
        async with (
            run_broker(tmp_path / "c", settings) as two,
            one.client(token=token) as here,
            two.client(token=token) as there,
            two.client(user="bob") as witness,
            two.client(tenant="globex") as elsewhere,
        ):
            await there.subscribe("orders.>")
            await witness.subscribe("orders.>")
            await within(
                supervisors[0], supervisors[0].control.put, ban("user", "alice", until=time.time() + 3600)
            )
            for client in (here, there):
                assert (await client.until("error"))["code"] == "token_revoked"
                assert await client.closed() == 4501
            for broker in (one, two):
                await turned_away(broker, other)
            await witness.quiet()
            await elsewhere.quiet()
            async with two.client(token=claims) as carol:
                await carol.subscribe("orders.>")
    async with run_broker(tmp_path / "d", settings) as three:
        await turned_away(three, token)
        async with three.client(user="bob") as bob:
            await bob.subscribe("orders.>")


async def test_a_user_comes_back_with_a_newer_token(broker: Broker, supervisors: list[Supervisor]) -> None:
    """A revocation of a user means the tokens that were issued before it."""
    old = broker.token()
    made = ban("user", "alice", until=time.time() + 3600)
    await within(supervisors[0], supervisors[0].control.put, attrs.evolve(made, at=made.at - 2))
    async with broker.client(token=old) as client:  # issued a moment later than that
        await client.quiet()
    await within(supervisors[0], supervisors[0].control.put, made)
    await turned_away(broker, old)


async def test_a_revocation_by_a_broker_whose_clock_is_late(
    broker: Broker, supervisors: list[Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It means the tokens in use all the same, and lasts for as long as they may live."""
    late = SimpleNamespace(time=lambda: time.time() - 7200)
    async with broker.client() as alice, broker.client(user="bob") as bob:
        monkeypatch.setattr(bans, "time", late)
        wish = reports.Revoke(tenant="acme", user="alice")
        made = await within(supervisors[0], bans.Bans(supervisors[0]).revoke, wish)
        assert (await alice.until("error"))["code"] == "token_revoked"
        assert await alice.closed() == 4501
        await bob.quiet()
    assert parse_time(made.until).timestamp() > time.time() + broker.config.limits.token_max_seconds - 60


async def test_a_suspended_tenant_until_it_is_lifted(broker: Broker, supervisors: list[Supervisor]) -> None:
    """All of its clients are closed with 4501 and no other; new tokens do not help; then it may come back."""
    control = supervisors[0].control
    async with broker.client(user="a") as a, broker.client(user="b") as b, broker.client("globex") as other:
        for client in (a, b, other):
            await client.subscribe(">")
        suspended = await within(supervisors[0], control.put, ban("suspension"))
        for client in (a, b):
            assert (await client.until("error"))["message"] == "this tenant is suspended"
            assert await client.closed() == 4501
        await turned_away(broker, broker.token())
        await other.quiet()
    await within(supervisors[0], control.lift, suspended)
    async with broker.client(user="a") as a:
        await a.subscribe(">")


async def test_a_revoked_token_renews_nothing(broker: Broker, supervisors: list[Supervisor]) -> None:
    """A connection goes on under its good token when it is offered one whose id was revoked."""
    revoked = broker.token()
    token_id = jwt.decode(revoked, options={"verify_signature": False})["jti"]
    await within(supervisors[0], supervisors[0].control.put, ban("token", token_id))
    async with broker.client() as client:
        await client.subscribe("orders.>")
        await client.send("authenticate", {"token": revoked})
        assert (await client.until("error"))["code"] == "token_revoked"
        await client.quiet()
    await turned_away(broker, revoked)


async def test_a_word_that_never_came(broker: Broker, supervisors: list[Supervisor]) -> None:
    """A broker that was not told of a ban finds it in the bucket by itself."""
    async with broker.client() as client:
        await client.subscribe("orders.>")
        made = ban("tenant", until=time.time() + 3600)
        data = msgspec.json.encode(made)
        put = supervisors[0].bus.control.put
        await within(supervisors[0], partial(put, made.key, data, revision=0))
        assert (await client.until("error"))["code"] == "token_revoked"
        assert await client.closed() == 4501


async def test_a_ban_that_was_made_while_nats_was_away(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """A broker that comes back reads what was put meanwhile before it delivers what was stored meanwhile."""
    async with run_proxy(lambda: nats.port) as proxy:
        settings = configure(tmp_path / "b", nats.url.replace(str(nats.port), str(proxy.port)))
        async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
            await client.subscribe("orders.>")
            proxy.latency = 0.02  # each request of the broker gives the other side time
            proxy.down = True
            proxy.reset()
            assert (await client.expect("source"))["state"] == "interrupted"
            made = ban("user", "alice", until=time.time() + 3600)  # after its token
            await publisher.store(f"$KV.broker_control.{made.key}", msgspec.json.encode(made))
            await publisher.store("events.acme.orders.1")
            proxy.down = False
            assert await client.closed() == 4501
            assert "event" not in [message["type"] for message in client.log]
