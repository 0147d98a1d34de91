"""Snapshots through the real actors: exact, read once for many, and bounded."""

from __future__ import annotations

import json
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker import config, subjects, turns
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello
from broker.eventlog import snapshots
from tests.support.scripted import ScriptedLink, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus
from tests.support.seeds import simulated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from broker.bus.base import Record
    from broker.eventlog.starts import Scope

ROOM = 4000  # bytes that a link holds
CHANNELS = 40


@attrs.define(eq=False)
class Reader:
    """A client that asks for a snapshot and notes all that comes."""

    link: ScriptedLink
    pattern: str | list[str]
    messages: list[dict[str, Any]] = attrs.Factory(list)
    firsts: dict[str, dict[str, Any]] = attrs.Factory(dict)  # the payload of the first of each type

    def first(self, kind: str) -> dict[str, Any] | None:
        return self.firsts.get(kind)

    @property
    def events(self) -> list[tuple[int, str, Any]]:
        """Sequence, channel and event of each event so far."""
        found = [each["payload"] for each in self.messages if each["type"] == "event"]
        return [(int(each["position"].rpartition("-")[2]), each["channel"], each["event"]) for each in found]

    async def read(self, most: int = 1000) -> None:
        for opcode, payload in await self.link.read(most):
            if opcode == 1:
                self.messages.append(message := json.loads(payload))
                self.firsts.setdefault(message["type"], message["payload"])
        assert not self.link.cut, self.messages[-1:]

    async def until(self, done: Callable[[], object], most: int = 1000) -> None:
        with trio.fail_after(1000):
            while not done():
                await self.read(most)

    def answered(self) -> bool:
        return bool(self.first("subscribed") or self.first("error"))

    def live(self) -> bool:
        return self.first("subscription.live") is not None


@attrs.define(eq=False)
class World:
    bus: ScriptedBus
    supervisor: Supervisor
    nursery: trio.Nursery

    @property
    def holdings(self) -> snapshots.Holdings:
        return self.supervisor.tenants.holdings

    async def reader(
        self, pattern: str | list[str], *, user: str = "u", tenant: str = "acme", **more: str
    ) -> Reader:
        link = ScriptedLink(room=ROOM)
        self.nursery.start_soon(self.supervisor.serve, link, Hello(peer="test", token=f"{tenant}:{user}"))
        found = Reader(link, pattern)
        await found.until(lambda: found.first("connection.authenticated"))
        link.say("subscribe", {"channel": "elsewhere"})  # so that P moves by itself
        await found.until(lambda: found.first("subscribed"))
        found.messages.clear()
        found.firsts.clear()
        link.say("subscribe", {"channel": pattern, "snapshot": True, **more})
        return found

    def publish(self, rng: random.Random, tenant: str = "acme") -> None:
        channel = f"a.{rng.randrange(CHANNELS)}"
        body = b"" if rng.random() < 0.1 else json.dumps([len(self.bus.records), "x" * 50]).encode()
        self.bus.put(f"events.{tenant}.{channel}", body)

    def newest(self, upto: int) -> list[tuple[int, str]]:
        """What a naive reader finds: sequence and channel of the newest event of each, no tombstones."""
        found: dict[str, tuple[int, bytes]] = {}
        for sequence, subject, body, _ in self.bus.records:
            if sequence <= upto and subject.startswith("events.acme.a."):
                found[subject.removeprefix("events.acme.")] = (sequence, body)
        return sorted((sequence, channel) for channel, (sequence, body) in found.items() if body)


@asynccontextmanager
async def open_world(*, seed: int = 1, ring: int = 100, memory: int = 1 << 27) -> AsyncIterator[World]:
    bus = ScriptedBus(random=random.Random(seed))
    # Readers that have what they wanted read no more, and answer no ping.
    limits = config.Limits(snapshot_memory_bytes=memory, connections_per_user=100, heartbeat_seconds=9000)
    supervisor = Supervisor(
        config=config.Config(ring=config.Ring(events=ring), limits=limits),
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        yield World(bus, supervisor, nursery)
        nursery.cancel_scope.cancel()


@simulated(15)
async def test_exact(seed: int, autojump_clock: trio.abc.Clock) -> None:
    """Of each channel the newest event at the position in `subscribed`, once and in order, then what follows.

    Whenever it is asked for, beside others, however slowly it is read, and while events go on.
    """
    rng = random.Random(seed)
    async with (
        open_world(seed=seed, ring=rng.choice((20, 100, 1000))) as world,
        trio.open_nursery() as nursery,
    ):
        for _ in range(200):
            world.publish(rng)
        readers: list[Reader] = []

        async def follow(reader: Reader, pace: int) -> None:
            while not reader.live():
                await reader.read(pace)
                await trio.sleep(rng.uniform(0, 0.2))

        for _ in range(30):
            for _ in range(rng.choice((0, 0, 1, 10, 60))):
                world.publish(rng)
            await trio.sleep(rng.choice((0, 0.01, 1, 15)))
            reader = await world.reader("a.*")
            readers.append(reader)
            nursery.start_soon(follow, reader, rng.choice((100, 1000, 100_000)))
        with trio.fail_after(2000):
            while not all(each.live() for each in readers):
                await trio.sleep(1)
        assert world.holdings.shared > 0
        for reader in readers:
            subscribed, live = reader.first("subscribed"), reader.first("subscription.live")
            assert subscribed
            assert live
            at = int(subscribed["position"].rpartition("-")[2])
            end = int(live["position"].rpartition("-")[2])
            snapshot = [(sequence, channel) for sequence, channel, _ in reader.events if sequence <= at]
            assert snapshot == world.newest(at)
            after = [sequence for sequence, _, _ in reader.events if at < sequence <= end]
            assert after == [
                sequence
                for sequence, subject, _, _ in world.bus.records
                if at < sequence <= end and subject.startswith("events.acme.a.")
            ]
        nursery.cancel_scope.cancel()


async def test_a_storm_reads_once(autojump_clock: trio.abc.Clock) -> None:
    """A hundred clients that ask for the same at once cost one read, and hold the same bytes."""
    async with open_world(ring=20) as world:
        rng = random.Random(1)
        for _ in range(500):
            world.publish(rng)
        first = await world.reader("a.*")
        await first.until(first.live)
        held, read = world.holdings.size(), world.holdings.read
        assert held > 0
        readers = [await world.reader("a.*", user=f"u{number}") for number in range(100)]
        for each in readers:
            await each.until(each.answered, most=100)
        assert world.holdings.read == read == 1
        assert world.holdings.size() == held
        for each in readers:
            await each.until(each.live)
            assert each.events == first.events


async def test_unread_snapshots_are_bounded(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for one snapshot after the other and reads nothing gets no more memory than there is for it.

    Others of the tenant are told to ask again, other tenants get theirs; and all is given back.
    """
    monkeypatch.setattr(snapshots, "SNAPSHOT_BYTES", 40_000)
    async with open_world(ring=20, memory=200_000) as world:
        for tenant in ("acme", "globex"):
            for number in range(20):
                for room in range(10):
                    world.bus.put(f"events.{tenant}.a.{room}.{number}", b'"%s"' % (b"x" * 1000))
        rude = [await world.reader(f"a.{room}.*") for room in range(10)]
        refused = []
        for each in rude:
            await each.until(each.answered, most=1)
            if error := each.first("error"):
                refused.append(error)
        assert refused
        assert {(each["code"], each["retryable"]) for each in refused} == {("unavailable", True)}
        assert all(each["retry_after_ms"] > 0 for each in refused)
        assert world.holdings.refused == len(refused)
        assert 0 < world.holdings.size() <= 100_000
        other = await world.reader("a.1.*", tenant="globex")
        await other.until(other.live)
        assert len(other.events) == 20
        for each in rude:
            each.link.drop()
        with trio.fail_after(100):
            while world.holdings.size():
                await trio.sleep(1)
        again = await world.reader("a.9.*")
        await again.until(again.live)
        assert len(again.events) == 20


async def test_what_is_not_asked_for_any_more_is_let_go(autojump_clock: trio.abc.Clock) -> None:
    """A base that nobody reads and nobody has asked for lately takes no memory."""
    async with open_world() as world:
        world.bus.put("events.acme.a.1", b"1")
        reader = await world.reader("a.*")
        await reader.until(reader.live)
        assert len(world.holdings.bases) == 1
        await trio.sleep(snapshots.KEPT_SECONDS * 2)
        assert not world.holdings.bases


async def test_a_full_ring_that_moves_on(autojump_clock: trio.abc.Clock) -> None:
    """Events that leave the ring while the stream is read are in the snapshot: a busy tenant gets one."""
    async with open_world(ring=20) as world, trio.open_nursery() as nursery:
        rng = random.Random(1)
        for _ in range(200):
            world.publish(rng)

        async def go_on() -> None:
            while True:
                world.publish(rng)
                await trio.sleep(0.002)

        nursery.start_soon(go_on)
        await trio.sleep(1)
        reader = await world.reader("a.*")
        await reader.until(reader.answered, most=100_000)
        subscribed = reader.first("subscribed")
        assert subscribed, reader.first("error")
        await reader.until(reader.live, most=100_000)
        at = int(subscribed["position"].rpartition("-")[2])
        found = [(sequence, channel) for sequence, channel, _ in reader.events if sequence <= at]
        assert found == world.newest(at)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("more", [{}, {"durable": "d"}], ids=["live", "durable"])
async def test_what_takes_long_beside_it(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    """It is one of the position in `subscribed`, however long NATS takes for a live channel or a cursor."""

    async def confirm_late(*_: object) -> None:
        await trio.sleep(1)

    monkeypatch.setattr(ScriptedBus, "subscribe_live", confirm_late)
    async with open_world() as world, trio.open_nursery() as nursery:
        world.bus.cursors.delay = confirm_late
        rng = random.Random(1)
        for _ in range(100):
            world.publish(rng)

        async def go_on() -> None:
            while True:
                world.publish(rng)
                await trio.sleep(0.1)

        nursery.start_soon(go_on)
        reader = await world.reader(["a.*", "live.x"], **more)
        await reader.until(reader.live, most=100_000)
        subscribed = reader.first("subscribed")
        assert subscribed
        at = int(subscribed["position"].rpartition("-")[2])
        found = [(sequence, channel) for sequence, channel, _ in reader.events if sequence <= at]
        assert found == world.newest(at)
        nursery.cancel_scope.cancel()


async def test_a_rebuild_that_takes_turns(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that read the same some are in the next fan-out while others are in the one before."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0)  # anybody may read between any two that are moved
    async with open_world() as world, trio.open_nursery() as nursery:
        for number in range(300):
            world.bus.put(f"events.acme.a.{number}", b'"%s"' % (b"x" * 500))
        readers = [await world.reader("a.*", user=f"u{number}") for number in range(20)]
        for each in readers:
            await each.until(lambda each=each: each.events)  # type: ignore[misc]
            nursery.start_soon(each.until, each.live)
        tenant = world.supervisor.tenants.running["acme"]
        while not all(each.live() for each in readers):
            tenant.inbox.lose()
            await trio.sleep(0.3)
        for each in readers:
            assert [event[1] for event in each.events] == [f"a.{number}" for number in range(300)]


async def test_what_is_deleted_while_others_are_read(autojump_clock: trio.abc.Clock) -> None:
    """Who asks next gets the event before it, also when others keep asking."""
    async with open_world(ring=20) as world:
        older = world.bus.put("events.acme.a.1", b"1")
        newer = world.bus.put("events.acme.a.1", b"2")
        for _ in range(100):
            world.bus.put("events.acme.b.1", b"0")
        other = await world.reader("b.*")
        await other.until(other.live)
        tenants = world.supervisor.tenants
        await trio.sleep(20)  # so that it is read from the stream
        shared = tenants.running["acme"].log.snapshots
        read = shared.read

        async def slowly(scope: Scope) -> Mapping[str, Record]:
            found = await read(scope)
            if newer not in world.bus.deleted:
                world.bus.delete([newer])
                await world.supervisor.deletions.look()
            return found

        shared.read = slowly
        first = await world.reader("a.*")
        await first.until(first.live)
        assert first.events == []
        second = await world.reader("a.*")
        await second.until(second.live)
        assert second.events == [(older, "a.1", 1)]


async def test_nothing_is_kept_of_a_stream_in_doubt(autojump_clock: trio.abc.Clock) -> None:
    """When more was deleted than can be named, no base is shared again, not even one that many wait for."""
    async with open_world() as world:
        world.bus.put("events.acme.a.1", b"1")
        reader = await world.reader("a.*")
        await reader.until(reader.live)
        tenant = world.supervisor.tenants.running["acme"]
        [line] = tenant.log.snapshots.lines.values()
        async with line.lock:
            tenant.shorten(trio.current_time())
        assert line.kept is None
        assert not line.bases


async def test_a_traced_tombstone(autojump_clock: trio.abc.Clock) -> None:
    """What was removed is in no snapshot, also where clients get the trace with an event."""
    parent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    async with open_world() as world:
        reader = await world.reader("b")
        await reader.until(reader.live)
        world.supervisor.tenants.running["acme"].log.traced = True
        world.bus.put("events.acme.a.1", b"1", {"traceparent": parent})
        world.bus.put("events.acme.a.1", b"", {"traceparent": parent})
        world.bus.put("events.acme.a.2", b"2", {"traceparent": parent})
        await trio.sleep(1)
        reader = await world.reader("a.*")
        await reader.until(reader.live)
        assert [event[1:] for event in reader.events] == [("a.2", 2)]
        [event] = [each["payload"] for each in reader.messages if each["type"] == "event"]
        assert event["traceparent"] == parent


async def test_much_that_is_newer(autojump_clock: trio.abc.Clock) -> None:
    """What a client notes beside the bytes that all share is little, however much has come since.

    And who would need more of them is refused where there is no room.
    """
    async with open_world(ring=1000, memory=1 << 25) as world:
        for number in range(600):
            world.bus.put(f"events.acme.a.{number}", b'"%s"' % (b"x" * 3000))
        first = await world.reader("a.*")
        await first.until(first.answered, most=1)
        readers = []
        for turn in range(20):
            for number in range(500):
                world.bus.put(f"events.acme.a.{number}", b'"%d%s"' % (turn, b"x" * 3000))
            await trio.sleep(0.4)
            readers.append(await world.reader("a.*", user=f"u{turn}"))
            await readers[-1].until(readers[-1].answered, most=1)
        catch_ups = [each for one in world.supervisor.connections for each in one.flow.beside]
        assert len(catch_ups) > 2
        noted = [each.newer for each in catch_ups if isinstance(each.newer, snapshots.Newer)]
        assert all(len(each.sequences) <= snapshots.NEWER_EVENTS for each in noted)
        refused = [error for each in readers if (error := each.first("error"))]
        assert {each["code"] for each in refused} == {"unavailable"}
        assert world.holdings.size() <= world.holdings.limit // 2
        for each in readers:
            if subscribed := each.first("subscribed"):
                await each.until(each.live, most=100_000)
                at = int(subscribed["position"].rpartition("-")[2])
                assert [event[:2] for event in each.events if event[0] <= at] == world.newest(at)
