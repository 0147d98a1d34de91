"""A TCP proxy that misbehaves as it is told."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

QUEUED = 64  # chunks on their way: with a latency many are under way at once
LINGER_NOT = struct.pack("ii", 1, 0)  # close(2) then resets the connection


@attrs.define(eq=False)
class Gate:
    """Lets one direction pass, or swallows it: what waits then comes when it opens, as TCP would."""

    opened: trio.Event = attrs.field(factory=trio.Event)

    def open(self) -> None:
        self.opened.set()

    def shut(self) -> None:
        self.opened = trio.Event()

    async def passed(self) -> None:
        while not self.opened.is_set():
            await self.opened.wait()


def open_gate() -> Gate:
    gate = Gate()
    gate.open()
    return gate


@attrs.define(eq=False)
class Proxy:
    """Stands before the port that `target` says when a link is opened.

    Its toxics may be changed at any time and hold for the links that exist as well. `latency` is in seconds
    and `bandwidth` in bytes a second, each way; `slices` is how many bytes are passed on at a time; after
    `budget` further bytes, both ways together, all links are reset; while `down` is set new links are.
    `forth` and `back` are gates: both shut make a black hole. `rewrite` changes what goes to the target.
    """

    target: Callable[[], int]
    latency: float = 0.0
    bandwidth: float = math.inf
    slices: int = 65536
    budget: float = math.inf
    down: bool = False
    rewrite: Callable[[bytes], bytes] | None = None
    forth: Gate = attrs.field(factory=open_gate)
    back: Gate = attrs.field(factory=open_gate)
    port: int = 0
    links: set[trio.SocketStream] = attrs.field(factory=set)  # both ends of each
    opened: int = 0  # links so far

    def black_hole(self) -> None:
        self.forth.shut()
        self.back.shut()

    def heal(self) -> None:
        """Takes all toxics away."""
        self.latency, self.bandwidth, self.slices, self.budget = 0.0, math.inf, 65536, math.inf
        self.down, self.rewrite = False, None
        self.forth.open()
        self.back.open()

    def reset(self) -> None:
        """Cuts all links, with a reset."""
        for stream in tuple(self.links):
            cut(stream)

    async def handle(self, near: trio.SocketStream) -> None:
        if self.down:
            cut(near)
            return
        await self.forth.passed()
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self.target())
        except OSError:
            cut(near)
            return
        self.opened += 1
        self.links |= {near, far}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.pump, near, far, self.forth)
                nursery.start_soon(self.pump, far, near, self.back)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.links -= {near, far}
            cut(near)
            cut(far)

    async def pump(self, source: trio.SocketStream, sink: trio.SocketStream, gate: Gate) -> None:
        send, receive = trio.open_memory_channel[tuple[float, bytes]](QUEUED)

        async def take() -> None:
            async with send:
                async for data in source:
                    await send.send((trio.current_time() + self.latency, bytes(data)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            async for due, data in receive:
                await trio.sleep_until(due)
                changed = self.rewrite(data) if self.rewrite and gate is self.forth else data
                await self.pass_on(changed, sink, gate)
            await gate.passed()
            with contextlib.suppress(trio.BrokenResourceError):
                await sink.send_eof()

    async def pass_on(self, data: bytes, sink: trio.SocketStream, gate: Gate) -> None:
        while data:
            await gate.passed()
            piece = data[: self.slices]
            data = data[len(piece) :]
            if len(piece) > self.budget:
                await sink.send_all(piece[: int(self.budget)])
                self.budget = math.inf
                self.reset()
                return
            self.budget -= len(piece)
            await sink.send_all(piece)
            if self.bandwidth < math.inf:
                await trio.sleep(len(piece) / self.bandwidth)


def cut(stream: trio.SocketStream) -> None:
    with contextlib.suppress(OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    stream.socket.close()


@asynccontextmanager
async def run_proxy(target: Callable[[], int]) -> AsyncIterator[Proxy]:
    """A proxy on a free port for the length of a block."""
    proxy = Proxy(target)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.handle, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
