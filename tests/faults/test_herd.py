"""Very many clients, very slow ones, absent ones, and a tenant that takes all it can get."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from broker.bus.server import ended, spawn
from tests.faults.support.client import Client
from tests.faults.support.ledger import Writer
from tests.faults.support.proxy import run_proxy
from tests.faults.support.world import PATIENCE_SECONDS, SLACK, TENANTS
from tests.support import command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.faults.conftest import OpenWorld
    from tests.faults.support.follower import Follower
    from tests.faults.support.report import Report
    from tests.faults.support.world import World

MEMBERS, ROOMS, WAVES = 2000, 20, 3
MISSED = 40  # events of each room, for a member that was away
GROWTH = 12 * 1024 * 1024  # over the waves; a connection that leaves anything behind leaves 5 KiB
RESUME_SECONDS = 5.0 * SLACK
# 2,000 clients in one process may be late by themselves, and nobody is to be refused for that.
PATIENT = {"head_seconds": 60, "authentication_seconds": 60, "heartbeat_timeout_seconds": 60}
READS = 30  # of a channel in a wave, at most; one for each client would be 100. A new event makes another
POLL_SECONDS = 0.05
NOISE_SECONDS = 6.0
SLEEPERS = 6  # a tenth of the clients
MEMORY = 64 * 1024 * 1024  # that clients that do not read may cost the broker
KERNEL_BYTES = (
    2 * 1024 * 1024
)  # and the kernel, each, both ends together: unbounded it would be 4 MiB and more
PAGE_BYTES = 4096  # the unit of /proc/net/sockstat


# --- many at once ---------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Herd:
    """A tenant of 2,000 clients in 20 rooms, and its one service."""

    world: World
    writer: Writer
    members: list[Follower] = attrs.field(factory=list)
    reads: Counter[str] = attrs.field(factory=Counter)  # of the stream by the broker, by subject filter

    @classmethod
    def of(cls, world: World) -> Herd:
        writer = Writer(
            name="herd",
            connect=world.connect,
            ledger=world.ledger,
            random=random.Random(f"{world.seed}.herd"),
            pick=lambda choice: f"events.herd.room.{choice.randrange(ROOMS)}",
            rate=0.2,
        )
        herd = cls(world, writer)
        for number in range(MEMBERS):
            user = f"h{number // 5}"
            token = world.broker.token("herd", user, subscribe=["room.>"])
            herd.members.append(
                Client(
                    name=f"member{number}",
                    tenant="herd",
                    user=user,
                    patterns=[f"room.{number % ROOMS}"],
                    denied=[],
                    token=partial(str, token),
                    address=lambda: world.broker.ws,
                    random=random.Random(f"{world.seed}.herd.{number}"),
                )
            )
        return herd

    async def watch(self) -> None:
        """Counts the broker's reads of the stream: any client of the account sees the requests."""
        async with self.world.connect() as nats:
            async for request in await nats.subscribe("$JS.API.DIRECT.GET.EVENTS"):
                self.reads[json.loads(request.body).get("next_by_subj", "")] += 1

    async def all_live(self) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            for member in self.members:
                await member.subscribed.wait()

    async def burst(self) -> None:
        """So many events that nobody who missed them finds them all in the broker's memory."""
        self.writer.burst += MISSED * ROOMS
        with trio.fail_after(PATIENCE_SECONDS):
            await self.world.ledger.until(lambda: self.writer.burst <= 0 and not self.writer.waiting)

    async def complete(self) -> None:
        """Each member has each event of its room since it first came, once and in order."""
        self.writer.stopping = True
        with trio.fail_after(PATIENCE_SECONDS):
            await self.world.ledger.until(lambda: not self.writer.waiting)
        rooms: dict[str, list[int]] = {}
        for entry in sorted(self.world.ledger.stored.values(), key=lambda each: each.sequence):
            if entry.tenant == "herd":
                rooms.setdefault(entry.channel, []).append(entry.sequence)
        for member in self.members:
            (room,) = member.patterns
            assert member.baseline
            since = int(member.baseline.rpartition("-")[2])
            wanted = [sequence for sequence in rooms[room] if sequence > since]
            with trio.fail_after(PATIENCE_SECONDS):
                while len(member.events) < len(wanted):
                    await trio.sleep(POLL_SECONDS)
            assert [event.sequence for event in member.events] == wanted, member.name


@pytest.mark.fault(18)
async def test_all_at_once(open_world: OpenWorld, report: Report) -> None:
    """2,000 clients drop and return within a second, three times: all resume, nobody is refused, in time.

    What they missed is read from the stream once for each channel, however many clients wait for it.
    """
    resumes: list[float] = []
    counts: list[int] = []
    costs: list[float] = []
    memory: list[int] = []
    variables = {"FAULTS_MEMORY": "0"}  # all is to be read from the stream, and no copy of that is ever late
    async with open_world(ring={"events": 64}, limits=PATIENT, variables=variables) as world:
        herd = Herd.of(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(herd.watch)
            nursery.start_soon(herd.writer.run)
            for member in herd.members:
                nursery.start_soon(member.run)
            await herd.all_live()
            for _ in range(WAVES):
                await herd.world.flows()
                for member in herd.members:
                    member.go_away()
                await herd.burst()
                herd.reads.clear()
                began, used = trio.current_time(), processor_seconds(world)
                for member in herd.members:
                    member.away = False
                await herd.all_live()
                used = processor_seconds(world) - used
                resumes += [live_at(member) - began for member in herd.members]
                costs.append(used / MEMBERS)
                memory.append((await world.broker.held()).memory)
                reads = [count for name, count in herd.reads.items() if ".room." in name]
                counts.append(sum(reads))
                assert len(reads) == 2 * ROOMS  # of its tenant and of all
                assert max(reads) <= READS, herd.reads
            await herd.complete()
            assert [member.connection for member in herd.members] == [1 + WAVES] * MEMBERS
            for member in herd.members:
                member.leave()
            nursery.cancel_scope.cancel()
    assert memory[-1] - memory[0] < GROWTH, memory
    assert percentile(resumes, 0.99) < RESUME_SECONDS
    report.add(
        "2,000 clients drop and return within 1 s, three times",
        world,
        resume_p99=f"{percentile(resumes, 0.99):.2f} s",
        resume_p50=f"{percentile(resumes, 0.5):.2f} s",
        delivered_to_them=f"{sum(len(member.events) for member in herd.members)}",
        reads_of_the_stream_in_a_wave=f"{max(counts)} by {2 * ROOMS} filters",
        processor_time_of_a_resume=f"{max(costs) * 1000:.2f} ms",
    )


def processor_seconds(world: World) -> float:
    """What the broker has used so far."""
    fields = Path(f"/proc/{world.broker.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def live_at(member: Follower) -> float:
    """When its present subscriptions had caught up."""
    kinds = ("subscribed", "subscription.live")
    return next(note.at for note in reversed(member.notes) if note.kind in kinds)


def percentile(values: Iterable[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)]


# --- slow and absent ------------------------------------------------------------------------------------


def direct(world: World, count: int, patterns: list[str], *, lag: str | None = None) -> list[Follower]:
    """Clients of the first tenant whose links end in the broker itself: nothing in between reads ahead."""
    found = []
    for number in range(count):
        follower = world.client(patterns, tenant=TENANTS[0], user=f"d{len(world.clients)}{number}", denied=[])
        follower.address = lambda: world.broker.ws
        follower.lag = lag
        found.append(follower)
    return found


@attrs.define(eq=False)
class Held:
    """The most that the broker and the kernel held while somebody did not read."""

    world: World
    base: int = 0
    kernel_base: int = 0
    most: int = 0
    kernel: int = 0

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.base, self.kernel_base = self.resident(), socket_memory()
        task_status.started()
        while True:
            self.most = max(self.most, self.resident() - self.base)
            self.kernel = max(self.kernel, socket_memory() - self.kernel_base)
            await trio.sleep(POLL_SECONDS)

    def resident(self) -> int:
        fields = Path(f"/proc/{self.world.broker.pid}/statm").read_text().split()
        return int(fields[1]) * PAGE_BYTES


def socket_memory() -> int:
    """Bytes that the kernel holds for TCP; those of all processes."""
    lines = Path("/proc/net/sockstat").read_text().splitlines()
    words = next(line for line in lines if line.startswith("TCP:")).split()
    return int(words[words.index("mem") + 1]) * PAGE_BYTES


def latencies(world: World, arrivals: Iterable[tuple[str, float]], since: float) -> list[float]:
    """From the first attempt to publish to the arrival, of the stored events published since."""
    stored = world.ledger.stored
    return [at - stored[one].sent for one, at in arrivals if one in stored and stored[one].sent > since]


def arrivals(followers: Iterable[Follower]) -> Iterable[tuple[str, float]]:
    return ((event.id, event.at) for follower in followers for event in follower.events)


@pytest.mark.fault(19)
async def test_a_tenth_stops_reading(
    open_world: OpenWorld, report: Report, pytestconfig: pytest.Config
) -> None:
    """A tenth of the clients takes nothing for a while: they are kept, and have everything in the end.

    Meanwhile they cost neither the broker nor the kernel more than a bounded amount.
    """
    seconds = min(60.0, pytestconfig.getoption("--faults-soak") / 4)
    async with open_world(churning=0) as world:
        others = list(world.clients)
        sleepers = direct(world, SLEEPERS, ["orders.>", "stock.>"])
        await world.all_subscribed()
        for writer in world.writers:
            writer.padding = 4000
        await world.flows(100)
        calm = trio.current_time()
        await trio.sleep(seconds)
        before = percentile(latencies(world, arrivals(others), calm), 0.99)
        held = Held(world)
        async with trio.open_nursery() as nursery:
            await nursery.start(held.watch)
            stalled = trio.current_time()
            for sleeper in sleepers:
                sleeper.stop_reading()
            await trio.sleep(seconds)
            during = percentile(latencies(world, arrivals(others), stalled), 0.99)
            behind = (await world.broker.metrics())["broker_connections_behind"]
            nursery.cancel_scope.cancel()
        assert behind >= SLEEPERS, "nothing waited for them"
        assert held.most < MEMORY
        assert held.kernel < SLEEPERS * KERNEL_BYTES
        for sleeper in sleepers:
            sleeper.read_again()
        await world.flows()
    assert [sleeper.connection for sleeper in sleepers] == [1] * SLEEPERS
    report.add(
        f"a tenth of the clients does not read for {seconds:.0f} s",
        world,
        p99_of_the_others=f"{during / before:.2f} times what it was ({before * 1000:.0f} ms)",
        memory=f"{held.most >> 10} KiB",
        memory_of_the_kernel=f"{held.kernel >> 10} KiB",
    )


@pytest.mark.fault(19)
async def test_each_has_its_policy(open_world: OpenWorld) -> None:
    """Who does not read gets what it asked for: all of it, the newest, what comes from now on, or the end."""
    async with open_world(churning=0) as world:
        asked = {lag: direct(world, 1, ["orders.>"], lag=lag)[0] for lag in ("latest", "drop", "close")}
        await world.all_subscribed()
        await world.flows()
        for follower in asked.values():
            follower.stop_reading()
        world.burst(6000, padding=4000)
        await world.until_burst_is_out()
        closed = asked["close"]
        with trio.fail_after(PATIENCE_SECONDS):
            while (await world.broker.metrics())["broker_connections"] >= len(world.clients):
                await trio.sleep(POLL_SECONDS)
        for follower in asked.values():
            follower.read_again()
        last = max(entry.sequence for entry in world.ledger.stored.values())
        with trio.fail_after(PATIENCE_SECONDS):
            for follower in asked.values():
                await follower.reached(last)
        for lag in ("latest", "drop"):
            gaps = [note.payload for note in asked[lag].notes if note.kind == "gap"]
            assert {gap["reason"] for gap in gaps} == {"lag"}, lag
            assert asked[lag].connection == 1, lag
        got = {event.channel: event.sequence for event in asked["latest"].events}
        for entry in world.ledger.stored.values():
            if entry.tenant == TENANTS[0] and entry.channel.startswith("orders.") and entry.sequence <= last:
                assert got[entry.channel] >= entry.sequence
        assert closed.connection == 2
        assert closed.position
        for lag in ("latest", "drop"):
            world.clients.remove(asked[lag])  # they have been told that they have not got everything
            asked[lag].leave()


@pytest.mark.fault(20)
async def test_half_open(open_world: OpenWorld) -> None:
    """Clients that are gone without a word are closed, by heartbeat or as stalled; then they resume."""
    limits = {"heartbeat_seconds": 3, "heartbeat_timeout_seconds": 2, "stall_seconds": 6}
    async with run_proxy(lambda: 1) as link, open_world(churning=0, limits=limits) as world:
        link.target = lambda: world.broker.port
        quiet = direct(world, 5, ["silence.>"])
        for follower in quiet:
            follower.address = lambda: f"ws://127.0.0.1:{link.port}/ws"
        busy = direct(world, 5, ["orders.>", "stock.>"])
        await world.all_subscribed()

        async def closed(count: int) -> None:
            while (await world.broker.metrics())["broker_connections"] > len(world.clients) - count:
                await trio.sleep(POLL_SECONDS)

        link.black_hole()
        with trio.fail_after((3 + 2) * SLACK):
            await closed(len(quiet))
        for follower in busy:
            follower.stop_reading()
        world.burst(3000, padding=4000)
        with trio.fail_after(3 + 6 * SLACK):
            await closed(len(quiet) + len(busy))
        link.heal()
        for follower in busy:
            follower.read_again()
        await world.flows()
        await world.all_subscribed()
        assert [follower.stays[0].code for follower in quiet] == [4009] * len(quiet)
        assert [follower.connection for follower in (*quiet, *busy)] == [2] * len(quiet + busy)


# --- one tenant against the others ----------------------------------------------------------------------


@asynccontextmanager
async def noise(world: World) -> AsyncIterator[None]:
    """Another process publishes for a tenant of its own, and subscribes there, a hundred times as much."""
    token = world.broker.token("noisy", "loud", subscribe=[">"])
    assert world.broker.ws
    arguments = [world.nats.url, world.broker.ws, token]
    process = spawn([*command.program("tests.faults.support.noise"), *arguments])
    try:
        yield
        assert process.poll() is None, "the noise has ended by itself"
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await ended(process)


@attrs.define(eq=False)
class Bystander:
    """A subscriber of NATS itself beside the clients: what it sees is none of the broker's doing."""

    world: World
    seen: list[tuple[str, float]] = attrs.field(factory=list)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with self.world.connect() as nats:
            messages = await nats.subscribe(f"events.{TENANTS[0]}.>")
            task_status.started()
            async for message in messages:
                self.seen.append((json.loads(message.body)["n"], trio.current_time()))


@pytest.mark.fault(21)
async def test_a_loud_tenant(open_world: OpenWorld, report: Report) -> None:
    """One tenant publishes and subscribes a hundred times as much as others, who get everything."""
    async with open_world(churning=0) as world, trio.open_nursery() as nursery:
        bystander = Bystander(world)
        await nursery.start(bystander.run)
        await world.flows(100)
        calm = trio.current_time()
        await trio.sleep(NOISE_SECONDS)
        before = percentile(latencies(world, arrivals(world.clients), calm), 0.99)
        outside = percentile(latencies(world, bystander.seen, calm), 0.99)
        sequence = await last_sequence(world)
        async with noise(world):
            with trio.fail_after(PATIENCE_SECONDS):
                while await last_sequence(world) < sequence + 10_000:
                    await trio.sleep(POLL_SECONDS)
            loud, sequence = trio.current_time(), await last_sequence(world)
            await trio.sleep(NOISE_SECONDS)
            rate = (await last_sequence(world) - sequence) / (trio.current_time() - loud)
            during = percentile(latencies(world, arrivals(world.clients), loud), 0.99)
            outside_during = percentile(latencies(world, bystander.seen, loud), 0.99)
        await world.flows()
        await world.with_nats(lambda nats: nats.api("STREAM.PURGE.EVENTS", filter="events.noisy.>"))
        nursery.cancel_scope.cancel()
    report.add(
        "one tenant publishes and subscribes 100 times as much",
        world,
        p99_of_the_others=f"{during / before:.2f} times what it was ({before * 1000:.1f} ms)",
        p99_of_a_subscriber_of_NATS=f"{outside_during / outside:.2f} times ({outside * 1000:.1f} ms)",
        its_rate=f"{rate:.0f} events/s",
    )


async def last_sequence(world: World) -> int:
    info = await world.with_nats(lambda nats: nats.api("STREAM.INFO.EVENTS"))
    return int(info["state"]["last_seq"])
