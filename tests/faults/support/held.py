"""What must hold after every test: a to e of the fault suite, in one place.

a. Every acknowledged event has reached every entitled client once, in stream order.
b. No client has got anything of another tenant or of a channel that it may not see.
c. What is missing was announced.
d. The broker, and what it has in NATS, are back at their base.
e. `/readyz` was red in each outage, and is green now.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import attrs
import trio

from tests.faults.support.entitled import entitled
from tests.faults.support.http import get
from tests.faults.support.ledger import Entry, read_stream

if TYPE_CHECKING:
    from tests.faults.support.client import Follower, Received
    from tests.faults.support.world import World

BASE_SECONDS = 10.0
LIVE_SECONDS = 1.0  # how long before the end a live event must have been published to be there
MEMORY = 64 * 1024 * 1024  # what rings and caches may keep
SHOWN = 12  # problems in a message


@attrs.define(kw_only=True)
class Verdict:
    """What the clients got, counted in deliveries: one event to one client is one."""

    acknowledged: int = 0  # events
    clients: int = 0
    delivered: int = 0
    duplicated: int = 0
    missing: int = 0
    announced: int = 0
    problems: list[str] = attrs.field(factory=list)


async def check(world: World, base: dict[str, int]) -> Verdict:
    """Holds everything against what happened; raises `AssertionError` with all that is wrong."""
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + 30
        stream = await world.with_nats(read_stream)
        nursery.cancel_scope.cancel()
    verdict = judge(world, stream)
    verdict.problems += readiness(world)
    for follower in world.clients:
        follower.leave()
    verdict.problems += await back_at_base(world, base)
    verdict.problems += world.broker.crashes()
    world.verdict = verdict
    shown = "\n".join(verdict.problems[:SHOWN])
    assert not verdict.problems, f"seed {world.seed}, {len(verdict.problems)} problems:\n{shown}"
    return verdict


# --- a, b, c -------------------------------------------------------------------------------------------


def judge(world: World, stream: dict[int, tuple[str, str]]) -> Verdict:
    """a to c, for all clients; `stream` is what NATS holds at the end."""
    verdict = Verdict(acknowledged=len(world.ledger.stored), clients=len(world.clients))
    problems = verdict.problems
    copies = Counter(identity for _, identity in stream.values())
    problems += [
        f"{identity}: {count} copies in the stream" for identity, count in copies.items() if count > 1
    ]
    final = {
        identity: Entry(id=identity, subject=subject, sequence=sequence, sent=0, taken=0)
        for sequence, (subject, identity) in stream.items()
    }
    gone = {identity: entry for identity, entry in world.ledger.stored.items() if identity not in final}
    if gone and not world.trims:
        problems.append(f"NATS has lost {len(gone)} acknowledged events, {next(iter(gone))} first")
    for follower in world.clients:
        stored = [event for event in follower.events if event.sequence]
        problems += foreign(world, follower)
        problems += order(follower, stored, verdict)
        problems += missing(follower, stored, final, gone, verdict)
        problems += live(world, follower)
    return verdict


def name(follower: Follower) -> str:
    return f"{follower.name} ({follower.tenant}, {follower.patterns}, without {follower.denied})"


def foreign(world: World, follower: Follower) -> list[str]:
    """b: everything that came was published, in that channel, to somebody like this client."""
    found = []
    for event in follower.events:
        subject = world.ledger.sent.get(event.id)
        if subject is None:
            found.append(f"{name(follower)}: {event} was never published")
            continue
        entry = Entry(id=event.id, subject=subject, sequence=0, sent=0, taken=0)
        may = entitled(follower.patterns, follower.denied, follower.tenant, entry.tenant, entry.channel)
        if not may or event.channel != entry.channel:
            found.append(f"{name(follower)}: {event} is not for it")
    return found


def order(follower: Follower, stored: list[Received], verdict: Verdict) -> list[str]:
    """a: positions grow within an incarnation, over all connections, so nothing comes twice."""
    found = []
    last: dict[str, Received] = {}
    seen: dict[tuple[str, str], Received] = {}
    for event in stored:
        verdict.delivered += 1
        before = last.get(event.incarnation)
        twice = seen.setdefault((event.incarnation, event.id), event)
        if twice is not event:
            verdict.duplicated += 1
            found.append(f"{name(follower)}: twice: {twice} and {event}")
        elif before and event.sequence <= before.sequence:
            found.append(f"{name(follower)}: out of order: {event} after {before}")
        last[event.incarnation] = event
    return found


def missing(
    follower: Follower,
    stored: list[Received],
    final: dict[str, Entry],
    gone: dict[str, Entry],
    verdict: Verdict,
) -> list[str]:
    """a and c: what is in the stream has come; what was taken out of it has come or was announced."""
    assert follower.baseline
    assert follower.position
    began, _, baseline = follower.baseline.rpartition("-")
    incarnation = follower.position.rpartition("-")[0]
    since = int(baseline) if began == incarnation else 0
    got = {event.id for event in stored}
    here = {event.id for event in stored if event.incarnation == incarnation}
    found = []
    for entry in final.values():
        if entry.sequence > since and is_for(follower, entry) and entry.id not in here:
            verdict.missing += 1
            found.append(f"{name(follower)}: never got {entry.id} at {entry.sequence}")
    for entry in gone.values():
        if entry.id in got or not is_for(follower, entry):
            continue
        if began == incarnation and entry.sequence <= since:
            continue
        verdict.missing += 1
        if announced(follower, entry):
            verdict.announced += 1
        else:
            found.append(f"{name(follower)}: {entry.id} at {entry.sequence} is gone, in silence")
    return found


def is_for(follower: Follower, entry: Entry) -> bool:
    return entitled(follower.patterns, follower.denied, follower.tenant, entry.tenant, entry.channel)


def announced(follower: Follower, entry: Entry) -> bool:
    """Whether a gap said that this event cannot be had any more."""
    for note in follower.notes:
        if note.kind != "gap":
            continue
        gap = note.payload
        if gap["reason"] == "reset":
            return True
        if gap["reason"] == "trimmed" and number(gap["from"]) < entry.sequence <= number(gap["to"]):
            return True
    return False


def number(position: str) -> int:
    return int(position.rpartition("-")[2])


def live(world: World, follower: Follower) -> list[str]:
    """a and c for live events: once a connection, and none missing of one that was told of no loss.

    Of a connection that ended, only what was published before something that it got can be called missing.
    """
    found = []
    got: dict[int, dict[str, float]] = {}
    for event in follower.events:
        if not event.sequence:
            of = got.setdefault(event.connection, {})
            if event.id in of:
                found.append(f"{name(follower)}: live, twice: {event}")
            entry = world.ledger.live.get(event.id)
            of[event.id] = entry.sent if entry else 0.0
    told = {
        note.connection
        for note in follower.notes
        if (note.kind == "gap" and note.payload["reason"] in ("source", "lag")) or note.kind == "source"
    }
    wanted = [entry for entry in world.ledger.live.values() if is_for(follower, entry)]
    for stay in follower.stays:
        here = got.get(stay.number, {})
        until = max(here.values(), default=0.0) if stay.until else world.ended - LIVE_SECONDS
        if stay.number not in told:
            found += [
                f"{name(follower)}: live {entry.id} is missing on connection {stay.number}"
                for entry in wanted
                if stay.since < entry.sent and entry.taken < until and entry.id not in here
            ]
    return found


# --- d, e ----------------------------------------------------------------------------------------------


async def in_nats(world: World) -> dict[str, int]:
    """What the broker has in NATS: consumers and, where it can be seen, connections and subscriptions."""
    names = await world.with_nats(lambda client: client.api("CONSUMER.NAMES.EVENTS"))
    found = {"consumers": len(names["consumers"])}
    if not world.embedded:
        ports = world.nats.directory / f"nats-server_{world.nats.process.pid}.ports"
        _, body = await get(json.loads(ports.read_text())["monitoring"][0], "/connz?subs=1")
        ours = [each for each in json.loads(body)["connections"] if each.get("name") == "broker"]
        found["connections"] = len(ours)
        found["subscriptions"] = sum(each["subscriptions"] for each in ours)
    return found


async def back_at_base(world: World, nats: dict[str, int]) -> list[str]:
    """d: what is still above its base after a while."""
    base = world.broker.base
    assert base
    deadline = trio.current_time() + BASE_SECONDS
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
        found.append(f"/readyz is {states[-1].status} at the end")
    return found
