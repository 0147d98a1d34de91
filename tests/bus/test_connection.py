"""The bus over connections that come and go: credentials, servers that come back, live subscriptions."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import attrs
import nkeys
import pytest
import trio
import trustme

from broker import config
from broker.bus.live import Live
from broker.bus.nats import NatsBus
from broker.errors import NotFound, Unavailable
from broker.nats.link import open_link
from broker.nats.login import Server
from broker.subjects import Names
from tests.nats.servers import greet, serving
from tests.support.bus import ready_bus, running_bus, until_trouble
from tests.support.nats import run_nats
from tests.support.rawnats import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from broker.nats.link import Link
    from tests.support.nats import NatsServer


def accounts(password: str) -> dict[str, Any]:
    return {"user": "svc", "password": password}


async def test_wrong_credentials_are_mended_without_a_restart(tmp_path: Path) -> None:
    """A new client is built for ever, and the password is read again each time."""
    password = tmp_path / "password"
    password.write_text("wrong\n")
    async with run_nats(tmp_path, authorization=accounts("right")) as nats:
        section = config.Nats(user="svc", password_file=password)
        async with running_bus(nats.url, nats=section) as (bus, sink):
            await until_trouble(bus, "authorization")
            with pytest.raises(Unavailable, match="Authorization"):
                await bus.state()
            password.write_text("right\n")
            await sink.until(lambda: sink.up)


async def test_credentials_that_are_rotated_under_us(tmp_path: Path) -> None:
    """The server cuts us off; with the new password all goes on where it was."""
    password = tmp_path / "password"
    password.write_text("old")
    async with run_nats(tmp_path, authorization=accounts("old")) as nats:
        section = config.Nats(user="svc", password_file=password)
        async with ready_bus(nats.url, nats=section) as (bus, sink):
            await bus.publish("events.acme.a", b"1")
            nats.options["authorization"] = accounts("new")
            nats.reload()
            await sink.until(lambda: not sink.up)
            password.write_text("new")
            await sink.until(lambda: sink.up)
            await bus.publish("events.acme.a", b"2")
            await sink.until(lambda: sink.bodies == [b"1", b"2"])


async def test_an_nkey(tmp_path: Path) -> None:
    """Login with the key of a file."""
    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed").write_bytes(seed)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    section = config.Nats(nkey_file=tmp_path / "seed")
    async with (
        run_nats(tmp_path, authorization={"users": [{"nkey": public}]}) as nats,
        ready_bus(nats.url, nats=section) as (bus, _),
    ):
        assert (await bus.publish("events.acme.a", b"1")).sequence == 1


async def test_tls_both_ways(tmp_path: Path) -> None:
    """The server's certificate is checked against the configured authority, ours is shown to it."""
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("broker@example.org")
    files = {name: tmp_path / name for name in ("ca", "certificate", "key", "own")}
    authority.cert_pem.write_to_path(files["ca"])
    server.cert_chain_pems[0].write_to_path(files["certificate"])
    server.private_key_pem.write_to_path(files["key"])
    client.private_key_and_cert_chain_pem.write_to_path(files["own"])
    tls = {
        "cert_file": str(files["certificate"]),
        "key_file": str(files["key"]),
        "ca_file": str(files["ca"]),
        "verify": True,
    }
    async with run_nats(tmp_path, tls=tls) as nats:
        section = config.Nats(tls_ca=files["ca"], tls_certificate=files["own"])
        async with ready_bus(nats.url, nats=section) as (bus, _):
            assert (await bus.publish("events.acme.a", b"1")).sequence == 1
        async with running_bus(nats.url, nats=config.Nats()) as (bus, sink):
            await until_trouble(bus, "certificate")
            assert not sink.up


async def test_live_subscriptions_are_made_again(nats: NatsServer) -> None:
    """After a restart of the server live messages arrive as before, with nothing to be done."""
    async with ready_bus(nats.url) as (bus, sink):
        await bus.subscribe_live("live.acme.a")
        await bus.subscribe_live("live.acme.gone")
        await bus.unsubscribe_live("live.acme.gone")
        await nats.restart()
        await sink.until(lambda: sink.interruptions == 1 and sink.up)
        async with connect(nats.url) as client:
            await client.publish("live.acme.gone", b"0")
            await client.publish("live.acme.a", b"1")
        await sink.until(lambda: len(sink.messages) == 1)
        assert sink.messages[0][2] == b"1"


async def test_a_subscription_that_ends_while_all_are_renewed(nats: NatsServer) -> None:
    """Whichever comes first, it is over after both."""
    async with open_link(Server.parse(nats.url), config.Nats()) as link:
        for _ in range(20):
            live = Live(subscriptions={"live.acme.a": None})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(live.unsubscribe, link, "live.acme.a")
                nursery.start_soon(live.renew, link)
            assert live.subscriptions == {}
            assert len(link.handlers) == 1  # that of requests


async def test_live_messages_over_the_bound_are_announced(nats: NatsServer) -> None:
    """Loss of live messages is told, after those that came before it."""
    async with ready_bus(nats.url, held_live=10) as (bus, sink):
        await bus.subscribe_live("live.acme.a")
        async with connect(nats.url) as client:
            await client.stream.send_all(b"PUB live.acme.a 1\r\nx\r\n" * 5000)
            await client.flush()
        await sink.until(lambda: sink.lost > 0)
        assert 10 <= len(sink.messages) < 5000


async def test_a_subscription_that_nats_forbids_is_refused(tmp_path: Path) -> None:
    """The server's refusal reaches whoever asked, and costs nobody else anything."""
    forbidden = {"subscribe": {"deny": ["live.forbidden.>"]}}
    users = [{"user": "svc", "password": "pw", "permissions": forbidden}]
    async with run_nats(tmp_path, authorization={"users": users}) as nats:
        url = nats.url.replace("//", "//svc:pw@")
        async with ready_bus(url) as (bus, sink):
            with pytest.raises(Unavailable, match="does not permit"):
                await bus.subscribe_live("live.forbidden.>")
            await bus.subscribe_live("live.allowed.>")
            assert sink.interruptions == 0


async def test_a_subscription_that_is_cancelled_is_none(nats: NatsServer) -> None:
    """Whoever asked for it has left before NATS could confirm it: nobody else would end it."""
    async with ready_bus(nats.url) as (bus, sink):
        nats.stop()
        with trio.move_on_after(0.05) as hurry:
            await bus.subscribe_live("live.acme.a")
        nats.cont()
        assert hurry.cancelled_caught
        await bus.subscribe_live("live.acme.b")
        await bus.publish_live("live.acme.a", b"1")
        await bus.publish_live("live.acme.b", b"2")
        await sink.until(lambda: bool(sink.messages))
        assert [body for _, _, body, _ in sink.messages] == [b"2"]


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server that is in no configuration."""
    directory = tmp_path / "other"
    directory.mkdir()
    async with run_nats(directory) as server:
        yield server


def link_of(bus: NatsBus) -> Link:
    assert bus.jetstream.link is not None
    return bus.jetstream.link


def named(bus: NatsBus, server: NatsServer, *, lame_duck: bool = False) -> None:
    """Has the server of a bus name another one, and say whether it is about to stop."""
    link = link_of(bus)
    link.take([attrs.evolve(link.info, servers=(f"127.0.0.1:{server.port}",), lame_duck=lame_duck)])


async def test_a_server_that_leaves_is_left(nats: NatsServer, other: NatsServer) -> None:
    """When it says that it will stop, the next one that the cluster has named is taken at once."""
    async with ready_bus(nats.url) as (bus, sink):
        named(bus, nats, lame_duck=True)
        await bus.publish("events.acme.a", b"1")  # there is no other one yet
        await sink.until(lambda: sink.bodies == [b"1"])
        named(bus, other, lame_duck=True)
        await sink.until(lambda: sink.interruptions == 1 and sink.up)
        assert link_of(bus).server.port == other.port


async def test_another_server_of_the_cluster(nats: NatsServer, other: NatsServer) -> None:
    """The only one of the configuration is gone for good; another has been named meanwhile."""
    async with ready_bus(nats.url) as (bus, sink):
        named(bus, other)
        await bus.publish("events.acme.a", b"1")
        await nats.kill9()
        await sink.until(lambda: sink.interruptions == 1 and sink.up)
        await bus.publish("events.acme.a", b"2")
        await sink.until(lambda: sink.bodies == [b"2"])


async def test_a_stream_is_examined_over_any_server(nats: NatsServer) -> None:
    """One of them is down; when all are, each says why."""
    async with serving(greet) as gone:
        pass
    urls = (f"nats://{gone}", nats.url)
    bus = NatsBus(nats=config.Nats(urls=urls), stream=config.Stream(), names=Names(), audit=config.Audit())
    for _ in urls:
        with pytest.raises(NotFound, match="no such stream yet"):
            await bus.examine("EVENTS")
    await nats.kill9()
    with pytest.raises(Unavailable) as refused:
        await bus.examine("EVENTS")
    assert all(url.removeprefix("nats://") in refused.value.message for url in urls)


async def test_a_server_that_is_of_no_use_names_another_one(nats: NatsServer) -> None:
    """It lets us in, and its JetStream does not answer."""

    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream, connect_urls=[f"127.0.0.1:{nats.port}"])
        async for data in stream:
            await stream.send_all(b"PONG\r\n" * data.count(b"PING\r\n"))

    async with (
        serving(serve) as server,
        running_bus(f"nats://{server}", nats=config.Nats(request_seconds=1.0)) as (bus, sink),
    ):
        await sink.until(lambda: sink.up)
        assert bus.jetstream.link is not None
        assert bus.jetstream.link.server.port == nats.port
