"""A whole broker over a nats-server of its own, with one key set, for one look at it."""

from __future__ import annotations

import copy
import json
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import tomlkit
import trio

from broker import app, config
from broker.errors import BrokerError, ConfigError
from tests.support import broker as support
from tests.support import command, rawnats
from tests.support.nats import run_nats
from tests.support.ports import held_ports
from tests.support.raw import open_raw
from tests.web.harness import head

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    import pytest

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client

T = TypeVar("T")
UNSET: Any = object()  # the key as `BASIS` or its default has it
READY_SECONDS = 60
BASIS: dict[str, dict[str, Any]] = {
    "server": {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"},
    "stream": {"max_bytes": "64MiB"},
    "auth": {"keys": [{"name": "test", "secret_file": "FILES/secret", "tenants": ["*"], "monitoring": True}]},
    "permissions": {"publish": [">", "live.>"]},
}


@attrs.define(eq=False, kw_only=True)
class World:
    """A broker and its surroundings.

    `patience` is in seconds: long where something is to come, short where it is to stay away.
    """

    directory: Path
    files: Path
    patience: float
    patch: pytest.MonkeyPatch
    nats: NatsServer
    port: int  # that nobody uses, "PORT" in the values of a row
    settings: config.Config
    nursery: trio.Nursery
    stack: AsyncExitStack
    stop: app.Stop = attrs.Factory(app.Stop)
    ended: trio.Event = attrs.Factory(trio.Event)
    ready: trio.Event = attrs.Factory(trio.Event)
    running: app.Running = attrs.field(init=False)
    publisher: RawNats = attrs.field(init=False)
    process: command.Running = attrs.field(init=False)

    @property
    def broker(self) -> support.Broker:
        return support.Broker(config=self.settings, running=self.running, stop=self.stop)

    async def serve(self) -> None:
        """Run the broker until it ends."""
        try:
            await app.serve(
                self.settings, data_dir=self.directory / "state", on_ready=self.begun, stop=self.stop
            )
        except* (BrokerError, ConfigError):
            pass
        finally:
            self.ended.set()

    async def listen(self, serve: Callable[[trio.SocketStream], Awaitable[object]]) -> None:
        """Serve what connects to the port."""
        await self.nursery.start(partial(trio.serve_tcp, serve, self.port, host="127.0.0.1"))

    def begun(self, running: app.Running) -> None:
        self.running = running
        self.ready.set()

    async def within(self, wait: Callable[[], Awaitable[T]]) -> T | None:
        """Return what comes, or None if it has not come when patience ends."""
        with trio.move_on_after(self.patience):
            return await wait()
        return None

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> bool:
        """Return whether a condition comes true."""
        with trio.move_on_after(self.patience):
            while not await condition():
                await trio.sleep(0.02)
            return True
        return False

    async def client(self, tenant: str = "acme", user: str = "alice", **claims: Any) -> Client:
        """Return a WebSocket client that stays until the end."""
        return await self.stack.enter_async_context(self.broker.client(tenant, user, **claims))

    async def opening(self, target: str = "/ws", **headers: Any) -> int:
        """Return the status of an upgrade; the link stays."""
        raw = await self.stack.enter_async_context(open_raw(self.running.http))
        await raw.send(head(target, **headers))
        received = b""
        while b"\r\n" not in received:
            data = await raw.stream.receive_some()
            if not data:
                return 0
            received += data
        return int(received.split()[1])


@attrs.frozen(kw_only=True)
class Row:
    """A key with two values, and how to look at the difference."""

    key: str
    value: Any
    basis: Any = UNSET
    see: Callable[[World], Awaitable[object]]
    beside: Mapping[str, Any]
    nats: Mapping[str, Any]
    how: str  # "ready", "starting" or "process"

    def tables(self, value: Any, files: Path, url: str, port: int) -> dict[str, Any]:
        """Return the configuration with one of the values."""
        tables = copy.deepcopy(BASIS) | {"nats": {"urls": [url]}}
        for key, each in (*self.beside.items(), (self.key, value)):
            if each is not UNSET:
                put(tables, key.split("."), copy.deepcopy(each))
        text = json.dumps(tables).replace("FILES", str(files)).replace("PORT", str(port))
        filled: dict[str, Any] = json.loads(text)
        return filled


def put(table: Any, path: list[str], value: Any) -> None:
    """Set a key in tables and lists of tables; None removes it."""
    for name in path[:-1]:
        if isinstance(table, list):
            table += [{}] * (int(name) + 1 - len(table))
            table = table[int(name)]
        else:
            table = table.setdefault(name, [] if name in ("tenants", "keys", "documents") else {})
    if value is None:
        table.pop(path[-1], None)
    else:
        table[path[-1]] = value


ROWS: list[Row] = []


def row(
    key: str,
    value: Any,
    *,
    basis: Any = UNSET,
    beside: Mapping[str, Any] | None = None,
    nats: Mapping[str, Any] | None = None,
    how: str = "ready",
) -> Callable[[Any], Any]:
    """Have a function look at a broker with `value` under a key, and at one with `basis`.

    `how` says when it looks: once the broker is "ready", while it is "starting", which may fail, or at
    `broker serve` in a "process" of its own. `nats` are keys of the nats-server's own configuration.
    """

    def register(see: Callable[[World], Awaitable[object]]) -> Callable[[World], Awaitable[object]]:
        ROWS.append(
            Row(key=key, value=value, basis=basis, see=see, beside=beside or {}, nats=nats or {}, how=how)
        )
        return see

    return register


async def look(
    row: Row, value: Any, directory: Path, files: Path, patience: float, patch: pytest.MonkeyPatch
) -> object:
    """Return what is to be seen of a broker with a value under the row's key."""
    directory.mkdir()
    (directory / "nats").mkdir()
    options = json.loads(json.dumps(dict(row.nats)).replace("FILES", str(files)))
    async with (
        run_nats(directory / "nats", **options) as nats,
        trio.open_nursery() as nursery,
        AsyncExitStack() as stack,
    ):
        (port,) = stack.enter_context(held_ports())
        tables = row.tables(value, files, nats.url, port)
        try:
            settings = config.build(tables, {}, production=False)
        except ConfigError:
            if row.how != "starting":
                raise
            return "no configuration"
        world = World(
            directory=directory,
            files=files,
            patience=patience,
            patch=patch,
            nats=nats,
            port=port,
            settings=settings,
            nursery=nursery,
            stack=stack,
        )
        if not ({"authorization", "tls", "operator"} & options.keys()):
            world.publisher = await stack.enter_async_context(rawnats.connect(nats.url))
        if row.how == "process":
            tables["server"].setdefault("data_dir", str(directory / "state"))
            file = directory / "broker.toml"
            file.write_text(tomlkit.dumps(tables))
            world.process = await stack.enter_async_context(command.start("serve", "--config", file))
        elif row.how == "ready":
            nursery.start_soon(world.serve)
            with trio.fail_after(READY_SECONDS):
                await world.ready.wait()
        seen = await row.see(world)
        nursery.cancel_scope.cancel()
    return seen
