"""What a client is told when it comes: in one write, unless something has to be waited for."""

from __future__ import annotations

import json
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker import config, subjects
from broker.actors.stretch import before_waiting
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello
from tests.support.scripted import ScriptedLink, ScriptedVerifier, parse_frame, until_let_in
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.permissions import Principal

RESPONSE = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
PEER = "192.0.2.1:1"


@attrs.define(eq=False)
class Recorded(ScriptedLink):
    """A link that knows its writes."""

    writes: list[bytes] = attrs.Factory(list)
    was_behind: bool = False

    def behind(self, *, begins: bool) -> None:
        self.was_behind = True

    def take(self, data: bytes | memoryview) -> int:
        taken = super().take(data)
        self.writes.append(bytes(data[:taken]))
        return taken


@attrs.define
class Waiting(ScriptedVerifier):
    """Fetches its keys until `fetched`."""

    fetched: trio.Event = attrs.Factory(trio.Event)

    async def verify(self, token: str, *, now: float, tenant: str | None = None) -> Principal:
        await self.fetched.wait()
        return await super().verify(token, now=now, tenant=tenant)


@asynccontextmanager
async def opened(
    link: ScriptedLink, token: str | None, verifier: ScriptedVerifier | None = None
) -> AsyncIterator[None]:
    supervisor = Supervisor(
        config=config.Config(),
        bus=ScriptedBus(random=random.Random(1)),
        names=subjects.Names(),
        verifier=verifier or ScriptedVerifier(),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        await trio.sleep(1000)  # a broker that has run for longer than any limit of time
        nursery.start_soon(supervisor.serve, link, Hello(peer=PEER, token=token, response=RESPONSE))
        await trio.sleep(1)
        yield
        nursery.cancel_scope.cancel()


def said(written: bytes) -> list[str]:
    """The types of the messages in what was written; "close" for that frame."""
    buffer = bytearray(written.removeprefix(RESPONSE))
    found = []
    while frame := parse_frame(buffer):
        opcode, payload = frame
        found.append("close" if opcode == 8 else json.loads(payload)["type"])
    assert not buffer
    return found


@pytest.mark.parametrize(
    ("token", "messages"),
    [
        ("acme:alice", ["connection.established", "connection.authenticated"]),
        ("nobody", ["connection.established", "error", "close"]),
        (None, ["connection.established"]),
    ],
)
async def test_in_one_write(autojump_clock: trio.abc.Clock, token: str | None, messages: list[str]) -> None:
    """The response to the handshake and all that the token leads to cost one write together."""
    link = Recorded(room=1 << 16)
    async with opened(link, token):
        (written,) = link.writes
        assert written.startswith(RESPONSE)
        assert said(written) == messages


async def test_no_task_for_what_is_sent_at_once(autojump_clock: trio.abc.Clock) -> None:
    """A client whose link takes everything is never behind, and needs no task that sends."""
    link = Recorded(room=1 << 16)
    async with opened(link, "acme:alice"):
        link.say("subscribe", {"channel": "a"})
        await trio.sleep(1)
        assert said(link.writes[-1]) == ["subscribed"]
    assert not link.was_behind


async def test_nothing_waits_for_keys(autojump_clock: trio.abc.Clock) -> None:
    """While a key is fetched the client knows already that it is connected."""
    link, verifier = Recorded(room=1 << 16), Waiting()
    async with opened(link, "acme:alice", verifier):
        (written,) = link.writes
        assert written.startswith(RESPONSE)
        assert said(written) == ["connection.established"]
        verifier.fetched.set()
        await trio.sleep(1)
        _, written = link.writes
        assert said(written) == ["connection.authenticated"]


async def test_keys_that_do_not_come(autojump_clock: trio.abc.Clock) -> None:
    """The deadline for authenticating runs while a key is fetched."""
    link = Recorded(room=1 << 16)
    async with opened(link, "acme:alice", Waiting()):
        await trio.sleep(config.Limits().authentication_seconds)
        assert said(b"".join(link.writes)) == ["connection.established", "error", "close"]


@pytest.mark.parametrize("partial_sends", [True, False], ids=["tcp", "tls"])
async def test_a_link_that_takes_little(autojump_clock: trio.abc.Clock, partial_sends: bool) -> None:
    """Whatever the link takes at a time, it is the same bytes in the same order."""
    link = Recorded(room=9, partial_sends=partial_sends)
    async with opened(link, "acme:alice"):
        written = bytearray()
        while link.buffer:
            written += link.buffer
            link.buffer.clear()
            link.writable.set()
            await trio.sleep(0.01)  # all of it before the first heartbeat, however long the greeting is
    assert written.startswith(RESPONSE)
    assert said(bytes(written)) == ["connection.established", "connection.authenticated"]


async def test_before_waiting(autojump_clock: trio.abc.Clock) -> None:
    """What comes before the first wait comes before `act`, and the work goes on as it would without."""
    order: list[str] = []

    async def work(*, waits: bool, fails: bool) -> None:
        order.append("begun")
        for _ in range(2 * waits):
            await trio.sleep(1)
            order.append("waited")
        if fails:
            raise KeyError

    async def run(**how: Any) -> list[str]:
        order.clear()
        await before_waiting(work(**how), lambda: order.append("act"))
        return order

    assert await run(waits=False, fails=False) == ["begun", "act"]
    assert await run(waits=True, fails=False) == ["begun", "act", "waited", "waited"]
    for waits in (False, True):
        with pytest.raises(KeyError):
            await run(waits=waits, fails=True)
        assert order.count("act") == 1
    with trio.move_on_after(1.5) as scope:
        await run(waits=True, fails=False)
    assert scope.cancelled_caught
    assert order == ["begun", "act", "waited"]
