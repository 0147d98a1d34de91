"""The real actors over a scripted bus and scripted links, under a fake clock and a seed.

Clients subscribe, unsubscribe, start in the past, read slowly, are cut off and come back, while events keep
arriving, requests to NATS fail, and connections and tenants crash. In the end each subscription must
have seen exactly what a naive reader of the protocol page would give it.

`SIMULATION_SEEDS=1000` runs more seeds; a failing test names its seed, which replays it exactly.
"""

from __future__ import annotations

import json
import random
from typing import Any

import attrs
import pytest
import trio

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello
from tests.support.scripted import ScriptedLink, ScriptedStream, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus
from tests.support.seeds import shorten_memory, simulated

pytestmark = pytest.mark.usefixtures("quiet_logs")

CHANNELS = ["a", "a.b", "a.b.c", "b", "b.c", "c.d.e", "secret.x", "users.u0.i", "users.u1.i"]
PATTERNS = ["a", "a.>", "a.*", "*.b", ">", "b.c", "c.*.e", "*", "me.>", "secret.x", "a.b.c", "b"]
LIVE = "live.x"  # to which every client subscribes, on each of its links
DENY = ("secret.>",)
BODIES = (2, 60, 900, 5000)
FILTER = {"": {"prefix": "y"}}


@attrs.define(eq=False, kw_only=True)
class Expected:
    """One subscription of a client: where it began, and which numbers it got since, in order of arrival."""

    pattern: str
    start: int | None  # None until `subscribed` has said
    number: int | None = None  # of its catch-up, while that runs
    snapshot: bool = False
    latest: bool = False  # its lag policy
    filtered: bool = False
    every_ms: int | None = None
    asked: list[tuple[int, int]] = attrs.Factory(list)  # from which positions, at which pace
    seen: list[int] = attrs.Factory(list)

    @property
    def options(self) -> dict[str, Any]:
        given = {"lag": "latest" if self.latest else None, "filter": FILTER if self.filtered else None}
        return {name: value for name, value in given.items() if value} | self.pace

    @property
    def pace(self) -> dict[str, Any]:
        return {} if self.every_ms is None else {"every_ms": self.every_ms}

    def take(self, payload: dict[str, Any], sequence: int) -> None:
        if not subjects.covers(self.pattern, payload["channel"]):
            return
        if self.filtered and not str(payload["event"]).startswith("y"):
            return  # it is for another one
        if self.every_ms is not None:
            if payload.get("catch_up") in (None, self.number):
                self.seen.append(sequence)
            return
        if payload.get("paced"):
            return
        if payload.get("catch_up") == self.number and sequence > (self.start or 0):
            self.seen.append(sequence)  # its own mark, or unmarked once it is live


class Gone(Exception):
    """The broker has ended the connection."""


@attrs.define(eq=False, kw_only=True)
class Simulated:
    """A client that checks what it is told as it goes."""

    name: str
    supervisor: Supervisor
    random: random.Random
    link: ScriptedLink = attrs.field(init=False)
    position: int = -1  # the resume position
    wanted: dict[str, Expected] = attrs.Factory(dict)
    waiting: dict[str, Expected] = attrs.Factory(dict)  # by message id, until `subscribed`
    asked: int = 0
    last_unmarked: int = -1
    replies: set[str] = attrs.Factory(set)
    replied: trio.Event = attrs.Factory(trio.Event)
    kept: dict[str, Expected] | None = None  # what is to be resumed, until all of it has been
    kept_position: int = -1
    live: int | None = None  # the newest of `LIVE` on this link, unless it was told of a loss since

    def take(self, message: dict[str, Any]) -> None:
        kind, payload = message["type"], message["payload"]
        told = sequence_of(payload["position"]) if "position" in payload else None
        if kind == "event":
            if told is None:
                assert self.live in (None, payload["event"] - 1), f"after {self.live}: {message}"
                self.live = payload["event"]
                return
            if "catch_up" in payload:
                assert told <= self.position, "a catch-up passed P"
            elif "paced" not in payload:
                assert told > self.last_unmarked, "unmarked events went backwards"
                self.last_unmarked = self.position = told
            for each in self.wanted.values():
                each.take(payload, told)
            return
        if told is not None and kind != "published":
            self.position = told
        match kind:
            case "subscribed" if payload["channel"] == [LIVE]:
                assert payload["live"], message
            case "subscribed":
                expected = self.waiting.pop(message["messageId"])
                expected.number = payload.get("catch_up")
                if expected.start is None:
                    expected.start = told
                elif expected.number is None:
                    self.last_unmarked = -1 if expected.start < self.last_unmarked else self.last_unmarked
                self.wanted[expected.pattern] = expected
            case "subscription.live":
                for each in self.wanted.values():
                    if payload.get("catch_up") == each.number and each.pattern == payload["channel"]:
                        each.number = None
            case "error":
                assert payload["code"] in ("unavailable", "limit_snapshot"), message
                self.waiting.pop(message["messageId"], None)  # nothing has changed
            case "gap" if payload["channel"] == LIVE:
                assert payload["reason"] in ("lag", "source"), message
                self.live = None
            case "gap":
                assert payload["reason"] == "lag", message
                thinned = payload["channel"]
                named = [thinned] if isinstance(thinned, str) else thinned
                if any(pattern in self.wanted and self.wanted[pattern].filtered for pattern in named):
                    assert "count" not in payload, message
                for pattern in named:
                    assert pattern not in self.wanted or self.wanted[pattern].latest, message
        if message_id := message.get("messageId"):
            self.replies.add(message_id)
            self.replied.set()

    async def read(self, link: ScriptedLink) -> None:
        while not link.cut:
            for opcode, payload in await link.read(self.random.choice((50, 500, 5000, 100000))):
                if opcode == 1:
                    self.take(json.loads(payload))
                else:
                    assert opcode != 8, payload  # who is ended by a crash is told nothing
            if self.random.random() < 0.3:
                await trio.sleep(self.random.uniform(0, 0.2))
        self.replied.set()

    async def ask(self, kind: str, payload: dict[str, Any], expected: Expected | None = None) -> None:
        self.asked += 1
        message_id = f"{self.name}-{self.asked}"
        if expected:
            self.waiting[message_id] = expected
        self.link.say(kind, payload, messageId=message_id)
        with trio.fail_after(1000):
            while message_id not in self.replies:
                if self.link.cut:
                    self.waiting.clear()
                    raise Gone
                self.replied = trio.Event()
                await self.replied.wait()

    def connect(self, nursery: trio.Nursery, *, crash: bool) -> None:
        link = self.random.choice((ScriptedLink, ScriptedLink, ScriptedStream))
        self.link = link(
            room=self.random.choice((100, 1000, 20000, 200000)),
            partial_sends=self.random.random() < 0.8,
            breaks=self.random if crash else None,
        )
        self.live = None
        hello = Hello(peer="test", token=f"t{int(self.name[1:]) % 2}:{self.name}")
        nursery.start_soon(self.supervisor.serve, self.link, hello)
        nursery.start_soon(self.read, self.link)

    async def arrive(self, bus: ScriptedBus) -> None:
        """Everything has been published: reads until it is at the end and nothing is pending."""
        with trio.fail_after(5000):
            while self.position < bus.last_sequence or any(each.number for each in self.wanted.values()):
                await self.ask("ping", {})
                await trio.sleep(1)

    async def resume(self) -> None:
        """One `subscribe` with all that stands, from the resume position."""
        self.last_unmarked = -1
        if self.kept is None:
            # One whose catch-up is not over would have to ask again; other clients show that.
            self.kept = {
                each.pattern: each
                for each in self.wanted.values()
                if each.number is None and not each.snapshot
            }
            self.kept_position = self.position
        self.wanted = {}
        await self.ask("subscribe", {"channel": [LIVE]})
        for pattern, each in self.kept.items():
            # One at a time, so that each has its own answer; the first sets P, the others join there.
            if each.every_ms is None:
                each.seen = [number for number in each.seen if number <= self.kept_position]
            else:
                each.asked.append((self.kept_position, each.every_ms))
            wish = {"channel": pattern, "position": f"inc0-{self.kept_position}"} | each.options
            while pattern not in self.wanted:
                expected = attrs.evolve(each, number=None, seen=[*each.seen])
                await self.ask("subscribe", wish, expected)
        self.kept = None


def sequence_of(position: str) -> int:
    return int(position.rpartition("-")[2])


async def live(client: Simulated, bus: ScriptedBus) -> None:
    """What one client does."""
    rng = client.random
    for _ in range(rng.randint(3, 25)):
        await trio.sleep(rng.uniform(0, 0.5))
        pattern = rng.choice(PATTERNS)
        full = subjects.expand_me(pattern, client.name)
        action = rng.random()
        filtered = rng.random() < 0.3
        every_ms = rng.choice((None, None, 100, 500, 2000))
        if full == "secret.x":
            continue
        if action < 0.3:
            if full not in client.wanted:
                latest = rng.random() < 0.3 and every_ms is None
                expected = Expected(
                    pattern=full, start=None, latest=latest, filtered=filtered, every_ms=every_ms
                )
                await client.ask("subscribe", {"channel": pattern} | expected.options, expected)
        elif action < 0.55:
            behind = rng.choice((0, 3, 50, 1000))
            start = max(0, client.position - rng.randint(0, behind)) if client.position >= 0 else 0
            wish = {"channel": pattern, "position": f"inc0-{start}"}
            expected = Expected(
                pattern=full,
                start=start,
                asked=[(start, every_ms)] if every_ms else [],
                filtered=filtered,
                every_ms=every_ms,
            )
            await client.ask("subscribe", wish | expected.options, expected)
        elif action < 0.65:
            expected = Expected(pattern=full, start=-1, snapshot=True, every_ms=every_ms)
            await client.ask("subscribe", {"channel": pattern, "snapshot": True} | expected.pace, expected)
        elif action < 0.7 and full in client.wanted:
            standing = client.wanted[full]
            if standing.number is None and not standing.snapshot and every_ms is not None:
                expected = attrs.evolve(standing, latest=False, every_ms=every_ms)
                await client.ask("subscribe", {"channel": pattern} | expected.options, expected)
        elif action < 0.8:
            if full in client.wanted:
                del client.wanted[full]
                await client.ask("unsubscribe", {"channel": pattern})
        elif action < 0.9:
            await client.ask("ping", {})
        else:
            return  # the caller cuts it off


async def publish(bus: ScriptedBus, rng: random.Random) -> None:
    for number in range(rng.randint(20, 120)):
        for tenant in ("t0", "t1"):
            bus.put_live(f"live.{tenant}.x", b"%d" % number)
        for _ in range(rng.choice((1, 3, 40))):
            tenant = rng.choice(("t0", "t0", "t1", "_all", "t2"))
            channel = rng.choice(CHANNELS)
            if tenant == "_all" and channel.startswith("users"):
                channel = "a"
            body = rng.choice((b"x", b"x", b"y")) * rng.choice(BODIES)
            bus.put(f"events.{tenant}.{channel}", b'"' + body + b'"')
        await trio.sleep(rng.uniform(0, 0.1))


def entitled(bus: ScriptedBus, client: Simulated, each: Expected) -> list[tuple[int, str]]:
    """The stream as a naive reader sees it: sequence and channel of what the subscription is about."""
    tenant = f"t{int(client.name[1:]) % 2}"
    found = []
    for sequence, subject, body, _ in bus.records:
        if each.filtered and not body.startswith(b'"y'):
            continue
        _, of, channel = subject.split(".", 2)
        if (
            of in (tenant, "_all")
            and subjects.covers(each.pattern, channel)
            and not channel.startswith("secret.")
        ):
            found.append((sequence, channel))
    return found


def check(bus: ScriptedBus, client: Simulated, each: Expected) -> None:
    all_of_it = entitled(bus, client, each)
    if each.every_ms is not None:
        check_paced(bus, client, each, dict(all_of_it))
        return
    if each.latest:
        after = {sequence: channel for sequence, channel in all_of_it if sequence > (each.start or 0)}
        assert each.seen == sorted(set(each.seen) & after.keys()), (client.name, each)
        newest = {channel: sequence for sequence, channel in after.items()}
        assert set(newest.values()) <= set(each.seen), (client.name, each)
        return
    if not each.snapshot:
        wanted = [sequence for sequence, _ in all_of_it if sequence > (each.start or 0)]
        assert each.seen == wanted, (client.name, each)
        return
    # The newest of each channel at some point, then everything after that point.
    for point in {0, *each.seen, bus.last_sequence} | {sequence - 1 for sequence in each.seen}:
        newest = {channel: sequence for sequence, channel in all_of_it if sequence <= point}
        rest = [sequence for sequence, _ in all_of_it if sequence > point]
        if each.seen == sorted(newest.values()) + rest:
            return
    raise AssertionError((client.name, each))


def check_paced(bus: ScriptedBus, client: Simulated, each: Expected, channels: dict[int, str]) -> None:
    """In the end it knows the newest event of each channel, of those stored after its start, or within its
    pace before a position that it was asked for from. It may have seen what came for other subscriptions.
    """
    assert set(each.seen) <= channels.keys(), (client.name, each)
    begin = min([each.start or 0, *(before(bus, position, pace) for position, pace in each.asked)])
    newest = {channel: sequence for sequence, channel in channels.items() if sequence > begin}
    assert set(newest.values()) <= set(each.seen), (client.name, each, newest)


def before(bus: ScriptedBus, position: int, milliseconds: float) -> int:
    """The position before all that was stored within so many milliseconds before a position was."""
    stored = [time for sequence, time in bus.stored_times.items() if sequence <= position]
    since = stored[-1] - milliseconds / 1000 if stored else 0.0
    return min((sequence for sequence, time in bus.stored_times.items() if time >= since), default=1) - 1


@simulated(15)
async def test_everyone_sees_what_a_naive_reader_would(
    seed: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event of each subscription once, in stream order, whatever happens on the way."""
    rng = random.Random(seed)
    bus = ScriptedBus(random=rng, failures=rng.choice((0, 0, 0.1)), crashes=rng.choice((0, 0.001, 0.02)))
    bus.late = rng.choice((0, 0, 7))
    shorten_memory(rng, bus.late, monkeypatch)
    for _ in range(rng.choice((0, 5, 400))):
        bus.put(f"events.t{rng.randint(0, 1)}.{rng.choice(CHANNELS)}", b"1")
    settings = config.Config(
        ring=config.Ring(events=rng.choice((5, 100, 8192)), seconds=rng.choice((0.5, 300))),
        limits=config.Limits(
            connections_per_user=100, requests_burst=10000, requests_per_second=1000, stall_seconds=10000,
            heartbeat_seconds=9000,
        ),
    )  # fmt: skip
    crash = rng.random() < 0.3
    supervisor = Supervisor(
        config=settings,
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(DENY),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)

        async def client(number: int) -> None:
            client_rng = random.Random(f"{seed}-{number}")
            each = Simulated(name=f"u{number}", supervisor=supervisor, random=client_rng)
            lives = 3
            while lives:
                lives -= 1
                each.connect(nursery, crash=crash)
                try:
                    await each.resume()
                    await live(each, bus)
                    if not lives:
                        await done.wait()
                        await each.arrive(bus)
                        await trio.sleep(3)  # longer than any pace
                        await each.ask("ping", {})
                        break
                except Gone:
                    lives += 1  # that one was not of its own making
                each.link.drop()
                each.waiting.clear()
                await trio.sleep(client_rng.uniform(0.01, 1))
            for expected in each.wanted.values():
                check(bus, each, expected)

        done = trio.Event()
        async with trio.open_nursery() as playing:
            for number in range(6):
                playing.start_soon(client, number)
            playing.start_soon(publish, bus, rng)
            for _ in range(3):
                await trio.sleep(rng.uniform(1, 20))
                bus.interrupt()
            done.set()
        nursery.cancel_scope.cancel()
