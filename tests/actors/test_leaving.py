"""Connections that end in every way and at every moment give back all that they held."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello, LinkLost, Resting
from broker.config import Allowance, TenantAllowance
from broker.errors import BrokerError, CloseCode
from broker.features.control import Ban
from tests.support.scripted import ScriptedLink, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus
from tests.support.seeds import simulated

if TYPE_CHECKING:
    from broker.actors.connection import Connection

SECONDS = 20.0
ALL = Allowance(connections=30, subscriptions=40, connects_per_second=20, messages_per_second=50)
PACED = attrs.evolve(ALL, delivered_bytes_per_second=2000)
PART = Allowance(connects_per_second=20, messages_per_second=50)
OWN = Allowance(messages_per_second=9)
LIMITS = (
    config.Limits(connections_per_user=5),
    config.Limits(connections_per_user=8, tenant=ALL, address=ALL, connection=OWN),
    config.Limits(tenants=(TenantAllowance(name="t0", connections=9, delivered_bytes_per_second=500),)),
    config.Limits(tenant=PACED, user=attrs.evolve(PART, subscriptions=9), address=PACED, process=PART),
    config.Limits(tenants=(TenantAllowance(name="t1", suspended=True),), tenant=ALL),
)


@attrs.define(eq=False)
class Crowd:
    """Clients that come, say something, and are ended."""

    supervisor: Supervisor
    bus: ScriptedBus
    rng: random.Random
    links: list[ScriptedLink] = attrs.Factory(list)

    async def one(self) -> None:
        """A client on its way in as the port makes it, and until it is gone."""
        rng = self.rng
        peer = f"192.0.2.{rng.randint(1, 2)}:1"
        link = ScriptedLink(room=rng.choice([300, 1 << 16]), partial_sends=rng.random() < 0.7)
        token = f"t{rng.randint(0, 1)}:u{rng.randint(0, 1)}"
        self.links.append(link)
        try:
            with self.supervisor.admission(peer):
                await trio.sleep(rng.uniform(0, 0.1))
                if rng.random() < 0.1:
                    raise LinkLost
            serving = self.supervisor.serve(link, Hello(peer=peer, token=token))
        except (BrokerError, LinkLost):
            return
        for _ in range(rng.randint(0, 6)):
            channel = rng.choice(["a", "b.*", "live.c", ["a", "b.x", "live.d"]])
            start: dict[str, object] = rng.choice([{}, {"last": 3}, {"snapshot": True}, {"durable": "d"}])
            match rng.randint(0, 6):
                case 0 | 1 | 2:
                    link.say("subscribe", {"channel": channel, **start})
                case 3:
                    link.say("unsubscribe", {"channel": "a"})
                case 4:
                    link.say("publish", {"channel": "a", "event": [1]})
                case 5:
                    link.say("authenticate", {"token": token})
                case 6:
                    link.to_broker.send_nowait(Resting())
        await serving

    async def reads(self) -> None:
        while True:
            await trio.sleep(0.05)
            for link in self.links:
                link.buffer.clear()
                link.writable.set()

    def end(self, connection: Connection) -> None:
        match self.rng.randint(0, 4):
            case 0:
                connection.transport.drop()  # type: ignore[attr-defined]
            case 1:
                connection.end(CloseCode.GOING_AWAY, "")
            case 2:
                connection.crashed(RuntimeError("scripted"))
            case 3:
                connection.crashed(LinkLost())
            case 4:
                connection.dismiss(CloseCode.SERVICE_RESTART)

    async def trouble(self, verifier: Any) -> None:
        """What operators and the network do."""
        rng, supervisor = self.rng, self.supervisor
        match rng.randint(0, 6):
            case 0:
                basis = supervisor.config
                await supervisor.reload(attrs.evolve(basis, limits=rng.choice(LIMITS)), verifier)
            case 1:
                until = time.time() + rng.choice([-1, 1000])
                made = Ban(kind="user", tenant="t0", name="u0", at=1, until=until, version=time.time_ns())
                supervisor.control.learn([made])
            case 2:
                self.bus.interrupt()
            case 3:
                self.bus.put("events.t0.a", b'"' + b"x" * 500 + b'"')
            case _:
                if supervisor.connections:
                    self.end(rng.choice(list(supervisor.connections)))


@simulated(10)
async def test_all_that_was_held_is_given_back(seed: int, autojump_clock: trio.abc.Clock) -> None:
    """After crashes, cuts, bans, reloads and interruptions at any moment no budget holds anything."""
    rng = random.Random(seed)
    bus = ScriptedBus(random=rng, failures=0.1, crashes=0.05)
    verifier: Any = ScriptedVerifier()
    supervisor = Supervisor(
        config=config.Config(limits=rng.choice(LIMITS)), bus=bus, names=subjects.Names(), verifier=verifier
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        crowd = Crowd(supervisor, bus, rng)
        nursery.start_soon(crowd.reads)
        end = trio.current_time() + SECONDS
        while trio.current_time() < end:
            nursery.start_soon(crowd.one)
            await trio.sleep(rng.uniform(0, 0.3))
            await crowd.trouble(verifier)
        await trio.sleep(1)  # who was on the way in has come: nobody else would end that one
        for connection in list(supervisor.connections):
            connection.end(CloseCode.GOING_AWAY, "")
        with trio.fail_after(10):
            await supervisor.emptied()
        await trio.sleep(60)  # what flows fills up again, and is forgotten
        budgets = supervisor.services.budgets
        for each in (budgets.process, *budgets.shared.values(), *budgets.addresses.values()):
            assert (each.connections, each.subscriptions) == (0, 0), each.bounds.scope
        assert not budgets.shared
        assert not budgets.addresses
        assert not supervisor.durables.held
        assert not any(each.holders for each in supervisor.durables.cursors.used.values())
        nursery.cancel_scope.cancel()
