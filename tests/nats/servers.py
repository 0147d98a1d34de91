"""Servers that say what a test has them say, and the sockets of this process."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import trio

from broker.nats.login import Server
from tests.support.bus import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Serve = Callable[[trio.SocketStream], Awaitable[object]]

INFO = {"server_id": "x", "version": "2.12.0", "headers": True, "max_payload": 1 << 20, "proto": 1}


def info(**fields: Any) -> bytes:
    """An INFO with other fields than the usual ones."""
    return b"INFO " + json.dumps(INFO | fields).encode() + b"\r\n"


async def greet(stream: trio.SocketStream, answer: bytes = b"PONG\r\n", **fields: Any) -> bytes:
    """Log a client in; return what it said."""
    await stream.send_all(info(**fields))
    said = bytearray()
    while b"PING\r\n" not in said:
        data = await stream.receive_some()
        if not data:
            raise EOFError
        said += data
    await stream.send_all(answer)
    return bytes(said)


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[Server]:
    """A server that does this with each connection."""

    async def each(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, EOFError):
            await serve(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, each, [listener])
        yield Server.parse(f"nats://127.0.0.1:{listener.socket.getsockname()[1]}")
        nursery.cancel_scope.cancel()


def sockets() -> set[str]:
    """Those that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of this very listing
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {name for name in found if name.startswith("socket:")}


async def gone(before: set[str], peers: int = 0) -> None:
    """Wait until no socket is new, but those of peers in this process."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while len(sockets() - before) != peers:
            await trio.sleep(0.01)
    assert len(sockets() - before) == peers
