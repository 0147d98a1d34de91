"""However a link to NATS ends, its socket is closed, and asyncio waits for it no more."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme

from broker import config
from broker.bus.bridge import Link, links, open_link, open_loop
from broker.errors import Unavailable
from tests.support.bus import PATIENCE_SECONDS
from tests.support.nats import run_nats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Serve = Callable[[trio.SocketStream], Awaitable[None]]

PAYLOAD = bytes(1 << 19)
INFO = {"server_id": "x", "version": "2.12.0", "headers": True, "max_payload": 1 << 20, "proto": 1}
GREETING = b"INFO " + json.dumps(INFO).encode() + b"\r\n"


def sockets() -> set[str]:
    """Those that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of this very listing
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {name for name in found if name.startswith("socket:")}


def waiting() -> int:
    """For how many ends of sockets asyncio waits."""
    count, tasks = 0, [trio.lowlevel.current_root_task()]
    while tasks:
        if task := tasks.pop():
            count += task.name.endswith("._io_task")
            tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return count


async def gone(before: set[str], peers: int = 0) -> None:
    """Wait until no socket is new, but those of peers in this process."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while len(sockets() - before) != peers or waiting():
            await trio.sleep(0.01)
    assert (len(sockets() - before), waiting()) == (peers, 0)
    assert not links.get(asyncio.get_running_loop())


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    """The address of a server that does this with each connection."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"nats://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def greet(stream: trio.SocketStream, answer: bytes = b"PONG\r\n") -> None:
    """Log a client in."""
    await stream.send_all(GREETING)
    said = bytearray()
    while b"PING\r\n" not in said:
        data = await stream.receive_some()
        if not data:
            raise EOFError
        said += data
    await stream.send_all(answer)


@asynccontextmanager
async def full(link: Link) -> AsyncIterator[None]:
    """Within it there is more to be written to a link than its peer takes."""

    async def write() -> None:
        with suppress(Unavailable):
            while True:
                await link.send("nobody.at.all", PAYLOAD)
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        with trio.fail_after(PATIENCE_SECONDS):
            while not link.writer.transport.get_write_buffer_size():
                await trio.sleep(0.01)
        yield


def certified(directory: Path) -> tuple[dict[str, Any], config.Nats]:
    """Options of a server with TLS, and the section of whoever connects to it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    ca, certificate, key = (directory / name for name in ("ca", "certificate", "key"))
    authority.cert_pem.write_to_path(ca)
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return {"tls": {"cert_file": str(certificate), "key_file": str(key)}}, config.Nats(tls_ca=ca)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_server_that_reads_no_more(tmp_path: Path, tls: bool, killed: bool) -> None:
    """It hangs, or is killed, in the middle of a large write."""
    options, section = certified(tmp_path) if tls else ({}, config.Nats())
    async with run_nats(tmp_path, **options) as nats, open_loop():
        before = sockets()
        link = await open_link(nats.url, section, on_lost=lambda: None)
        nats.stop()
        async with full(link):
            if killed:
                await nats.kill9()
            await link.close()
        await gone(before)


async def test_a_peer_that_closes_its_side_and_reads_no_more() -> None:
    """The client library then begins to close the link by itself, and never comes to an end."""
    close = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        await close.wait()
        await stream.send_eof()
        await trio.sleep_forever()

    async with open_loop(), serving(serve) as url:
        before = sockets()
        link = await open_link(url, config.Nats(), on_lost=lambda: None)
        async with full(link):
            close.set()
            with trio.fail_after(PATIENCE_SECONDS):
                while not link.client.is_closed:
                    await trio.sleep(0.01)
            await link.close()
        await gone(before, peers=1)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"PONG\r\n-ERR 'maximum subscriptions exceeded'\r\n", "maximum subscriptions"),
        (b"-ERR 'Authorization Violation'\r\n", "Authorization Violation"),
    ],
)
async def test_a_refusal_at_the_door(answer: bytes, cause: str) -> None:
    """The server refuses while the link is being opened, and leaves it to us to close it."""

    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream, answer)
        await trio.sleep_forever()

    async with open_loop(), serving(serve) as url:
        before = sockets()
        with pytest.raises(Unavailable, match=cause):
            await open_link(url, config.Nats(), on_lost=lambda: None)
        await gone(before, peers=1)


@pytest.mark.parametrize("said", [b"", GREETING], ids=["nothing", "greeting"])
async def test_a_peer_that_falls_silent(said: bytes) -> None:
    """It takes the connection, and says nothing or no more than its greeting."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(said)
        await trio.sleep_forever()

    async with open_loop(), serving(serve) as url:
        before = sockets()
        with pytest.raises(Unavailable):
            await open_link(url, config.Nats(), on_lost=lambda: None)
        await gone(before, peers=1)


async def test_cancelled_at_any_step() -> None:
    """Whoever opens a link is cancelled, each time a step of the loop later, until the link is open first."""
    opened = 0

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, EOFError):
            await greet(stream)
            async for _ in stream:
                pass

    async def connect(url: str, scope: trio.CancelScope) -> None:
        nonlocal opened
        link = await open_link(url, config.Nats(), on_lost=lambda: None)
        opened += 1
        await link.close()
        scope.cancel()

    async with open_loop(), serving(serve) as url:
        before = sockets()
        for step in count():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect, url, nursery.cancel_scope)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            await gone(before)
            if opened == 3:
                break


async def test_a_file_that_is_missing(tmp_path: Path) -> None:
    """A link that cannot even be asked to connect is closed all the same."""
    async with open_loop():
        before = sockets()
        with pytest.raises(Unavailable, match="No such file"):
            await open_link("h:1", config.Nats(password_file=tmp_path / "gone"), on_lost=lambda: None)
        await gone(before)
