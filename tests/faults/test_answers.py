"""Whatever answers a Python session in the broker's place, three times over, is gone again and survived."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker.client import Event
from broker.wire import frames
from tests.client.shells import SHELLS
from tests.faults.support.rude import RUDE
from tests.faults.support.world import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.client.shells import Running, Shell
    from tests.faults.conftest import OpenWorld

BACK_SECONDS = 30.0
TIMES = 3
CUTS = 12
JUNK = (b"", b"\x16\x03\x01", b"HTTP/1.1 101 X\r\n\r\n", b"\0" * 100)
PAGE = b"<!doctype html><title>Not now</title>"
STATUSES = (200, 204, 301, 302, 307, 400, 401, 403, 404, 407, 413, 414, 426, 429, 431, 500, 502, 503, 504)
CODES = (
    1000, 1001, 1002, 1003, 1007, 1009, 1011, 1012, 1013, 3000, 4001, 4008, 4009, 4010, 4029,
    4500, 4501, 4503, 4510,
)  # fmt: skip
WORDS = (b"", b"hello", b"{}", b"[]", b'{"type":"event","payload":7}', b'{"type":"subscribed","payload":{}}')
TOKENS: tuple[Any, ...] = (OSError("away"), ValueError("wrong"), PAGE.decode(), "", "a.b", None, 7, "hangs")


def page(status: int) -> bytes:
    head = f"HTTP/1.1 {status} X\r\nLocation: /login\r\nRetry-After: 0\r\nContent-Length: "
    return f"{head}{0 if status == 204 else len(PAGE)}\r\n\r\n".encode() + (b"" if status == 204 else PAGE)


@attrs.frozen(kw_only=True)
class Answer:
    """What a connection gets: other bytes, or what the broker says: so much of it, or up to the upgrade."""

    instead: bytes | None = None
    passed: int | None = None  # so many bytes
    after: bytes | None = None  # in place of what comes after the upgrade


@attrs.define(eq=False)
class Stage:
    """Stands before the broker, and plays what is in `script` to one connection after the other."""

    port: int
    script: list[Answer] = attrs.field(factory=list)
    streams: set[trio.SocketStream] = attrs.field(factory=set)

    async def serve(self, client: trio.SocketStream) -> None:
        answer = self.script.pop(0) if self.script else Answer()
        self.streams.add(client)
        try:
            if answer.instead is not None:
                await client.receive_some()
                await client.send_all(answer.instead)
                return
            broker = await trio.open_tcp_stream("127.0.0.1", self.port)
            async with broker, trio.open_nursery() as both:
                both.start_soon(self.up, client, broker, both.cancel_scope)
                await self.down(broker, client, answer)
                both.cancel_scope.cancel()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.streams.discard(client)
            await trio.aclose_forcefully(client)

    async def up(self, client: trio.SocketStream, broker: trio.SocketStream, scope: trio.CancelScope) -> None:
        async for data in client:
            await broker.send_all(data)
        scope.cancel()

    async def down(self, broker: trio.SocketStream, client: trio.SocketStream, answer: Answer) -> None:
        left = answer.passed
        async for data in broker:
            if answer.after is not None:
                await client.send_all(data[: data.index(b"\r\n\r\n") + 4] + answer.after)
                return
            await client.send_all(data[:left])
            if left is not None and (left := left - len(data)) <= 0:
                return

    async def cut(self) -> None:
        for stream in [*self.streams]:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def stage_before(port: int) -> AsyncIterator[tuple[Stage, str]]:
    stage = Stage(port)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        serve: Any = trio.serve_listeners
        nursery.start_soon(serve, stage.serve, [listener])
        yield stage, f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws"
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Source:
    """A token function that gives what is in `script` first."""

    good: Any
    script: list[Any] = attrs.field(factory=list)

    async def __call__(self) -> str:
        answer = self.script.pop(0) if self.script else self.good()
        if isinstance(answer, Exception):
            raise answer
        if answer == "hangs":
            await forever()
        return answer  # type: ignore[no-any-return]


async def forever() -> None:
    """On whichever loop."""
    if trio.lowlevel.in_trio_run():
        await trio.sleep_forever()
    await asyncio.Event().wait()


@pytest.mark.fault(34)
@pytest.mark.parametrize("shell", SHELLS)
async def test_each_answer(open_world: OpenWorld, shell: str) -> None:
    """Error pages, closes, bad words, cuts, tokens that are none: it is open again, and has lost nothing."""
    running: Running = SHELLS[shell]
    async with open_world(churning=0) as world:
        random = Random(world.seed)
        source = Source(partial(world.broker.token, RUDE, "py", publish=EVERYTHING))
        async with (
            stage_before(world.front.port) as (stage, url),
            running(url, source, token_timeout=0.1) as session,
            trio.open_nursery() as nursery,
        ):
            heard: list[int] = []
            nursery.start_soon(listen, session, heard)
            await session.subscribe("me.row34")
            faults: list[Answer | Any] = [
                *(Answer(instead=page(status)) for status in STATUSES),
                *(Answer(instead=junk) for junk in JUNK),
                *(Answer(after=frames.close(code, "because")) for code in CODES),
                *(Answer(after=frames.text(word)) for word in WORDS),
                *(Answer(after=frames.frame(opcode, b"\xff")) for opcode in (1, 2, 3, 11)),
                *(Answer(passed=random.randrange(1, 900)) for _ in range(CUTS)),
                *TOKENS,
            ]
            random.shuffle(faults)
            await session.publish("me.row34", {"n": 0})
            for number, fault in enumerate(faults, 1):
                (stage if isinstance(fault, Answer) else source).script += [fault] * TIMES
                await stage.cut()
                with trio.fail_after(BACK_SECONDS):
                    while stage.script or source.script:
                        await trio.sleep(0.01)
                    await session.publish("me.row34", {"n": number})
                    while number not in heard:
                        await trio.sleep(0.01)
            assert heard == list(range(len(faults) + 1))
            nursery.cancel_scope.cancel()


async def listen(session: Shell, heard: list[int]) -> None:
    async for item in session:
        if isinstance(item, Event):
            heard.append(item.value["n"])  # noqa: PERF401 - others look at it meanwhile
