"""`GET /state` while the stream changes under it: it never says that a part is all that has changed."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker import config
from broker.bus.api import ApiError
from broker.errors import Unavailable
from broker.features.state.opening import Open
from broker.features.state.reading import Reading
from broker.features.state.rules import Rule, Rules
from broker.keyed import rows
from broker.subjects import Names
from broker.wire import positions
from tests.support.scripted_bus import ScriptedBus
from tests.support.scripted_keyed import ScriptedKeyed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from broker.wire import messages as m

BODY = b'{"n":1}'


@attrs.define(eq=False)
class Held(ScriptedKeyed):
    """Questions for deletions are answered when a test says so: `asked` when one has come."""

    asked: trio.Event = attrs.Factory(trio.Event)
    answer: trio.Event = attrs.Factory(trio.Event)
    full: bool = False

    async def put(self, subject: str, body: bytes, *, headers: Mapping[str, str], revision: int) -> int:
        if self.full:
            raise Unavailable("maximum bytes exceeded")
        return await super().put(subject, body, headers=headers, revision=revision)

    async def remembers(self, sequence: int) -> bool:
        self.asked.set()
        found = await super().remembers(sequence)
        await self.answer.wait()
        return found


@attrs.frozen
class Asker:
    tenant: str = "acme"

    def attach(self) -> Asker:
        return self


@attrs.define(eq=False)
class World:
    keyed: Held
    reading: Reading
    nursery: trio.Nursery

    def store(self, *names: str, body: bytes = BODY) -> None:
        for name in names:
            self.keyed.store(f"state.acme.{name}", body)

    async def fed(self) -> None:
        """Until the broker has all that is stored."""
        view = self.reading.view
        while (view.stream, view.head, view.up) != (self.keyed.incarnation, self.keyed.last, True):
            await trio.sleep(0.01)

    async def read(self, position: str | None = None) -> m.Documents:
        wish = Open(
            patterns={"*": ()},
            refused=[],
            position=None if position is None else positions.parse(position),
            seconds=0.1,
            listed=True,
        )
        asker: Any = Asker()
        return await self.reading.read(asker, wish)

    async def read_while(self, position: str, happen: Callable[[], Any]) -> m.Documents | Unavailable:
        """What is read if something happens after the question for deletions."""
        found: list[m.Documents | Unavailable] = []

        async def read() -> None:
            try:
                found.append(await self.read(position))
            except Unavailable as error:
                found.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await self.keyed.asked.wait()
            await trio.sleep(1)
            await happen()
            self.keyed.answer.set()
        return found[0]


def names(documents: m.Documents) -> list[str]:
    return [each.channel for each in documents.documents]


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    bus = ScriptedBus(random=random.Random(1))
    bus.contact.append((0.0, True))
    keyed = Held(bus)
    rules = Rules((Rule(pattern=">"),))
    reading = Reading(keyed, Names(), rules, config.Limits(), lambda: "events")
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading.run)
            found = World(keyed, reading, nursery)
            await found.fed()
            yield found
            nursery.cancel_scope.cancel()


async def test_the_stream_is_recreated(autojump_clock: trio.abc.Clock) -> None:
    """The position was one of the stream before it: all of the new one come."""
    async with world() as world_:
        world_.store("a", "b")
        await world_.fed()

        async def happen() -> None:
            world_.keyed.remake()
            world_.store("c", "d", "e")
            await world_.fed()
            await trio.sleep(1)  # and it is loaded

        found = await world_.read_while("key0-1", happen)
        assert not isinstance(found, Unavailable)
        assert (names(found), found.recovered) == (["c", "d", "e"], False)
        assert found.position == "key1-3"


async def test_what_is_loaded_again_is_not_read(autojump_clock: trio.abc.Clock) -> None:
    """While it is, nothing of it is there."""
    async with world() as world_:
        world_.store("a", "b")
        await world_.fed()

        async def happen() -> None:
            world_.reading.view.begin_anew(world_.reading.view.collections.values())

        found = await world_.read_while("key0-1", happen)
        assert isinstance(found, Unavailable) or names(found) == ["b"]
        assert names(await world_.read("key0-1")) == ["b"]


async def test_deletions_are_forgotten_in_memory(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question and the answer: all come, without them."""
    monkeypatch.setattr(rows, "SPARE_DELETIONS", 0)
    async with world() as world_:
        world_.store(*"abcdefg", "z")
        await world_.fed()

        async def happen() -> None:
            world_.store(*"abcdefg", body=b"")
            world_.store(*"zzzzz")
            await world_.fed()

        found = await world_.read_while("key0-8", happen)
        assert not isinstance(found, Unavailable)
        assert (names(found), found.recovered) == (["z"], False)


async def test_missed_deletions_are_looked_for_first(autojump_clock: trio.abc.Clock) -> None:
    """After an interruption a document that is gone is not told as one that is there, at a later position."""
    async with world() as world_:
        keyed, view = world_.keyed, world_.reading.view
        world_.store("a", "b")
        await world_.fed()
        collection = await view.acquire(("acme", ("*",), ()))
        keyed.interrupt()
        world_.store("a", body=b"")
        keyed.forget()
        world_.store("c")
        await world_.fed()
        answers: list[m.Documents] = []

        async def read() -> None:
            answers.append(await world_.read())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(1)
            keyed.answer.set()
        assert names(answers[0]) == ["b", "c"]
        view.release(collection)


async def test_keys_are_removed_without_a_word(autojump_clock: trio.abc.Clock) -> None:
    """Where somebody follows them that is found out: no position before that counts, here and elsewhere."""
    async with world() as world_:
        keyed, view = world_.keyed, world_.reading.view
        keyed.answer.set()
        world_.store("a", "b")
        keyed.store("state.other.a", BODY)
        await world_.fed()
        key = ("acme", ("*",), ())
        followed = [await view.acquire(key), await view.acquire(("other", (">",), ()))]
        await trio.sleep(10)  # the broker has looked
        before = await world_.read()
        world_.store("b")
        keyed.purge("state.acme.a")
        world_.store("c")
        assert names(await world_.read()) == ["a", "b"], "nobody can know yet"
        await trio.sleep(10)
        assert view.removed == {"acme": 6}
        assert [each.loaded for each in followed] == [True, True]
        found = await world_.read(before.position)
        assert (names(found), found.recovered) == (["b", "c"], False)
        assert (await world_.read(found.position)).recovered
        view.removed.clear()  # as in a process that has just begun
        assert not (await world_.read("key0-5")).recovered
        last = keyed.last
        await trio.sleep(100)
        assert keyed.last == last, "it is said once"
        for each in followed:
            view.release(each)


async def test_what_cannot_be_said_holds_here(autojump_clock: trio.abc.Clock) -> None:
    """A stream that is full takes no word of a removal."""
    async with world() as world_:
        keyed, view = world_.keyed, world_.reading.view
        keyed.answer.set()
        world_.store("a", "b")
        await world_.fed()
        followed = await view.acquire(("acme", ("*",), ()))
        before = await world_.read()

        keyed.full = True
        await trio.sleep(10)
        keyed.purge("state.acme.a")
        await trio.sleep(10)
        found = await world_.read(before.position)
        assert (names(found), found.recovered) == (["b"], False)
        view.release(followed)


async def test_what_nats_refuses(autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal by NATS, of whatever kind, is `unavailable` for everybody who waits."""

    async def load(self: ScriptedKeyed, *args: Any, **options: Any) -> str:
        raise ApiError({"description": "no leader", "err_code": 10008}, "STREAM.INFO.STATE")

    async with world() as world_:
        world_.store("a")
        await world_.fed()
        with monkeypatch.context() as patched:
            patched.setattr(ScriptedKeyed, "load", load)
            with pytest.raises(Unavailable, match="no leader"):
                await world_.read()
        assert names(await world_.read()) == ["a"]
