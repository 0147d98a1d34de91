"""A pace in the Python client, by the cases that JavaScript is held to as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker import filters
from broker.client.items import Event
from broker.client.resume import Wanted, finest
from broker.client.windows import MOST, REMEMBERED, Windows
from tests.client.shells import events
from tests.support.peer import broker

if TYPE_CHECKING:
    from tests.client.shells import Running
    from tests.support.peer import Peer

SHARED = json.loads((Path(__file__).parent / "windows.json").read_text())


def event(channel: str, position: str | None) -> Event:
    return Event(channel=channel, data=b"1", position=position, publisher=None, catch_up=None)


@pytest.mark.parametrize("case", SHARED["cases"], ids=lambda case: case["about"])
def test_what_is_handed_over_and_when(case: dict[str, Any]) -> None:
    windows = Windows(case["every"])
    found: list[list[Any]] = []

    def until(now: float) -> None:
        while (end := windows.next()) <= now:
            found.extend([end, each.position] for each in windows.due(end))

    for now, channel, position in case["arrive"]:
        until(now)
        if windows.take(event(channel, position), now):
            found.append([now, position])
    until(10**9)
    assert found == case["given"]
    assert not windows.open


@pytest.mark.parametrize("case", SHARED["finest"], ids=lambda case: case["about"])
def test_what_is_asked_for(case: dict[str, Any]) -> None:
    wanted = [Wanted(wanted and filters.parse(wanted), every) for wanted, every in case["wanted"]]
    assert finest(wanted) == case["asked"]


def test_what_is_kept_is_bounded() -> None:
    """Beyond that events come at once; what is forgotten may come again."""
    windows = Windows(1.0)
    assert all(windows.take(event(f"c{number}", f"x-{number}"), 0) for number in range(REMEMBERED + 1))
    assert (len(windows.open), len(windows.newest)) == (MOST, REMEMBERED)
    assert windows.take(event("c9999", "x-20000"), 0)
    assert not windows.take(event("c1", "x-20001"), 0)
    windows.forget(lambda channel: channel == "c1")
    assert windows.due(1.0) == []
    assert windows.take(event("c1", "x-1"), 1)


async def test_a_session(running: Running) -> None:
    """It is asked for, after a cut again, from where P stands; what is paced moves no position."""
    asked = trio.Event()

    async def first(peer: Peer) -> None:
        await peer.welcome()
        assert await peer.accept() == {"channel": ["a.*"], "every_ms": 100}
        await peer.event(7, "a.b", paced=True)
        await peer.event(3, "a.c", paced=True)
        await peer.event(8, "a.b", paced=True)
        await peer.event(9, "a.b", paced=True)
        await asked.wait()
        assert await peer.accept() == {"channel": ["a.x"]}
        await peer.event(10, "a.x")
        await peer.event(11, "a.x", paced=True)
        await peer.say("pong", {"position": "a-20"})
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.welcome()
        found = [await peer.accept(position="a-20") for _ in range(2)]
        assert found == [
            {"channel": ["a.*"], "position": "a-20", "every_ms": 100},
            {"channel": ["a.x"], "position": "a-20"},
        ]
        await peer.event(9, "a.b", paced=True)
        await peer.event(18, "a.c", paced=True)

    async with broker(first, second) as url, running(url) as session:
        for wrong in (99, 60_001, 100.0, "100", True, -1):
            with pytest.raises(ValueError, match="every_ms"):
                await session.subscribe("a", every_ms=wrong)  # type: ignore[arg-type]
        await session.subscribe("a.*", every_ms=100)
        assert await events(session, 3) == [7, 3, 9]
        await session.subscribe("a.x")
        asked.set()
        found: Any = await events(session, 3)
        assert found == [10, 11, 18]
