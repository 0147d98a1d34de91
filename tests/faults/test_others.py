"""Streams of ours and of others, edited by hand, by tools, and by brokers with other files, under load."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.faults.support.process import BrokerProcess

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report
    from tests.faults.support.world import World
    from tests.support.rawnats import RawNats

EVENTS, RECORDS = 20_000, 5_000
DAY = 86400 * 10**9
THEIRS: dict[str, dict[str, Any]] = {
    "EVENTS": {
        "subjects": ["events.>"],
        "allow_direct": True,
        "max_age": 90 * DAY,
        "max_msgs": 1_000_000,
        "max_bytes": 1 << 30,
        "duplicate_window": 3600 * 10**9,
        "metadata": {"owner": "warehouse"},
        "republish": {"src": "events.elsewhere.>", "dest": "warehouse.>"},
    },
    "AUDIT": {"subjects": ["audit.>"], "allow_direct": True, "max_bytes": 1 << 30, "max_msgs": 1_000_000},
    "DEADLETTER": {"subjects": ["deadletter.>"], "allow_direct": True, "max_age": 90 * DAY},
}
# Files that would take most of it away, each in another way.
FILES: tuple[dict[str, dict[str, Any]], ...] = (
    {"stream": {"max_bytes": "1MiB", "max_age": "1h"}, "audit": {"max_bytes": "64KiB"}},
    {"stream": {"max_bytes": "64KiB", "max_msgs_per_subject": 1, "deadletter_max_age": "1h"}},
    {"stream": {"duplicate_window": "10s", "max_age": "20s"}, "audit": {"max_age": "20s"}},
)


async def fill(nats: RawNats) -> None:
    """Somebody has made these streams, and keeps much in them."""
    for name, settings in THEIRS.items():
        assert "error" not in await nats.api(f"STREAM.CREATE.{name}", name=name, **settings)
    for subject, count in (("events.elsewhere.a", EVENTS), ("audit.elsewhere.a", RECORDS)):
        for number in range(count):
            await nats.publish(subject, json.dumps({"n": f"elsewhere#{number}"}).encode())
        await nats.flush()
    for name, count in (("EVENTS", EVENTS), ("AUDIT", RECORDS)):
        while (await nats.api(f"STREAM.INFO.{name}"))["state"]["messages"] < count:
            await trio.sleep(0.05)


async def settings(world: World, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await world.with_nats(lambda nats: nats.api(f"STREAM.INFO.{name}")))["config"]
    return found


async def edit(world: World, name: str, **change: object) -> None:
    whole = await settings(world, name) | change
    answer = await world.with_nats(lambda nats: nats.api(f"STREAM.UPDATE.{name}", **whole))
    assert "error" not in answer


async def restart(world: World, file: dict[str, dict[str, Any]]) -> None:
    """kill -9 of the broker, and up again with another configuration."""
    async with world.outage():
        await world.broker.kill9()
        await world.red()
        world.broker.sections.update(file)
        world.broker.configure()
        await world.broker.start()


async def restart_nats(world: World) -> None:
    async with world.outage():
        await world.nats.kill9()
        await world.red()
        await world.nats.start()


def resets(world: World) -> set[str]:
    """The clients that were told that their stream is another one."""
    return {
        each.name
        for each in world.clients
        for note in each.notes
        if note.kind == "gap" and note.payload["reason"] == "reset"
    }


@pytest.mark.fault(31)
async def test_streams_of_others(open_world: OpenWorld, report: Report) -> None:
    """Start after start, with files that would delete most of it: settings and contents stay as they were."""
    async with open_world(mixed=True, before=fill, **FILES[0]) as world:
        made = {name: await settings(world, name) for name in THEIRS}
        for file in (*FILES, FILES[0]):
            await world.flows()
            await restart(world, file)
            for name, found in made.items():
                assert await settings(world, name) == found
        await restart_nats(world)
        await world.flows()
        for name, found in made.items():
            assert await settings(world, name) == found
        for name, subject, count in (
            ("EVENTS", "events.elsewhere.a", EVENTS),
            ("AUDIT", "audit.elsewhere.a", RECORDS),
        ):
            found = await world.with_nats(
                lambda nats, name=name: nats.api(f"STREAM.INFO.{name}", subjects_filter=">")
            )
            assert found["state"]["subjects"][subject] == count
            assert found["state"]["first_seq"] == 1
        assert resets(world) == set()
    report.add("streams of others, five starts with files that would cut them", world)


@pytest.mark.fault(31)
async def test_edited_all_the_time(open_world: OpenWorld, report: Report) -> None:
    """Marks wiped and limits set by hand, NATS and broker started again: marks come back, limits stay."""
    async with open_world(mixed=True) as world:
        marks = {name: (await settings(world, name))["metadata"] for name in ("EVENTS", "DEADLETTER")}
        by_hand: dict[str, dict[str, Any]] = {"EVENTS": {}, "DEADLETTER": {}}
        for number in range(4):
            for name, kept in by_hand.items():
                kept |= {"max_age": (40 - number) * DAY, "description": f"edit {number}", "max_msgs": 10**7}
                await edit(world, name, metadata={"by": "hand"}, **kept)
            await world.flows()
            if number % 2:
                await restart_nats(world)
            else:
                await restart(world, {"stream": {"max_bytes": f"{300 + number}MiB"}})
            await world.flows()
            for name, kept in by_hand.items():
                found = await settings(world, name)
                assert {key: found[key] for key in kept} == kept
                assert found["metadata"]["broker_stream"] == marks[name]["broker_stream"]
                assert found["metadata"]["by"] == "hand"
        assert (await settings(world, "EVENTS"))["max_bytes"] == 302 << 20
        assert resets(world) == set()
    report.add("streams edited by hand, without metadata, again and again", world)


@pytest.mark.fault(31)
async def test_a_second_broker_with_another_file(open_world: OpenWorld) -> None:
    """Both are started again and again: nothing is changed back and forth, and no event goes."""
    async with open_world(mixed=True, stream={"max_bytes": "256MiB", "max_age": "1h"}) as world:
        other = BrokerProcess(
            directory=world.broker.directory.parent / "other",
            nats=world.broker.nats,
            sections={"stream": {"max_bytes": "64KiB", "max_age": "10d", "duplicate_window": "30s"}},
        )
        try:
            await other.start()
            settled = await settings(world, "EVENTS")
            assert (settled["max_bytes"], settled["max_age"]) == (256 << 20, 10 * DAY)
            updates = await world.nursery.start(count_updates, world)
            for _ in range(2):
                await world.flows()
                await restart(world, {})
                await other.kill9()
                await other.start()
            await restart_nats(world)
            await world.flows()
            assert await settings(world, "EVENTS") == settled
            assert updates == []
        finally:
            await other.end()


async def count_updates(
    world: World, *, task_status: trio.TaskStatus[list[bytes]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Notes the changes of streams that anybody asks for, until NATS goes."""
    found: list[bytes] = []
    async with world.connect() as nats:
        updates = await nats.subscribe("$JS.API.STREAM.UPDATE.>")
        await nats.flush()
        task_status.started(found)
        async for message in updates:
            found += [message.subject]
