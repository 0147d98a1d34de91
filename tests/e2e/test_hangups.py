"""SIGHUP at the wrong time: before the broker is ready, before it listens, and while it stops."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import trio

from tests.support import command
from tests.support.notified import manager

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.notified import Notified

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


async def told(systemd: Notified) -> list[str]:
    """What the next message is about, but for the watchdog's and for what the broker waits for."""
    while not (names := [*await systemd.next()]) or names in (["WATCHDOG"], ["STATUS"]):
        pass
    return names


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
        async with command.start("serve", "--config", file, NOTIFY_SOCKET=systemd.address) as running:
            await running.until("nats_unreachable", "stderr")
            running.process.send_signal(signal.SIGHUP)
            running.process.send_signal(signal.SIGHUP)
            await nats.start()
            assert await told(systemd) == ["READY", "STATUS"]
            assert await told(systemd) == ["RELOADING", "MONOTONIC_USEC"]
            assert await told(systemd) == ["READY"]
            assert json.loads(await running.until("reload", "stderr"))["event"] == "reloaded"


async def test_before_it_listens(file: Path) -> None:
    """A signal while the configuration is read for the first time ends nothing and is not forgotten."""
    text = file.read_text()
    file.unlink()
    os.mkfifo(file)
    with manager(file.parent) as systemd:
        async with command.start("serve", "--config", file, NOTIFY_SOCKET=systemd.address) as running:
            # Opens when the broker does, which then waits for what the file says.
            pipe = await trio.to_thread.run_sync(lambda: file.open("w"))
            running.process.send_signal(signal.SIGHUP)
            file.unlink()
            file.write_text(text)
            pipe.write(text)
            pipe.close()
            assert await told(systemd) == ["READY", "STATUS"]
            assert await told(systemd) == ["RELOADING", "MONOTONIC_USEC"]
            assert await told(systemd) == ["READY"]
            await running.until("reloaded", "stderr")


async def test_while_it_stops(file: Path) -> None:
    """STOPPING is the last word, and the process ends as it would have."""
    with manager(file.parent) as systemd:
        async with command.start("serve", "--config", file, NOTIFY_SOCKET=systemd.address) as running:
            assert await told(systemd) == ["READY", "STATUS"]
            url = urlsplit(json.loads((file.parent / "state" / "broker.json").read_text())["ws"])
            # A client that does not answer the Close is waited for, so that there is time.
            async with await trio.open_tcp_stream(url.hostname or "", url.port or 0) as client:
                await client.send_all(HANDSHAKE.format(host=url.netloc).encode())
                assert b"101" in await client.receive_some()
                running.process.terminate()
                assert (await told(systemd))[0] == "STOPPING"
                running.process.send_signal(signal.SIGHUP)
                assert await running.end() == 0
            assert [message for message in systemd.waiting() if message != {"WATCHDOG": "1"}] == []
