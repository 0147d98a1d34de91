"""The real actors over a scripted bus that deletes, lets expire, purges and loses the end of its store.

Clients with one list each read slowly, are cut off and come back to where they stood. Then nothing that was
deleted is handed to anybody two seconds later; and whatever a client has not got that was acknowledged is
either there for it or was announced: by a `reset`, by a `trimmed`, or by `recovered: false`.

`SIMULATION_SEEDS=1000` runs more seeds; a failing test names its seed, which replays it exactly.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello
from broker.wire.positions import parse
from tests.support.scripted import ScriptedLink, ScriptedVerifier, parse_frame, until_let_in
from tests.support.scripted_bus import ScriptedBus
from tests.support.seeds import shorten_memory, simulated

if TYPE_CHECKING:
    from broker.wire.positions import Position

pytestmark = pytest.mark.usefixtures("quiet_logs")

CHANNELS = ["a", "a.b", "b", "b.c", "c.d"]
LISTS = [["a.>", "a"], [">"], ["b"], ["b.>", "c.*"], ["a", "b", "c.d"]]
FORGOTTEN_SECONDS = 2.0


@attrs.define(eq=False, kw_only=True)
class WatchedLink(ScriptedLink):
    """A link that knows when the broker handed each frame to it: when it took the frame's first byte."""

    taken: int = 0
    times: list[tuple[int, float]] = attrs.Factory(list)  # bytes before, and when
    unread: bytearray = attrs.Factory(bytearray)
    begun: int = 0  # where `unread` begins
    handed: list[tuple[float, dict[str, Any]]] = attrs.Factory(list)

    def take(self, data: bytes | memoryview) -> int:
        before = len(self.buffer)
        count = super().take(data)
        if count:
            self.times.append((self.taken, trio.current_time()))
            self.taken += count
            self.unread += self.buffer[before:]
            while frame := self.next_frame():
                self.handed.append(frame)
        return count

    def next_frame(self) -> tuple[float, dict[str, Any]] | None:
        start, size = self.begun, len(self.unread)
        found = parse_frame(self.unread)
        if found is None:
            return None
        self.begun += size - len(self.unread)
        at = self.times[bisect_right(self.times, (start, float("inf"))) - 1][1]
        return at, json.loads(found[1]) if found[0] == 1 else {"type": "", "payload": {}}


@attrs.frozen
class Happened:
    """Something that a client was told: an event with its channel, or that something is missing."""

    position: Position | None
    event: str | None = None
    gap: dict[str, Any] | None = None


@attrs.define(eq=False, kw_only=True)
class Watcher:
    """A client with one list of patterns, over all its connections."""

    name: str
    tenant: str
    patterns: list[str]
    supervisor: Supervisor
    random: random.Random
    link: WatchedLink = attrs.field(init=False)
    position: Position | None = None
    baseline: Position | None = None
    told: list[Happened] = attrs.Factory(list)
    late: list[str] = attrs.Factory(list)
    links: list[WatchedLink] = attrs.Factory(list)
    asked: int = 0
    answers: dict[str, dict[str, Any]] = attrs.Factory(dict)
    answered: trio.Event = attrs.Factory(trio.Event)

    def take(self, message: dict[str, Any]) -> None:
        payload = message["payload"]
        if "messageId" in message:
            self.answers[message["messageId"]] = message
            self.answered.set()
        match message["type"]:
            case "event":
                position = parse(payload["position"])
                if self.position and position.incarnation == self.position.incarnation:
                    assert position.sequence > self.position.sequence, (self.name, message)
                self.told.append(Happened(position, event=payload["channel"]))
            case "gap":
                self.told.append(Happened(self.position, gap=payload))
                if "to" not in payload:
                    return
                position = parse(payload["to"])
            case "subscribed" | "subscription.live" | "pong" if "position" in payload:
                position = parse(payload["position"])
            case _:
                return
        self.position = position

    async def read(self, link: WatchedLink) -> None:
        while not link.cut:
            for opcode, payload in await link.read(self.random.choice((50, 500, 5000, 100000))):
                if opcode == 1:
                    self.take(json.loads(payload))
            if self.random.random() < 0.3:
                await trio.sleep(self.random.uniform(0, 1))
        self.answered.set()

    async def ask(self, kind: str, payload: dict[str, Any]) -> dict[str, Any] | None:
        """The reply; None when the link is cut first."""
        self.asked += 1
        number = str(self.asked)
        self.link.say(kind, payload, messageId=number)
        with trio.fail_after(1000):
            while number not in self.answers:
                if self.link.cut:
                    return None
                self.answered = trio.Event()
                await self.answered.wait()
        return self.answers.pop(number)

    def connect(self, nursery: trio.Nursery) -> None:
        self.link = WatchedLink(room=self.random.choice((300, 2000, 20000, 200000)))
        self.links.append(self.link)
        hello = Hello(peer="test", token=f"{self.tenant}:{self.name}")
        nursery.start_soon(self.supervisor.serve, self.link, hello)
        nursery.start_soon(self.read, self.link)

    async def resume(self) -> None:
        """Begins, or goes on where it stands, until the broker says yes."""
        reply: dict[str, Any] | None = {"type": "error"}
        while reply and reply["type"] == "error":
            wish: dict[str, Any] = {"channel": self.patterns}
            if self.position:
                wish["position"] = str(self.position)
            before = self.position
            reply = await self.ask("subscribe", wish)
            if reply and reply["type"] == "error":
                assert reply["payload"]["retryable"], reply
                await trio.sleep(0.1)
        if reply and not before:
            self.baseline = parse(reply["payload"]["position"])

    def wants(self, subject: str) -> bool:
        _, tenant, channel = subject.split(".", 2)
        covered = any(subjects.covers(pattern, channel) for pattern in self.patterns)
        return tenant in (self.tenant, "_all") and covered


@attrs.define(eq=False)
class World:
    """The bus, and what was published and lost over all generations."""

    bus: ScriptedBus
    random: random.Random
    published: dict[tuple[int, int], str] = attrs.Factory(dict)  # subject by generation and sequence
    gone: dict[tuple[int, int], float] = attrs.Factory(dict)  # deleted: when

    @property
    def generation(self) -> int:
        return int(self.bus.incarnation.removeprefix("inc"))

    def publish(self) -> None:
        tenant = self.random.choice(("t0", "t0", "t1", "_all"))
        subject = f"events.{tenant}.{self.random.choice(CHANNELS)}"
        body = b'"' + b"x" * self.random.choice((2, 60, 900)) + b'"'
        sequence = self.bus.put(subject, body)
        self.published[self.generation, sequence] = subject

    def delete(self, sequences: set[int]) -> None:
        there = {record[0] for record in self.bus.records} & sequences
        self.bus.delete(there)
        for sequence in there:
            self.gone[self.generation, sequence] = trio.current_time()

    def harm(self) -> None:
        """Something goes: a few, a channel, the beginning, the newest and perhaps unread, or the end."""
        bus, kind = self.bus, self.random.random()
        there = [record[0] for record in bus.records]
        if not there:
            return
        if kind < 0.4:
            self.delete(set(self.random.sample(there, min(len(there), self.random.randint(1, 5)))))
        elif kind < 0.6:
            subject = self.random.choice(bus.records)[1]
            self.delete({record[0] for record in bus.records if record[1] == subject})
        elif kind < 0.75:
            self.delete(set(there[: self.random.randint(1, len(there))]))
        elif kind < 0.9:
            self.delete(set(there[-self.random.randint(1, 10) :]))
        else:
            self.lose_end(self.random.randint(1, 60))

    def lose_end(self, count: int) -> None:
        """What is left has the same sequences in the next generation."""
        bus = self.bus
        bus.lose_end(count)
        for record in bus.records:
            self.published[self.generation, record[0]] = record[1]
        for sequence in bus.deleted:
            self.gone[self.generation, sequence] = bus.deleted[sequence][0]


def check(world: World, client: Watcher) -> None:
    """What it has got, what it was told of, and when what was deleted was handed to it."""
    began = client.baseline
    assert began
    got = {place(each.position) for each in client.told if each.event and each.position}
    gaps = [each.gap for each in client.told if each.gap]
    for (generation, sequence), subject in world.published.items():
        if not client.wants(subject) or (generation, sequence) <= place(began):
            continue
        if (generation, sequence) not in got:
            there = generation == world.generation and (generation, sequence) not in world.gone
            assert not there, (client.name, "never got", sequence)
            told = any(announces(each, generation, sequence) for each in gaps)
            assert told, (client.name, "nobody said a word of", generation, sequence)
    for link in client.links:
        for at, message in link.handed:
            if message["type"] == "event":
                deleted = world.gone.get(place(parse(message["payload"]["position"])))
                assert deleted is None or at <= forgotten(world, deleted, at), (client.name, message, deleted)


def forgotten(world: World, deleted: float, at: float) -> float:
    """Return by when the broker has to have heard of a deletion: while NATS is away it cannot, up to `at`."""
    since, heard = deleted, float("inf")
    for time, reached in world.bus.contact:
        if time > at:
            break
        if reached:
            since = max(deleted, time)
            heard = since + FORGOTTEN_SECONDS
        elif time < heard:
            heard = float("inf")
    return heard


def place(position: Position) -> tuple[int, int]:
    return int(position.incarnation.removeprefix("inc")), position.sequence


def announces(gap: dict[str, Any], generation: int, sequence: int) -> bool:
    """Whether it speaks of an event: a `reset` does of all before where the new generation is read from."""
    if gap["reason"] == "reset":
        return place(parse(gap["to"])) >= (generation, sequence)
    if gap["reason"] != "trimmed" or place(parse(gap["from"]))[0] != generation:
        return False
    end = place(parse(gap["to"]))[1] if "to" in gap else sequence
    return place(parse(gap["from"]))[1] < sequence <= end


@simulated(15)
async def test_what_is_gone_is_not_given_and_is_said(
    seed: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the store loses, and whatever is deleted, under load."""
    rng = random.Random(seed)
    bus = ScriptedBus(random=rng, late=rng.choice((0, 0, 7)), stalls=rng.choice((0, 0.1)))
    shorten_memory(rng, bus.late, monkeypatch)
    world = World(bus, rng)
    settings = config.Config(
        ring=config.Ring(events=rng.choice((5, 100, 8192)), seconds=rng.choice((0.5, 300))),
        limits=config.Limits(
            connections_per_user=100, requests_burst=10000, requests_per_second=1000, stall_seconds=10000,
            heartbeat_seconds=9000,
        ),
    )  # fmt: skip
    supervisor = Supervisor(
        config=settings,
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    clients = [
        Watcher(
            name=f"u{number}",
            tenant=f"t{number % 2}",
            patterns=LISTS[number % len(LISTS)],
            supervisor=supervisor,
            random=random.Random(f"{seed}-{number}"),
        )
        for number in range(8)
    ]
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        done = trio.Event()

        async def live(client: Watcher) -> None:
            while True:
                client.connect(nursery)
                await client.resume()
                with trio.move_on_after(client.random.uniform(1, 8)):
                    await done.wait()
                if done.is_set() and not client.link.cut:
                    return await arrive(client)
                client.link.drop()
                await trio.sleep(client.random.uniform(0.01, 3))

        async def arrive(client: Watcher) -> None:
            """Reads until it is at the end, which is an event that stays."""
            with trio.fail_after(5000):
                while client.position is None or place(client.position) < (
                    world.generation,
                    bus.last_sequence,
                ):
                    await client.ask("ping", {})
                    await trio.sleep(0.5)

        async with trio.open_nursery() as playing:
            for client in clients:
                playing.start_soon(live, client)
            for _ in range(rng.randint(20, 60)):
                for _ in range(rng.choice((1, 3, 40))):
                    world.publish()
                if rng.random() < 0.4:
                    world.harm()
                await trio.sleep(rng.uniform(0, 1))
            await trio.sleep(10)
            world.publish()
            bus.put("events._all.end", b"1")
            done.set()
        nursery.cancel_scope.cancel()
    for client in clients:
        check(world, client)
