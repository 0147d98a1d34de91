"""Documents over the real actors, a scripted bus and scripted links, under a fake clock and a seed.

Services write, delete and recreate; clients open, close, read slowly, are cut off and resume, while NATS goes
away and the stream is recreated. At each frame a client holds what a naive reader of the stream would, as far
as the frame's position says, and in the end everything.

`SIMULATION_SEEDS=1000` runs more seeds; a failing test names its seed, which replays it exactly.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker import config, subjects, turns
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello
from broker.documents import patches
from broker.keyed import rows
from tests.support.scripted import ScriptedLink, ScriptedStream, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus
from tests.support.seeds import simulated

if TYPE_CHECKING:
    from tests.support.scripted_keyed import ScriptedKeyed

pytestmark = pytest.mark.usefixtures("quiet_logs")

CHANNELS = [
    *(f"board.{number}" for number in range(6)),
    "a",
    "b.c",
    "b.c.d",
    "secret.x",
    "users.u0.i",
    "users.u1.i",
]
OPENS = [
    ["board.*"],
    ["board.1"],
    ["a", "b.>"],
    ["b.c", "a", "none"],
    [">"],
    ["me.>"],
    ["board.2", "board.3", "a"],
]
DENY = ("secret.>",)
DOCUMENTS = (config.Documents(channel=">"), config.Documents(channel="users.>"))
PATIENCE = 3000


@attrs.define(eq=False)
class Truth:
    """All that was ever stored: the value of each channel of each tenant by incarnation and sequence."""

    keyed: ScriptedKeyed
    values: dict[tuple[str, int], Any] = attrs.Factory(dict)

    def write(self, rng: random.Random) -> None:
        tenant, channel = rng.choice(("t0", "t0", "t1")), rng.choice(CHANNELS)
        subject = f"state.{tenant}.{channel}"
        there = self.keyed.rows.get(subject)
        before = self.values[self.keyed.incarnation, there[0]] if there else None
        value: Any
        if rng.random() < 0.15:
            body, value = b"", None
        elif rng.random() < 0.05:
            body, value = b"[1]", "invalid"
        else:
            value = self.changed(before, rng)
            body = json.dumps(value).encode()
        sequence = self.keyed.store(subject, body)
        self.values[self.keyed.incarnation, sequence] = value

    def changed(self, before: Any, rng: random.Random) -> dict[str, Any]:
        value = dict(before) if isinstance(before, dict) else {"text": "x" * rng.choice((3, 100, 3000))}
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(("n", "m", "in"))
            value[name] = {"k": rng.randint(0, 9)} if name == "in" else rng.choice((None, 1, 2, "y", [1, 2]))
        if rng.random() < 0.3:
            value.pop("m", None)
        return value

    def now(self, tenant: str, patterns: list[str]) -> dict[str, tuple[int, Any]]:
        """What is stored under some patterns, by channel: sequence and value; None where it was deleted."""
        found = {}
        for subject, (sequence, *_) in self.keyed.rows.items():
            _, of, channel = subject.split(".", 2)
            matches = any(subjects.covers(each, channel) for each in patterns)
            if of == tenant and matches and not channel.startswith("secret."):
                found[channel] = sequence, self.values[self.keyed.incarnation, sequence]
        return found


class Gone(Exception):
    """The link was cut."""


@attrs.define(eq=False)
class Opened:
    """What a client has open. `came` are the channels that have come since it began anew (None: all have).

    `has` are those that it has brought; None where it continues an earlier one, which had all.
    """

    patterns: list[str]
    every_ms: int | None
    position: tuple[str, int] = ("", -1)
    ready: bool = False
    came: set[str] | None = None
    has: set[str] | None = None

    def covers(self, channel: str) -> bool:
        return any(subjects.covers(each, channel) for each in self.patterns)


@attrs.define(eq=False, kw_only=True)
class Watcher:
    """A client that checks what it is told as it goes. `docs` has revision and value by channel."""

    name: str
    supervisor: Supervisor
    truth: Truth
    random: random.Random
    link: ScriptedLink = attrs.field(init=False)
    opens: list[Opened] = attrs.Factory(list)
    docs: dict[str, tuple[tuple[str, int], Any]] = attrs.Factory(dict)
    asked: int = 0
    waiting: dict[str, Opened] = attrs.Factory(dict)
    replies: dict[str, dict[str, Any]] = attrs.Factory(dict)
    replied: trio.Event = attrs.Factory(trio.Event)
    frames: int = 0
    patches: int = 0

    @property
    def tenant(self) -> str:
        return f"t{int(self.name[1:]) % 2}"

    def take(self, message: dict[str, Any]) -> None:
        kind, payload = message["type"], message["payload"]
        match kind:
            case "state.opened":
                self.begun(message)
            case "state":
                self.document(payload)
            case "state.ready":
                self.all_there(payload)
            case "state.closed":
                assert "code" not in payload, message
                self.closed(payload["channel"])
            case "error":
                assert payload["code"] == "unavailable", message
        if message_id := message.get("messageId"):
            self.replies[message_id] = message
            self.replied.set()

    def begun(self, message: dict[str, Any]) -> None:
        payload = message["payload"]
        if message_id := message.get("messageId"):
            each = self.waiting.pop(message_id)
            assert each.patterns == payload["channel"]
            for other in self.opens:
                other.patterns = [name for name in other.patterns if name not in each.patterns]
            self.opens = [other for other in self.opens if other.patterns] + [each]
        else:
            [each] = [other for other in self.opens if other.patterns == payload["channel"]]
            assert not payload["recovered"]
        if message_id is None or not payload["recovered"] or each.position[1] < 0:
            each.came, each.position = set(), ("", -1)
        each.ready = False
        self.moved(each, payload["position"])

    def moved(self, each: Opened, text: str) -> None:
        stream, _, sequence = text.rpartition("-")
        position = stream, int(sequence)
        each.position = position

    def document(self, payload: dict[str, Any]) -> None:
        self.frames += 1
        channel = payload["channel"]
        stream, _, sequence = payload["revision"].rpartition("-")
        revision = stream, int(sequence)
        held = self.docs.get(channel)
        of = [each for each in self.opens if each.covers(channel)]
        assert of, payload
        if held is not None and held[0][0] == stream and revision[1]:  # 0: a deletion that is forgotten
            assert revision >= held[0], "an older value after a newer one"
        if "patch" in payload:
            self.patches += 1
            assert held is not None
            assert payload["from"] == f"{held[0][0]}-{held[0][1]}", "a difference from what it does not hold"
            value = patches.apply(held[1], payload["patch"])
        else:
            value = "invalid" if "invalid" in payload else payload["value"]
        expected = self.truth.values[revision] if revision[1] else None
        assert value == expected, (payload, expected)
        self.docs[channel] = revision, value
        for each in of:
            if each.came is not None:
                each.came.add(channel)
            if each.has is not None:
                each.has.add(channel)
        if len(of) == 1:
            self.moved(of[0], payload["position"])
            self.check_position(of[0])

    def check_position(self, each: Opened) -> None:
        """All that is stored at or below the position, it holds."""
        if each.position[0] != self.truth.keyed.incarnation:
            return
        for channel, (sequence, value) in self.truth.now(self.tenant, each.patterns).items():
            if sum(other.covers(channel) for other in self.opens) > 1:
                continue  # another open may still have to bring it
            if sequence <= each.position[1] and not (value is None and not each.ready):
                held = self.docs.get(channel)
                assert (held[1] if held else None) == value, (channel, sequence, each)

    def closed(self, name: str) -> None:
        for each in self.opens:
            each.patterns = [other for other in each.patterns if other != name]
        self.opens = [each for each in self.opens if each.patterns]
        self.docs = {
            channel: doc
            for channel, doc in self.docs.items()
            if any(each.covers(channel) and (each.has is None or channel in each.has) for each in self.opens)
        }

    def all_there(self, payload: dict[str, Any]) -> None:
        named = payload["channel"] if isinstance(payload["channel"], list) else [payload["channel"]]
        [each] = [other for other in self.opens if other.patterns == named]
        if each.came is not None:
            others = [other for other in self.opens if other is not each]
            self.docs = {
                channel: doc
                for channel, doc in self.docs.items()
                if not each.covers(channel)
                or channel in each.came
                or any(
                    other.covers(channel) and (not other.ready or other.position[0] == doc[0][0])
                    for other in others
                )
            }
            each.has = set(each.came)
        each.came, each.ready = None, True
        self.moved(each, payload["position"])
        self.check_position(each)

    # --- what it does --------------------------------------------------------------------------------

    async def read(self, link: ScriptedLink) -> None:
        while not link.cut:
            for opcode, payload in await link.read(self.random.choice((50, 500, 5000, 100000))):
                if opcode == 1:
                    self.take(json.loads(payload))
                else:
                    assert opcode != 8, payload
            if self.random.random() < 0.3:
                await trio.sleep(self.random.uniform(0, 0.4))
        self.replied.set()

    async def ask(self, kind: str, payload: dict[str, Any], opened: Opened | None = None) -> dict[str, Any]:
        self.asked += 1
        message_id = f"{self.name}-{self.asked}"
        if opened:
            self.waiting[message_id] = opened
        self.link.say(kind, payload, messageId=message_id)
        with trio.fail_after(PATIENCE):
            while message_id not in self.replies:
                if self.link.cut:
                    raise Gone
                self.replied = trio.Event()
                await self.replied.wait()
        return self.replies[message_id]

    def connect(self, nursery: trio.Nursery) -> None:
        link = self.random.choice((ScriptedLink, ScriptedLink, ScriptedStream))
        room = self.random.choice((100, 1000, 20000, 200000))
        self.link = link(room=room, partial_sends=self.random.random() < 0.8)
        hello = Hello(peer="test", token=f"{self.tenant}:{self.name}")
        nursery.start_soon(self.supervisor.serve, self.link, hello)
        nursery.start_soon(self.read, self.link)

    async def open(self, opened: Opened) -> None:
        wish: dict[str, Any] = {"channel": opened.patterns}
        if opened.every_ms:
            wish["every_ms"] = opened.every_ms
        if opened.position[1] >= 0:
            wish["position"] = f"{opened.position[0]}-{opened.position[1]}"
        while (await self.ask("state.open", wish, opened))["type"] == "error":
            self.waiting.clear()
            await trio.sleep(self.random.uniform(0, 1))

    async def resume(self) -> None:
        """Open again what was open, from where it was; what had not become ready begins anew."""
        before, self.opens = self.opens, []
        self.docs = {
            channel: doc
            for channel, doc in self.docs.items()
            if sum(each.covers(channel) for each in before) == 1
            and all(each.ready for each in before if each.covers(channel))
        }
        covered = [each for each in before if each.ready]
        for each in before:
            alone = not any(
                subjects.overlaps(one, two)
                for other in before
                if other is not each
                for one in each.patterns
                for two in other.patterns
            )
            position = each.position if each in covered and alone else ("", -1)
            await self.open(Opened(each.patterns, each.every_ms, position))

    async def live(self) -> None:
        for _ in range(self.random.randint(2, 12)):
            await trio.sleep(self.random.uniform(0, 1.5))
            if self.random.random() < 0.5:
                patterns = self.random.choice(OPENS)
                full = [subjects.expand_me(each, self.name) for each in patterns]
                await self.open(Opened(full, self.random.choice((None, None, 1000, 5000))))
            elif self.opens and self.random.random() < 0.4:
                each = self.random.choice(self.opens)
                name = self.random.choice(each.patterns)
                reply = await self.ask("state.close", {"channel": name})
                assert reply["type"] == "state.closed"

    def arrived(self) -> bool:
        """Whether it holds everything, and nothing else."""
        held = {channel: value for channel, (_, value) in self.docs.items() if value is not None}
        wanted: dict[str, Any] = {}
        for each in self.opens:
            now = self.truth.now(self.tenant, each.patterns)
            wanted |= {channel: value for channel, (_, value) in now.items() if value is not None}
        return held == wanted and all(each.ready for each in self.opens)


async def happen(bus: ScriptedBus, keyed: ScriptedKeyed, rng: random.Random) -> None:
    """What becomes of NATS meanwhile."""
    for _ in range(rng.randint(0, 5)):
        await trio.sleep(rng.uniform(0.5, 6))
        match rng.randint(0, 4):
            case 0:
                bus.leave()
                await trio.sleep(rng.uniform(0, 4))
                bus.come_back()
            case 1:
                keyed.interrupt()
            case 2 if rng.random() < 0.5:
                keyed.remake()
            case 3:
                keyed.forget()


@simulated(25)
async def test_everybody_holds_what_is_stored(
    seed: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions are true, no value is older than the one before, differences fit, and all is there."""
    rng = random.Random(seed)
    bus = ScriptedBus(random=rng, failures=rng.choice((0, 0, 0.1)))
    keyed = bus.keyed("STATE")
    keyed.slowest = rng.choice((0.0, 0.02, 0.5))
    monkeypatch.setattr(rows, "SPARE_DELETIONS", rng.choice((0, 3, 1000)))
    monkeypatch.setattr(turns, "TURN_SECONDS", rng.choice((0.0, 0.002)))
    truth = Truth(keyed)
    for _ in range(rng.choice((0, 5, 60))):
        truth.write(rng)
    settings = config.Config(
        limits=config.Limits(
            connections_per_user=100, requests_burst=10000, requests_per_second=1000, stall_seconds=10000,
            heartbeat_seconds=9000,
        ),
        state=config.State(documents=DOCUMENTS),
    )  # fmt: skip
    supervisor = Supervisor(
        config=settings,
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(DENY),  # type: ignore[arg-type]
    )
    watchers = [
        Watcher(
            name=f"u{number}", supervisor=supervisor, truth=truth, random=random.Random(f"{seed}-{number}")
        )
        for number in range(5)
    ]
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)

        async def watcher(each: Watcher) -> None:
            for life in range(3):
                each.connect(nursery)
                await each.resume()
                await each.live()
                if life < 2:
                    each.link.drop()
                    each.waiting.clear()
                    await trio.sleep(each.random.uniform(0.01, 3))
            await done.wait()
            with trio.fail_after(PATIENCE):
                while not each.arrived():
                    await trio.sleep(1)

        async def write() -> None:
            for _ in range(rng.randint(20, 150)):
                for _ in range(rng.choice((1, 2, 20))):
                    truth.write(rng)
                await trio.sleep(rng.choice((0, 0.01, 0.05, 0.3)))

        done = trio.Event()
        async with trio.open_nursery() as playing:
            for each in watchers:
                playing.start_soon(watcher, each)
            async with trio.open_nursery() as stories:
                stories.start_soon(write)
                stories.start_soon(happen, bus, keyed, rng)
            done.set()
        assert supervisor.reading is not None
        for each in watchers:
            each.link.drop()
        with trio.fail_after(PATIENCE):
            while supervisor.reading.held:
                await trio.sleep(0.1)
        assert not supervisor.reading.view.collections
        assert not supervisor.reading.view.tenants
        nursery.cancel_scope.cancel()
