"""Cursors that others write too, and streams that begin anew: over values in memory, by a fake clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from broker.bus.base import Value
from broker.errors import Unavailable
from broker.features.durable.cursors import Cursors
from broker.wire import positions
from tests.support.scripted_bus import ScriptedValues

if TYPE_CHECKING:
    from broker.features.durable.cursors import Cursor
    from broker.wire.positions import Position


class Values(ScriptedValues):
    """What is read may take its time to arrive."""

    late: float = 0.0

    async def get(self, key: str) -> Value | None:
        found = await super().get(key)
        await trio.sleep(self.late)
        return found


@attrs.define(eq=False)
class Bus:
    """Only its cursors are there."""

    cursors: Values = attrs.Factory(lambda: Values(trio.lowlevel.checkpoint))


@pytest.fixture
def bus() -> Bus:
    return Bus()


def broker(bus: Bus) -> Cursors:
    """One more over the same values."""
    shared: Any = bus
    return Cursors(shared, per_user=16, max_age=0)


async def hold(cursors: Cursors, position: str = "a-1") -> Cursor:
    async def begin() -> Position:
        return positions.parse(position)

    return await cursors.hold("acme", "alice", "d", begin)


def stored(bus: Bus) -> str:
    [value] = bus.cursors.values.values()
    return value.data.decode()


async def acknowledge(cursors: Cursors, position: str) -> None:
    cursor = await hold(cursors, position)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cursors.store, cursor, positions.parse(position))
        await wait_all_tasks_blocked()
        await cursors.flush()
    cursors.release(cursor)


async def test_many_are_written_together(bus: Bus, autojump_clock: Any) -> None:
    """What was acknowledged at once takes a request for a hundred, not one for each."""
    cursors = broker(bus)

    async def begin() -> Position:
        return positions.parse("a-1")

    held = [await cursors.hold("acme", f"u{number}", "d", begin) for number in range(800)]
    for cursor in held:
        cursor.raise_to(positions.parse("a-5"))
    requests = 0

    async def count() -> None:
        nonlocal requests
        requests += 1
        await trio.sleep(0.01)

    bus.cursors.delay = count
    await cursors.flush()
    assert requests == 8
    assert {value.data for value in bus.cursors.values.values()} == {b"a-5"}
    assert all(cursor.stored == cursor.position for cursor in held)


async def test_of_many_some_were_written_elsewhere(bus: Bus, autojump_clock: Any) -> None:
    """Those are read again, and the higher position stays; the others are none the worse for it."""
    one, two = broker(bus), broker(bus)

    async def begin() -> Position:
        return positions.parse("a-1")

    held = [await one.hold("acme", f"u{number}", "d", begin) for number in range(10)]
    others = [await two.hold("acme", f"u{number}", "d", begin) for number in range(10)]
    for number, (cursor, other) in enumerate(zip(held, others, strict=True)):
        cursor.raise_to(positions.parse("a-5"))
        if number < 4:
            other.raise_to(positions.parse("a-9" if number % 2 else "a-3"))
    await two.flush()
    await one.flush()
    found = sorted(value.data.decode() for value in bus.cursors.values.values())
    assert found == ["a-5"] * 8 + ["a-9"] * 2
    assert all(cursor.stored == cursor.position for cursor in held)


async def test_who_waits_is_told_by_what_another_broker_stored(bus: Bus, autojump_clock: Any) -> None:
    """When the cursor is read again before it was written here, there is nothing left to write."""
    one, two = broker(bus), broker(bus)
    cursor = await hold(one)
    told: list[str] = []
    cursor.raise_to(positions.parse("a-5"))
    cursor.waiting.append((positions.parse("a-5"), lambda: told.append("five")))
    await acknowledge(two, "a-9")
    assert told == []
    assert str((await hold(one)).position) == "a-9"
    assert told == ["five"]


async def test_a_stream_that_began_anew(bus: Bus, autojump_clock: Any) -> None:
    """A broker that still stands in the old one does not write that over the new; told is what is stored."""
    one, two = broker(bus), broker(bus)
    cursor = await hold(one, "a-1000")
    await acknowledge(two, "b-5")
    one.max_age, cursor.written = 80.0, -1000.0  # due, that it does not expire
    await one.flush()
    assert stored(bus) == "b-5"
    assert str(cursor.position) == "b-5"
    waits = trio.Event()
    cursor.raise_to(positions.parse("c-2"))
    cursor.waiting.append((positions.parse("c-2"), waits.set))
    cursor.notify()
    assert not waits.is_set()
    await one.flush()
    assert waits.is_set()
    assert stored(bus) == "c-2"


async def test_a_cursor_that_is_dropped_while_it_is_read(bus: Bus, autojump_clock: Any) -> None:
    """Whoever comes back at the moment of the last write begins where that stands."""
    one = broker(bus)
    cursor = await hold(one)
    cursor.raise_to(positions.parse("a-7"))
    one.release(cursor)
    found: list[Cursor] = []

    async def come_back() -> None:
        found.append(await hold(one))

    bus.cursors.late = 10.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        await wait_all_tasks_blocked()
        await one.flush()
        assert not one.used
    assert str(found[0].position) == "a-7"
    assert one.used == {cursor.key: found[0]}


async def test_a_store_that_does_not_come(bus: Bus, autojump_clock: Any) -> None:
    """It is said, and what was acknowledged stays: it is written as soon as that is possible."""
    one = broker(bus)
    cursor = await hold(one)
    with pytest.raises(Unavailable, match="not stored yet"):
        await one.store(cursor, positions.parse("a-3"))
    await one.flush()
    assert stored(bus) == "a-3"


@pytest.mark.parametrize("left", [b"", b"\xff", b"junk"], ids=["deleted", "no text", "no position"])
async def test_a_value_that_is_no_position(bus: Bus, autojump_clock: Any, left: bytes) -> None:
    """As `nats kv del` leaves it, or somebody else's: here it is written anew, there it begins anew.

    And cursors beside it are written as ever.
    """
    one, two = broker(bus), broker(bus)

    async def begin() -> Position:
        return positions.parse("a-1")

    held = [await one.hold("acme", f"u{number}", "d", begin) for number in range(3)]
    first = held[0].key
    bus.cursors.last += 1
    bus.cursors.values[first] = Value(data=left, revision=bus.cursors.last)
    assert str((await two.hold("acme", "u0", "d", begin)).position) == "a-1"
    bus.cursors.last += 1
    bus.cursors.values[first] = Value(data=left, revision=bus.cursors.last)
    for cursor in held:
        cursor.raise_to(positions.parse("a-5"))
    await one.flush()
    assert [bus.cursors.values[cursor.key].data for cursor in held] == [b"a-5"] * 3


async def test_a_cursor_that_others_keep_writing(bus: Bus, autojump_clock: Any) -> None:
    """It holds up none of the others."""
    one = broker(bus)

    async def begin() -> Position:
        return positions.parse("a-1")

    held = [await one.hold("acme", f"u{number}", "d", begin) for number in range(300)]
    for cursor in held:
        cursor.raise_to(positions.parse("a-5"))

    async def contend() -> None:
        bus.cursors.last += 1
        bus.cursors.values[held[0].key] = Value(data=b"a-3", revision=bus.cursors.last)

    bus.cursors.delay = contend
    await one.flush()
    assert [cursor for cursor in held if cursor.stored != cursor.position] == held[:1]
