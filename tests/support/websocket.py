"""A WebSocket client for tests, on trio-websocket: a foreign peer that keeps every message."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import pytest
import trio
import trio_websocket

from tests.support import described

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECONDS = 45.0  # a bound for what must come; nothing is measured by it


@attrs.define(eq=False)
class Client:
    """Sends messages and reads them one at a time; `log` has all that were read."""

    socket: trio_websocket.WebSocketConnection
    log: list[dict[str, Any]] = attrs.field(factory=list)

    async def send(self, kind: str, payload: dict[str, Any] | None = None, **extra: Any) -> None:
        await self.socket.send_message(json.dumps({"type": kind, "payload": payload or {}, **extra}))

    async def receive(self) -> dict[str, Any]:
        with trio.fail_after(SECONDS):
            message: dict[str, Any] = json.loads(await self.socket.get_message())
        described.check(message)
        self.log.append(message)
        return message

    async def expect(self, kind: str) -> dict[str, Any]:
        """The payload of the next message, which is of this type."""
        message = await self.receive()
        assert message["type"] == kind, message
        payload: dict[str, Any] = message["payload"]
        return payload

    async def until(self, kind: str) -> dict[str, Any]:
        """The payload of the next message of this type; others before it are in `log`."""
        while True:
            message = await self.receive()
            if message["type"] == kind:
                payload: dict[str, Any] = message["payload"]
                return payload

    async def all_of(self, *kinds: str) -> list[dict[str, Any]]:
        """The payloads of the next message of each type, in the order asked for, whichever comes first."""
        payloads: dict[str, dict[str, Any]] = {}
        while len(payloads) < len(kinds):
            message = await self.receive()
            if message["type"] in kinds:
                payloads.setdefault(message["type"], message["payload"])
        return [payloads[kind] for kind in kinds]

    async def greeted(self) -> dict[str, Any]:
        """Past the opening of an authenticated connection."""
        await self.expect("connection.established")
        return await self.expect("connection.authenticated")

    async def subscribe(self, channel: str | list[str], **options: Any) -> dict[str, Any]:
        await self.send("subscribe", {"channel": channel, **options})
        return await self.until("subscribed")

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The payloads of the next `count` events."""
        return [await self.until("event") for _ in range(count)]

    async def quiet(self) -> None:
        """Nothing but a pong comes when asked: what was on its way has arrived before it."""
        await self.send("ping", messageId="quiet")
        message = await self.receive()
        assert (message["type"], message.get("messageId")) == ("pong", "quiet"), message

    async def position(self) -> str:
        await self.send("ping")
        position: str = (await self.until("pong"))["position"]
        return position

    async def passed(self, sequence: int) -> None:
        """Return once the live position is there. Asks at a pace that the rate of requests allows."""
        with trio.fail_after(SECONDS):
            while int((await self.position()).rpartition("-")[2]) < sequence:
                await trio.sleep(0.1)

    async def closed(self) -> int:
        """The code with which the broker closed; what came before is in `log`."""

        async def read_on() -> None:
            while True:
                await self.receive()

        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await read_on()
        assert closed.value.reason is not None
        return int(closed.value.reason.code)


@asynccontextmanager
async def connect(
    url: str,
    *,
    token: str | None,
    subprotocols: list[str] | None = None,
    receive_buffer: int | None = None,
) -> AsyncIterator[Client]:
    """A connection that is cut off rudely at the end, when the test has not closed it.

    With a small `receive_buffer` (bytes) what the client does not read waits at the broker.
    """
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    headers = [(b"Authorization", f"Bearer {token}".encode())] if token else []
    socket = trio.socket.socket()
    if receive_buffer is not None:
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
    await socket.connect((parts.hostname, parts.port))
    stream = trio.SocketStream(socket)
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(SECONDS):
                websocket = await trio_websocket.wrap_client_stream(
                    nursery,
                    stream,
                    parts.netloc,
                    f"{parts.path}?{parts.query}" if parts.query else parts.path,
                    subprotocols=["broker.v1"] if subprotocols is None else subprotocols,
                    extra_headers=headers,
                    max_message_size=1 << 24,
                    message_queue_size=1,
                )
            client = Client(websocket)
            if token:
                await client.greeted()
            yield client
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)
