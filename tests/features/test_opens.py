"""What one connection may have open: no more than its limits, and that is all that it costs the broker."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker import config, subjects, turns
from broker.errors import TooManyDocuments
from broker.features.state import opening
from broker.features.state.form import DocumentForm
from broker.features.state.overlaps import Overlaps
from tests.support.asking import Granting, open_client
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from broker.bus.base import Record
    from broker.features.state.reading import Reading
    from tests.support.asking import Client
    from tests.support.scripted_keyed import ScriptedKeyed

pytestmark = pytest.mark.usefixtures("quiet_logs")

BODY = b'{"text":"%b"}' % (b"x" * 1000)


@attrs.define(eq=False, repr=False)
class World:
    bus: ScriptedBus
    client: Client

    @property
    def keyed(self) -> ScriptedKeyed:
        return self.bus.keyed("STATE")

    @property
    def reading(self) -> Reading:
        reading = self.client.supervisor.reading
        assert reading is not None
        return reading

    def store(self, count: int, name: str = "d", body: bytes = BODY) -> None:
        for number in range(count):
            self.keyed.store(f"state.acme.{name}.{number}", body)

    async def open(self, *patterns: str) -> str:
        """The code of an error, or that all has come."""
        client, before = self.client, len(self.client.messages)
        client.link.say("state.open", {"channel": list(patterns)})
        with trio.fail_after(1000):
            while True:
                for message in client.messages[before:]:
                    if message["type"] in ("state.ready", "error"):
                        return str(message["payload"].get("code", "ready"))
                await client.read(1 << 20)

    async def close(self, *patterns: str) -> None:
        await self.client.ask("state.close", {"channel": list(patterns)}, "state.closed")


@asynccontextmanager
async def world(verifier: Granting | None = None, seed: int = 1, **limits: Any) -> AsyncIterator[World]:
    bus = ScriptedBus(random=random.Random(seed))
    settings = config.Config(
        state=config.State(documents=(config.Documents(channel=">"),)),
        presence=config.Presence(enabled=False),  # which would draw from the same chance
        limits=config.Limits(requests_burst=10_000, messages_burst=10_000, **limits),
    )
    async with open_client(bus, room=1 << 20, settings=settings, verifier=verifier) as client:
        await client.until("connection.authenticated")
        yield World(bus, client)


@pytest.mark.parametrize(
    "limits", [{"documents_per_connection": 100}, {"document_set_bytes": 100 * len(BODY)}], ids=str
)
async def test_what_nobody_may_have_is_not_loaded(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    """Of many documents a few more than the limit are read, each time; what is allowed is read as a whole."""
    async with world(None, 1, **limits) as world_:
        world_.store(5000)
        world_.store(3, "e")
        world_.store(200, "f", b"")  # deletions are no documents
        taken: list[int] = []
        load = world_.keyed.load

        async def counted(filters: list[str], *, at_least: int, take: Callable[[list[Record]], None]) -> str:
            def note(records: list[Record]) -> None:
                taken.append(len(records))
                take(records)

            return await load(filters, at_least=at_least, take=note)

        monkeypatch.setattr(type(world_.keyed), "load", lambda _, *each, **more: counted(*each, **more))
        for patterns in ([">"], ["d.*"], ["d.*"], ["d.>", "e.0"]):
            taken.clear()
            assert await world_.open(*patterns) == "limit_documents"
            assert 100 < sum(taken) < 1000
        assert await world_.open("e.*", "f.*") == "ready"
        assert [*world_.reading.view.collections] == [("acme", ("e.*", "f.*"), ())]


@pytest.mark.parametrize("seed", range(8))
async def test_what_has_become_too_much_while_it_was_not_followed(
    autojump_clock: trio.abc.Clock, seed: int
) -> None:
    """When all is loaded again, what is too much is closed, whether loaded or heard; the rest goes on."""
    async with world(seed=seed, documents_per_connection=10) as world_:
        world_.store(5)
        world_.store(1, "e")
        assert await world_.open("d.*") == "ready"
        assert await world_.open("e.*") == "ready"
        world_.keyed.remake()
        world_.store(11)
        world_.store(2, "e")
        closed = await world_.client.until("state.closed")
        assert closed == {"channel": ["d.*"], "code": "limit_documents"}
        while not any(each["payload"].get("channel") == "e.1" for each in world_.client.messages):
            await world_.client.read(1 << 20)
        assert len(world_.reading.view.collections) == 1
        assert await world_.open("d.*") == "limit_documents"


async def test_names_without_documents_count(autojump_clock: trio.abc.Clock) -> None:
    """In one open or in several; patterns too. What is closed makes room."""
    async with world(documents_per_connection=10) as world_:
        for number in range(10):
            assert await world_.open(f"none.{number}") == "ready"
        assert await world_.open("none.10") == "limit_documents"
        assert await world_.open("pattern.*") == "limit_documents"
        assert await world_.open(*(f"none.{number}" for number in range(10))) == "ready"  # the same ones
        await world_.close("none.3", "none.4")
        assert await world_.open("pattern.*", "none.10") == "ready"


async def test_patterns_are_limited(autojump_clock: trio.abc.Clock) -> None:
    """Those with wildcards, over all opens of a connection; nothing is loaded for too many."""
    most = opening.MAX_WILD
    async with world() as world_:
        assert await world_.open(*(f"a{number}.*" for number in range(most - 1))) == "ready"
        assert await world_.open("b.*", "name") == "ready"
        assert await world_.open("b.>", "name.>") == "limit_documents"
        assert await world_.open("b.*", "a0.*") == "ready"
        await world_.close("b.*")
        assert await world_.open("b.>") == "ready"
        with pytest.raises(TooManyDocuments):
            opening.check_wild([f"a{number}.*" for number in range(most + 1)])


class Turns(trio.abc.Instrument):
    """How many turns tasks have had."""

    taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += 1


async def test_an_open_lets_others_work(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pages of what is opened other tasks have a turn."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    async with world() as world_:
        world_.store(900)
        taken, pages = Turns(), list[int]()
        flow = world_.client.connection.flow
        push = type(flow).push

        def noted(self: Any, data: bytes) -> None:
            if len(data) > 60_000:
                pages.append(taken.taken)
            push(self, data)

        monkeypatch.setattr(type(flow), "push", noted)
        trio.lowlevel.add_instrument(taken)
        world_.client.link.say("state.open", {"channel": "d.*"})
        await trio.sleep(10)
        trio.lowlevel.remove_instrument(taken)
        assert len(pages) > 10
        assert len(set(pages)) == len(pages)


async def test_differences_are_made_in_turns(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many documents that have changed at once, those of different collections too."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    async with world() as world_:
        world_.store(20)
        taken, made = Turns(), list[int]()
        step = DocumentForm.step

        def noted(self: DocumentForm, *each: Any) -> bytes | None:
            made.append(taken.taken)
            return step(self, *each)

        for number in range(20):
            assert await world_.open(f"d.{number}") == "ready"
        assert await world_.open("d.*") == "ready"
        monkeypatch.setattr(DocumentForm, "step", noted)
        trio.lowlevel.add_instrument(taken)
        world_.store(20, body=BODY.replace(b"{", b'{"n":1,'))
        await trio.sleep(10)
        trio.lowlevel.remove_instrument(taken)
        assert len(made) == 40
        assert len(set(made)) == len(made)


async def test_who_has_read_on_meanwhile_gets_no_older_difference(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While differences are made, a client may have fallen behind, read the new values, and caught up."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    async with world() as world_:
        world_.store(3)
        assert await world_.open("d.*") == "ready"
        view, step = world_.reading.view, DocumentForm.step
        [collection] = view.collections.values()
        [watch] = collection.watches
        read: list[int] = []
        other: Any = type("Other", (), {"lane": None})()

        def reading(self: DocumentForm, *each: Any) -> bytes | None:
            if not read and watch.lane is not None:
                watch.lane.members[other] = None  # of another connection, for which the lane stays
                watch.leave_lane()
                watch.step(view.head)
                read.append(watch.place)
            return step(self, *each)

        monkeypatch.setattr(DocumentForm, "step", reading)
        before = len(world_.client.messages)
        world_.store(3, body=BODY.replace(b"{", b'{"n":1,'))
        await trio.sleep(1)
        world_.store(1, body=BODY.replace(b"{", b'{"n":2,'))
        await trio.sleep(1)
        await world_.client.read(1 << 20)
        came = [each["payload"] for each in world_.client.messages[before:] if each["type"] == "state"]
        assert read == [6]
        assert [each["revision"] for each in came] == ["key0-4", "key0-5", "key0-6", "key0-7"]
        assert came[-1]["from"] == "key0-4"


async def test_many_are_closed_in_one_go(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a renewed token allows much less, what is left is made once and not for each that is closed."""
    verifier = Granting()
    async with world(verifier) as world_:
        names = [f"a.{number}" for number in range(200)]
        assert await world_.open(*names, "b") == "ready"
        view, parts = world_.reading.view, list[Any]()
        part = type(view).part

        def counted(self: Any, collection: Any, key: Any) -> Any:
            parts.append(key)
            return part(self, collection, key)

        monkeypatch.setattr(type(view), "part", counted)
        verifier.changes = {"subscribe": ("b",)}
        before = len(world_.client.messages)
        await world_.client.ask("authenticate", {"token": "acme:u"}, "connection.authenticated")
        await world_.client.ask("ping", {}, "pong")
        closed = [
            each["payload"] for each in world_.client.messages[before:] if each["type"] == "state.closed"
        ]
        assert closed == [{"channel": name, "code": "forbidden"} for name in names]
        assert parts == [("acme", ("b",), ())]


def naive(one: set[str], other: set[str]) -> bool:
    return any(subjects.overlaps(a, b) for a in one for b in other)


@pytest.mark.parametrize("seed", range(40))
def test_overlaps_are_those_of_each_pair(seed: int) -> None:
    """Whatever is added, narrowed and removed."""
    rng = random.Random(seed)
    tokens = ("a", "b", "c", "*", "*", ">", "users", "live")
    patterns: dict[int, set[str]] = {}
    overlaps: Overlaps[int] = Overlaps()
    for number in range(60):
        held = {each for some in patterns.values() for each in some}
        match rng.choice(("add", "add", "narrow", "remove")):
            case "add":
                made = {".".join(rng.choices(tokens, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 5))}
                made = {each for each in made - held if ">" not in each.split(".")[:-1]}
                if made:
                    patterns[number] = made
                    found = overlaps.add(number, patterns)
                    others = {each for each in patterns if each != number}
                    assert found == {each for each in others if naive(made, patterns[each])}
            case "narrow" if patterns:
                watch = rng.choice([*patterns])
                if len(patterns[watch]) > 1:
                    patterns[watch] = set(rng.sample(sorted(patterns[watch]), len(patterns[watch]) - 1))
                    overlaps.narrow(watch, patterns)
            case "remove" if patterns:
                watch = rng.choice([*patterns])
                overlaps.remove(watch)
                del patterns[watch]
        for one in patterns:
            others = {each for each in patterns if each != one}
            assert overlaps.of[one] == {each for each in others if naive(patterns[one], patterns[each])}


def test_overlaps_are_not_compared_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work grows with what is opened, and with the patterns with wildcards, which are few."""
    compared = 0
    overlap = subjects.overlaps

    def counted(one: str, other: str) -> bool:
        nonlocal compared
        compared += 1
        return overlap(one, other)

    monkeypatch.setattr(subjects, "overlaps", counted)
    patterns: dict[int, list[str]] = {0: [f"*.{number}.x" for number in range(opening.MAX_WILD - 1)]}
    overlaps: Overlaps[int] = Overlaps()
    assert overlaps.add(0, patterns) == set()
    for number in range(1, 900):
        patterns[number] = [f"a.{number}.x"]
        assert overlaps.add(number, patterns) == ({0} if number < opening.MAX_WILD - 1 else set())
    patterns[1000] = ["*.5.*"]
    assert overlaps.add(1000, patterns) == {0, 5}
    for number in range(1, 900):
        overlaps.remove(number)
    assert overlaps.of == {0: {1000}, 1000: {0}}
    assert compared < 2 * opening.MAX_WILD
