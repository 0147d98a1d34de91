"""A foreign client, trio-websocket, finds what it expects of a server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio_websocket

from tests.web.harness import SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.web.harness import Running


@contextlib.asynccontextmanager
async def connected(port: Running, **options: Any) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """A connection on a stream of our own, since trio-websocket does not close one that was refused."""
    stream = await trio.open_tcp_stream(*port.address)
    try:
        async with trio.open_nursery() as nursery:
            yield await trio_websocket.wrap_client_stream(nursery, stream, "broker.example", "/ws", **options)
            await stream.aclose()
    finally:
        await trio.aclose_forcefully(stream)


async def test_messages(port: Running) -> None:
    """Texts of every length class come back as they went, pings are answered, and the close is clean."""
    async with connected(port, subprotocols=["broker.v1", "bearer.a.b.c"]) as peer:
        assert peer.subprotocol == "broker.v1"
        for size in (0, 1, 125, 126, 65_535, 65_536):
            await peer.send_message("x" * size)
            assert await peer.get_message() == "x" * size
        with trio.fail_after(SECONDS):
            await peer.ping(b"there?")
            await peer.aclose()
        assert peer.closed is not None
        assert peer.closed.code == 1000
    assert port.hellos[0].token == "a.b.c"
    await port.settled()
    assert [closed.code for closed in port.closes] == [1000]


async def test_refusal(port: Running) -> None:
    """What is refused before the upgrade arrives as a status with its problem."""
    rejections: list[BaseException] = []
    try:
        async with connected(port, extra_headers=[(b"Origin", b"https://evil.example")]):
            pass
    except* trio_websocket.ConnectionRejected as group:  # out of trio-websocket's reader task
        rejections.extend(group.exceptions)
    [rejection] = rejections
    assert isinstance(rejection, trio_websocket.ConnectionRejected)
    assert rejection.status_code == 403
    assert b"origin" in (rejection.body or b"")


async def test_faults(port: Running) -> None:
    """Binary and too much are told by their close code."""
    for message, code in ((b"binary", 1003), ("x" * 65_537, 1009)):
        async with connected(port) as peer:
            await peer.send_message(message)
            with pytest.raises(trio_websocket.ConnectionClosed) as caught:
                await peer.get_message()
            assert caught.value.reason is not None
            assert caught.value.reason.code == code
