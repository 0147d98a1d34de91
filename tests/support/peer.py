"""A broker that plays a script: trio-websocket's server, for tests of our client."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from tests.support import described

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

PATIENCE_SECONDS = 45


@attrs.define(eq=False)
class Peer:
    """The broker's end of one connection, played by a test."""

    link: WebSocketConnection
    request: WebSocketRequest

    async def say(
        self, kind: str, payload: dict[str, Any] | None = None, message_id: str | None = None
    ) -> None:
        message = {"type": kind, "payload": payload or {}, "messageId": message_id}
        await self.link.send_message(json.dumps(message))

    async def hear(self, kind: str) -> tuple[dict[str, Any], str | None]:
        message = json.loads(await self.link.get_message())
        assert message["type"] == kind
        described.validator(kind).validate(message)
        return message["payload"], message.get("messageId")

    async def welcome(self, *, heartbeat: float = 25.0, limits: Mapping[str, float] | None = None) -> None:
        established = {"connection_id": "c", "heartbeat_seconds": heartbeat, "limits": dict(limits or {})}
        await self.say("connection.established", established)
        await self.say("connection.authenticated", {"private": "users.u", "user": "u", "tenant": "t"})

    async def accept(self, **fields: Any) -> dict[str, Any]:
        """Answers the next `subscribe`; says what it asked for."""
        payload, message_id = await self.hear("subscribe")
        answer = {"channel": payload["channel"], "refused": [], "recovered": True, "live": True}
        await self.say("subscribed", answer | {"position": "a-1"} | fields, message_id)
        return payload

    async def hear_request(self) -> tuple[str, str | None]:
        """The method of the next `request`, and its `messageId`."""
        payload, message_id = await self.hear("request")
        return payload["method"], message_id

    async def event(self, sequence: int, channel: str = "orders.1", **fields: Any) -> None:
        await self.say("event", {"channel": channel, "position": f"a-{sequence}", "event": sequence} | fields)

    async def cut(self) -> None:
        """The machine is gone: TCP ends without a word."""
        await trio.aclose_forcefully(self.link._stream)


@asynccontextmanager
async def broker(
    *scripts: Callable[[Peer], Awaitable[None]] | int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A broker that plays a script for each connection in turn; a number is an HTTP refusal.

    After its script a peer listens until the client is gone. Fails the test where a script did.
    """
    waiting = list(scripts)

    async def serve(request: WebSocketRequest) -> None:
        script = waiting.pop(0)
        if isinstance(script, int):
            await request.reject(
                script, extra_headers=[(b"Retry-After", b"0")], body=b'{"detail": "try later"}'
            )
            return
        peer = Peer(await request.accept(subprotocol="broker.v1"), request)
        try:
            await script(peer)
            while True:
                await peer.link.get_message()
        except ConnectionClosed:
            pass

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, tls))
            yield f"ws{'s' if tls else ''}://127.0.0.1:{server.port}/ws"
            assert not waiting, "a connection never came"
            nursery.cancel_scope.cancel()
