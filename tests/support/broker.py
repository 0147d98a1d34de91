"""A broker within the test's own process: the whole program on real sockets and a real nats-server.

What needs a process of its own (signals, crashes) starts one through the command line instead.
"""

from __future__ import annotations

import secrets
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker import app, config
from broker.auth import tokens
from tests.support import rawnats
from tests.support.websocket import Client, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

READY_SECONDS = 60


@attrs.define(eq=False, kw_only=True)
class Broker:
    """A running broker, and what a test needs to reach it."""

    config: config.Config
    running: app.Running
    stop: app.Stop

    def token(self, tenant: str = "acme", user: str = "alice", *, ttl: float = 3600, **claims: Any) -> str:
        return tokens.sign(self.config.auth, tenant=tenant, user=user, now=time.time(), ttl=ttl, **claims)

    def client(
        self,
        tenant: str = "acme",
        user: str = "alice",
        *,
        token: str | None = None,
        receive_buffer: int | None = None,
        **claims: Any,
    ) -> AbstractAsyncContextManager[Client]:
        """An authenticated WebSocket client."""
        token = token or self.token(tenant, user, **claims)
        return connect(self.running.ws, token=token, receive_buffer=receive_buffer)

    async def caught_up(self) -> None:
        """Return once the broker has read all that is stored now.

        NATS acknowledges before it delivers, and a subscription begins at what the broker has read.
        """
        async with rawnats.connect(self.config.nats.urls[0]) as nats, self.client(user="witness") as client:
            await client.passed((await nats.api("STREAM.INFO.EVENTS"))["state"]["last_seq"])

    def stranger(self) -> AbstractAsyncContextManager[Client]:
        """A WebSocket client without a token."""
        return connect(self.running.ws, token=None)


def configure(directory: Path, url: str, **sections: dict[str, Any]) -> config.Config:
    """A configuration for tests: free ports, one key for all tenants, sections as given."""
    directory.mkdir(exist_ok=True)
    key = directory / "key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_text(secrets.token_hex(32))
    basis = config.Config(
        server=config.Server(listen="127.0.0.1:0", admin_listen="127.0.0.1:0"),
        nats=config.Nats(urls=(url,)),
        stream=config.Stream(max_bytes=1 << 28),
        auth=config.Auth(keys=(config.Key(name="test", secret_file=key, tenants=("*",), monitoring=True),)),
        permissions=config.Permissions(publish=(">", "live.>")),
        limits=config.Limits(connections_per_user=1000),
    )
    changed = {name: attrs.evolve(getattr(basis, name), **values) for name, values in sections.items()}
    return attrs.evolve(basis, **changed)


@asynccontextmanager
async def run_broker(directory: Path, settings: config.Config) -> AsyncIterator[Broker]:
    """A broker over `directory`, drained at the end."""
    send, receive = trio.open_memory_channel[app.Running](1)
    stop = app.Stop()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(app.serve, settings, data_dir=directory, on_ready=send.send_nowait, stop=stop)
        )
        with trio.fail_after(READY_SECONDS):
            running = await receive.receive()
        try:
            yield Broker(config=settings, running=running, stop=stop)
        finally:
            stop.wanted.set()
