"""The connection to NATS: credentials, servers that come back, what the client library leaves behind."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
from typing import TYPE_CHECKING, Any

import nkeys
import pytest
import trio
import trio.testing
import trustme

from broker import config
from broker.bus import bridge
from broker.bus.bridge import connect_options, open_link, open_loop, shown
from broker.errors import Unavailable
from tests.support.bus import PATIENCE_SECONDS, ready_bus, running_bus, until_trouble
from tests.support.nats import run_nats
from tests.support.rawnats import connect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer


def accounts(password: str) -> dict[str, Any]:
    return {"user": "svc", "password": password}


async def test_an_answer_that_comes_too_late(nats: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """The one to a ping that nobody waits for any more is no error of anybody."""
    async with open_loop():
        link = await open_link(nats.url, config.Nats(), on_lost=lambda: None)
        try:
            nats.stop()
            with pytest.raises(Unavailable):
                await link.flush(0.1)
            pongs = link.client._pongs
            assert pongs
            nats.cont()
            with trio.fail_after(PATIENCE_SECONDS):
                while pongs and not caplog.records:
                    await trio.sleep(0.01)
            assert not [each.message for each in caplog.records if each.name.startswith("nats")]
        finally:
            await link.close()


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


def test_credentials_in_an_address_are_decoded_and_not_shown() -> None:
    """`user:password@` may hold what a URL must encode; messages name the server alone."""
    url = "nats://us%40er:p%3Aw@nats.example.org:4333"
    options = connect_options(url, config.Nats())
    assert (options["user"], options["password"]) == ("us@er", "p:w")
    assert options["servers"] == ["nats://nats.example.org:4333"]
    assert shown(url) == "nats.example.org:4333"
    assert connect_options("nats://secret@host:1", config.Nats())["token"] == "secret"


def test_files_of_the_configuration_reach_the_client(tmp_path: Path) -> None:
    """Credentials and certificate authority by file, and an own certificate only with them."""
    ca = tmp_path / "ca"
    trustme.CA().cert_pem.write_to_path(ca)
    options = connect_options("h:1", config.Nats(credentials_file=tmp_path / "creds", tls_ca=ca))
    assert options["user_credentials"] == str(tmp_path / "creds")
    assert isinstance(options["tls"], ssl.SSLContext)
    assert "tls" not in connect_options("h:1", config.Nats())


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


async def test_a_failed_background_task_costs_the_connection(nats: NatsServer) -> None:
    """A task of the client library that dies does not go unseen, and does not end the program."""
    async with ready_bus(nats.url) as (bus, sink):
        asyncio.get_running_loop().call_exception_handler(
            {"message": "a task failed", "exception": ValueError("surprise")}
        )
        await sink.until(lambda: sink.interruptions == 1 and sink.up)
        assert (await bus.publish("events.acme.a", b"1")).sequence == 1


async def test_the_remains_of_a_lost_connection_cost_nothing(nats: NatsServer) -> None:
    """The client library's tasks for a link that was reset are collected when another one stands."""
    async with ready_bus(nats.url) as (bus, sink):
        asyncio.get_running_loop().call_exception_handler(
            {"message": "Task exception was never retrieved", "exception": ConnectionResetError()}
        )
        assert (await bus.publish("events.acme.a", b"1")).sequence == 1
        assert sink.interruptions == 0


async def test_a_lost_link_stays_lost(nats: NatsServer) -> None:
    """Requests under way end at once, and later ones too, with the reason."""
    async with open_loop():
        link = await open_link(nats.url, config.Nats(), on_lost=lambda: None)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(Unavailable, match="cut"), trio.fail_after(5):
                    await link.request("nobody.at.all", b"", seconds=60)

            await link.subscribe("nobody.at.all", lambda *_: None)  # so that no "no responders" comes
            await link.flush()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            link.lose("cut")
        with pytest.raises(Unavailable, match="cut"):
            await link.flush()
        await link.close()


async def test_messages_stay_behind_what_is_queued(nats: NatsServer) -> None:
    """A message overtakes no command that the client library holds back, as while the socket is full."""
    async with open_loop():
        link = await open_link(nats.url, config.Nats(), on_lost=lambda: None)
        heard = trio.Event()
        link.handlers[99] = lambda *_: heard.set()
        link.client._pending.append(b"SUB own.subject 99\r\n")
        await link.send("own.subject", b"")
        with trio.fail_after(10):
            await heard.wait()
        await link.close()


async def test_a_server_that_takes_nothing_costs_the_connection() -> None:
    """What is sent waits within a bound; beyond that the link is lost, and nobody waits for ever."""
    info = {"server_id": "x", "version": "2.11.0", "headers": True, "max_payload": 1 << 20, "proto": 1}

    async def deaf_server(stream: trio.SocketStream) -> None:
        await stream.send_all(b"INFO " + json.dumps(info).encode() + b"\r\n")
        async for data in stream:
            if b"PING" in data:
                await stream.send_all(b"PONG\r\n")
                await trio.sleep_forever()

    async with open_loop(), trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, deaf_server, [listener])
        port = listener.socket.getsockname()[1]
        link = await open_link(f"nats://127.0.0.1:{port}", config.Nats(), on_lost=lambda: None)

        async def send() -> None:
            with trio.fail_after(60):
                while link.writer.transport.get_write_buffer_size() <= bridge.UNSENT_BYTES:
                    await link.send("any", b"x" * 1_000_000)

        with pytest.raises(Unavailable):
            await send()
        await link.close()
        nursery.cancel_scope.cancel()


async def test_an_old_server_is_named(nats: NatsServer) -> None:
    """A server without batched direct get is refused at the door, not by time-outs later."""
    info = {"server_id": "x", "version": "2.10.29", "headers": True, "max_payload": 1024, "proto": 1}

    async def old_server(stream: trio.SocketStream) -> None:
        await stream.send_all(b"INFO " + json.dumps(info).encode() + b"\r\n")
        async for data in stream:
            if b"PING" in data:
                await stream.send_all(b"PONG\r\n")

    async with open_loop(), trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, old_server, [listener])
        port = listener.socket.getsockname()[1]
        with pytest.raises(Unavailable, match=r"2\.10.*at least 2\.11"):
            await open_link(f"nats://127.0.0.1:{port}", config.Nats(), on_lost=lambda: None)
        nursery.cancel_scope.cancel()
