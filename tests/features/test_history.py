"""Who may read the stream when, and what becomes of a page whose reader's rights change meanwhile."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import attrs
import trio
import trio.testing

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.turns import Turn
from tests.support.asking import open_client
from tests.support.scripted import ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    import pytest

    from broker.bus.base import Page


@attrs.define(eq=False, kw_only=True)
class Counting(ScriptedBus):
    """Knows how many pages were read at once; none gets anything before `go`."""

    go: trio.Event = attrs.Factory(trio.Event)
    reading: int = 0
    most: int = 0

    async def next(self, subject: str, *, after: int) -> Page:
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
