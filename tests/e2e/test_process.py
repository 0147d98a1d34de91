"""`broker serve` as a real process: TLS, signals, descriptors from systemd, and being killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import sys
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import trio
import trustme

from broker import config
from broker.auth import tokens
from tests.support import command, websocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

SECRET = "0123456789abcdef" * 4
TEMPLATE = """
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
data_dir = "state"
{server}
[nats]
urls = ["{nats}"]
[stream]
max_bytes = "64MiB"
[permissions]
subscribe = [">", "live.>"]
publish = [">"]
[[auth.keys]]
name = "main"
secret_file = "secret"
tenants = ["acme"]
"""


@pytest.fixture
def file(tmp_path: Path, nats: NatsServer) -> Path:
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text(SECRET)
    path = tmp_path / "broker.toml"
    path.write_text(TEMPLATE.format(nats=nats.url, server=""))
    return path


@asynccontextmanager
async def serve(file: Path, **variables: str) -> AsyncIterator[tuple[command.Running, dict[str, str]]]:
    async with command.start("serve", "--config", file, **variables) as running:
        await running.until('"ready"', "stderr")
        yield running, json.loads((file.parent / "state" / "broker.json").read_text())


def token(file: Path) -> str:
    auth = config.load(file, {}, production=True).auth
    return tokens.sign(auth, tenant="acme", user="alice", now=time.time(), ttl=3600)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1012), (signal.SIGINT, 1001)])
async def test_stops_in_order(file: Path, publisher: RawNats, number: signal.Signals, code: int) -> None:
    """A signal drains: clients are asked to reconnect, then closed; exit 0, and broker.json is gone."""
    async with serve(file) as (running, state):
        async with websocket.connect(state["ws"], token=token(file)) as client:
            await client.subscribe("a")
            running.process.send_signal(number)
            draining = await client.until("connection.draining")
            assert draining["reconnect_after_ms"] >= 0
            assert draining["position"]
            assert await client.closed() == code
        assert await running.end() == 0
        assert not (file.parent / "state" / "broker.json").exists()


async def test_resume_over_a_killed_process(file: Path, publisher: RawNats) -> None:
    """kill -9 under a connected client: on the next process it gets what it missed, once, in order."""
    async with (
        serve(file) as (running, state),
        websocket.connect(state["ws"], token=token(file)) as client,
    ):
        await client.subscribe("a")
        for number in range(10):
            await publisher.store("events.acme.a", str(number).encode())
        position = (await client.events(10))[-1]["position"]
        running.process.kill()
        await running.end()
    for number in range(10, 30):
        await publisher.store("events.acme.a", str(number).encode())
    async with serve(file) as (_, state), websocket.connect(state["ws"], token=token(file)) as client:
        assert (await client.subscribe("a", position=position))["recovered"]
        assert [event["event"] for event in await client.events(20)] == list(range(10, 30))


async def test_tls(file: Path, nats: NatsServer, publisher: RawNats) -> None:
    """With a certificate the public port speaks TLS, and a resume of some MiB comes through it whole."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(file.parent / "chain.pem")
    (file.parent / "key.pem").touch(mode=0o600)
    issued.private_key_pem.write_to_path(file.parent / "key.pem")
    authority.cert_pem.write_to_path(file.parent / "ca.pem")
    lines = 'tls_certificate = "chain.pem"\ntls_key = "key.pem"'
    file.write_text(TEMPLATE.format(nats=nats.url, server=lines))
    body = b'"' + b"x" * 20000 + b'"'
    async with serve(file) as (_, state):
        assert state["ws"].startswith("wss://")
        for _ in range(200):
            await publisher.store("events.acme.a", body)
        seen = await command.broker(
            *("tail", "a", "--last", "200", "--count", "200", "--raw", "--token", token(file)),
            *("--data-dir", file.parent / "state"),
            SSL_CERT_FILE=str(file.parent / "ca.pem"),
        )
        assert seen.code == 0, seen.err
        assert seen.out == (body.decode() + "\n") * 200


async def test_the_certificate_of_a_client(file: Path, nats: NatsServer) -> None:
    """Its subject stands in the log beside tenant and user; where it is required, nobody enters without."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(file.parent / "chain.pem")
    (file.parent / "key.pem").touch(mode=0o600)
    issued.private_key_pem.write_to_path(file.parent / "key.pem")
    authority.cert_pem.write_to_path(file.parent / "ca.pem")
    lines = 'tls_certificate = "chain.pem"\ntls_key = "key.pem"\ntls_client_ca = "ca.pem"\n'
    lines += "tls_client_required = true"
    file.write_text(
        TEMPLATE.format(nats=nats.url, server=lines) + '[log]\nlevel = "debug"\nformat = "json"\n'
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    stranger = ssl.create_default_context()
    authority.configure_trust(stranger)
    authority.issue_cert("billing", common_name="billing").configure_cert(context)
    request = (
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
        f"Authorization: Bearer {token(file)}\r\n\r\n"
    )
    async with serve(file) as (running, state):
        port = urlsplit(state["ws"]).port or 0
        for shown in (stranger, context):
            async with await trio.open_tcp_stream("127.0.0.1", port) as tcp:
                client = trio.SSLStream(tcp, shown, server_hostname="localhost", https_compatible=True)
                if shown is stranger:
                    with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - either may hear of it
                        await client.send_all(request.encode())
                        await client.receive_some()
                    continue
                await client.send_all(request.encode())
                line = json.loads(await running.until("connection_authenticated", "stderr"))
                assert "CN=billing" in line["certificate"]
                assert (line["tenant"], line["user"]) == ("acme", "alice")


async def test_socket_activation_and_notify(file: Path, nats: NatsServer) -> None:
    """Sockets that systemd passes are used instead of `listen`, and systemd hears READY and STOPPING."""
    address = file.parent / "notify"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        socket.create_server(("127.0.0.1", 0)) as public,
    ):
        notified.bind(str(address))
        notified.settimeout(60)
        port = public.getsockname()[1]
        starter = (
            "import os, sys; fd = int(sys.argv[1]);"
            "fd == 3 or os.dup2(fd, 3); os.set_inheritable(3, True);"
            "os.environ['LISTEN_PID'] = str(os.getpid());"
            "os.execv(sys.executable, [sys.executable, '-m', 'broker', 'serve', '--config', sys.argv[2]])"
        )
        variables = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "public", "NOTIFY_SOCKET": str(address)}
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", starter, str(public.fileno()), str(file)],
            env=command.environment(**variables),
            pass_fds=[public.fileno()],
        )
        try:
            while b"READY=1" not in (await trio.to_thread.run_sync(notified.recv, 4096)).splitlines():
                pass  # what it waits for
            url = f"ws://127.0.0.1:{port}/ws"
            assert json.loads((file.parent / "state" / "broker.json").read_text())["ws"] == url
            async with websocket.connect(url, token=token(file)) as client:
                await client.subscribe("a")
            os.kill(process.pid, signal.SIGTERM)
            assert b"STOPPING=1" in await trio.to_thread.run_sync(notified.recv, 4096)
            assert await process.wait() == 0
        finally:
            process.kill()


async def test_watchdog(file: Path, nats: NatsServer) -> None:
    """It is fed while events can travel, and also while NATS is away."""
    address = file.parent / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(address))
        notified.settimeout(60)

        async def fed() -> None:
            while b"WATCHDOG=1" not in await trio.to_thread.run_sync(notified.recv, 4096):
                pass

        variables = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "60000000"}
        async with command.start("serve", "--config", file, **variables) as running:
            await running.until("ready", "stderr")
            await fed()
            await nats.kill9()
            await running.until("source_interrupted", "stderr")
            notified.setblocking(False)
            with suppress(BlockingIOError):
                while notified.recv(4096):
                    pass
            notified.settimeout(60)
            await fed()
            running.process.terminate()
            await running.end()
