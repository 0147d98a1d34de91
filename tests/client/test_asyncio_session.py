"""What only the asyncio session has to take care of."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.client import AsyncioSession, Backoff, Message, Reconnecting, SessionEnded
from tests.client.shells import on_asyncio
from tests.support.peer import Peer, broker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NOBODY = "ws://127.0.0.1:9/ws"


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scenario(), 60)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_a_token_function_that_cannot_be_cancelled() -> None:
    """It is left behind, and asked again; one that is cancelled from elsewhere ends nothing either."""
    count = 0

    async def token() -> str:
        nonlocal count
        count += 1
        if count == 1:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.sleep(0.1)
        if count == 2:
            raise asyncio.CancelledError
        return "to.k.en"

    async def scenario() -> None:
        quick = Backoff(first=0.001, longest=0.001)
        async with AsyncioSession(url=NOBODY, token=token, token_timeout=0.02, backoff=quick) as session:
            for reason in ("no answer within 0.02 s", "it was cancelled"):
                lost = await anext(session)
                assert isinstance(lost, Reconnecting)
                assert lost.reason == f"the token function: {reason}"

    run(scenario)


def test_who_waits_hears_of_the_end() -> None:
    """Leaving the `async with` ends what other tasks wait for: iteration, publishes."""

    async def scenario() -> None:
        async with AsyncioSession(url=NOBODY, token="to.k.en") as session:

            async def iterate() -> None:
                async for _ in session:
                    pass

            waiting = [asyncio.create_task(iterate()), asyncio.create_task(session.publish("a", 1))]
            await asyncio.sleep(0)
        _, ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(ended, SessionEnded)
        with pytest.raises(SessionEnded):
            await session.publish("a", 1)

    run(scenario)


async def test_the_token_stays_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The library would write out the headers of its request."""
    with caplog.at_level(logging.DEBUG):
        async with broker(Peer.welcome) as url, on_asyncio(url, "s3.c.ret") as session:
            while not (isinstance(item := await anext(session), Message) and "authenticated" in item.type):
                pass
    assert "s3.c.ret" not in caplog.text


async def test_a_redirect_is_not_followed() -> None:
    """The token is for the address that was given."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    requests = []

    async def answer(stream: trio.SocketStream) -> None:
        requests.append((await stream.receive_some()).split(b"\r\n")[0])
        await stream.send_all(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        serve: Any = trio.serve_listeners
        nursery.start_soon(serve, answer, listeners)
        async with on_asyncio(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/ws") as session:
            for _ in range(2):
                lost = await anext(session)
                assert isinstance(lost, Reconnecting)
                assert lost.reason == "refused with HTTP 302"
        nursery.cancel_scope.cancel()
    assert set(requests) == {b"GET /ws HTTP/1.1"}


def test_asyncio_stays_as_it_is() -> None:
    """Whoever imports the clients keeps the event loop of the standard library."""
    check = "import broker.client, sys; sys.exit('trio_asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
