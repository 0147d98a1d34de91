"""Nothing of a connection waits for the garbage collector, which would stop the loop for 10,000 others."""

from __future__ import annotations

import contextlib
import gc
import ssl
from typing import TYPE_CHECKING

import pytest
import trio
from wsproto.frame_protocol import FrameProtocol

from broker.errors import Unavailable
from broker.links.tcp import Link
from broker.links.tls import ssl_context
from tests.web.harness import CLOSE, PING, TEXT, frame, head, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.web.harness import Running

NO_ROOM = Unavailable("There is no room.", retry_after=1.0)
LATE = head(user_agent="one who finds no room")
GONE = {
    "at rest": head(),
    "in a head": head() + b"\x81",
    "in a frame": head() + frame(TEXT, b"hello")[:8],
    "in a message": head() + frame(TEXT, b"hello", first=0),
    "in a ping": head() + frame(PING, b"a" * 100)[:20],
    "in a close": head() + frame(CLOSE, b"\x03\xe8why")[:9],
    "after a bad frame": head() + frame(TEXT, mask=None),
    "after bad UTF-8": head() + frame(TEXT, b"\xff"),
    "in a request": head()[:50],
    "after a bad request": b"GET /ws HTTP/1.1\r\nabc\r\n\r\n",
    "after a refusal": head(method="POST"),
    "without room": LATE,
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("sent", GONE.values(), ids=GONE)
async def test_gone(sent: bytes, tls: bool, files: tuple[Path, Path], trusting: ssl.SSLContext) -> None:
    """A client that leaves, wherever, leaves no object in a cycle."""
    async with running(tls=(ssl_context(*files), trusting) if tls else None) as port:
        port.refusal = NO_ROOM if sent is LATE else None
        gc.collect()
        gc.disable()
        before = {id(each) for each in gc.get_objects() if ours(each)}  # of other tests of this process
        try:
            for _ in range(5):
                await come_and_go(port, sent)
            await port.settled()
            assert [each for each in gc.get_objects() if ours(each) and id(each) not in before] == []
        finally:
            gc.enable()


async def come_and_go(port: Running, sent: bytes) -> None:
    async with port.client() as client:
        await client.send(sent)
        with contextlib.suppress(trio.BrokenResourceError):
            if sent.startswith(head()) or b"\r\n\r\n" in sent:
                assert await client.stream.receive_some()


def ours(each: object) -> bool:
    """The client's end of it is in this process too."""
    if isinstance(each, FrameProtocol):
        return not each.client
    return isinstance(each, Link) or (isinstance(each, ssl.SSLObject) and each.server_side)
