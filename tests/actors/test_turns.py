"""Long work is done in short turns: nobody waits for it longer than some milliseconds.

The clock is a fake one that nothing but work moves on: a send takes a tenth of a millisecond.
"""

from __future__ import annotations

import math
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from broker import app, config, subjects
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello
from broker.actors.wheel import BUCKET_SECONDS, Wheel
from broker.errors import CloseCode
from broker.turns import TURN_SECONDS
from tests.support.sabotage import broken
from tests.support.scripted import ScriptedLink, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = pytest.mark.usefixtures("quiet_logs")

CLIENTS = 200
SEND_SECONDS = 0.0001
# What a turn may be, and what may be done between two looks at the clock.
LONGEST_SECONDS = TURN_SECONDS + 34 * SEND_SECONDS
EVENTS = 16_000


@attrs.define(eq=False)
class Turns(trio.abc.Instrument):
    """The longest turn of any task."""

    clock: trio.testing.MockClock
    began: float = math.inf  # a step that had begun before is not measured
    longest: float = 0.0
    total: float = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.began = self.clock.current_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = max(0.0, self.clock.current_time() - self.began)
        self.longest = max(self.longest, took)
        self.total += took


@attrs.define(eq=False, kw_only=True)
class Laborious(ScriptedLink):
    """A link that takes time to be sent to, and all that it is sent."""

    clock: trio.testing.MockClock

    def send_nowait(self, data: bytes | memoryview) -> int:
        self.clock.jump(SEND_SECONDS)
        return len(data)

    async def send_some(self, data: bytes | memoryview) -> int:
        await trio.lowlevel.checkpoint()
        return self.send_nowait(data)


@asynccontextmanager
async def many(
    clock: trio.testing.MockClock, count: int = CLIENTS
) -> AsyncIterator[tuple[Supervisor, Turns]]:
    """A supervisor with clients of one tenant that listen to all there is."""
    supervisor = Supervisor(
        config=config.Config(limits=config.Limits(connections_per_user=count)),
        bus=ScriptedBus(random=random.Random(1)),
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    turns = Turns(clock)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        for _ in range(count):
            link = Laborious(room=1 << 20, clock=clock)
            link.say("subscribe", {"channel": ["a", "live.a"]})
            nursery.start_soon(supervisor.serve, link, Hello(peer="192.0.2.1:1", token="acme:alice"))
        await trio.sleep(5)
        assert all(each.flow.subscriptions() for each in supervisor.connections)
        trio.lowlevel.add_instrument(turns)
        await trio.lowlevel.checkpoint()  # this task's own turns count from here on
        yield supervisor, turns
        trio.lowlevel.remove_instrument(turns)
        nursery.cancel_scope.cancel()


async def test_a_full_inbox(autojump_clock: trio.testing.MockClock) -> None:
    """Many events for few: each tick is short, and the next one waits already."""
    async with many(autojump_clock, 10) as (supervisor, turns):
        tenant = supervisor.tenants.get("acme")
        for number in range(1, EVENTS + 1):
            tenant.inbox.put("a", (number, "events.acme.a", b"1", None))
        tenant.inbox.wake(None)
        await trio.sleep(1)
        assert tenant.log.position() == EVENTS
        assert turns.total > 3 * LONGEST_SECONDS
        assert turns.longest <= LONGEST_SECONDS


async def interrupted(supervisor: Supervisor) -> None:
    supervisor.interrupted()


async def live_lost(supervisor: Supervisor) -> None:
    supervisor.live_lost()


async def rebuilt(supervisor: Supervisor) -> None:
    supervisor.tenants.get("acme").inbox.lose()


async def given_up(supervisor: Supervisor) -> None:
    """The tenant crashes too often, and sends everybody away."""
    tenant = supervisor.tenants.get("acme")

    tenant.make_history = broken
    tenant.inbox.lose()


async def banned(supervisor: Supervisor) -> None:
    limits = attrs.evolve(
        supervisor.config.limits, tenants=(config.TenantAllowance(name="acme", suspended=True),)
    )
    supervisor.services.budgets.settings_changed(config.Config(limits=limits))
    supervisor.bans_changed()


async def reloaded(supervisor: Supervisor) -> None:
    """Under a configuration that reads tokens in another way: everybody has to come again."""
    auth = attrs.evolve(supervisor.config.auth, tenant_claim="other")
    await supervisor.reload(attrs.evolve(supervisor.config, auth=auth), supervisor.verifier)


async def drained(supervisor: Supervisor) -> None:
    await app.drain(supervisor, CloseCode.SERVICE_RESTART)


@pytest.mark.parametrize(
    "work",
    [interrupted, live_lost, rebuilt, given_up, banned, reloaded, drained],
    ids=lambda work: work.__name__,
)
async def test_whatever_is_done_to_everybody(
    work: Callable[[Supervisor], Awaitable[None]], autojump_clock: trio.testing.MockClock
) -> None:
    async with many(autojump_clock) as (supervisor, turns):
        await work(supervisor)
        await trio.sleep(60)
        assert turns.total > 3 * LONGEST_SECONDS
        assert turns.longest <= LONGEST_SECONDS


@attrs.define(eq=False)
class Due:
    """A member of the wheel whose deadline has come, and one that leaves with it."""

    wheel: Wheel
    clock: trio.testing.MockClock
    slot: int | None = None
    calls: int = 0
    companion: Due | None = None

    def on_timer(self, now: float) -> float:
        self.calls += 1
        self.clock.jump(SEND_SECONDS)
        if self.companion:
            self.wheel.cancel(self.companion)
        return now + 1000


async def test_a_crowd_on_the_wheel(autojump_clock: trio.testing.MockClock) -> None:
    """Who is due at the same time is called in turns, each once; who leaves meanwhile is not called."""
    wheel = Wheel()
    leaving = Due(wheel, autojump_clock)
    members = [Due(wheel, autojump_clock, companion=leaving) for _ in range(CLIENTS)]
    for each in (leaving, *members):  # the last to come is the first to be called
        wheel.schedule(each, trio.current_time() + BUCKET_SECONDS)
    turns = Turns(autojump_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(turns)
        await trio.sleep(5)
        trio.lowlevel.remove_instrument(turns)
        nursery.cancel_scope.cancel()
    assert [each.calls for each in members] == [1] * CLIENTS
    assert not leaving.calls
    assert turns.total > 3 * LONGEST_SECONDS
    assert turns.longest <= LONGEST_SECONDS
