"""Bad input, frames: each that breaks RFC 6455 or a limit ends with its close code, or is cut off.

The table is that of `tests/web`. Left out: the Autobahn cases, which need an echo behind the port;
`tests/conformance` runs them all.
"""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from broker.links.websocket.transport import MESSAGE_SECONDS
from tests.faults.support.client import parse
from tests.faults.support.rude import (
    JUNK,
    RUDE,
    Row,
    bad_input,
    listen_on,
    note,
    pour,
    until,
)
from tests.faults.support.world import PATIENCE_SECONDS
from tests.support.raw import hear, open_raw, say
from tests.web.harness import BINARY, CONTINUATION, PING, PONG, TEXT, frame, head
from tests.web.test_frames import PIECE
from tests.web.test_frames import ROWS as FRAMES

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report
    from tests.web.harness import Client

PINGS, BATCH = 100_000, 1000
STALL_SECONDS = 4
NARROW = 2048  # bytes of a receive buffer
EVENT, EVENTS = b"x" * 30_000, 150  # more than what the kernel takes for somebody who does not

# What begins a message that never ends, and what then comes each second.
UNFINISHED = {
    "half a frame head": (b"\x81", b""),
    "half a frame": (frame(TEXT, b"hello")[:8], b""),
    "half a message": (PIECE, b""),
    "half a message and pings": (PIECE, frame(PING, b"still here")),
    "a fragment each second": (PIECE, frame(CONTINUATION, b"b", first=0)),
    "a byte each second": (frame(TEXT, b"a" * 1000)[:8], b"b"),
}
# What goes on for 200 MB, after what beginning, and what ends it: which errors, and which close code.
FLOODS = {
    "bad messages": (b"", frame(TEXT, b"\0" * 60_000), ("bad_message",) * 10, 4510),
    "binary messages": (b"", frame(BINARY, b"\0" * 60_000), (), 1003),
    "one message": (PIECE, frame(CONTINUATION, b"a" * 60_000, first=0), (), 1009),
    "bytes that are no frames": (b"", b"\xff" * 60_000, (), 1002),
}


@pytest.mark.fault("frames")
async def test_bad_frames(open_world: OpenWorld, report: Report) -> None:
    """Each gets its close code and nothing is held of it; who does not read, or not end, is cut off."""
    limits = {"stall_seconds": STALL_SECONDS}
    async with (
        open_world(churning=0, limits=limits, log={"level": "debug"}) as world,
        bad_input(world) as row,
        trio.open_nursery() as nursery,
    ):
        for name in UNFINISHED:
            nursery.start_soon(unfinished, row, name)
        for each_second in (0, 1):
            nursery.start_soon(no_reader, row, each_second)
        for name, (data, code) in FRAMES.items():
            told = await row.told(head(authorization=row.bearer()), data)
            assert told.close == code, name
            assert told.reason == "" or code in (1002, 1003, 1007, 1009), name
            await row.works(name)
        with row.bounded():
            for name in FLOODS:
                await flood(row, name)
            await ping_flood(row)
        await no_answer_to_close(row)
    note(report, "frames", row)


async def unfinished(row: Row, name: str) -> None:
    """A message that has begun is complete within 30 s, whatever comes meanwhile, or the link is closed."""
    begin, more = UNFINISHED[name]
    async with row.member(name) as client, trio.open_nursery() as nursery:

        async def drip() -> None:
            await pour(client, begin)
            while True:
                await trio.sleep(1)
                await pour(client, more)

        nursery.start_soon(drip)
        client.patience = PATIENCE_SECONDS
        told = await listen_on(client)
        nursery.cancel_scope.cancel()
    assert (told.errors, told.close) == ((), 4009), name
    assert told.reason == f"message incomplete after {MESSAGE_SECONDS:g} s", name
    await row.works(name)


async def flood(row: Row, name: str) -> None:
    """200 MB of what nobody asked for: over when it breaks a rule or a limit, while others are served."""
    begin, piece, errors, code = FLOODS[name]
    with trio.fail_after(PATIENCE_SECONDS):
        async with row.member(f"flood {name}") as client, trio.open_nursery() as nursery:
            nursery.start_soon(pour, client, begin, *[piece] * (JUNK // len(piece)))
            told = await listen_on(client)
            assert (told.errors, told.close) == (errors, code), name
            await row.works(f"200 MB of {name}, while they come")
    await row.works(f"200 MB of {name}")


async def ping_flood(row: Row) -> None:
    """100,000 pings, as fast as they are taken, are answered in their order; others are served meanwhile."""
    payloads = [b"%06d" % number for number in range(PINGS)]
    answered: list[bytes] = []

    async def send(client: Client) -> None:
        for at in range(0, PINGS, BATCH):
            await client.send(b"".join(frame(PING, each) for each in payloads[at : at + BATCH]))

    async def read(client: Client) -> None:
        buffer = bytearray()
        while len(answered) < PINGS:
            buffer += await client.stream.receive_some()
            done = 0
            while (parsed := parse(buffer, done)) is not None:
                opcode, payload, done = parsed
                if opcode == PONG:
                    answered.append(payload)
            del buffer[:done]

    with trio.fail_after(PATIENCE_SECONDS):
        async with row.member("pings") as client, trio.open_nursery() as nursery:
            nursery.start_soon(send, client)
            nursery.start_soon(read, client)
            await row.works("100,000 pings, while they come")
    assert answered == payloads
    await row.works("100,000 pings")


async def no_answer_to_close(row: Row) -> None:
    """After our Close the link is cut, though the client neither answers it nor stops sending."""
    async with row.member("deaf") as client:
        await client.send(frame(BINARY))
        assert (await client.closed())[0] == 1003
        with trio.fail_after(PATIENCE_SECONDS):
            while await pour(client, frame(PING)):
                await trio.sleep(0.05)
    await row.works("no answer to Close")


async def no_reader(row: Row, each_second: int) -> None:
    """Who takes nothing, or a byte a second, while events wait for it is closed as stalled: 4009."""
    async with open_raw(row.url) as client:
        assert isinstance(client.stream, trio.SocketStream)
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
        await client.upgrade(head(authorization=row.bearer(f"reader{each_second}")))
        identity = (await hear(client))["payload"]["connection_id"]
        await until(client, "connection.authenticated")
        await say(client, "subscribe", {"channel": f"heavy.{each_second}"})
        await until(client, "subscribed")
        for number in range(EVENTS):
            body = json.dumps({"n": number, "pad": EVENT.decode()}).encode()
            await row.nats.store(f"events.{RUDE}.heavy.{each_second}", body)
        async with trio.open_nursery() as nursery:

            async def sip() -> None:
                while each_second:
                    await client.stream.receive_some(each_second)
                    await trio.sleep(1)

            nursery.start_soon(sip)
            await row.works(f"{each_second} bytes a second, while they wait")
            await row.ended(identity, '"code": 4009')
            nursery.cancel_scope.cancel()
    await row.works(f"{each_second} bytes a second")
