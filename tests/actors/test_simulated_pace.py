"""A pace in the real actors, under a fake clock: what a naive reader of the protocol page says of each frame.

Clients take everything at once, so that of each frame it is known when it was written. They subscribe to
patterns at some pace, perhaps beside others without one, are cut off, and come back by their position, while
events arrive. In `test_simulation` the same happens to clients that are slow.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello
from broker.eventlog.lanes import LATE_SECONDS
from tests.support.scripted import ScriptedLink, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus
from tests.support.seeds import simulated

if TYPE_CHECKING:
    import pytest

CHANNELS = ["a", "b", "a.b", "live.x"]
PATTERNS = ["a", "*", ">", "a.*", "live.*"]
FILTER = {"": {"prefix": "y"}}
CLOSE_SECONDS = 0.101  # a tick, at which windows end
EARLY_SECONDS = LATE_SECONDS + 0.04  # others have their turns between two writes


@attrs.define(kw_only=True)
class Frame:
    time: float
    number: int
    paced: bool
    live: bool  # it came once the subscriptions were


@attrs.define(eq=False, kw_only=True)
class Watcher:
    """A client with a subscription at a pace; `unpaced` is the pattern of another one without."""

    supervisor: Supervisor
    random: random.Random
    pattern: str
    every: float
    filtered: bool
    unpaced: str | None
    link: ScriptedLink = attrs.field(init=False)
    frames: dict[str, list[Frame]] = attrs.Factory(dict)
    live: bool = False
    position: str | None = None
    began: float = 0.0

    async def life(self, nursery: trio.Nursery) -> None:
        """Subscribe, from the position if there was a life before, and take what comes until cut off."""
        self.link = ScriptedLink(room=10**8, partial_sends=self.random.random() < 0.7)
        nursery.start_soon(self.supervisor.serve, self.link, Hello(peer="test", token="t0:u"))
        start = {} if self.position is None else {"position": self.position}
        wanted: dict[str, Any] = {"filter": FILTER} if self.filtered else {}
        if self.unpaced and self.unpaced != self.pattern:
            self.link.say("subscribe", {"channel": self.unpaced} | start)
        wish = {"channel": self.pattern, "every_ms": round(self.every * 1000)} | wanted | start
        self.link.say("subscribe", wish, messageId="paced")
        while not self.link.cut:
            for opcode, data in await self.link.read(10**9):
                if opcode == 1:
                    self.take(json.loads(data))

    def take(self, message: dict[str, Any]) -> None:
        kind, payload = message["type"], message["payload"]
        if kind == "event":
            number = int(payload["event"].strip("xy"))
            frame = Frame(time=trio.current_time(), number=number, paced="paced" in payload, live=self.live)
            self.frames.setdefault(payload["channel"], []).append(frame)
        elif kind == "subscribed" and message.get("messageId") == "paced":
            self.live, self.began = payload["live"], trio.current_time()
        elif kind == "subscription.live" and payload["channel"] == self.pattern:
            self.live = True
        if "paced" not in payload and "catch_up" not in payload:
            self.position = payload.get("position", self.position)

    def cut(self) -> None:
        self.link.drop()
        self.live = False

    def wants(self, channel: str, body: str) -> bool:
        return subjects.covers(self.pattern, channel) and (body[0] == "y" or not self.filtered)


@attrs.define
class Story:
    """What was published: when each event reached the broker, by channel."""

    arrived: dict[str, list[tuple[float, int, str]]] = attrs.Factory(dict)
    count: int = 0

    async def tell(self, bus: ScriptedBus, rng: random.Random) -> None:
        for _ in range(rng.randint(50, 150)):
            for _ in range(rng.choice((1, 1, 3, 10))):
                channel = rng.choice(CHANNELS)
                self.count += 1
                body = f"{rng.choice('xy')}{self.count}"
                put = bus.put_live if subjects.is_live(channel) else bus.put
                put(
                    f"{'live' if subjects.is_live(channel) else 'events'}.t0.{channel.removeprefix('live.')}",
                    json.dumps(body).encode(),
                )
                self.arrived.setdefault(channel, []).append((trio.current_time(), self.count, body))
            await trio.sleep(rng.choice((0.0, 0.03, 0.2, 1.5)))


def check(story: Story, watcher: Watcher) -> None:
    for channel, told in story.arrived.items():
        wanted = [(time, number) for time, number, body in told if watcher.wants(channel, body)]
        found = watcher.frames.get(channel, [])
        paced = [frame for frame in found if frame.paced]
        for before, frame in pairwise(paced):
            if before.live and frame.live and (before.time < watcher.began) == (frame.time < watcher.began):
                assert frame.time - before.time >= watcher.every - EARLY_SECONDS, (channel, frame)
                assert frame.number > before.number, (channel, frame)
        for frame in (each for each in paced if each.live):
            newest = max((number for time, number in wanted if time < frame.time - 0.05), default=0)
            assert frame.number >= newest, f"{channel}: not the newest: {frame}, {newest}"
        for time, number in wanted:
            # In a time, and a tick, it has come, or a newer one. The feed takes a moment.
            if time > watcher.began and not subjects.is_live(channel):
                late = time + watcher.every + CLOSE_SECONDS + 0.05
                assert any(frame.number >= number and frame.time <= late for frame in found), (
                    channel,
                    number,
                )
            # The first at once.
            if time > watcher.began and not any(
                0 <= time + 0.05 - frame.time <= watcher.every + CLOSE_SECONDS + 0.05
                for frame in found
                if frame.number < number
            ):
                assert any(frame.number >= number and frame.time <= time + 0.05 for frame in found), (
                    f"{channel}: not at once: {number} at {time}, {found}"
                )
        if wanted and not subjects.is_live(channel):
            assert max(number for _, number in wanted) in {frame.number for frame in found}, channel
        if (
            watcher.unpaced
            and watcher.unpaced != watcher.pattern
            and subjects.covers(watcher.unpaced, channel)
        ):
            plain = [frame.number for frame in found if not frame.paced]
            every = [number for _, number, _ in told]
            assert plain == every[len(every) - len(plain) :], channel
            assert not [frame for frame in paced if frame.live], f"{channel}: it comes twice"


@simulated(6)
async def test_each_frame_at_its_time(
    seed: int, autojump_clock: trio.abc.Clock, quiet_logs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least the pace between two, the first at once, always the newest, and in the end all is known."""
    rng = random.Random(seed)
    bus, story = ScriptedBus(random=rng), Story()
    limits = config.Limits(connections_per_user=100, requests_burst=10000, heartbeat_seconds=9000)
    supervisor = Supervisor(
        config=config.Config(ring=config.Ring(events=rng.choice((20, 8192))), limits=limits),
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(()),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        watchers = [
            Watcher(
                supervisor=supervisor,
                random=random.Random(f"{seed}-{number}"),
                pattern=rng.choice(PATTERNS),
                every=rng.choice((0.1, 0.5, 2.0)),
                filtered=rng.random() < 0.3,
                unpaced=rng.choice((None, None, "a", "*")),
            )
            for number in range(10)
        ]

        async def live(watcher: Watcher) -> None:
            await trio.sleep(watcher.random.uniform(0, 5))
            nursery.start_soon(watcher.life, nursery)
            if watcher.random.random() < 0.5:  # and once more
                await trio.sleep(watcher.random.uniform(0.5, 5))
                watcher.cut()
                await trio.sleep(watcher.random.uniform(0.01, 2))
                nursery.start_soon(watcher.life, nursery)

        async with trio.open_nursery() as playing:
            playing.start_soon(story.tell, bus, rng)
            for watcher in watchers:
                playing.start_soon(live, watcher)
        for _ in range(3):  # for those that began after everything
            for channel in CHANNELS[:3]:
                story.count += 1
                bus.put(f"events.t0.{channel}", json.dumps(f"y{story.count}").encode())
                story.arrived.setdefault(channel, []).append((trio.current_time(), story.count, "y"))
            await trio.sleep(5)
        nursery.cancel_scope.cancel()
    for watcher in watchers:
        check(story, watcher)
