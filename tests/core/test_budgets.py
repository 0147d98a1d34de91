"""What is taken from several budgets at once, against naive twins that remember everything."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import config, errors, limits
from broker.features.publishing import Send
from broker.features.subscriptions.wishes import Join, Leave
from broker.limits import BYTES, CONNECTIONS, DELIVERED, MESSAGES, PUBLISHES, SUBSCRIPTIONS, Bounds, Budget
from broker.permissions import Principal
from broker.session.requests import Close, Reply
from broker.session.session import Session
from broker.wire.messages import Error
from tests.support.requests import TABLE, Stood, wish_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.session.requests import Effect

ALICE = Principal(
    tenant="acme",
    user="alice",
    encoded_user="alice",
    expires_at=2e9,
    life=1e9,
    subscribe=("a.*",),
    publish=("a.*",),
    deny=(),
)


# --- what flows ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    rates=st.lists(st.sampled_from([0.25, 1.0, 4.0]), min_size=1, max_size=3),
    steps=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=50),
)
def test_all_budgets_or_none(rates: list[float], steps: list[tuple[int, int]]) -> None:
    """It is taken from all where there is enough in all, and else nothing; who waits as told gets it.

    Enough is the whole amount or a full bucket, so that what is larger than a bucket still passes, on credit.
    """
    now = 1000.0
    budgets = [Budget(Bounds(scope=f"s{rate}", rates={BYTES: (rate, max(1.0, rate))})) for rate in rates]
    levels = [Fraction(max(1.0, rate)) for rate in rates]
    for eighths, amount in steps:
        now += eighths / 8
        bursts = [Fraction(max(1.0, rate)) for rate in rates]
        levels = [
            min(burst, level + Fraction(eighths, 8) * Fraction(rate))
            for level, rate, burst in zip(levels, rates, bursts, strict=True)
        ]
        waits = [
            max(Fraction(0), (min(Fraction(amount), burst) - level) / Fraction(rate))
            for level, rate, burst in zip(levels, rates, bursts, strict=True)
        ]
        excess = limits.charge(budgets, {BYTES: amount, MESSAGES: 1}, now)
        if any(waits):
            assert excess is not None
            assert excess.seconds == max(waits)
            assert excess.scope == f"s{rates[waits.index(max(waits))]}"
            assert excess.resource == BYTES
        else:
            assert excess is None
            levels = [level - amount for level in levels]
    now += 1000
    assert limits.charge(budgets, {BYTES: 20}, now) is None


@settings(deadline=None)
@given(amounts=st.lists(st.integers(1, 500), min_size=1, max_size=60))
def test_spending_on_credit(amounts: list[int]) -> None:
    """Whoever waits for the debt before each send has the rate on average, and never waits for long."""
    rate = 100.0
    budget = Budget(Bounds(scope="tenant", rates={DELIVERED: (rate, rate)}))
    now, sent = 0.0, 0
    for amount in amounts:
        if excess := limits.spend([budget], DELIVERED, 0, now):
            assert excess.seconds <= limits.LONGEST_DEBT_SECONDS
            now += excess.seconds + 1e-9
        assert limits.spend([budget], DELIVERED, amount, now) is None
        sent += amount
        assert sent <= rate + rate * now + amount + 1e-3
    assert limits.spend([budget], DELIVERED, 10**9, now + 100) is None
    excess = limits.spend([budget], DELIVERED, 10**9, now + 100)
    assert excess == limits.Excess("tenant", DELIVERED, limits.LONGEST_DEBT_SECONDS)


def test_other_bounds() -> None:
    """What is limited no more is forgotten; the rest goes on where it stood."""
    budget = Budget(Bounds(scope="user", held={CONNECTIONS: 1}, rates={BYTES: (1, 10), MESSAGES: (1, 1)}))
    limits.charge([budget], {BYTES: 8, MESSAGES: 1}, 0.0)
    assert limits.acquire([budget], CONNECTIONS) is None
    budget.set_bounds(Bounds(scope="user", rates={BYTES: (1, 20)}))
    assert limits.charge([budget], {BYTES: 3, MESSAGES: 1}, 0.0) == limits.Excess("user", BYTES, 1.0)
    assert limits.acquire([budget], CONNECTIONS) is None
    assert budget.connections == 2
    assert not budget.idle(100.0)
    limits.hold([budget], CONNECTIONS, -2)
    assert not budget.idle(17.0)
    assert budget.idle(18.0)


def test_a_debt_under_a_lower_rate() -> None:
    """A short debt does not become one of hours when the rate is lowered."""
    budget = Budget(Bounds(scope="tenant", rates={DELIVERED: (10**6, 10**6)}))
    limits.spend([budget], DELIVERED, 10**9, 0.0)
    budget.set_bounds(Bounds(scope="tenant", rates={DELIVERED: (100, 100)}))
    excess = limits.spend([budget], DELIVERED, 0, 0.0)
    assert excess == limits.Excess("tenant", DELIVERED, limits.LONGEST_DEBT_SECONDS)


@pytest.mark.parametrize(
    ("allowance", "over", "held", "rates"),
    [
        ({}, None, {}, {}),
        ({"connections": 5}, None, {"connections": 5}, {}),
        ({"connections": 0, "messages_per_second": 0.0}, None, {}, {}),
        ({"messages_per_second": 0.5}, None, {}, {"messages_per_second": (0.5, 1.0)}),
        ({"bytes_per_second": 100}, None, {}, {"bytes_per_second": (100, 100)}),
        (
            {"connections": 5, "subscriptions": 6},
            {"connections": 7},
            {"connections": 7, "subscriptions": 6},
            {},
        ),
        ({"connections": 5}, {"connections": 0}, {}, {}),
    ],
)
def test_what_an_allowance_means(
    allowance: dict[str, int],
    over: dict[str, Any] | None,
    held: dict[str, int],
    rates: dict[str, tuple[float, float]],
) -> None:
    """0 and nothing are no limit; a tenant's own entry says what it says, and leaves the rest as it is."""
    entry = config.TenantAllowance(name="acme", **over) if over is not None else None
    made = limits.bounds("tenant", config.Allowance(**allowance), over=entry)
    assert (dict(made.held), dict(made.rates)) == (held, rates)
    assert bool(made) == bool(held or rates)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1:1", "192.0.2.1:2", True),
        ("192.0.2.1:1", "192.0.2.2:1", False),
        ("[::ffff:192.0.2.1]:1", "192.0.2.1:2", True),
        ("[2001:db8::1]:1", "[2001:db8::ffff:1:2:3]:1", True),
        ("[2001:db8::1]:1", "[2001:db8:0:1::1]:1", False),
        ("unix:1", "unix:2", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, *, same: bool) -> None:
    """IPv4 as it is, however it came; of IPv6 the /64 that one subscriber has; never the port."""
    assert (limits.network(one) == limits.network(other)) == same


# --- a session and its budgets ---------------------------------------------------------------------


def make_session(*budgets: Budget) -> Session:
    made = Session(config.Limits(), 0.0, 60.0, TABLE, standing=Stood())
    made.authenticated(ALICE, now=0.0)
    made.budgets = budgets
    return made


def say(it: Session, kind: str, payload: object = None, **extra: object) -> Sequence[Effect]:
    return it.receive(json.dumps({"type": kind, "payload": payload or {}, **extra}).encode(), 0.0)


def refused(effects: Sequence[Effect]) -> tuple[str, str, str | None]:
    (reply, *_) = effects
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Error)
    return reply.message.code, reply.message.message, reply.message_id


@pytest.mark.parametrize("resource", [MESSAGES, BYTES, PUBLISHES])
def test_what_a_client_sends_is_limited(resource: str) -> None:
    """Over each rate it is refused by the limit's name, with the time to wait and its id; then closed."""
    it = make_session(Budget(Bounds(scope="tenant", rates={resource: (1.0, 1.0)})))
    payload = {"channel": "a.b", "event": 1}
    assert isinstance(wish_of(say(it, "publish", payload)[0]), Send)
    code, sentence, message_id = refused(say(it, "publish", payload, messageId="7"))
    assert (code, message_id) == ("rate_limited", "7")
    assert f"limit of the tenant reached: {resource}" in sentence
    other = say(it, "ping")
    assert isinstance(other[0], Reply) == (resource != PUBLISHES)
    effects: Sequence[Effect] = []
    for _ in range(49):
        effects = say(it, "publish", payload)
    assert isinstance(effects[-1], Close)
    assert effects[-1].code == 4029
    assert it.hits["tenant", resource] >= 50


def test_what_cannot_be_read_counts_too() -> None:
    """Bytes and messages are counted before anything is read of them."""
    budget = Budget(Bounds(scope="user", rates={MESSAGES: (1.0, 2.0), BYTES: (10.0, 1000.0)}))
    it = make_session(budget)
    it.receive(b"x" * 400, 0.0)
    it.receive(b"{}", 0.0)
    assert budget.buckets[BYTES].level == 598
    assert refused(it.receive(b"x", 0.0))[0] == "rate_limited"
    assert budget.buckets[BYTES].level == 598, "a refusal takes nothing"


def test_too_fast_connects_end_the_connection() -> None:
    """There is nothing that could wait: the error is followed by 4029 at once."""
    it = Session(config.Limits(), 0.0, 60.0, TABLE)
    reply, close = it.failed(errors.TooManyConnects("x", retry_after=2.0), None, 0.0)
    assert isinstance(reply, Reply)
    assert isinstance(close, Close)
    assert close.code == 4029


@attrs.define(eq=False)
class Twin:
    """A connection, and what a naive mind would say that it holds."""

    session: Session
    patterns: set[str] = attrs.Factory(set)
    pending: Join | None = None
    closed: bool = False


OPERATIONS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["subscribe", "subscribe", "failed", "unsubscribe", "narrow", "close"]),
        st.lists(st.sampled_from(["a.1", "a.2", "a.3", "a.4", "b.1"]), min_size=1, max_size=5),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(operations=OPERATIONS, tenant=st.integers(1, 6), user=st.integers(1, 6))
def test_subscriptions_are_counted_exactly(
    operations: list[tuple[int, str, list[str]]], tenant: int, user: int
) -> None:
    """Whatever three connections do: what there is no room for is refused, and all is given back."""
    shared = [
        Budget(Bounds(scope="tenant", held={SUBSCRIPTIONS: tenant})),
        Budget(Bounds(scope="user", held={SUBSCRIPTIONS: user})),
    ]
    twins = [Twin(make_session(*shared)) for _ in range(3)]
    for number, operation, patterns in operations:
        twin = twins[number]
        if twin.closed:
            continue
        if twin.pending:  # what was asked for comes to something, or not, before this one goes on
            if operation != "failed":
                twin.patterns |= twin.pending.patterns.keys()
                stand(twin, twin.patterns)
            twin.pending = None
            twin.session.recount()
        match operation:
            case "subscribe":
                held = sum(len(each.patterns) for each in twins)
                held += sum(len(new(each)) for each in twins)
                effects = say(twin.session, "subscribe", {"channel": patterns})
                if isinstance(join := wish_of(effects[0]), Join):
                    twin.pending = join
                wanted = dict.fromkeys(each for each in patterns if each != "b.1")
                further = [each for each in wanted if each not in twin.patterns]
                granted = further[: max(0, min(tenant, user) - held)]
                assert list(new(twin)) == granted
            case "unsubscribe" if gone := [each for each in patterns if each in twin.patterns]:
                assert isinstance(wish_of(say(twin.session, "unsubscribe", {"channel": gone})[0]), Leave)
                twin.patterns -= set(gone)
                stand(twin, twin.patterns)
                twin.session.recount()
            case "narrow":
                twin.patterns &= {patterns[0]}
                stand(twin, twin.patterns)
                twin.session.recount()
            case "close":
                limits.hold(twin.session.budgets, SUBSCRIPTIONS, -twin.session.counted)
                twin.patterns, twin.pending, twin.closed = set(), None, True
        count = sum(len(each.patterns) + len(new(each)) for each in twins)
        assert [each.subscriptions for each in shared] == [count, count]


def stand(twin: Twin, patterns: set[str]) -> None:
    assert isinstance(twin.session.standing, Stood)
    twin.session.standing.held = dict.fromkeys(patterns, ())


def new(twin: Twin) -> dict[str, None]:
    """What is being subscribed, and was not before."""
    asked = twin.pending.patterns if twin.pending else {}
    return {each: None for each in asked if each not in twin.patterns}
