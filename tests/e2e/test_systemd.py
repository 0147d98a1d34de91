"""Socket activation with systemd's own tool, and restarts that nobody notices."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from broker import config
from broker.auth import tokens
from tests.support import command, websocket
from tests.support.configured import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

PATIENCE_SECONDS = 60
TOML = """
server = {{admin_listen = "127.0.0.1:0", data_dir = "state"}}
nats = {{urls = ["{nats}"]}}
stream = {{max_bytes = "64MiB"}}
[[auth.keys]]
name = "main"
secret_file = "${{CREDENTIALS_DIRECTORY}}/signing"
tenants = ["acme"]
"""
# What systemd does between fork and exec.
STARTER = """
import os, sys
fd = int(sys.argv[1])
fd == 3 or os.dup2(fd, 3)
os.set_inheritable(3, True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.fixture
def file(tmp_path: Path, nats: NatsServer) -> Path:
    """A configuration whose secret is a credential, as LoadCredential= passes it."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "signing").write_text(secrets.token_hex(32))
    (credentials / "signing").chmod(0o400)
    credentials.chmod(0o500)
    path = tmp_path / "broker.toml"
    path.write_text(TOML.format(nats=nats.url))
    return path


def environment(file: Path, **variables: str) -> dict[str, str]:
    return command.environment(CREDENTIALS_DIRECTORY=str(file.parent / "credentials"), **variables)


def token(file: Path) -> str:
    auth = config.load(file, environment(file), production=True).auth
    return tokens.sign(auth, tenant="acme", user="alice", now=time.time(), ttl=3600)


@asynccontextmanager
async def process(arguments: list[str], **options: object) -> AsyncIterator[trio.Process]:
    async with trio.open_nursery() as nursery:
        opened: trio.Process = await nursery.start(
            partial(trio.run_process, arguments, check=False, **options)
        )
        try:
            yield opened
        finally:
            opened.kill()


async def ready(file: Path) -> str:
    """Where the broker is, once it is."""
    state = file.parent / "state" / "broker.json"
    with trio.fail_after(PATIENCE_SECONDS):
        while not (state.exists() and state.read_text().endswith("}")):
            await trio.sleep(0.02)
    address: str = json.loads(state.read_text())["ws"]
    return address


async def ended(running: trio.Process) -> int:
    with trio.fail_after(PATIENCE_SECONDS):
        return await running.wait()


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd is not installed here")
async def test_started_by_a_connection(file: Path, publisher: RawNats) -> None:
    """systemd-socket-activate holds the port; the client that wakes the broker is its first."""
    [port] = free_ports(1)
    variables = [f"--setenv={name}={value}" for name, value in environment(file).items() if name.isupper()]
    serve = [sys.executable, "-m", "broker", "serve", "--config", str(file)]
    tool = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", "--fdname=public", *variables, *serve]
    async with process(tool, stderr=subprocess.DEVNULL) as running:
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                try:
                    (await trio.open_tcp_stream("127.0.0.1", port)).socket.close()
                    break
                except OSError:
                    await trio.sleep(0.02)
        assert await ready(file) == f"ws://127.0.0.1:{port}/ws"
        async with websocket.connect(f"ws://127.0.0.1:{port}/ws", token=token(file)) as client:
            await client.subscribe("a")
            await publisher.store("events.acme.a", b"1")
            assert (await client.events(1))[0]["event"] == 1
        running.send_signal(signal.SIGTERM)
        assert await ended(running) == 0


async def test_a_restart_refuses_nobody(file: Path, publisher: RawNats) -> None:
    """Who comes while there is no broker waits, and is served by the next; who was there resumes."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        url = f"ws://127.0.0.1:{held.getsockname()[1]}/ws"
        serve = ["-m", "broker", "serve", "--config", str(file)]
        started = partial(
            process,
            [sys.executable, "-c", STARTER, str(held.fileno()), *serve],
            env=environment(file, LISTEN_FDS="1", LISTEN_FDNAMES="public"),
            pass_fds=[held.fileno()],
            stderr=subprocess.DEVNULL,
        )
        async with started() as running:
            assert await ready(file) == url
            async with websocket.connect(url, token=token(file)) as client:
                await client.subscribe("a")
                await publisher.store("events.acme.a", b"1")
                position = (await client.events(1))[0]["position"]
                running.send_signal(signal.SIGTERM)
                assert await client.closed() == 1012
            assert await ended(running) == 0
        await publisher.store("events.acme.a", b"2")
        async with trio.open_nursery() as nursery:

            async def come_back() -> None:
                async with websocket.connect(url, token=token(file)) as client:
                    while True:  # the first answers may be that NATS has not been reached yet
                        await client.send("subscribe", {"channel": "a", "position": position})
                        if (answer := await client.receive())["type"] == "subscribed":
                            break
                        assert answer["payload"]["retryable"]
                    assert answer["payload"]["recovered"]
                    assert [event["event"] for event in await client.events(1)] == [2]

            waiting = await trio.open_tcp_stream("127.0.0.1", held.getsockname()[1])
            async with waiting:
                await waiting.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                nursery.start_soon(come_back)
                async with started() as running:
                    with trio.fail_after(PATIENCE_SECONDS):
                        assert (await waiting.receive_some()).startswith(b"HTTP/1.1 200")
                    while nursery.child_tasks:
                        await trio.sleep(0.01)
                    running.send_signal(signal.SIGTERM)
                    assert await ended(running) == 0
