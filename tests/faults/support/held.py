"""What must hold after every test: a to e of the fault suite, in one place.

a. Every acknowledged event has reached every entitled client once, in stream order.
b. No client has got anything of another tenant or of a channel that it may not see.
c. What is missing was announced.
d. The broker, and what it has in NATS, are back at their base.
e. `/readyz` was red in each outage, and is green now.

And of documents: what was answered with `state.changed` is stored, what was refused is not, nothing was
applied twice or overwritten unseen, and everybody who follows them holds what is stored.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import trio

from tests.faults.support import documents
from tests.faults.support.http import get
from tests.faults.support.judge import judge
from tests.faults.support.ledger import read_stream
from tests.faults.support.visitor import SESSION_SECONDS

if TYPE_CHECKING:
    from tests.faults.support.judge import Verdict
    from tests.faults.support.world import World

READ_SECONDS = 100.0
BASE_SECONDS = 60.0  # 10 on a machine that has nothing else to do
FOLLOWED_SECONDS = 15.0
# What the broker may remember: three tenants' rings and pages of history, and the intake's newest events.
MEMORY = (3 * (8 + 8) + 32) * 1024 * 1024
SHOWN = 12  # problems in a message


async def check(world: World, base: dict[str, int]) -> Verdict:
    """Holds everything against what happened; raises `AssertionError` with all that is wrong."""
    with trio.fail_after(READ_SECONDS):
        stream = await world.with_nats(read_stream)
    verdict = judge(
        world.ledger,
        world.clients,
        stream,
        trims=world.trims,
        forgets=world.forgets,
        ended=world.ended,
    )
    verdict.problems += readiness(world)
    if world.documents:
        verdict.problems += world.books.problems + await documents.problems(world)
    for follower in world.clients:
        follower.leave()
    verdict.problems += await back_at_base(world, base)
    verdict.problems += world.broker.crashes()
    world.verdict = verdict
    shown = "\n".join(verdict.problems[:SHOWN])
    assert not verdict.problems, f"seed {world.seed}, {len(verdict.problems)} problems:\n{shown}"
    return verdict


async def in_nats(world: World) -> dict[str, int]:
    """What the broker has in NATS: consumers and, where it can be seen, connections and subscriptions."""
    found = {}
    for stream in ("EVENTS", "PRESENCE", "STATE") if world.documents else ("EVENTS", "PRESENCE"):
        found[f"consumers of {stream}"] = await consumers(world, stream)
    if not world.embedded:
        ports = world.nats.directory / f"nats-server_{world.nats.process.pid}.ports"
        _, body = await get(json.loads(ports.read_text())["monitoring"][0], "/connz?subs=1")
        ours = [each for each in json.loads(body)["connections"] if each.get("name") == "broker"]
        found["connections"] = len(ours)
        found["subscriptions"] = sum(each["subscriptions"] for each in ours)
    return found


async def consumers(world: World, stream: str) -> int:
    names = await world.with_nats(lambda client: client.api(f"CONSUMER.NAMES.{stream}"))
    return len(names.get("consumers", ()))


async def followed(world: World) -> None:
    """Waits until the broker follows all streams; it is ready before that. A login may not use them all."""
    with trio.move_on_after(FOLLOWED_SECONDS):
        for stream in ("PRESENCE", "STATE") if world.documents else ("PRESENCE",):
            while not await consumers(world, stream):
                await trio.sleep(0.05)


async def back_at_base(world: World, nats: dict[str, int]) -> list[str]:
    """d: what is still above its base after a while."""
    base = world.broker.base
    assert base
    deadline = trio.current_time() + BASE_SECONDS + SESSION_SECONDS
    while True:
        above = (await world.broker.held()).above(base, MEMORY)
        found = await in_nats(world)
        above += [f"NATS {key}: {found[key]}, at base {nats[key]}" for key in nats if found[key] > nats[key]]
        if not above or trio.current_time() > deadline:
            return above
        await trio.sleep(0.25)


def readiness(world: World) -> list[str]:
    """e: red in each outage, green at the end."""
    found = []
    states = world.readiness
    for began, ended in world.outages:
        if not any(began <= state.at <= ended and state.status != 200 for state in states):
            found.append(f"/readyz stayed green while nothing could be delivered, {ended - began:.1f} s")
    if states[-1].status != 200:
        found.append(f"/readyz is {states[-1].status} at the end: {states[-1].reason}")
    return found
