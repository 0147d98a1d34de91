"""A real nats-server for tests: a child on a free port with a store of its own, and ways to hurt it."""

from __future__ import annotations

import json
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker.bus.server import ended, find_binary, spawn
from tests.support import ports

if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import AsyncIterator

READY_SECONDS = 60


@attrs.define(eq=False, kw_only=True)
class NatsServer:
    """JetStream on loopback. It keeps its port and its store over restarts, and ends with the tests.

    Nobody else gets a port while it is down. With `port` -1 it takes another one.

    `options` are keys of its configuration file; after a change of them `reload` or `restart`. `prefix` is
    a command that runs it, by `exec`.
    """

    directory: Path
    options: dict[str, Any] = attrs.field(factory=dict)
    prefix: tuple[str, ...] = ()
    port: int = -1
    held: list[socket.socket] = attrs.field(factory=list)
    process: subprocess.Popen[bytes] = attrs.field(init=False)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def configure(self) -> None:
        settings = {
            "host": "127.0.0.1",
            "port": self.port,
            "server_name": "test",
            "jetstream": {"store_dir": str(self.directory / "store")},
            "ports_file_dir": str(self.directory),
            "log_file": str(self.directory / "nats-server.log"),
        }
        (self.directory / "nats.json").write_text(json.dumps(settings | self.options))

    async def start(self) -> None:
        """Starts it and waits until it takes connections."""
        for old in self.directory.glob("*.ports"):
            old.unlink()
        if self.port == -1:
            self.held.append(ports.hold())
            self.port = ports.number(self.held[-1])
        self.configure()
        self.process = spawn([*self.prefix, find_binary(), "--config", str(self.directory / "nats.json")])
        listening = self.directory / f"nats-server_{self.process.pid}.ports"
        with trio.fail_after(READY_SECONDS):
            while not (listening.exists() and listening.read_text().endswith("}")):
                assert self.process.poll() is None, f"see {self.directory}/nats-server.log"
                await trio.sleep(0.01)

    async def kill9(self) -> None:
        self.process.kill()
        await ended(self.process)

    async def term(self) -> None:
        self.process.terminate()
        await ended(self.process)

    def stop(self) -> None:
        """Stop it until `cont`; when this returns all of its threads stand still."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        while any(
            (each / "stat").read_text().rpartition(")")[2].split()[0] != "T" for each in tasks.iterdir()
        ):
            time.sleep(0.001)

    def cont(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def reload(self) -> None:
        """Has it read its configuration again; there is no sign of when it has."""
        self.configure()
        self.process.send_signal(signal.SIGHUP)

    async def restart(self) -> None:
        """kill -9, and up again on the same port and store."""
        await self.kill9()
        await self.start()


@asynccontextmanager
async def run_nats(
    directory: Path, *, prefix: tuple[str, ...] = (), **options: Any
) -> AsyncIterator[NatsServer]:
    """A server for the length of a block."""
    server = NatsServer(directory=directory, options=options, prefix=prefix)
    await server.start()
    try:
        yield server
    finally:
        with trio.CancelScope(shield=True):
            await server.kill9()
        for held in server.held:
            held.close()
