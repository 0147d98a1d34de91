"""A reader of Server-Sent Events, by the HTML standard's own algorithm."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
import trio

from tests.support.http import SECONDS, Answer, opened, parsed, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@attrs.define(eq=False)
class Parser:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation"""

    last_event_id: str = ""
    retry: int | None = None
    comments: list[str] = attrs.Factory(list)
    line: bytes = b""
    data: list[str] = attrs.Factory(list)
    id_buffer: str = ""

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """The data of the events that are complete now, each with its last event id."""
        *lines, self.line = (self.line + data).split(b"\n")
        assert b"\r" not in data
        found = []
        for line in lines:
            if not line:
                self.last_event_id = self.id_buffer
                if self.data:
                    found.append(("\n".join(self.data), self.last_event_id))
                    self.data = []
                continue
            field, _, value = line.decode().partition(":")
            value = value.removeprefix(" ")
            if not field:
                self.comments.append(value)
            elif field == "data":
                self.data.append(value)
            elif field == "id":
                self.id_buffer = value
            else:
                assert field == "retry", line
                self.retry = int(value)
        return found


@attrs.define(eq=False)
class Chunks:
    """A body in chunks (RFC 9112 section 7.1); `complete` once its end has come."""

    rest: bytes = b""
    complete: bool = False

    def feed(self, data: bytes) -> bytes:
        """What the chunks hold that are whole now."""
        self.rest += data
        found = b""
        while not self.complete and (line := self.rest.find(b"\r\n")) >= 0:
            start, size = line + 2, int(self.rest[:line], 16)
            if len(self.rest) < start + size + 2:
                break
            assert self.rest[start + size :][:2] == b"\r\n"
            found += self.rest[start : start + size]
            self.rest = self.rest[start + size + 2 :]
            self.complete = size == 0
        return found


@attrs.define(eq=False)
class Stream:
    """An answer that has begun; `log` has all messages that were read, `place` the id after the newest."""

    stream: trio.SocketStream
    status: int
    headers: dict[str, str]
    rest: bytes
    parser: Parser = attrs.Factory(Parser)
    chunks: Chunks = attrs.Factory(Chunks)
    ready: list[tuple[str, str]] = attrs.Factory(list)
    place: str = ""
    log: list[dict[str, Any]] = attrs.Factory(list)

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end."""
        with trio.fail_after(SECONDS):
            while not self.ready:
                data = self.rest or await self.stream.receive_some()
                self.rest = b""
                if not data:
                    return None
                self.feed(data)
        text, self.place = self.ready.pop(0)
        message: dict[str, Any] = json.loads(text)
        self.log.append(message)
        return message

    def feed(self, data: bytes) -> None:
        in_chunks = self.headers.get("transfer-encoding") == "chunked"
        self.ready += self.parser.feed(self.chunks.feed(data) if in_chunks else data)

    async def until(self, kind: str) -> dict[str, Any]:
        """The payload of the next message of this type."""
        while (message := await self.receive()) is not None:
            if message["type"] == kind:
                payload: dict[str, Any] = message["payload"]
                return payload
        raise AssertionError(f"no {kind}: {self.log}")

    async def events(self, count: int) -> list[dict[str, Any]]:
        return [await self.until("event") for _ in range(count)]

    async def ended(self) -> None:
        while await self.receive() is not None:
            pass

    async def answer(self) -> Answer:
        body = self.rest
        async for data in self.stream:
            body += data
        return Answer(status=self.status, headers=self.headers, body=body)


def target(path: str, channels: list[str], **parameters: str) -> str:
    pairs = [("channel", each) for each in channels] + list(parameters.items())
    return f"{path}?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)


@asynccontextmanager
async def listen(
    url: str,
    *channels: str,
    token: str | None,
    headers: dict[str, str] | None = None,
    receive_buffer: int | None = None,
    **parameters: str,
) -> AsyncIterator[Stream]:
    """A request for events, whatever its answer is."""
    asked = request(url, "GET", target("/sse", list(channels), **parameters), token=token, headers=headers)
    async with opened(url, asked, receive_buffer=receive_buffer) as stream:
        received = b""
        with trio.fail_after(SECONDS):
            while b"\r\n\r\n" not in received:
                data = await stream.receive_some()
                assert data, received
                received += data
        head, _, rest = received.partition(b"\r\n\r\n")
        status, found = parsed(head)
        yield Stream(stream, status, found, rest)
