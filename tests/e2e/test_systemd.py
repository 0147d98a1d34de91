"""`broker serve` under systemd's own tools: passed sockets, notification, watchdog, credentials."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from broker import config
from broker.auth import tokens
from tests.support import command, websocket
from tests.support.notified import Notified, manager
from tests.support.raw import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

PATIENCE_SECONDS = 60
ACTIVATE = shutil.which("systemd-socket-activate")
# systemd keeps the sockets; here the test does, and the tool passes on what it is given as it gives it.
HOLD = 'fd=$1; shift; [ "$fd" = 3 ] || exec 3<&"$fd"; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
TEMPLATE = """
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
data_dir = "state"
[nats]
urls = ["{nats}"]
[stream]
max_bytes = "64MiB"
[drain]
grace_seconds = 100
[log]
format = "json"
[[auth.keys]]
name = "main"
secret_file = "${{CREDENTIALS_DIRECTORY}}/signing"
tenants = ["acme"]
"""


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """As LoadCredential= leaves them: files for their owner alone to read."""
    directory = tmp_path / "credentials"
    directory.mkdir(mode=0o500)
    directory.chmod(0o700)
    (directory / "signing").write_text("0123456789abcdef" * 4)
    (directory / "signing").chmod(0o400)
    directory.chmod(0o500)
    return directory


@pytest.fixture
def file(tmp_path: Path, nats: NatsServer, credentials: Path) -> Path:
    path = tmp_path / "broker.toml"
    path.write_text(TEMPLATE.format(nats=nats.url))
    return path


@pytest.fixture
def variables(credentials: Path) -> dict[str, str]:
    """What systemd sets for the service."""
    return {"CREDENTIALS_DIRECTORY": str(credentials)}


def token(file: Path, variables: dict[str, str]) -> str:
    auth = config.load(file, variables, production=True).auth
    return tokens.sign(auth, tenant="acme", user="alice", now=time.time(), ttl=3600)


@asynccontextmanager
async def activated(
    public: socket.socket, file: Path, told: Notified, variables: dict[str, str]
) -> AsyncIterator[trio.Process]:
    """The service behind its socket; it runs once somebody connects."""
    assert ACTIVATE
    words = [ACTIVATE, "--fdname=public", "-E", "CREDENTIALS_DIRECTORY", "-E", "PYTHONSAFEPATH"]
    words += ["-E", f"NOTIFY_SOCKET={told.address}"]
    words += [*command.COMMAND, "serve", "--config", str(file)]
    process = await trio.lowlevel.open_process(
        ["bash", "-c", HOLD, "hold", str(public.fileno()), *words],
        env=command.environment(**variables),
        pass_fds=[public.fileno()],
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def started(file: Path, told: Notified, variables: dict[str, str]) -> AsyncIterator[command.Running]:
    """The service without a socket, once it is ready."""
    variables = variables | {"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": "60000000"}
    async with command.start("serve", "--config", file, **variables) as running:
        message = await told.until("READY")
        assert message["STATUS"].startswith("serving ws://127.0.0.1:")
        yield running


@pytest.mark.skipif(ACTIVATE is None, reason="systemd is not installed here")
async def test_a_restart_refuses_nobody(
    file: Path, tmp_path: Path, publisher: RawNats, variables: dict[str, str]
) -> None:
    """Who connects while no broker runs waits, and is served by the next one: at the start, at a restart.

    Also who gives up at the first 503, as `EventSource` does.
    """
    with manager(tmp_path) as told, socket.create_server(("127.0.0.1", 0)) as public:
        port = public.getsockname()[1]
        for number in range(2):
            early = await trio.open_tcp_stream("127.0.0.1", port)  # the kernel takes it
            head = f"Host: localhost\r\nAuthorization: Bearer {token(file, variables)}"
            await early.send_all(f"GET /sse?channel=a HTTP/1.1\r\n{head}\r\n\r\n".encode())
            async with activated(public, file, told, variables) as process:
                with trio.fail_after(PATIENCE_SECONDS):
                    assert (await early.receive_some()).startswith(b"HTTP/1.1 200 ")
                await early.aclose()
                await told.until("READY")
                url = f"ws://127.0.0.1:{port}/ws"
                assert json.loads((tmp_path / "state" / "broker.json").read_text())["ws"] == url
                async with websocket.connect(url, token=token(file, variables)) as client:
                    await client.subscribe("a")
                    await publisher.store("events.acme.a", b"%d" % number)
                    assert (await client.expect("event"))["event"] == number
                process.terminate()
                await told.until("STOPPING")
                with trio.fail_after(PATIENCE_SECONDS):
                    assert await process.wait() == 0


async def test_what_systemd_hears(file: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    """READY, RELOADING with the time and READY again, STOPPING with the time that the drain may take."""
    with manager(tmp_path) as told:
        async with started(file, told, variables) as running:
            for text in (file.read_text(), "]"):
                file.write_text(text)
                before = time.monotonic_ns() // 1000
                running.process.send_signal(signal.SIGHUP)
                reloading = await told.until("RELOADING")
                assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
                await told.until("READY")
            running.process.terminate()
            stopping = await told.until("STOPPING")
            assert stopping["STATUS"] == "draining 0 connections"
            assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 100 * 1_000_000
            assert await running.end() == 0


async def test_waiting_for_nats(
    file: Path, tmp_path: Path, nats: NatsServer, variables: dict[str, str]
) -> None:
    """While NATS is away it is not ready, and `systemctl status` says what it waits for."""
    await nats.kill9()
    with manager(tmp_path) as told:
        variables = variables | {"NOTIFY_SOCKET": told.address}
        async with command.start("serve", "--config", file, **variables):
            message = await told.next()
            assert message["STATUS"].startswith("waiting: ")
            assert "READY" not in message
            await nats.start()
            await told.until("READY")


@pytest.mark.skipif(ACTIVATE is None, reason="systemd is not installed here")
async def test_without_nats_clients_do_not_wait_for_it(
    file: Path, tmp_path: Path, nats: NatsServer, variables: dict[str, str]
) -> None:
    """The public port is opened without NATS too, and says what is wrong."""
    await nats.kill9()
    with manager(tmp_path) as told, socket.create_server(("127.0.0.1", 0)) as public:
        port = public.getsockname()[1]
        early = await trio.open_tcp_stream("127.0.0.1", port)
        await early.send_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with activated(public, file, told, variables):
            with trio.fail_after(PATIENCE_SECONDS):
                assert (await early.receive_some()).startswith(b"HTTP/1.1 503 ")
        await early.aclose()


async def test_the_watchdog_is_fed_by_the_canary(
    file: Path, tmp_path: Path, publisher: RawNats, variables: dict[str, str]
) -> None:
    """Not by a timer: when canaries are stored and do not come back, nobody says that all is well."""

    async def republish(place: str) -> None:
        found = (await publisher.api("STREAM.INFO.BROKER"))["config"]
        change = {"republish": found["republish"] | {"dest": place}}
        answer = await publisher.api("STREAM.UPDATE.BROKER", **found | change)
        assert "error" not in answer

    async def canaries() -> int:
        state = (await publisher.api("STREAM.INFO.BROKER"))["state"]
        last: int = state["last_seq"]
        return last

    async def until_ready(wanted: int) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while (await ask(http, "/readyz")).status != wanted:
                await trio.sleep(0.05)

    with manager(tmp_path) as told:
        async with started(file, told, variables):
            http = json.loads((tmp_path / "state" / "broker.json").read_text())["http"]
            await told.until("WATCHDOG")
            await republish("_broker.lost.{{wildcard(1)}}")
            await until_ready(503)
            told.waiting()
            seen = await canaries()
            with trio.fail_after(PATIENCE_SECONDS):
                while await canaries() < seen + 2:
                    await trio.sleep(0.05)
            assert told.waiting() == []
            await republish("_broker.seen.{{wildcard(1)}}")
            await told.until("WATCHDOG")
            await until_ready(200)
