"""Frames that break RFC 6455 or a limit: each ends with its close code, and the next client is served."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import pytest
import trio
from wsproto.events import Pong, TextMessage

from broker.config import Limits
from broker.links.websocket.gate import FRAGMENTS
from tests.web.harness import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    SECONDS,
    TEXT,
    frame,
    head,
)

if TYPE_CHECKING:
    from tests.web.harness import Running

LIMIT = Limits().message_bytes
SMILE = "😀".encode()
PIECE = frame(TEXT, b"a", first=0)


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


ROWS = {
    # the frame's head
    "unmasked": (frame(TEXT, b"hello", mask=None), 1002),
    "unmasked and long": (frame(TEXT, b"a" * 70_000, mask=None), 1002),
    "unmasked ping": (frame(PING, mask=None), 1002),
    "unmasked close": (frame(CLOSE, mask=None), 1002),
    "reserved bit 1": (frame(TEXT, b"hello", first=0xC0), 1002),
    "reserved bit 2": (frame(TEXT, b"hello", first=0xA0), 1002),
    "reserved bit 3": (frame(TEXT, b"hello", first=0x90), 1002),
    "reserved bit of a ping": (frame(PING, first=0xC0), 1002),
    **{f"opcode {opcode}": (frame(opcode), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "two bytes of a bad head": (b"\x83\x80", 1002),
    # lengths
    "length 2^62": (struct.pack("!BBQ", 0x81, 0xFF, 1 << 62), 1009),
    "length 2^62 of a head alone": (struct.pack("!BBQ4x", 0x81, 0xFF, 1 << 62), 1009),
    "length with its top bit": (struct.pack("!BBQ4x", 0x81, 0xFF, 1 << 63), 1002),
    "length 5 in two bytes": (struct.pack("!BBH4x5x", 0x81, 0xFE, 5), 1002),
    "length 0 in two bytes": (struct.pack("!BBH4x", 0x81, 0xFE, 0), 1002),
    "length 5 in eight bytes": (struct.pack("!BBQ4x5x", 0x81, 0xFF, 5), 1002),
    # control frames
    "ping of 126 bytes": (frame(PING, b"a" * 126), 1002),
    "pong of 70,000 bytes": (frame(PONG, b"a" * 70_000), 1002),
    "close of 126 bytes": (closing(1000, b"a" * 124), 1002),
    "fragmented ping": (frame(PING, first=0), 1002),
    "fragmented close": (frame(CLOSE, first=0), 1002),
    # messages
    "binary": (frame(BINARY, b"hello"), 1003),
    "binary, empty": (frame(BINARY), 1003),
    "binary fragment": (frame(BINARY, b"hello", first=0), 1003),
    "continuation of nothing": (frame(CONTINUATION, b"hello"), 1002),
    "continuation after the end": (
        frame(PONG) + PIECE + frame(CONTINUATION) + frame(CONTINUATION, b"a"),
        1002,
    ),
    "text within a message": (PIECE + frame(TEXT, b"a"), 1002),
    "one byte over the limit": (frame(TEXT, b"a" * (LIMIT + 1)), 1009),
    "over the limit as 4-byte characters": (frame(TEXT, SMILE * (LIMIT // 4 + 1)), 1009),
    "over the limit as a head": (frame(TEXT, b"a" * (LIMIT + 1))[:14], 1009),
    "over the limit in two": (PIECE + frame(CONTINUATION, b"a" * LIMIT), 1009),
    "1-byte fragments": (PIECE + frame(CONTINUATION, b"a", first=0) * LIMIT, 1009),
    "empty fragments": (PIECE + frame(CONTINUATION, first=0) * FRAGMENTS, 1009),
    # UTF-8
    "no UTF-8": (frame(TEXT, b"\xff"), 1007),
    "overlong": (frame(TEXT, b"\xc0\xaf"), 1007),
    "surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "beyond Unicode": (frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    "cut off": (frame(TEXT, SMILE[:3]), 1007),
    "cut off in the last fragment": (PIECE + frame(CONTINUATION, SMILE[:3]), 1007),
    "bad in the first fragment": (frame(TEXT, b"\xff", first=0), 1007),
    "bad in half a frame": (frame(TEXT, b"\xff" * 100)[:20], 1007),
    "bad close reason": (closing(1000, b"\xff"), 1007),
    "cut off close reason": (closing(1000, SMILE[:3]), 1007),
    # closes
    "close of one byte": (frame(CLOSE, b"\x03"), 1002),
    **{
        f"close {code}": (closing(code), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999)
    },
    **{f"close {code}": (closing(code), 1002) for code in (5000, 65535)},
    **{f"close {code}": (closing(code), code) for code in (*range(1000, 1004), *range(1007, 1014))},
    **{f"close {code}": (closing(code, b"why"), code) for code in (3000, 3999, 4000, 4999)},
    "close without a code": (frame(CLOSE), 1005),
    "data after a close": (closing(1000) + frame(TEXT, b"late") + b"\xff" * 1000, 1000),
}


@pytest.mark.parametrize(("data", "code"), ROWS.values(), ids=ROWS)
async def test_closed(port: Running, data: bytes, code: int) -> None:
    """Each row is answered by a Close with its code, and by the end of TCP; nothing of it is echoed."""
    async with port.client() as client:
        await client.upgrade()
        with contextlib.suppress(trio.BrokenResourceError):
            await client.send(data)
        answered, reason = await client.closed()
    assert answered == code
    assert [closed.code for closed in port.closes] == [code]
    assert (code in (1002, 1003, 1007, 1009)) >= bool(reason)
    await port.works()
    await port.settled()


@pytest.mark.parametrize("size", [1, 2, 5, 13, 16_384])
async def test_any_cut(port: Running, size: int) -> None:
    """However TCP cuts it: fragments with control frames between them, the limit to the byte, in order."""
    text = SMILE * (LIMIT // 4) if size > 1000 else SMILE * 200
    half = len(text) // 2 + 1  # within a character
    data = (
        frame(TEXT, text[:half], first=0)
        + frame(PING, b"between")
        + frame(CONTINUATION, b"", first=0)
        + frame(PONG, b"unasked")
        + frame(CONTINUATION, text[half:])
        + frame(TEXT)
        + frame(TEXT, b"after")
    )
    async with port.client() as client:
        await client.upgrade(head() + data[:size])  # behind the head: it belongs to the WebSocket

        async def slices() -> None:
            for at in range(size, len(data), size):
                await client.send(data[at : at + size])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slices)
            assert await client.event() == Pong(payload=b"between")
            for expected in (text.decode(), "", "after"):
                received = ""
                while True:
                    event = await client.event()
                    assert isinstance(event, TextMessage)
                    received += event.data
                    if event.message_finished:
                        break
                assert received == expected


async def test_long_after_limit(port: Running) -> None:
    """The limit is for a message: many short ones, and many messages of many fragments, are within it."""
    async with port.client() as client:
        await client.upgrade()
        for _ in range(5):
            await client.send(
                PIECE + frame(CONTINUATION, first=0) * (FRAGMENTS - 2) + frame(CONTINUATION, b"b")
            )
            event = await client.event()
            assert isinstance(event, TextMessage)
            assert event.data == "ab"


async def test_ping_flood(port: Running) -> None:
    """20,000 pings are all answered, and others are served in between."""
    count = 20_000
    async with port.client() as client:
        await client.upgrade()

        async def flood() -> None:
            for _ in range(count // 100):
                await client.send(frame(PING, b"x") * 100)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            nursery.start_soon(port.works)
            for _ in range(count):
                assert isinstance(await client.event(), Pong)


async def test_junk_after_a_good_head(port: Running) -> None:
    """Megabytes of junk after a good head meet a Close and the end of TCP, and are held nowhere."""
    async with port.client() as client:
        await client.upgrade(head() + b"\xff" * 1000)

        async def junk() -> None:
            while True:
                await client.send(b"\xff" * 65536)

        with trio.fail_after(SECONDS), pytest.raises(trio.BrokenResourceError):
            await junk()
    await port.settled()
    assert [closed.code for closed in port.closes] == [1002]
    await port.works()


async def test_no_answer_to_close(port: Running) -> None:
    """A client that neither closes nor reads after our Close is cut off."""
    async with port.client() as client:
        await client.upgrade()
        await client.send(frame(BINARY))
        await port.settled()
    await port.works()


@pytest.mark.parametrize(
    "tail", [b"", b"\x81", frame(TEXT, b"hello")[:8], PIECE], ids=["idle", "head", "frame", "fragment"]
)
async def test_gone_without_a_close(port: Running, tail: bytes) -> None:
    """TCP that just ends is 1006, wherever in a frame it does."""
    async with port.client() as client:
        await client.upgrade(head() + tail)
    await port.settled()
    assert [closed.code for closed in port.closes] == [1006]
    await port.works()
