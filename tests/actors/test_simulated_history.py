"""Pages of history, read by many at once over a scripted bus, against a naive reader of the stream.

With filters and without. Events keep arriving, requests fail, replicas lag; the stream is trimmed, loses
events, and is made anew. Read back to the beginning, and on to the end, the pages of a walk have each event
once, in order.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import pytest
import trio

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.eventlog import index
from broker.features.history import reading, stream
from broker.turns import Turn
from broker.wire import messages as m
from broker.wire.times import precisely
from tests.support.scripted import ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus
from tests.support.seeds import shorten_memory, simulated

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("quiet_logs")

CHANNELS = ["a", "a.b", "a.b.c", "b", "b.c", "c.d.e", "secret.x", "users.u.i", "users.w.i"]
LISTS = [["a"], ["b.c", "a"], ["a.>"], [">"], ["*.b", "c.*.e"], ["me.>", "secret.x"], ["users.u.i", "a.b"]]
DENY = ("secret.>", "a.b.c")
SIZES = (2, 60, 3000)
# What is asked of an event, and what a naive reader asks.
FILTERS: list[tuple[Any, Callable[[Any], bool]]] = [
    (None, lambda _: True),
    (None, lambda _: True),
    ({"/n": 1}, lambda event: event is None or event["n"] == 1),
    ({"/n": {"gt": 3}}, lambda event: event is None or event["n"] > 3),
    ({"/n": "none"}, lambda event: event is None),
]
LIMITS: dict[str, Any] = {
    "history_per_minute": 100_000,
    "requests_per_second": 100_000,
    "requests_burst": 100_000,
}


class Renewed(Exception):
    """The stream was recreated within a walk."""


@attrs.define(eq=False, kw_only=True)
class Reader:
    """Walks through history. `ever` has all events that ever were, by incarnation and sequence."""

    bus: ScriptedBus
    supervisor: Supervisor
    random: random.Random
    ever: dict[tuple[str, int], tuple[str, str, int]]
    pages: int = 0

    async def page(self, **payload: Any) -> dict[str, Any]:
        """A page, asked for until NATS answers."""
        while True:
            message = json.dumps({"type": "history", "payload": payload}).encode()
            answer = await self.supervisor.post(message, token="acme:u", tenant=None, peer="1.1.1.1:1")
            assert not isinstance(answer, m.Documents | m.Members)
            if answer.type == "history":
                self.pages += 1
                found: dict[str, Any] = json.loads(msgspec.json.encode(answer))
                return found
            assert (answer.type, getattr(answer, "code", "")) == ("error", "unavailable"), answer
            await trio.sleep(self.random.uniform(0, 0.2))

    def matches(self, channels: list[str], channel: str) -> bool:
        wanted = [subjects.expand_me(each, "u") for each in channels]
        return any(subjects.covers(each, channel) for each in wanted) and not any(
            subjects.covers(each, channel) for each in DENY
        )

    async def back(self, wish: dict[str, Any], passes: Callable[[Any], bool]) -> None:
        """From the newest to the beginning."""
        page = await self.page(**wish)
        incarnation, last = split(page["last"])
        found: list[dict[str, Any]] = []
        while True:
            assert page["recovered"]
            found = page["events"] + found
            if not page["more"]:
                break
            before = page["first"]
            page = await self.page(**wish, before=before)
            if split(before)[0] != split(page["first"])[0]:
                assert not page["recovered"]
                raise Renewed
            assert split(page["last"])[1] == split(before)[1] - 1, "a hole between two pages"
            assert split(page["first"])[1] < split(before)[1] or not page["more"], "no progress"
        self.compare(found, wish["channel"], passes, incarnation, 0, last)

    async def forth(self, wish: dict[str, Any], passes: Callable[[Any], bool]) -> None:
        """From somewhere to the end."""
        incarnation = self.bus.incarnation
        start = self.random.randint(self.bus.first - 1, max(self.bus.first - 1, self.bus.sent))
        after, found = start, list[dict[str, Any]]()
        page: dict[str, Any] = {"more": True, "last": f"{incarnation}-{start}"}
        while page["more"]:
            page = await self.page(**wish, after=page["last"])
            if split(page["last"])[0] != incarnation:
                assert not page["recovered"]
                raise Renewed
            if page["recovered"]:
                assert split(page["first"])[1] == after + 1, "a hole between two pages"
            else:
                assert after < self.bus.first - 1, "nothing was trimmed"
            assert split(page["last"])[1] > after or not page["more"], "no progress"
            after = split(page["last"])[1]
            found += page["events"]
        self.compare(found, wish["channel"], passes, incarnation, start, after)

    def compare(
        self,
        found: list[dict[str, Any]],
        channels: list[str],
        passes: Callable[[Any], bool],
        incarnation: str,
        after: int,
        upto: int,
    ) -> None:
        """Each event that is still there was found, once, in order, and none that never was."""
        got = [split(event["position"])[1] for event in found]
        assert got == sorted(set(got))
        for event in found:
            channel, body, stored_at = self.ever[split(event["position"])]
            assert self.matches(channels, channel)
            assert passes(value(body))
            assert event == {
                "channel": channel,
                "position": event["position"],
                "event": value(body),
                "stored_at": precisely(stored_at),
            }
        if incarnation == self.bus.incarnation:
            still = [
                sequence
                for sequence, subject, body, _ in self.bus.records
                if after < sequence <= upto
                and sequence > 0
                and subject.split(".")[1] in ("acme", "_all")
                and self.matches(channels, subject.split(".", 2)[2])
                and passes(value(body.decode()))
            ]
            assert not set(still) - set(got), (channels, after, upto, "events are missing")

    async def walk(self) -> None:
        wish: dict[str, Any] = {"channel": self.random.choice(LISTS)}
        wish["limit"] = self.random.choice((1, 3, 50, 1000))
        wanted, passes = self.random.choice(FILTERS)
        if wanted is not None:
            wish["filter"] = wanted
        way = self.random.choice((self.back, self.forth))
        try:
            await way(wish, passes)
        except Renewed:
            return


def value(body: str) -> Any:
    """The event; an empty body is a tombstone."""
    return json.loads(body) if body else None


def split(position: str) -> tuple[str, int]:
    incarnation, _, sequence = position.rpartition("-")
    return incarnation, int(sequence)


@simulated(10)
async def test_walks_find_each_event(
    seed: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both directions, whatever is kept in memory, in the index and in the stream."""
    rng = random.Random(seed)
    late = rng.choice((0.0, 0.0, 0.5))
    shorten_memory(rng, late, monkeypatch)
    monkeypatch.setattr(index, "KEPT", 1000 if late else rng.choice((5, 40, 1000)))
    gets = rng.choice((1, 7, 128))
    for module in (reading, stream):
        monkeypatch.setattr(module, "GETS", gets)
    monkeypatch.setattr(reading, "FILTERED", rng.choice((1, 10, 256)))
    monkeypatch.setattr(reading, "EVALUATED_BYTES", rng.choice((1, 500, 262144)))
    monkeypatch.setattr(stream, "RARE", rng.choice((1, 5, 500)))
    monkeypatch.setattr(stream, "COUNTED", rng.choice((1, 20, 256)))
    monkeypatch.setattr(stream, "SEARCHES", rng.choice((1, 5, 32)))
    monkeypatch.setattr(stream, "ROUNDS", rng.choice((1, 4)))
    monkeypatch.setattr(stream, "MORE", rng.choice((0, 4)))
    monkeypatch.setattr(stream, "LISTED", rng.choice((1, 10, 4096)))
    monkeypatch.setattr(stream, "DISTANCES", rng.choice(((1,), (1, 4, 16, 64), stream.DISTANCES)))
    monkeypatch.setattr(reading, "WIDEST", rng.choice((1, 20, 1 << 20)))
    bus = ScriptedBus(random=rng, late=late, failures=rng.choice((0.0, 0.05)))
    ever: dict[tuple[str, int], tuple[str, str, int]] = {}

    def put() -> None:
        tenant = rng.choice(("acme", "acme", "acme", "_all", "other"))
        channel = rng.choice(CHANNELS[:7] if tenant == "_all" else CHANNELS)
        size, number = rng.choice(SIZES), rng.randint(0, 5)
        body = json.dumps({"n": number, "x": "x" * size}) if rng.random() < 0.95 else ""
        sequence = bus.put(f"events.{tenant}.{channel}", body.encode())
        ever[bus.incarnation, sequence] = channel, body, bus.moments(bus.records[-1:])[0]

    often = rng.choice((0.0, 0.02, 0.3))

    async def pass_on(_: Turn) -> None:
        """Wherever others may have a turn while a page is read, events arrive, and others leave."""
        if trio.lowlevel.current_task().name.endswith(".read") and rng.random() < often:
            for _each in range(rng.choice((0, 1, 10))):
                put()
            if bus.records and rng.random() < 0.2:
                bus.delete([rng.choice(bus.records[-20:])[0]])
            await trio.sleep(rng.choice((0.0, 0.05, 0.05, 3.0)))

    monkeypatch.setattr(Turn, "pass_on", pass_on)
    for _ in range(rng.choice((0, 30, 400))):
        put()
    limits = config.Limits(
        **LIMITS, history_bytes=rng.choice((2000, 262144)), history_reads=rng.choice((1, 2, 8))
    )
    supervisor = Supervisor(
        config=config.Config(ring=config.Ring(events=rng.choice((1, 10, 8192))), limits=limits),
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(DENY),  # type: ignore[arg-type]
    )
    readers = [
        Reader(bus=bus, supervisor=supervisor, random=random.Random(f"{seed} {each}"), ever=ever)
        for each in range(3)
    ]
    done = 0

    async def read(reader: Reader) -> None:
        nonlocal done
        for _ in range(3):
            await reader.walk()
        done += 1

    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        for _ in range(rng.choice((0, 100))):
            put()
        await trio.sleep(rng.choice((0, 5, 20)))
        for reader in readers:
            nursery.start_soon(read, reader)
        while done < len(readers):
            await trio.sleep(rng.uniform(0, 0.3))
            for _ in range(rng.choice((0, 0, 1, 5))):
                put()
            what = rng.random()
            if what < 0.02 and bus.records:
                bus.delete([record[0] for record in rng.sample(bus.records, 1)])
            elif what < 0.04 and bus.records:
                bus.delete([record[0] for record in bus.records[: rng.randint(1, 20)]])
            elif what < 0.045:
                bus.remake()
        assert all(reader.pages for reader in readers)
        nursery.cancel_scope.cancel()
