"""Sessions of long polls over the real actors, a scripted bus, a fake clock and a seed.

Clients poll, wait, lose answers, leave while they wait, stay away for longer than a session lives and change
their channels, while events keep arriving and requests to NATS fail. In the end each must have seen exactly
what a naive reader of the stream would give it, as the WebSocket clients of `tests/actors/test_simulation`.

`SIMULATION_SEEDS=1000` runs more seeds; a failing test names its seed, which replays it exactly.
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
from broker.actors.transport import Hello
from broker.links.poll import messages
from broker.links.poll.session import PollTransport, Sessions
from tests.support.scripted import ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus
from tests.support.seeds import simulated

if TYPE_CHECKING:
    from broker.http.responses import Response

pytestmark = pytest.mark.usefixtures("quiet_logs")

CHANNELS = ["a", "a.b", "b.c", "c.d.e", "users.u0.i", "users.u1.i"]
LISTS = [["a", "b.c"], ["a.>"], [">"], ["me.>", "a"], ["c.*.e", "live.x"], ["*", "b.c", "live.>"]]
BODIES = 2, 60, 5000, 40000


@attrs.define(eq=False, kw_only=True)
class Port:
    """What the public port does with sessions."""

    supervisor: Supervisor
    nursery: trio.Nursery
    polls: Sessions = attrs.Factory(Sessions)

    async def poll(self, user: str, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ask = messages.converted(given, strict=True)
        session = self.polls.find(ask.session)
        if session is None:
            session = PollTransport(self.polls)
            serving = self.supervisor.serve(session, Hello(peer="test:1"))

            async def serve() -> None:
                await serving

            self.nursery.start_soon(serve)
        response = await session.answer(ask, f"t0:{user}", None)
        return response.status, msgspec.json.decode(response.body)


@attrs.define(eq=False, kw_only=True)
class Poller:
    """A client that has its session, its position, and what it saw of the channels that it asks for."""

    name: str
    port: Port
    random: random.Random
    channels: list[str]
    session: str | None = None
    position: str | None = None
    since: list[tuple[int, list[str]]] = attrs.Factory(list)  # after which event it asks for which channels
    seen: list[int] = attrs.Factory(list)
    live: list[int] = attrs.Factory(list)
    told: bool = True  # that live events may be missing
    turned: bool = False  # to other live channels, and nothing has come since

    @property
    def live_patterns(self) -> list[str]:
        return [each for each in self.channels if each.startswith("live.")]

    async def poll(self, wait: float, *, patience: float = 1e9) -> None:
        """One poll; the answer may be lost on its way."""
        if self.position and self.random.random() < 0.1:
            before, self.channels = self.live_patterns, self.random.choice(LISTS)
            self.turned |= (
                self.live_patterns != before
            )  # another pattern is another subscription, from now on
            self.since.append((number_of(self.position), self.channels))
        given: dict[str, Any] = {"channels": self.channels, "wait": wait}
        given |= {"session": self.session} if self.session else {}
        given |= {"position": self.position} if self.position else {}
        answer = None
        with trio.move_on_after(patience):
            status, answer = await self.port.poll(self.name, given)
        if answer is None or (answer.get("events") and self.random.random() < 0.1):
            return  # it has left, or the answer did not arrive: then it asks again from where it was
        if status != 200:
            refused = (503, "unavailable"), (429, "rate_limited"), (429, "limit_connections")
            assert (status, answer["code"]) in refused, answer
            await trio.sleep(1)
            return
        assert answer["recovered"] or (self.session and not self.position), answer
        assert all(gap["reason"] in ("lag", "source") for gap in answer["gaps"]), answer
        another = answer["session"].partition(".")[0] != (self.session or "").partition(".")[0]
        self.told |= self.turned or another or bool(answer["gaps"]) or not self.live_patterns
        for event in answer["events"]:
            if "position" in event:
                self.seen.append(number_of(event["position"]))
            else:
                assert self.told or event["event"] == self.live[-1] + 1, f"after {self.live[-1]}: {event}"
                self.live.append(event["event"])
                # With the first answer to a change something of the subscription before it may come yet.
                self.told = bool(answer["gaps"]) or self.turned
        self.turned = False
        if self.position is None:
            self.since.append((number_of(answer["position"]), self.channels))
        self.session, self.position = answer["session"], answer["position"]

    async def live_on(self, bus: ScriptedBus) -> None:
        rng = self.random
        for _ in range(rng.randint(5, 40)):
            await trio.sleep(rng.choice((0, 0, 0.1, 3)) if rng.random() < 0.95 else 90)
            patience = rng.uniform(0, 2) if rng.random() < 0.2 else 1e9
            if rng.random() < 0.1:  # two at a time
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.poll_beside, rng.choice((0, 1, 20)))
                    await self.poll(rng.choice((0, 1, 20)), patience=patience)
            else:
                await self.poll(rng.choice((0, 1, 20)), patience=patience)

    async def poll_beside(self, wait: float) -> None:
        """A poll of the same session whose answer nobody reads, as of a tab that was closed."""
        if self.session:
            given = {"channels": self.channels, "wait": wait, "session": self.session}
            with trio.move_on_after(5):
                await self.port.poll(
                    self.name, given | ({"position": self.position} if self.position else {})
                )

    async def arrive(self, bus: ScriptedBus) -> None:
        with trio.fail_after(5000):
            while self.position is None or number_of(self.position) < bus.last_sequence:
                await self.poll(0)
                await trio.sleep(0.5)


def number_of(position: str) -> int:
    return int(position.rpartition("-")[2])


def entitled(bus: ScriptedBus, client: Poller) -> list[int]:
    """The stream as a naive reader sees it."""
    found = []
    for sequence, subject, _, _ in bus.records:
        _, of, channel = subject.split(".", 2)
        asked = [channels for after, channels in client.since if after < sequence]
        patterns = [subjects.expand_me(each, client.name) for each in (asked or [[]])[-1]]
        if of in ("t0", "_all") and any(subjects.covers(pattern, channel) for pattern in patterns):
            found.append(sequence)
    return found


async def publish(bus: ScriptedBus, rng: random.Random) -> None:
    for number in range(rng.randint(20, 80)):
        for _ in range(rng.choice((1, 3, 40))):
            tenant, channel = rng.choice(("t0", "t0", "t1", "_all")), rng.choice(CHANNELS)
            channel = "a" if tenant == "_all" and channel.startswith("users") else channel
            bus.put(f"events.{tenant}.{channel}", b'"' + b"x" * rng.choice(BODIES) + b'"')
        bus.put_live("live.t0.x", b"%d" % number)
        await trio.sleep(rng.choice((0, 0.1, 5)))


@simulated(6)
async def test_everyone_sees_what_a_naive_reader_would(seed: int, autojump_clock: trio.abc.Clock) -> None:
    """Each stored event once, in stream order, whatever becomes of polls, answers and sessions."""
    rng = random.Random(seed)
    bus = ScriptedBus(random=rng, failures=rng.choice((0, 0, 0.1)))
    bus.late = rng.choice((0, 0, 7))
    delivered = {"delivered_bytes_per_second": 20000} if rng.random() < 0.3 else {}
    settings = config.Config(
        ring=config.Ring(events=rng.choice((5, 100, 8192)), seconds=rng.choice((0.5, 300))),
        limits=config.Limits(
            connections_per_user=rng.choice((1, 2, 1000)),
            requests_burst=1000,
            connection=config.Allowance(**delivered),
        ),
    )
    supervisor = Supervisor(
        config=settings,
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(()),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        port = Port(supervisor=supervisor, nursery=nursery)
        published = trio.Event()

        async def client(number: int) -> None:
            own = random.Random(f"{seed}-{number}")
            each = Poller(name=f"u{number}", port=port, random=own, channels=own.choice(LISTS))
            await each.live_on(bus)
            await published.wait()
            await each.arrive(bus)
            assert each.seen == entitled(bus, each), (each.name, each.channels)
            assert each.live == sorted(set(each.live))

        async with trio.open_nursery() as playing:
            for number in range(4):
                playing.start_soon(client, number)
            await publish(bus, rng)
            published.set()
        with trio.fail_after(1000):  # nobody polls any more: nothing of all that stays
            while supervisor.connections or port.polls:
                await trio.sleep(1)
        nursery.cancel_scope.cancel()


async def test_paced_events_of_a_lost_answer_go_with_the_next() -> None:
    """Where they have not moved the position nothing tells whether they arrived. Once, and not for ever."""
    session = PollTransport(Sessions())
    session.place.position = session.resume_position = "x-5"
    paced, later = (
        msgspec.Raw(b'{"channel":"a","position":"x-%d","paced":true,"event":1}' % n) for n in (3, 6)
    )
    session.gathered.events = [paced]
    name = session.full_name
    assert events_in(session.taken()) == ["x-3"]
    assert session.full_name != name
    assert not session.lost(messages.Poll(channels=["a"], session=name, position="x-5"))
    session.gathered.events = [later]
    assert events_in(session.taken()) == ["x-3", "x-6"]
    assert not session.lost(messages.Poll(channels=["a"], session=name, position="x-5"))
    assert events_in(session.taken()) == ["x-6"]


def events_in(response: Response) -> list[str]:
    return [each["position"] for each in json.loads(response.body)["events"]]
