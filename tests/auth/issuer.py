"""A real HTTP server on loopback that publishes keys, well or badly."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import attrs
import trio

Answer: TypeAlias = Callable[[trio.abc.Stream], Awaitable[None]]


@attrs.define(eq=False)
class Issuer:
    """Counts requests and gives `answer` to each; `held` requests wait until it is lifted."""

    answer: Answer
    port: int = 0
    requests: list[bytes] = attrs.field(factory=list)
    gate: trio.Event | None = None
    asked: trio.Event = attrs.field(factory=trio.Event)

    async def serve(self, stream: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError):  # the broker leaves as soon as it knows enough
            head = b""
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some(4096)
                if not data:
                    return
                head += bytes(data)
            self.requests.append(head)
            self.asked.set()
            self.asked = trio.Event()
            if self.gate is not None:
                await self.gate.wait()
            await self.answer(stream)
            await stream.aclose()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jwks?v=1"

    def publish(self, *keys: dict[str, Any]) -> None:
        self.answer = key_set(*keys)


def key_set(*keys: dict[str, Any]) -> Answer:
    return document({"keys": list(keys)})


def response(status: str, body: bytes, *headers: str, length: int | None = None) -> Answer:
    async def answer(stream: trio.abc.Stream) -> None:
        size = len(body) if length is None else length
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", "Connection: close", *headers, "", ""]
        await stream.send_all("\r\n".join(lines).encode() + body)

    return answer


def document(value: object) -> Answer:
    return response("200 OK", json.dumps(value).encode(), "Content-Type: application/json")


def raw(data: bytes) -> Answer:
    async def answer(stream: trio.abc.Stream) -> None:
        await stream.send_all(data)

    return answer


async def silence(stream: trio.abc.Stream) -> None:
    """No answer, for as long as the other side waits."""
    await stream.receive_some(1)


async def trickle(stream: trio.abc.Stream) -> None:
    """An answer that comes byte by byte and never ends."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await stream.send_all(b" ")
        await trio.sleep(0.01)


async def endless(stream: trio.abc.Stream) -> None:
    """An answer without an end, as fast as it goes."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(math.ceil(1_000_000 / 4096)):
        await stream.send_all(b" " * 4096)
