"""What is counted of deliveries, also in the middle of a tick, where a scrape may find it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs
import pytest

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.turns import Turn
from tests.support.flows import ENDLESS, Link
from tests.support.scripted import ScriptedVerifier
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    import trio

    from broker.actors.tenant import Tenant


@attrs.define(eq=False)
class Scraping(Link):
    """A client that takes everything, and first looks at what has been counted so far."""

    tenant: Tenant = attrs.field(kw_only=True)
    seen: list[tuple[int, int]] = attrs.Factory(list)

    def send(self, data: bytes | memoryview) -> int:
        self.look()
        return super().send(data)

    def look(self) -> None:
        self.seen.append((self.tenant.traffic.deliveries, self.tenant.traffic.bytes))


@pytest.mark.parametrize(("room", "whole"), [(0, False), (100, False), (250, False), (0, True)])
async def test_counts_only_grow(nursery: trio.Nursery, room: int, whole: bool) -> None:
    """Prometheus takes a counter that falls for a restart: not even a client that takes a part makes it fall.

    In the end each event has been counted once for each connection, with the bytes that it got.
    """
    supervisor = Supervisor(
        config=config.Config(),
        bus=ScriptedBus(random=random.Random(1)),
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    supervisor.intake.begin("inc0", 0)
    supervisor.tenants.nursery = nursery
    tenant = supervisor.tenants.get("t")
    slow, quick = Link(room=room, whole=whole), Scraping(tenant=tenant)
    for link in (slow, quick):
        tenant.enter(link.flow)
        link.flow.join(tenant.log.acquire("a", ()))
    tick = tenant.log.append([("a", (number, "events.t.a", b"1", None)) for number in (1, 2, 3, 4)])
    await tenant.send(tick, Turn())
    tenant.log.finish()
    quick.look()
    assert min(quick.seen) >= (0, 0)
    assert quick.seen == sorted(quick.seen)
    slow.room = ENDLESS
    slow.write()
    assert slow.events() == quick.events() == [1, 1, 1, 1]
    assert tenant.traffic.deliveries == 8
    assert tenant.traffic.bytes == len(slow.taken) + len(quick.taken)
    tenant.scope.cancel()
