"""Who is kept out, and how soon: the supervisor and its connections under a fake clock."""

from __future__ import annotations

import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello
from broker.config import TenantAllowance
from broker.features.control import Ban
from tests.support.scripted import ScriptedLink, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.actors.connection import Connection

CLIENTS = 300
TURNS = 20  # of the loop, in which other work may be done meanwhile


@attrs.define(eq=False)
class Turns:
    """Counts the turns of the loop."""

    count: int = 0

    async def run(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.count += 1


@asynccontextmanager
async def many() -> AsyncIterator[tuple[Supervisor, list[Connection]]]:
    """A supervisor with clients of one tenant that listen."""
    supervisor = Supervisor(
        config=config.Config(limits=config.Limits(connections_per_user=CLIENTS)),
        bus=ScriptedBus(random=random.Random(1)),
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        for _ in range(CLIENTS):
            link = ScriptedLink(room=1 << 16)
            link.say("subscribe", {"channel": "a"})
            nursery.start_soon(supervisor.serve, link, Hello(peer="192.0.2.1:1", token="acme:alice"))
        await trio.sleep(1)
        connections = list(supervisor.connections)
        assert len(connections) == CLIENTS
        assert all(each.flow.subscriptions() for each in connections)
        yield supervisor, connections
        nursery.cancel_scope.cancel()


async def test_all_that_a_ban_concerns_end_within_some_turns(autojump_clock: trio.abc.Clock) -> None:
    """A turn of a busy loop takes milliseconds, in each of which an event may go out: few may pass."""
    async with many() as (supervisor, connections), trio.open_nursery() as nursery:
        turns = Turns()
        supervisor.control.learn([Ban(kind="suspension", tenant="acme", at=time.time(), version=1)])
        nursery.start_soon(turns.run)
        while not all(each.closing for each in connections):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert turns.count <= TURNS


async def test_a_reload_reaches_all_within_some_turns(autojump_clock: trio.abc.Clock) -> None:
    """So do what a reload forbids, and whom it suspends."""
    async with many() as (supervisor, connections), trio.open_nursery() as nursery:
        turns = Turns()
        nursery.start_soon(turns.run)
        suspended = TenantAllowance(name="acme", suspended=True)
        limits = attrs.evolve(supervisor.config.limits, tenants=(suspended,))
        await supervisor.reload(attrs.evolve(supervisor.config, limits=limits), supervisor.verifier)
        while not all(each.closing for each in connections):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert turns.count <= TURNS


async def test_nobody_who_is_banned_takes_a_place(autojump_clock: trio.abc.Clock) -> None:
    """A client that was let in before the bans were read, and asks for events at once, gets none."""
    bus = ScriptedBus(random=random.Random(1))
    supervisor = Supervisor(
        config=config.Config(),
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        link = ScriptedLink(room=1 << 16)
        nursery.start_soon(supervisor.serve, link, Hello(peer="192.0.2.1:1", token="acme:alice"))
        while not supervisor.connections:
            await trio.lowlevel.checkpoint()
        (connection,) = supervisor.connections
        while not connection.session.principal:
            await trio.lowlevel.checkpoint()
        assert supervisor.control.trouble()
        supervisor.control.changed = lambda: None  # as it is for some turns of the loop
        supervisor.control.learn([Ban(kind="suspension", tenant="acme", at=time.time(), version=1)])
        await until_let_in(supervisor)
        link.say("subscribe", {"channel": "a"})
        await trio.sleep(1)
        assert not connection.flow.subscriptions()
        assert connection.tenant is None
        nursery.cancel_scope.cancel()
