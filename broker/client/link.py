"""One WebSocket connection of a client: trio-websocket over a stream of our own.

trio-websocket 0.12.2 waits for ever for the handshake of a peer that disconnects, hides why TLS failed, does
not close TCP when the peer closed first, and raises on an invalid 101 response. Hence our own stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

import attrs
import h11
import trio
import wsproto.utilities
from trio_websocket import ConnectionRejected, WebSocketConnection, wrap_client_stream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable
    from urllib.parse import SplitResult

T = TypeVar("T")
Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"

MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # NATS has no larger messages
QUEUE_MESSAGES = 64  # read ahead, so that pings are answered while a message is processed
OPEN_SECONDS = 8.0
CLOSE_SECONDS = 1.0


@attrs.define(eq=False)
class Watched(trio.abc.Stream):
    """A stream that calls `on_end` when it will yield nothing more."""

    stream: Stream
    on_end: Callable[[], None]

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self.stream.receive_some(max_bytes)
        finally:
            if not data:
                self.on_end()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


async def use_link(
    url: str,
    use: Callable[[WebSocketConnection], Awaitable[T]],
    *,
    subprotocol: str,
    headers: list[tuple[bytes, bytes]],
    ssl_context: ssl.SSLContext | None = None,
) -> T:
    """Connect to a ws or wss address, await `use`, close, and return what `use` returned.

    Raises `OSError` when the connection cannot be opened, and `ConnectionRejected` for an HTTP response
    instead of the upgrade.
    """
    deadline = trio.current_time() + OPEN_SECONDS
    parts = urlsplit(url)
    results: list[T] = []
    refusals: list[Exception] = []
    stream = await open_stream(parts, deadline, ssl_context)
    try:
        await shake_hands(stream, deadline)
        async with trio.open_nursery() as nursery:
            with trio.move_on_at(deadline) as opening:
                link = await wrap_client_stream(
                    nursery,
                    cast("Stream", Watched(stream, opening.cancel)),  # any stream will do
                    parts.netloc.rpartition("@")[2],
                    (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
                    subprotocols=[subprotocol],
                    extra_headers=headers,
                    message_queue_size=QUEUE_MESSAGES,
                    max_message_size=MAX_MESSAGE_BYTES,
                )
            if not opening.cancelled_caught:
                results.append(await use(link))
                with trio.move_on_after(CLOSE_SECONDS):
                    await link.aclose()
            nursery.cancel_scope.cancel()
    except* ConnectionRejected as group:
        refusals += group.exceptions
    except* (h11.ProtocolError, wsproto.utilities.ProtocolError) as group:
        refusals.append(ConnectionError(f"no WebSocket: {first(group)}"))
    finally:
        await trio.aclose_forcefully(stream)
    if refusals:
        raise refusals[0]
    if not results:
        raise ConnectionResetError("no answer to the WebSocket handshake")
    return results[0]


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def open_stream(parts: SplitResult, deadline: float, ssl_context: ssl.SSLContext | None) -> Stream:
    host = parts.hostname or ""
    with trio.move_on_at(deadline):
        if parts.scheme == "ws":
            return await trio.open_tcp_stream(host, parts.port or 80)
        return await trio.open_ssl_over_tcp_stream(
            host, parts.port or 443, ssl_context=ssl_context, https_compatible=True
        )
    raise TimeoutError(f"{parts.netloc} does not answer")


async def shake_hands(stream: Stream, deadline: float) -> None:
    """Perform the TLS handshake, if the stream has TLS."""
    if not isinstance(stream, trio.SSLStream):
        return
    try:
        with trio.move_on_at(deadline):
            await stream.do_handshake()
            return
    except trio.BrokenResourceError as error:
        raise ConnectionError(f"TLS failed: {error.__cause__ or 'the peer closed it'}") from error
    raise TimeoutError("no answer to the TLS handshake")
