"""One HTTP request."""

from __future__ import annotations

import contextlib
from urllib.parse import urlsplit

import h11
import trio

SECONDS = 15.0  # a busy machine answers late


async def get(url: str, path: str) -> tuple[int, bytes]:
    """Status and body; status 0 where nobody answers."""
    with contextlib.suppress(OSError, trio.BrokenResourceError, h11.RemoteProtocolError):
        with trio.move_on_after(SECONDS):
            return await ask(url, path)
    return 0, b""


async def ask(url: str, path: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    peer = h11.Connection(h11.CLIENT)
    request = h11.Request(
        method="GET", target=path, headers=[("Host", parts.netloc), ("Connection", "close")]
    )
    status, body = 0, bytearray()
    async with await trio.open_tcp_stream(parts.hostname or "127.0.0.1", parts.port or 80) as stream:
        await stream.send_all((peer.send(request) or b"") + (peer.send(h11.EndOfMessage()) or b""))
        while True:
            match peer.next_event():
                case h11.NEED_DATA:
                    peer.receive_data(await stream.receive_some())
                case h11.Response() as response:
                    status = response.status_code
                case h11.Data() as part:
                    body += part.data
                case h11.EndOfMessage():
                    return status, bytes(body)
