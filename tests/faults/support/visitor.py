"""Clients by plain HTTP: a stream of Server-Sent Events, or one poll after the other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import msgspec
import trio

from tests.faults.support.follower import OPENING_SECONDS, Follower, Lost, Noted, Stay
from tests.support.http import parsed, request
from tests.support.sse import Chunks, Parser, target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

WAIT_SECONDS = 0.0, 3.0  # of a poll
SESSION_SECONDS = 6.0  # without one a session ends, which is after its client has gone
COME_AGAIN = (429, 503)  # statuses that the time changes


@attrs.define(eq=False, kw_only=True)
class Visitor(Follower):
    """What the two have in common: they publish by requests of their own."""

    async def send(self, address: str, method: str, path: str, **options: Any) -> None:
        """A request on a new link."""
        self.stream = await dial(address)
        await self.stream.send_all(request(address, method, path, token=self.token(), **options))

    async def ask(self, kind: str, payload: dict[str, Any]) -> dict[str, Any] | None:
        assert kind == "publish"
        address = self.address()
        if address is None:
            return None
        body = json.dumps(payload).encode()
        try:
            async with await dial(address) as link:
                await link.send_all(request(address, "POST", "/publish", token=self.token(), body=body))
                status, headers, found = await answer(link.receive_some)
        except (Lost, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            return None
        if status == 202:
            return {"type": "published", "payload": found}
        refused = {"code": found.get("code"), "retryable": status in COME_AGAIN}
        if "retry-after" in headers:
            refused["retry_after_ms"] = int(headers["retry-after"]) * 1000
        return {"type": "error", "payload": refused}


@attrs.define(eq=False, kw_only=True)
class Listener(Visitor):
    """A follower by `GET /sse`. It knows one position alone, the id, as a browser does.

    What `retry:` says it does not heed: tests wait for it.
    """

    parser: Parser = attrs.field(factory=Parser)
    chunks: Chunks = attrs.field(factory=Chunks)

    async def open(self, address: str) -> bytearray:
        headers = {"Last-Event-ID": self.position} if self.position else {}
        start = {name: str(value) for name, value in self.wish.items() if name != "position"}
        path = target("/sse", self.patterns, **start)
        await self.send(address, "GET", path, headers=headers)
        status, told, rest = await head(self.more)
        if status != 200:
            assert status in COME_AGAIN, (status, rest)
            raise Lost
        assert told["content-type"] == "text/event-stream"
        self.parser, self.chunks = Parser(), Chunks()
        return rest

    async def read(self, buffer: bytearray) -> None:
        data = bytes(buffer)
        while True:
            for text, place in self.parser.feed(self.chunks.feed(data)):
                await self.hear(msgspec.json.decode(text))
                self.position = place or self.position
            self.position = self.parser.last_event_id or self.position
            for comment in self.parser.comments:
                if comment.startswith("closed: "):
                    raise Lost(int(comment.split()[1]))
            data = bytes(await self.more())

    def move(self, kind: str, payload: dict[str, Any]) -> None:
        """Only the id does."""


@attrs.define(eq=False, kw_only=True)
class Poller(Visitor):
    """A follower by `POST /poll`, one after the other. A session is what the judge calls a connection.

    A poll that fails ends nothing: the next one says by session and position what the newest answer was.
    """

    session: str | None = None

    async def follow(self, address: str) -> None:
        while not self.away:
            wait = self.random.uniform(*WAIT_SECONDS)
            wish = {"session": self.session} if self.session else {}
            body = json.dumps({"channels": self.patterns, "wait": wait} | wish | self.wish).encode()
            with trio.move_on_after(OPENING_SECONDS) as opening:
                await self.send(address, "POST", "/poll", body=body)
            if opening.cancelled_caught:
                raise Lost
            status, _, found = await answer(self.more)
            if status != 200:
                assert status in COME_AGAIN, (status, found)
                raise Lost
            self.take(found)
            if self.stream:
                self.stream.socket.close()
            if "reconnect_after_ms" in found:
                raise Lost

    def take(self, found: dict[str, Any]) -> None:
        now = trio.current_time()
        assert "refused" not in found, found
        # What stands before the dot is the session, what stands after it an answer of it.
        if found["session"].partition(".")[0] != (self.session or "").partition(".")[0]:
            self.end_stay(None)
            self.connection += 1
            self.stays.append(Stay(self.connection, now))
            self.notes.append(Noted(now, self.connection, "subscribed", {"recovered": found["recovered"]}))
        self.session, position = found["session"], found["position"]
        for gap in found["gaps"]:
            self.notes.append(Noted(now, self.connection, "gap", gap))
        for event in found["events"]:
            self.event(now, event)
        if (ms := found.get("reconnect_after_ms")) is not None:
            self.notes.append(Noted(now, self.connection, "connection.draining", {"reconnect_after_ms": ms}))
        self.position = position
        self.baseline = self.baseline or position
        self.subscribed.set()

    def move(self, kind: str, payload: dict[str, Any]) -> None:
        """Only the answer does."""

    def closed(self, code: int | None) -> None:
        """The link has ended; the session has not."""
        self.let_go()


async def dial(address: str) -> trio.SocketStream:
    parts = urlsplit(address)
    assert parts.hostname
    assert parts.port
    return await trio.open_tcp_stream(parts.hostname, parts.port)


async def head(more: Callable[[], Awaitable[bytes | bytearray]]) -> tuple[int, Mapping[str, str], bytearray]:
    """Status and headers of an answer, and what has come after them."""
    buffer = bytearray()
    while b"\r\n\r\n" not in buffer:
        buffer += await some(more)
    first, _, rest = bytes(buffer).partition(b"\r\n\r\n")
    return *parsed(first), bytearray(rest)


async def answer(more: Callable[[], Awaitable[bytes | bytearray]]) -> tuple[int, Mapping[str, str], Any]:
    """The whole of it; the body is JSON."""
    status, headers, body = await head(more)
    while len(body) < int(headers["content-length"]):
        body += await some(more)
    return status, headers, msgspec.json.decode(body)


async def some(more: Callable[[], Awaitable[bytes | bytearray]]) -> bytes | bytearray:
    if data := await more():
        return data
    raise Lost
