"""Who has which budgets, what holds over several brokers, and sends at a rate: under a fake clock."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import config, limits, subjects
from broker.actors.budgets import Budgets
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Alive, Hello
from broker.actors.usage import MOST_HOLDERS, SILENT_SECONDS, Sharing
from broker.config import Allowance, TenantAllowance
from broker.errors import BrokerError, CloseCode, RateLimited, TooManyConnections, Unavailable
from broker.limits import CONNECTIONS, DELIVERED, MESSAGES, SUBSCRIPTIONS
from broker.permissions import Principal
from tests.support.scripted import ScriptedLink, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.limits import Budget


def who(tenant: str, user: str) -> Principal:
    return Principal(
        tenant=tenant, user=user, encoded_user=user, expires_at=2e9, life=1e9, subscribe=(), publish=()
    )


# --- the registry ----------------------------------------------------------------------------------


def test_nothing_is_made_for_what_is_not_limited() -> None:
    """Without limits but the defaults a connection has the process's and its user's budget, both shared."""
    budgets = Budgets(config.Limits())
    one, other = budgets.arrive("192.0.2.1:1"), budgets.arrive("192.0.2.2:1")
    assert one == other == (budgets.process,)
    claimed = [budgets.claim(held, who("acme", "alice"), 0.0) for held in (one, other)]
    assert claimed[0] == claimed[1]
    assert [each.bounds.scope for each in claimed[0]] == ["user", "process"]
    assert not any(each.buckets for each in claimed[0])
    assert not budgets.addresses


def test_admission() -> None:
    """A place is kept while a connection is opened; full or too fast, of the process or of an address."""
    budgets = Budgets(
        config.Limits(
            connections=3,
            connections_per_user=3,
            address=Allowance(connections=2),
            process=Allowance(connects_per_second=4),
        )
    )
    first, second = budgets.admit("192.0.2.1:1", 0.0), budgets.admit("192.0.2.1:2", 0.0)
    with pytest.raises(TooManyConnections):
        budgets.admit("192.0.2.1:3", 0.0)
    third = budgets.admit("192.0.2.2:1", 0.0)
    with pytest.raises(Unavailable):
        budgets.admit("192.0.2.3:1", 0.0)
    budgets.let_go(third)
    budgets.let_go(second)
    budgets.let_go(budgets.admit("192.0.2.1:4", 0.0))
    with pytest.raises(Unavailable) as caught:
        budgets.admit("192.0.2.1:5", 0.0)
    assert caught.value.retry_after == 0.25
    budgets.let_go(budgets.admit("192.0.2.1:6", 0.25))
    budgets.let_go(first)
    assert budgets.process.connections == 0
    assert not any(each.connections for each in budgets.addresses.values())
    assert budgets.hits == Counter(
        {
            ("address", CONNECTIONS): 1,
            ("process", CONNECTIONS): 1,
            ("process", limits.CONNECTS): 1,
        }
    )


def test_a_refused_claim_changes_nothing() -> None:
    """Neither too many nor too fast leaves anything held; the tenant's own entry beats that for all."""
    budgets = Budgets(
        config.Limits(
            connections_per_user=2,
            tenant=Allowance(connections=1),
            user=Allowance(connects_per_second=2),
            tenants=(TenantAllowance(name="acme", connections=5),),
        )
    )
    alice, bob = who("acme", "alice"), who("small", "bob")
    held = [budgets.claim((), alice, 0.0) for _ in range(2)]
    with pytest.raises(TooManyConnections, match="user reached: connections"):
        budgets.claim((), alice, 0.0)
    budgets.retire(held.pop(), 0)
    with pytest.raises(RateLimited, match="user reached: connects_per_second"):
        budgets.claim((), alice, 0.0)
    budgets.claim((), bob, 0.0)
    with pytest.raises(TooManyConnections, match="tenant reached: connections"):
        budgets.claim((), bob, 0.0)
    counts = {key: each.connections for key, each in budgets.shared.items()}
    assert counts == {("acme", "alice"): 1, ("acme",): 1, ("small", "bob"): 1, ("small",): 1}


def test_nothing_is_kept_of_who_is_gone() -> None:
    """Users that come and go while no other broker can be told of them leave nothing behind."""
    budgets = Budgets(config.Limits())
    for number in range(100):
        budgets.retire(budgets.claim((), who("acme", f"user{number}"), 0.0), 0)
    budgets.tidy(1000.0)
    assert not budgets.shared
    assert not budgets.touched


ALL = Allowance(connections=1000, subscriptions=1000, messages_per_second=1)
CONFIGURATIONS = (
    config.Limits(),
    config.Limits(tenant=ALL, address=ALL, connection=Allowance(messages_per_second=1)),
    config.Limits(tenants=(TenantAllowance(name="t0", connections=1000),), process=ALL),
    config.Limits(address=ALL, user=Allowance(subscriptions=1000), connections_per_user=1000),
)


@attrs.define(eq=False)
class Held:
    """A connection as the registry sees it, and as we do."""

    peer: str
    budgets: tuple[Budget, ...]
    principal: Principal | None = None
    subscriptions: int = 0


@settings(deadline=None)
@given(seed=st.integers(0, 10**9))
def test_counts_over_reloads(seed: int) -> None:
    """Under whatever limits come and go, each budget holds what its connections hold; in the end nothing."""
    rng = random.Random(seed)
    budgets = Budgets(rng.choice(CONFIGURATIONS))
    connections: list[Held] = []
    for _ in range(rng.randint(1, 60)):
        match rng.choice(["arrive", "claim", "subscribe", "leave", "reload", "tidy"]):
            case "arrive":
                peer = f"192.0.2.{rng.randint(1, 2)}:1"
                connections.append(Held(peer, budgets.arrive(peer)))
            case "claim" if connections and (each := rng.choice(connections)).principal is None:
                each.principal = who(f"t{rng.randint(0, 1)}", f"u{rng.randint(0, 1)}")
                try:
                    each.budgets = budgets.claim(each.budgets, each.principal, 0.0)
                except BrokerError:
                    each.principal = None
            case "subscribe" if connections and (each := rng.choice(connections)).principal:
                change = rng.randint(-each.subscriptions, 3)
                limits.hold(each.budgets, SUBSCRIPTIONS, change)
                each.subscriptions += change
            case "leave" if connections:
                each = connections.pop(rng.randrange(len(connections)))
                link = budgets.retire(each.budgets, each.subscriptions)
                assert {one.bounds.scope for one in link} <= {"address", "process"}
                limits.hold(link, CONNECTIONS, -1)
            case "reload":
                budgets.settings_changed(config.Config(limits=rng.choice(CONFIGURATIONS)))
                for each in connections:
                    each.budgets = budgets.again(each.budgets, each.peer, each.principal, each.subscriptions)
            case "tidy":
                budgets.tidy(1e9)
        check(budgets, connections)
    for each in connections:
        limits.hold(budgets.retire(each.budgets, each.subscriptions), CONNECTIONS, -1)
    budgets.tidy(1e9)
    assert (budgets.process.connections, budgets.process.subscriptions) == (0, 0)
    assert not budgets.shared
    assert not budgets.addresses


def check(budgets: Budgets, connections: Sequence[Held]) -> None:
    known = {budgets.process, *budgets.shared.values(), *budgets.addresses.values()}
    for each in known:
        holders = [one for one in connections if each in one.budgets]
        assert each.connections == len(holders)
        assert each.subscriptions == sum(one.subscriptions for one in holders)
    for one in connections:
        scopes = ["process"]
        scopes += ["address"] if budgets.bounds["address"] else []
        scopes += ["connection"] if any(each.bounds.scope == "connection" for each in one.budgets) else []
        if one.principal:
            scopes += ["user"]
            scopes += ["tenant"] if budgets.bounds_of((one.principal.tenant,)) else []
        assert sorted(each.bounds.scope for each in one.budgets) == sorted(scopes)


# --- over several brokers --------------------------------------------------------------------------


@attrs.define(eq=False)
class Wire:
    """Plain NATS between brokers: everyone hears everything, also itself."""

    sharings: list[Sharing] = attrs.Factory(list)
    sizes: list[int] = attrs.Factory(list)
    down: bool = False

    def broker(self, wanted: config.Limits) -> Sharing:
        name = f"b{len(self.sharings)}"
        made = Sharing(self, subjects.Names(), name, Budgets(wanted))  # type: ignore[arg-type]
        made.begun.set()
        self.sharings.append(made)
        return made

    async def subscribe_live(self, subject: str) -> None:
        assert subject == "_broker.usage.*"

    async def publish_live(self, subject: str, body: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.down:
            raise Unavailable("scripted")
        self.sizes.append(len(body))
        channel = subject.removeprefix("_broker.")
        for each in self.sharings:
            each.heard(channel, body)


ALICE = who("acme", "alice")


async def test_counts_hold_over_brokers(autojump_clock: trio.abc.Clock) -> None:
    """What a quarter of the limit and more is, others know within a second; less is the stated error."""
    wire = Wire()
    here, there = (wire.broker(config.Limits(connections_per_user=10)) for _ in range(2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        nursery.start_soon(there.run)
        for _ in range(2):
            there.budgets.claim((), ALICE, 0.0)
        await trio.sleep(2.5)
        assert not wire.sizes, "nothing is worth telling, and nothing was told"
        held = [here.budgets.claim((), ALICE, 0.0) for _ in range(8)]
        await trio.sleep(1.5)
        with pytest.raises(TooManyConnections):
            there.budgets.claim((), ALICE, 0.0)
        here.budgets.claim((), ALICE, 0.0)  # 2 elsewhere are no quarter: so many may be too many
        budget = here.budgets.shared["acme", "alice"]
        assert budget.connections == 9
        for _ in range(7):
            here.budgets.retire(held.pop(), 0)
        await trio.sleep(1.5)
        for _ in range(8):
            there.budgets.claim((), ALICE, 0.0)
        await trio.sleep(1.5)
        assert there.budgets.shared["acme", "alice"].connections == 10
        with pytest.raises(TooManyConnections):
            here.budgets.claim((), ALICE, 0.0)
        nursery.cancel_scope.cancel()


async def test_a_silent_broker_is_forgotten(autojump_clock: trio.abc.Clock) -> None:
    """What it had counts until it has said nothing for 3 s, also for those that come only then."""
    wire = Wire()
    here, there = (wire.broker(config.Limits(connections_per_user=4)) for _ in range(2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        async with trio.open_nursery() as dying:
            dying.start_soon(there.run)
            for _ in range(4):
                there.budgets.claim((), ALICE, 0.0)
            await trio.sleep(1.5)
            dying.cancel_scope.cancel()
        with pytest.raises(TooManyConnections):
            here.budgets.claim((), ALICE, 0.0)
        await trio.sleep(SILENT_SECONDS + 1.5)
        here.budgets.claim((), ALICE, 0.0)
        assert not here.budgets.elsewhere
        nursery.cancel_scope.cancel()


async def test_rates_hold_over_brokers(autojump_clock: trio.abc.Clock) -> None:
    """Clients at three brokers, each as fast as it may: together they have the rate, but for the error."""
    rate, seconds = 100.0, 60
    wire = Wire()
    brokers = [wire.broker(config.Limits(tenant=Allowance(messages_per_second=rate))) for _ in range(3)]
    admitted = 0

    async def flood(sharing: Sharing) -> None:
        nonlocal admitted
        held = sharing.budgets.claim((), ALICE, 0.0)
        while True:
            admitted += limits.charge(held, {MESSAGES: 1}, trio.current_time()) is None
            await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        for each in brokers:
            nursery.start_soon(each.run)
            nursery.start_soon(flood, each)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    assert rate * seconds * 0.9 <= admitted <= rate * (seconds + 1 + 2 * 2.25)


async def test_reports_are_small(autojump_clock: trio.abc.Clock) -> None:
    """However many are worth telling of, the largest shares are told, and the report stays below 128 KiB."""
    wire = Wire()
    here, there = (wire.broker(config.Limits(connections_per_user=100)) for _ in range(2))
    for number in range(2 * MOST_HOLDERS):
        for _ in range(50 if number % 2 else 25):
            here.budgets.claim((), who("t" * 64, f"{number:0128}"), 0.0)
    await here.report()
    assert len(there.budgets.elsewhere) == MOST_HOLDERS
    assert {each[CONNECTIONS] for each in there.budgets.elsewhere.values()} == {50}
    assert max(wire.sizes) < 128 * 1024


async def test_what_nobody_understands(autojump_clock: trio.abc.Clock) -> None:
    """Other messages, another version's, nonsense, NATS away: nothing happens, and it goes on later."""
    wire = Wire()
    here, there = (wire.broker(config.Limits(connections_per_user=4)) for _ in range(2))
    for channel, body in (
        ("live.usage.x", b"nonsense"),
        ("live.usage.x", b'[{"key":["acme"]}]'),
        ("live.usage.x", b'[{"key":"acme","connections":"1","subscriptions":0,"spent":{}}]'),
        ("live.usage.x", b'[{"key":["acme","alice"],"connections":-9,"subscriptions":0,"spent":{}}]'),
        ("live.usage.x", b'[{"key":["\xff"],"connections":1,"subscriptions":0,"spent":{}}]'),
        ("live.usage.x", b'[{"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}]"),
    ):
        here.heard(channel, body)
    assert not here.budgets.elsewhere
    wire.down = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(there.run)
        for _ in range(4):
            there.budgets.claim((), ALICE, 0.0)
        await trio.sleep(5.5)
        assert not here.budgets.elsewhere
        wire.down = False
        await trio.sleep(1)
        assert here.budgets.elsewhere == {("acme", "alice"): {CONNECTIONS: 4, SUBSCRIPTIONS: 0}}
        nursery.cancel_scope.cancel()


# --- delivered bytes -------------------------------------------------------------------------------

RATE = 1000


@attrs.define(eq=False)
class Reader:
    """A client that takes everything at once, and notes when."""

    link: ScriptedLink
    events: list[int] = attrs.Factory(list)
    kinds: Counter[str] = attrs.Factory(Counter)
    size: int = 0
    closed: int | None = None

    async def read(self) -> None:
        while not self.link.cut:
            before = len(self.link.received)
            frames = await self.link.read(1 << 20)
            self.size += len(self.link.received) - before + sum(len(payload) for _, payload in frames)
            for opcode, payload in frames:
                if opcode == 8:
                    self.closed = int.from_bytes(payload[:2])
                    self.link.drop()
                elif opcode == 9:
                    self.link.to_broker.send_nowait(Alive())
                elif opcode == 1:
                    message = json.loads(payload)
                    self.kinds[message["type"]] += 1
                    if message["type"] == "event":
                        self.events.append(message["payload"]["event"][0])


@pytest.mark.parametrize("partial_sends", [True, False])
@pytest.mark.parametrize("scope", ["connection", "user", "tenant", "address", "process"])
async def test_delivered_bytes(scope: str, autojump_clock: trio.abc.Clock, *, partial_sends: bool) -> None:
    """Two clients share a rate, or have one each; all comes, in order, none is taken for one that stalls.

    And a Close goes out at once, though seconds of it are still in debt.
    """
    bus = ScriptedBus(random=random.Random(1))
    allowance: dict[str, Any] = {scope: Allowance(delivered_bytes_per_second=RATE)}
    supervisor = Supervisor(
        config=config.Config(limits=config.Limits(stall_seconds=1, heartbeat_seconds=2, **allowance)),
        bus=bus,
        names=subjects.Names(),
        verifier=ScriptedVerifier(),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        readers = []
        for _ in range(2):
            link = ScriptedLink(room=1 << 16, partial_sends=partial_sends)
            readers.append(Reader(link))
            hello = Hello(peer="192.0.2.1:1", token="acme:alice")
            nursery.start_soon(supervisor.serve, link, hello)
            nursery.start_soon(readers[-1].read)
            link.say("subscribe", {"channel": "a"})
            while not readers[-1].kinds["subscribed"]:
                await trio.sleep(0.1)
        began = trio.current_time()
        before = sum(each.size for each in readers)
        count = 30
        for number in range(count):
            bus.put("events.acme.a", json.dumps([number, "x" * 1000]).encode())
        with trio.fail_after(1000):
            while any(len(each.events) < count for each in readers):
                await trio.sleep(0.1)
        taken = trio.current_time() - began
        size = sum(each.size for each in readers) - before
        rates = 2 if scope == "connection" else 1
        # A second's worth at first, and of each the last piece is sent on credit.
        assert size / rates / RATE - 10 <= taken <= size / rates / RATE + 1
        assert [each.events for each in readers] == [list(range(count))] * 2
        assert supervisor.services.budgets.hits[scope, DELIVERED]
        assert all(each.closed is None for each in readers)
        for number in range(20):
            bus.put("events.acme.a", json.dumps([number, "x" * 1000]).encode())
        await trio.sleep(0.2)
        for each in list(supervisor.connections):
            each.end(CloseCode.TOKEN_REVOKED, "now")
        await trio.sleep(0.2)
        assert [each.closed for each in readers] == [4501, 4501]
        nursery.cancel_scope.cancel()


async def test_pace_changes_at_a_reload(autojump_clock: trio.abc.Clock) -> None:
    """A rate that comes holds for connections that there are; one that goes lets them run at once."""
    bus = ScriptedBus(random=random.Random(1))
    free = config.Config(limits=config.Limits(heartbeat_seconds=1000))
    slow = attrs.evolve(
        free, limits=attrs.evolve(free.limits, tenant=Allowance(delivered_bytes_per_second=RATE))
    )
    verifier: Any = ScriptedVerifier()
    supervisor = Supervisor(config=free, bus=bus, names=subjects.Names(), verifier=verifier)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        link = ScriptedLink(room=1 << 20)
        reader = Reader(link)
        nursery.start_soon(supervisor.serve, link, Hello(peer="192.0.2.1:1", token="acme:alice"))
        nursery.start_soon(reader.read)
        link.say("subscribe", {"channel": "a"})
        number = 0

        async def burst() -> int:
            nonlocal number
            for _ in range(40):
                number += 1
                bus.put("events.acme.a", json.dumps([number, "x" * 1000]).encode())
                await trio.sleep(0.05)
            await trio.sleep(0.5)
            return len(reader.events)

        await trio.sleep(1)
        assert await burst() == 40
        (connection,) = supervisor.connections
        await supervisor.reload(slow, verifier)
        assert await burst() < 70
        assert connection.flow.main is not None
        await supervisor.reload(free, verifier)
        await trio.sleep(0.5)
        assert reader.events == list(range(1, 81))
        assert connection.flow.main is None
        assert connection.pace is None
        nursery.cancel_scope.cancel()
