"""A client in bytes against a running broker: what trio-websocket would answer, or read, by itself."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import trio
from wsproto.events import TextMessage

from tests.web.harness import TEXT, Answer, Client, frame, head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def open_raw(url: str) -> AsyncIterator[Client]:
    """A TCP connection to the host and port of `url`, cut off at the end."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    stream = await trio.open_tcp_stream(parts.hostname, parts.port)
    try:
        yield Client(stream)
    finally:
        await trio.aclose_forcefully(stream)


async def ask(url: str, target: str, *, host: str = "localhost") -> Answer:
    """One request, and the answer up to the end of the link."""
    async with open_raw(url) as client:
        await client.send(head(target, host=host))
        return await client.answer()


async def say(client: Client, kind: str, payload: dict[str, Any] | None = None) -> None:
    """Sends one message of the protocol."""
    await client.send(frame(TEXT, json.dumps({"type": kind, "payload": payload or {}}).encode()))


async def hear(client: Client) -> dict[str, Any]:
    """The next message of the broker; other frames before it are passed over."""
    text = ""
    while True:
        event = await client.event()
        assert event is not None, "the link ended"
        if isinstance(event, TextMessage):
            text += event.data
            if event.message_finished:
                message: dict[str, Any] = json.loads(text)
                return message
