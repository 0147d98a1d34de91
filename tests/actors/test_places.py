"""A user's places: who is asked for its own, who gives it up, and who is refused. Under a fake clock."""

from __future__ import annotations

import json
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import pytest
import trio

from broker import config, subjects
from broker.actors.places import ANSWER_SECONDS
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Alive, Hello, LinkState, Resting
from broker.config import Allowance
from broker.features.control import Ban
from tests.support.scripted import ScriptedLink, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PLACES = 3
LONG = json.dumps({"type": "event", "payload": {"event": "x" * 1000}}).encode()
QUIET = 10 * ANSWER_SECONDS  # and far from any heartbeat


@attrs.define(eq=False, kw_only=True)
class OneWay(ScriptedLink):
    """As a stream of events: nobody answers a heartbeat."""

    answers: ClassVar[bool] = False


@attrs.define(eq=False, kw_only=True)
class Visiting(ScriptedLink):
    """As a long poll."""

    answers: ClassVar[bool] = False
    comes_and_goes: ClassVar[bool] = True

    def ask(self) -> bytes:
        return b""


@attrs.define(eq=False)
class Member:
    """A client of alice; as long as it is `alive` it answers pings after `delay` seconds."""

    link: ScriptedLink
    alive: bool = True
    delay: float = 0.0
    asked: int = 0
    told: list[str] = attrs.Factory(list)
    closed: int | None = None

    async def read(self) -> None:
        while self.link.buffer or not self.link.cut:
            for opcode, payload in await self.link.read(1 << 20):
                match opcode:
                    case 1:
                        message = json.loads(payload)
                        code = message["payload"].get("code", "")
                        self.told.append(f"{message['type']} {code}".strip())
                    case 8:
                        self.closed = int.from_bytes(payload[:2])
                        self.link.drop()
                    case 9:
                        self.asked += 1
                        await trio.sleep(self.delay)
                        if self.alive and not self.link.cut:
                            self.link.to_broker.send_nowait(Alive())

    @property
    def has_place(self) -> bool:
        return "connection.authenticated" in self.told and self.closed is None


@attrs.define(eq=False)
class House:
    supervisor: Supervisor
    nursery: trio.Nursery

    async def come(
        self, *, link: ScriptedLink | None = None, token: str = "acme:alice", **options: Any
    ) -> Member:
        """Somebody new; it may have to wait for its place."""
        member = Member(link or ScriptedLink(room=1 << 20), **options)
        serving = self.supervisor.serve(member.link, Hello(peer="192.0.2.1:1", token=token))

        async def serve() -> None:
            await serving

        self.nursery.start_soon(serve)
        self.nursery.start_soon(member.read)
        await trio.sleep(0.01)
        return member

    def held(self) -> int:
        return self.supervisor.services.budgets.shared["acme", "alice"].connections


@asynccontextmanager
async def house(**limits: Any) -> AsyncIterator[House]:
    supervisor = Supervisor(
        config=config.Config(
            limits=config.Limits(
                heartbeat_seconds=1000, stall_seconds=1000, connections_per_user=PLACES, **limits
            )
        ),
        bus=ScriptedBus(random=random.Random(1)),
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        yield House(supervisor, nursery)
        nursery.cancel_scope.cancel()


async def until_decided(*newcomers: Member) -> float:
    """How long it took until each is in, or is refused."""
    began = trio.current_time()
    with trio.fail_after(100):
        while not all(each.has_place or each.closed for each in newcomers):
            await trio.sleep(0.01)
    return trio.current_time() - began


async def test_a_dead_one_gives_way(autojump_clock: trio.abc.Clock) -> None:
    """Who does not answer is ended for the newcomer, within about 2 s; who answers stays."""
    async with house() as it:
        one, dead, three = [await it.come(alive=number != 1) for number in range(PLACES)]
        await trio.sleep(QUIET)
        new = await it.come()
        assert not new.has_place
        assert await until_decided(new) < ANSWER_SECONDS + 0.5
        assert (new.has_place, dead.closed) == (True, 4009)
        assert one.has_place
        assert three.has_place
        (end,) = it.supervisor.ends.find(code=4009)
        assert (end.by, end.reason) == ("broker", "no sign of life, and another connection needed its place")
        assert it.held() == PLACES


async def test_the_longest_silent_goes_first(autojump_clock: trio.abc.Clock) -> None:
    """Of two that are dead the one that was heard last stays, for the next newcomer."""
    async with house() as it:
        members = [await it.come(alive=False) for _ in range(PLACES)]
        await trio.sleep(QUIET)
        members[0].link.say("ping", {})
        await trio.sleep(QUIET)
        expected = [members[1], members[2], members[0]]
        for gone in range(PLACES):
            new = await it.come()
            await until_decided(new)
            assert new.has_place
            assert [each.closed for each in expected] == [4009] * (gone + 1) + [None] * (PLACES - gone - 1)
            await trio.sleep(QUIET)


async def test_all_alive(autojump_clock: trio.abc.Clock) -> None:
    """Then the newcomer is refused as soon as all have answered; the next is, without another question."""
    async with house() as it:
        members = [await it.come(delay=0.3) for _ in range(PLACES)]
        await trio.sleep(QUIET)
        new = await it.come()
        assert await until_decided(new) < 0.5
        assert (new.closed, new.told[-1]) == (4010, "error limit_connections")
        assert it.supervisor.services.budgets.hits["user", "connections"] == 1
        again = await it.come()
        assert await until_decided(again) < 0.1
        assert again.closed == 4010
        assert [each.asked for each in members] == [1] * PLACES
        assert all(each.has_place for each in members)
        assert not it.supervisor.services.places.rounds


async def test_a_storm_is_one_round(autojump_clock: trio.abc.Clock) -> None:
    """Fifty newcomers: as many get in as there were dead, each of the others was asked once; nobody waits."""
    async with house() as it:
        members = [await it.come(alive=number == 0, delay=1.5) for number in range(PLACES)]
        await trio.sleep(QUIET)
        newcomers = [await it.come() for _ in range(25)]
        other = await it.come(token="acme:bob")
        assert other.has_place, "others are not held up"
        newcomers += [await it.come() for _ in range(25)]
        assert await until_decided(*newcomers) < 2 * ANSWER_SECONDS
        assert sum(each.has_place for each in newcomers) == PLACES - 1
        assert [each.closed for each in newcomers].count(4010) == 50 - (PLACES - 1)
        assert [each.asked for each in members] == [1] * PLACES
        assert [each.closed for each in members] == [None, 4009, 4009]
        assert it.held() == PLACES


async def test_who_waits_and_leaves(autojump_clock: trio.abc.Clock) -> None:
    """The first newcomer, in whose task the questions are asked, is cut off: nothing of it stays."""
    async with house(authentication_seconds=1) as it:
        members = [await it.come(alive=False) for _ in range(PLACES)]
        await trio.sleep(QUIET)
        late = await it.come()
        await until_decided(late)
        assert late.closed == 4001, "the deadline holds while it waits"
        assert not it.supervisor.services.places.rounds
        assert it.held() == PLACES
        assert all(each.has_place for each in members)


@pytest.mark.parametrize(("banned", "code"), [(True, 4501), (False, 1012)])
async def test_what_changes_while_it_waits(
    autojump_clock: trio.abc.Clock, *, banned: bool, code: int
) -> None:
    """Whoever was banned meanwhile does not get in, nor by a configuration that is not in force any more."""
    async with house() as it:
        await it.come()
        dead = [await it.come(alive=False) for _ in range(PLACES - 1)]
        await trio.sleep(QUIET)
        new = await it.come()
        supervisor = it.supervisor
        if banned:
            until = time.time() + 1000
            made = Ban(kind="user", tenant="acme", name="alice", at=1, until=until, version=time.time_ns())
            supervisor.control.learn([made])
        else:
            other: Any = ScriptedVerifier(("b",))
            await supervisor.reload(supervisor.config, other)
        await until_decided(new)
        assert new.closed == code
        assert any(each.closed for each in dead)
        with trio.fail_after(100):
            while it.held() > (0 if banned else PLACES - 1):
                await trio.sleep(0.1)


async def test_a_slow_link_is_not_killed(autojump_clock: trio.abc.Clock) -> None:
    """While its kernel takes what is in front of the ping it is alive; when it takes no more it is dead."""
    async with house() as it:
        slow = [await it.come(alive=False) for _ in range(PLACES)]
        await trio.sleep(QUIET)
        for each in slow:
            each.link.known = LinkState(acknowledged=1000, pending=1 << 20)

        async def crawl(link: ScriptedLink) -> None:
            while True:
                await trio.sleep(0.5)
                link.known = attrs.evolve(
                    link.known,
                    acknowledged=link.known.acknowledged + 100,
                    pending=link.known.pending - 100,
                )

        for each in slow[1:]:
            it.nursery.start_soon(crawl, each.link)
        new = await it.come()
        await until_decided(new)
        assert (new.has_place, slow[0].closed) == (True, 4009), "this one's acknowledges nothing"
        next_one = await it.come()
        assert await until_decided(next_one) < 3 * ANSWER_SECONDS
        assert (next_one.closed, [each.closed for each in slow[1:]]) == (4010, [None, None])


async def test_a_full_link_is_not_killed(autojump_clock: trio.abc.Clock) -> None:
    """A client that reads slowly has room again every few seconds only, and says so in between."""
    async with house() as it:
        slow = [await it.come(alive=False) for _ in range(PLACES)]
        await trio.sleep(QUIET)
        for each in slow:
            each.link.known = LinkState(pending=1 << 20, silence=100.0, full=True)
        new = await it.come()
        assert await until_decided(new) < 3 * ANSWER_SECONDS
        assert (new.closed, [each.closed for each in slow]) == (4010, [None] * PLACES)


async def test_who_takes_the_ping_and_says_nothing(autojump_clock: trio.abc.Clock) -> None:
    """Its kernel, or a proxy, acknowledges everything, nobody answers: dead, though its link is not."""
    async with house() as it:
        members = [await it.come(alive=number > 0) for number in range(PLACES)]
        await trio.sleep(QUIET)

        async def acknowledge(link: ScriptedLink) -> None:
            while True:
                await trio.sleep(0.1)
                link.known = attrs.evolve(link.known, acknowledged=link.known.acknowledged + 10)

        it.nursery.start_soon(acknowledge, members[0].link)
        new = await it.come()
        assert await until_decided(new) < ANSWER_SECONDS + 0.5
        assert (new.has_place, members[0].closed) == (True, 4009)


async def test_a_long_way(autojump_clock: trio.abc.Clock) -> None:
    """Over a satellite an answer takes as long as the kernel knows that it does."""
    async with house() as it:
        far = [await it.come(delay=1.5 * ANSWER_SECONDS) for _ in range(PLACES)]
        await trio.sleep(QUIET)
        for each in far:
            each.link.known = LinkState(round_trip=1.0)
        new = await it.come()
        await until_decided(new)
        assert new.closed == 4010
        assert all(each.has_place for each in far)


@pytest.mark.parametrize(
    ("moves", "known", "stays"), [(True, True, True), (False, True, False), (False, False, True)]
)
async def test_who_cannot_answer(
    autojump_clock: trio.abc.Clock, *, moves: bool, known: bool, stays: bool
) -> None:
    """A stream of events lives as long as its link takes bytes; where the kernel does not say, it does."""
    async with house() as it:
        links = [OneWay(room=1 << 20, known=LinkState(known=known)) for _ in range(PLACES)]
        members = [await it.come(link=link, alive=False) for link in links]
        await trio.sleep(QUIET)
        new = await it.come()
        if moves:
            for link in links:
                link.known = attrs.evolve(link.known, acknowledged=9)
        await until_decided(new)
        assert new.has_place == (not stays)
        assert [each.closed for each in members].count(None) == PLACES - (not stays)


async def test_what_we_hold_back_is_not_its_silence(autojump_clock: trio.abc.Clock) -> None:
    """A ping that waits behind a rate of ours says nothing of the client."""
    rate = Allowance(delivered_bytes_per_second=100)
    async with house(connection=rate) as it:
        members = [await it.come() for _ in range(PLACES)]
        await trio.sleep(QUIET)
        for connection in list(it.supervisor.connections):
            connection.flow.push(connection.transport.frame(LONG))
        new = await it.come()
        with trio.fail_after(100):
            while it.supervisor.services.places.rounds:
                await trio.sleep(0.1)
        assert all(each.closed is None for each in members)
        assert it.held() == PLACES
        assert not new.has_place


# --- those that come and go ------------------------------------------------------------------------


async def rest(member: Member) -> None:
    member.link.to_broker.send_nowait(Resting())
    await trio.sleep(0.01)


async def test_who_rests_holds_no_place(autojump_clock: trio.abc.Clock) -> None:
    """And has to have one again before anything is done for it; refused, it rests on."""
    async with house() as it:
        visitor = await it.come(link=Visiting(room=1 << 20))
        await rest(visitor)
        assert it.held() == 0
        members = [await it.come() for _ in range(PLACES)]
        assert all(each.has_place for each in members)
        visitor.link.say("ping", {}, messageId="1")
        await trio.sleep(0.1)
        assert (visitor.told[-1], visitor.closed) == ("error limit_connections", None)
        members[0].link.drop()
        await trio.sleep(0.1)
        visitor.link.say("ping", {}, messageId="2")
        await trio.sleep(0.1)
        assert visitor.told[-1] == "pong"
        assert it.held() == PLACES
        visitor.link.drop()
        await trio.sleep(0.1)
        assert it.held() == PLACES - 1


async def test_more_that_rest_than_may_be(autojump_clock: trio.abc.Clock) -> None:
    """The one that has been away for longest ends."""
    async with house() as it:
        visitors = []
        for _ in range(PLACES + 2):
            visitors.append(await it.come(link=Visiting(room=1 << 20)))
            await rest(visitors[-1])
        assert [each.closed for each in visitors] == [1001, 1001, None, None, None]
        assert it.held() == 0
        visitors[2].link.say("ping", {})
        await trio.sleep(0.1)
        await rest(visitors[2])
        last = await it.come(link=Visiting(room=1 << 20))
        await rest(last)
        assert [each.closed for each in visitors[2:]] == [None, 1001, None]


async def test_a_visitor_that_is_asked(autojump_clock: trio.abc.Clock) -> None:
    """One that does not come back loses its place, not its session."""
    async with house() as it:
        visitors = [await it.come(link=Visiting(room=1 << 20)) for _ in range(PLACES)]
        await trio.sleep(QUIET)
        new = await it.come()
        for each in visitors[1:]:
            each.link.say("ping", {})
        await until_decided(new)
        assert new.has_place
        assert [each.closed for each in visitors] == [None] * PLACES
        resting = [each.transport for each in it.supervisor.connections if each.resting]
        assert resting == [visitors[0].link]


async def test_the_count_that_others_hear(autojump_clock: trio.abc.Clock) -> None:
    """What brokers tell each other of a user is what it holds: nothing for those that rest, or had to go."""
    async with house() as it:
        visitor = await it.come(link=Visiting(room=1 << 20))
        dead = [await it.come(alive=False) for _ in range(PLACES - 1)]

        def told() -> list[int]:
            found = it.supervisor.sharing.collect()
            return [each.connections for each in found if each.key == ("acme", "alice")]

        assert told() == [PLACES]
        await rest(visitor)
        assert told() == [PLACES - 1]
        elsewhere = {("acme", "alice"): {"connections": 1, "subscriptions": 0}}
        it.supervisor.services.budgets.shared["acme", "alice"].elsewhere = elsewhere["acme", "alice"]
        await trio.sleep(QUIET)
        new = await it.come()
        await until_decided(new)
        assert new.has_place, "one that is dead here gives way to it, whoever holds the others"
        assert [each.closed for each in dead].count(4009) == 1
        assert told() == [PLACES - 1]
