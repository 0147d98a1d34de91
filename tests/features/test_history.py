"""Who may read the stream when, and what becomes of a page whose reader's rights change meanwhile."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.features.history import stream
from broker.turns import Turn
from tests.support.asking import open_client
from tests.support.scripted import ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.bus.base import Page


@attrs.define(eq=False, kw_only=True)
class Counting(ScriptedBus):
    """Knows how many pages were read at once; none gets anything before `go`."""

    go: trio.Event = attrs.Factory(trio.Event)
    reading: int = 0
    most: int = 0

    async def next(self, subject: str, *, after: Sequence[int]) -> Page:
        self.reading += 1
        self.most = max(self.most, self.reading)
        try:
            await self.go.wait()
            return await super().next(subject, after=after)
        finally:
            self.reading -= 1


async def test_one_at_a_time_and_tenants_in_turn(autojump_clock: trio.abc.Clock) -> None:
    """Whoever asks for many pages waits for itself: the other tenant is not behind all of them."""
    bus = Counting(random=random.Random(1))
    for number in range(40):
        bus.put(f"events.{('many', 'few')[number % 2]}.a", b"1")
    supervisor = Supervisor(
        config=config.Config(ring=config.Ring(events=1)),
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    pages: list[str] = []

    async def read(tenant: str) -> None:
        message = json.dumps({"type": "history", "payload": {"channel": "*"}}).encode()
        answer: Any = await supervisor.post(message, token=f"{tenant}:u", tenant=None, peer="1.1.1.1:1")
        assert len(answer.events) == 20
        pages.append(tenant)

    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        async with trio.open_nursery() as readers:
            for tenant in ("many", "many", "many", "many", "few"):
                readers.start_soon(read, tenant)
                await trio.testing.wait_all_tasks_blocked()
            bus.go.set()
        nursery.cancel_scope.cancel()
    assert pages == ["many", "many", "few", "many", "many"]
    assert bus.most == 1


@pytest.mark.parametrize("forwards", [False, True])
async def test_events_far_apart_and_then_close_together(
    forwards: bool, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that holds far more than a sample suggests becomes a narrower one, until there is progress."""
    for name in ("MORE", "GETS"):
        monkeypatch.setattr(stream, name, 1)
    bus = ScriptedBus(random=random.Random(1))
    blocks = [("a.x", 1), ("b", 3000), ("a.x", 1500), ("b", 3000), ("a.x", 1)]
    for channel in [channel for channel, count in blocks for _ in range(count)]:
        bus.put(f"events.acme.{channel}", b"%d" % (bus.last_sequence + 1))
    supervisor = Supervisor(
        config=config.Config(limits=config.Limits(history_per_minute=1000)),
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    start, found = "inc0-2900" if forwards else "inc0-4600", list[int]()
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        with trio.fail_after(200):
            while len(found) < 20:
                payload = {"channel": "*.x", "limit": 20, "after" if forwards else "before": start}
                body = json.dumps({"type": "history", "payload": payload}).encode()
                page: Any = await supervisor.post(body, token="acme:u", tenant=None, peer="1.1.1.1:1")
                start = page.last if forwards else page.first
                events = [json.loads(bytes(each))["event"] for each in page.events]
                found = found + events if forwards else events + found
        nursery.cancel_scope.cancel()
    expected = range(3002, 4502)
    assert found == [*(expected[: len(found)] if forwards else expected[-len(found) :])]


async def test_events_that_are_deleted_meanwhile(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter is evaluated in turns: what is deleted from memory between two of them is left out."""
    bus, asked = ScriptedBus(random=random.Random(1)), False

    async def pass_on(_: Turn) -> None:
        if asked and not bus.deleted:
            bus.delete([2])
            await trio.sleep(10)

    monkeypatch.setattr(Turn, "pass_on", pass_on)
    async with open_client(bus, room=5000) as reader:
        for number in range(1, 4):
            bus.put("events.acme.a", b"%d" % number)
        await trio.sleep(1)
        asked = True
        (page,) = await reader.ask("history", {"channel": "a", "filter": {"": {"gt": 0}}}, "history")
        assert [event["event"] for event in page["events"]] == [1, 3]


async def test_rights_that_change_meanwhile(autojump_clock: trio.abc.Clock) -> None:
    """A page that was allowed when it was asked for is not sent when it is not any more."""
    bus = ScriptedBus(random=random.Random(1))
    bus.put("events.acme.a", b"1")
    async with open_client(bus, room=5000) as reader:
        while reader.connection.session.principal is None:
            await reader.read(500)
        reader.link.say("history", {"channel": "*"})
        connection = reader.connection
        with trio.fail_after(10):
            while not connection.waiting:
                await trio.lowlevel.checkpoint()
        principal = connection.session.principal
        assert principal is not None
        connection.session.principal = attrs.evolve(principal, deny=("a",))
        error = await reader.until("error")
        assert (error["code"], error["retryable"]) == ("unavailable", True)
        (page,) = await reader.ask("history", {"channel": "*"}, "history")
        assert (page["events"], page["more"]) == ([], False)
