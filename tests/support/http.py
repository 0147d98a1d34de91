"""A request to the public port as a program would make it, with one answer."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECONDS = 45.0  # a bound for what must come; nothing is measured by it


@attrs.frozen(kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json", self
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        return document


def request(
    url: str,
    method: str,
    target: str,
    *,
    token: str | None = None,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    """A request as bytes."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {urlsplit(url).netloc}"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += [f"Content-Length: {len(body)}"] if body is not None else []
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "\r\n"]).encode() + (body or b"")


@asynccontextmanager
async def opened(
    url: str, request: bytes, *, receive_buffer: int | None = None
) -> AsyncIterator[trio.SocketStream]:
    """A link on which a request has been sent.

    With a small `receive_buffer` (bytes) what the client does not read waits at the broker.
    """
    parts = urlsplit(url)
    socket = trio.socket.socket()
    if receive_buffer is not None:
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
    await socket.connect((parts.hostname, parts.port))
    stream = trio.SocketStream(socket)
    try:
        await stream.send_all(request)
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


def parsed(head: bytes) -> tuple[int, dict[str, str]]:
    line, *lines = head.decode("ascii").split("\r\n")
    pairs = (each.split(": ", 1) for each in lines)
    return int(line.split(" ")[1]), {name.lower(): value for name, value in pairs}


async def ask(url: str, method: str, target: str, **options: Any) -> Answer:
    """The whole answer; `json` is a body."""
    if "json" in options:
        options["body"] = json.dumps(options.pop("json")).encode()
    received = b""
    with trio.fail_after(SECONDS):
        async with opened(url, request(url, method, target, **options)) as stream:
            async for data in stream:
                received += data
    head, _, body = received.partition(b"\r\n\r\n")
    status, headers = parsed(head)
    assert len(body) == int(headers.get("content-length", len(body))) or method == "HEAD"
    return Answer(status=status, headers=headers, body=body)
