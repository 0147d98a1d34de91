"""What could have been written is never called refused: its outcome is unknown, or a memory of it tells."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from broker.bus.base import OutcomeUnknown
from broker.documents import memory
from broker.documents.judging import Change
from broker.documents.memory import MAX_SESSIONS, Entry
from broker.errors import BrokerError, Rejected, UnknownOutcome
from broker.features.port import Feature
from broker.features.state import store
from broker.features.state.together import joined
from tests.features.documents import Asker, Broker, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from broker.bus.base import KeyedPut

ONE = Change(session="s", n=1, user="u", patch={"a": 2}, was={"a": 1})


@attrs.define(eq=False)
class Losing(World):
    """A stream that stores the next write, and says nothing or nonsense; then comes `meanwhile`."""

    error: Exception | None = None
    meanwhile: Callable[[], None] = lambda: None

    async def put_all(self, puts: Sequence[KeyedPut]) -> list[int]:
        error, self.error = self.error, None
        if error is None:
            return await super().put_all(puts)
        self.replace(puts)
        self.meanwhile()
        raise error

    def others(self, channels: str) -> None:
        """So many others write that what was before is forgotten, and 3 is there."""
        for channel in channels:
            subject = f"state.acme.{channel}"
            sequence, _, _, headers = self.rows[subject]
            known = memory.parse((headers or {}).get(store.CHANGES), sequence).with_changes(
                Entry(session=f"o{n}", n=1, user="u", base=sequence) for n in range(MAX_SESSIONS)
            )
            self.store(subject, b'{"a":3}', {store.CHANGES: str(known), store.BASE: str(sequence)})


@pytest.fixture
async def world(autojump_clock: trio.testing.MockClock) -> AsyncIterator[Losing]:
    async with trio.open_nursery() as nursery:
        world = Losing(random.Random(0), nursery)
        for channel in "xy":
            world.store(f"state.acme.{channel}", b'{"a":1}', None)
        yield world
        nursery.cancel_scope.cancel()


async def change(world: World, channels: str, feature: Feature | None = None, **fields: Any) -> str:
    """How a change of these documents ends, the same of each: with an error's code, or `changed`."""
    broker = Broker(world)
    if feature is not None:
        broker.changing.features = lambda: (feature,)
    await world.nursery.start(broker.run)
    try:
        await broker.change(Asker("c", "u"), dict.fromkeys(channels, attrs.evolve(ONE, **fields)))
    except BrokerError as error:
        return error.code
    finally:
        broker.kill()
    return "changed"


@pytest.mark.parametrize("channels", ["x", "xy"])
async def test_a_write_that_is_forgotten_before_anybody_can_look(world: Losing, channels: str) -> None:
    """It was stored, its answer was lost, and the document has forgotten it since."""
    world.error = OutcomeUnknown("lost")
    world.meanwhile = lambda: world.others(channels)
    assert await change(world, channels) == "unknown_outcome"


async def test_one_document_remembers_a_change_of_several(world: Losing) -> None:
    world.error = OutcomeUnknown("lost")
    world.meanwhile = lambda: world.others("x")
    assert await change(world, "xy") == "changed"


@pytest.mark.parametrize("channels", ["x", "xy"])
async def test_a_crash_while_it_is_written(world: Losing, channels: str) -> None:
    """What the crash leaves open is not called a failure of which nothing is stored."""
    world.error = RuntimeError("in the middle")
    assert await change(world, channels) == "unknown_outcome"
    assert await change(world, channels) == "changed"
    assert len(world.log) == 2 + len(channels)


@attrs.define(eq=False)
class Crashing(Feature):
    """A feature that cannot cope with what it is told."""

    def document_changed(self, who: Mapping[str, Any], **fields: Any) -> None:
        raise RuntimeError(fields["id"])


async def test_a_crash_after_it_is_written(world: Losing) -> None:
    """What was written together is not called refused since a feature crashed over the first of it."""
    broker = Broker(world)
    broker.changing.features = lambda: (Crashing(),)
    await world.nursery.start(broker.run)
    ends: list[str] = []

    async def send(n: int) -> None:
        each = attrs.evolve(ONE, session=f"s{n}", patch={f"b{n}": 1}, was={f"b{n}": None})
        try:
            await broker.change(Asker(f"c{n}", "u"), {"x": each})
            ends.append("changed")
        except BrokerError as error:
            ends.append(error.code)

    async with trio.open_nursery() as clients:
        for n in range(3):
            clients.start_soon(send, n)
    assert len(world.log) == 3
    assert set(ends) <= {"changed", "unknown_outcome"}


@pytest.mark.parametrize("channels", ["x", "xy"])
async def test_a_repetition_where_no_document_is_stored_any_more(world: Losing, channels: str) -> None:
    """By what is stored it cannot be, but that says nothing of its first time."""
    assert await change(world, channels) == "changed"
    world.store("state.acme.x", b"[]", None)
    assert await change(world, channels, revision=1) == ("changed" if "y" in channels else "unknown_outcome")
    assert await change(world, channels, session="another") == "rejected"


def test_of_several_errors_the_unknown_outcome_counts() -> None:
    unknown = UnknownOutcome("who knows")
    assert joined([Rejected("no"), unknown]) is unknown
