"""SIGHUP at the wrong time: before the broker is ready, before it listens, and while it stops."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs
import pytest
import trio

from tests.support import command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.nats import NatsServer

SECRET = "0123456789abcdef" * 4
TEMPLATE = """
server = {{listen = "127.0.0.1:0", admin_listen = "127.0.0.1:0", data_dir = "state"}}
nats = {{urls = ["{nats}"]}}
stream = {{max_bytes = "64MiB"}}
auth = {{keys = [{{name = "main", secret_file = "secret", tenants = ["acme"]}}]}}
log = {{format = "json"}}
"""
HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


@attrs.define(eq=False)
class Manager:
    """What systemd would hear."""

    address: Path
    socket: socket.socket

    async def next(self) -> list[str]:
        """The next message, but for the watchdog's."""
        while True:
            message = await trio.to_thread.run_sync(self.socket.recv, 4096)
            if message != b"WATCHDOG=1":
                return [line.partition("=")[0] for line in message.decode().splitlines()]

    def rest(self) -> list[str]:
        self.socket.setblocking(False)
        found = []
        try:
            while True:
                found.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return found


@contextmanager
def manager(directory: Path) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(directory / "notify"))
        listening.settimeout(60)
        yield Manager(directory / "notify", listening)


@pytest.fixture
def file(tmp_path: Path, nats: NatsServer) -> Path:
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text(SECRET)
    path = tmp_path / "broker.toml"
    path.write_text(TEMPLATE.format(nats=nats.url))
    return path


async def test_before_it_is_ready(file: Path, nats: NatsServer) -> None:
    """The first READY is still that of the start; the reload follows it."""
    await nats.kill9()
    with manager(file.parent) as systemd:
        async with command.start("serve", "--config", file, NOTIFY_SOCKET=str(systemd.address)) as running:
            await running.until("nats_unreachable", "stderr")
            running.process.send_signal(signal.SIGHUP)
            running.process.send_signal(signal.SIGHUP)
            await nats.start()
            assert await systemd.next() == ["READY", "STATUS"]
            assert await systemd.next() == ["RELOADING", "MONOTONIC_USEC"]
            assert await systemd.next() == ["READY"]
            assert json.loads(await running.until("reload", "stderr"))["event"] == "reloaded"


async def test_before_it_listens(file: Path) -> None:
    """A signal while the configuration is read for the first time ends nothing and is not forgotten."""
    text = file.read_text()
    file.unlink()
    os.mkfifo(file)
    with manager(file.parent) as systemd:
        async with command.start("serve", "--config", file, NOTIFY_SOCKET=str(systemd.address)) as running:
            # Opens when the broker does, which then waits for what the file says.
            pipe = await trio.to_thread.run_sync(lambda: file.open("w"))
            running.process.send_signal(signal.SIGHUP)
            file.unlink()
            file.write_text(text)
            pipe.write(text)
            pipe.close()
            assert await systemd.next() == ["READY", "STATUS"]
            assert await systemd.next() == ["RELOADING", "MONOTONIC_USEC"]
            assert await systemd.next() == ["READY"]
            await running.until("reloaded", "stderr")


async def test_while_it_stops(file: Path) -> None:
    """STOPPING is the last word, and the process ends as it would have."""
    with manager(file.parent) as systemd:
        async with command.start("serve", "--config", file, NOTIFY_SOCKET=str(systemd.address)) as running:
            assert await systemd.next() == ["READY", "STATUS"]
            url = urlsplit(json.loads((file.parent / "state" / "broker.json").read_text())["ws"])
            # A client that does not answer the Close is waited for, so that there is time.
            async with await trio.open_tcp_stream(url.hostname or "", url.port or 0) as client:
                await client.send_all(HANDSHAKE.format(host=url.netloc).encode())
                assert b"101" in await client.receive_some()
                running.process.terminate()
                assert await systemd.next() == ["STOPPING"]
                running.process.send_signal(signal.SIGHUP)
                assert await running.end() == 0
            assert [message for message in systemd.rest() if message != "WATCHDOG=1"] == []
