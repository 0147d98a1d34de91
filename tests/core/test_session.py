"""One client's side of the protocol: what follows from each message, refusal and moment."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from math import ceil, inf
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import config, errors, limits
from broker.errors import CloseCode
from broker.features.publishing import Send
from broker.features.subscriptions.wishes import Join, Leave
from broker.limits import Bounds, Budget
from broker.permissions import Principal
from broker.session.requests import Call, Close, Effect, Reply
from broker.session.session import Session
from broker.wire import messages as m
from broker.wire.positions import Position
from broker.wire.starts import After, Last, Since, Snapshot, Start
from broker.wire.times import rfc3339
from tests.support.requests import TABLE, Stood, wish_of

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

ALICE = Principal(
    tenant="acme",
    user="alice",
    encoded_user="alice",
    expires_at=2_000_000_000.0,
    life=1000.0,
    subscribe=("orders.>", "live.>", "b.*", "x.>"),
    publish=("orders.>", "live.>", "users.bob.inbox"),
    deny=("orders.secret.>", "live.secret"),
)


def make_session(*, principal: Principal | None = ALICE, bucket: bool = True, **changes: Any) -> Session:
    made = Session(config.Limits(**changes), 0.0, 60.0, TABLE, standing=Stood())
    if principal:
        made.authenticated(principal, now=0.0)
        if bucket:
            made.budgets = (user_budget(rate=100 / 60, burst=50),)
    return made


def user_budget(*, rate: float, burst: float) -> Budget:
    """What a user may publish, and do wrong."""
    return Budget(Bounds(scope=limits.USER, rates={limits.POSTS: (rate, burst)}))


def level(it: Session) -> float:
    return it.budgets[0].buckets[limits.POSTS].level


def say(it: Session, kind: str, payload: Any = None, *, now: float = 0.0, **extra: Any) -> Sequence[Effect]:
    return it.receive(json.dumps({"type": kind, "payload": payload or {}, **extra}).encode(), now)


def one(effects: Sequence[Effect], kind: type[T]) -> T:
    [effect] = effects
    wish = wish_of(effect)
    assert isinstance(wish, kind)
    return wish


def stood(it: Session) -> dict[str, tuple[str, ...]]:
    assert isinstance(it.standing, Stood)
    return it.standing.held


def refusal(effects: Sequence[Effect]) -> m.Error:
    message = one(effects, Reply).message
    assert isinstance(message, m.Error)
    return message


def joined(it: Session, payload: dict[str, Any]) -> Join:
    """A subscription that stands."""
    join = one(say(it, "subscribe", payload), Join)
    stood(it).update(join.patterns)
    return join


def left(it: Session, payload: dict[str, Any]) -> Leave:
    """A subscription that stands no longer."""
    leave = one(say(it, "unsubscribe", payload), Leave)
    for pattern in leave.patterns:
        stood(it).pop(pattern, None)
    it.recount()
    return leave


# --- before there is a token -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("subscribe", {"channel": "orders.1"}),
        ("unsubscribe", {"channel": "orders.1"}),
        ("publish", {"channel": "orders.1", "event": 1}),
        ("acknowledge", {"durable": "d", "position": "a-1"}),
    ],
)
def test_nothing_without_a_token(kind: str, payload: dict[str, Any]) -> None:
    """All but `authenticate` and `ping` is refused, and the connection goes on."""
    it = make_session(principal=None)
    effects = say(it, kind, payload, messageId="7")
    assert refusal(effects).code == "unauthenticated"
    assert one(effects, Reply).message_id == "7"


def test_what_goes_without_a_token() -> None:
    """A token can be presented, and a ping is answered."""
    it = make_session(principal=None)
    [call] = say(it, "authenticate", {"token": "t", "tenant": "x"}, messageId="1")
    assert call == Call(TABLE["authenticate"], m.Authenticate(token="t", tenant="x"), "1")
    assert one(say(it, "authenticate", {"token": "t"}), m.Authenticate).tenant is None
    assert say(it, "ping", messageId="2") == [Call(TABLE["ping"], m.Ping(), "2")]


def test_every_message_is_asked_of_somebody() -> None:
    """Each type that a client may send is a line of the table, and no other."""
    assert {name: request.message for name, request in TABLE.items()} == m.CLIENT_MESSAGES
    assert {name for name, request in TABLE.items() if request.open} == {"authenticate", "ping"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.TokenInvalid("x"), CloseCode.TOKEN_INVALID),
        (errors.TokenExpired("x"), CloseCode.TOKEN_EXPIRED),
        (errors.TenantForbidden("x"), CloseCode.FORBIDDEN),
        (errors.TooManyConnections("x", retry_after=5.0), CloseCode.CONNECTION_LIMIT),
    ],
)
def test_first_token_refused(error: errors.BrokerError, code: CloseCode) -> None:
    """Without a principal a bad token ends the connection; under one, a failed renewal changes nothing."""
    reply, close = make_session(principal=None).failed(error, "1", 0.0)
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, m.Error)
    assert (reply.message.code, reply.message_id) == (error.code, "1")
    assert close == Close(code, "x")
    it = make_session()
    assert refusal(it.failed(error, "1", 0.0)).code == error.code
    assert it.principal is ALICE


def test_a_refusal_that_has_nothing_to_do_with_the_token_closes_nothing() -> None:
    """The source of keys being away is no reason to throw a client out: it may try again."""
    it = make_session(principal=None)
    assert refusal(it.failed(errors.Unavailable("keys", retry_after=2.0), None, 0.0)).retry_after_ms == 2000


# --- tokens ----------------------------------------------------------------------------------------


def test_authenticated() -> None:
    """The reply says who the client is, until when, and what it may do."""
    it = make_session(principal=None)
    assert it.authenticated(ALICE, now=5.0) == m.Authenticated(
        tenant="acme",
        user="alice",
        private="users.alice",
        expires_at="2033-05-18T03:33:20Z",
        permissions={
            "subscribe": ["orders.>", "live.>", "b.*", "x.>"],
            "publish": ["orders.>", "live.>", "users.bob.inbox"],
            "request": [],
            "change": [],
            "deny": ["orders.secret.>", "live.secret"],
        },
    )
    assert it.expires == 1005.0


@pytest.mark.parametrize("change", [{"user": "bob"}, {"tenant": "other"}])
def test_renewal_for_another(change: dict[str, str]) -> None:
    """A connection keeps its user and its tenant, and goes on under the old token."""
    it = make_session()
    other = attrs.evolve(ALICE, **change, expires_at=ALICE.expires_at + 5)  # type: ignore[arg-type]
    with pytest.raises(errors.Forbidden):
        it.authenticated(other, now=1.0)
    assert (it.principal, it.expires) == (ALICE, 1000.0)


# --- time ------------------------------------------------------------------------------------------


def test_deadline() -> None:
    """Without a token in time: `error` and 4001, and not a moment earlier."""
    it = make_session(principal=None, authentication_seconds=10.0)
    assert it.timers(0.0) == ([], 10.0)
    assert it.timers(9.99) == ([], 10.0)
    (reply, close), again = it.timers(10.0)
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, m.Error)
    assert reply.message.code == "unauthenticated"
    assert close == Close(CloseCode.AUTHENTICATION_DEADLINE, "authentication deadline")
    assert again == inf


def test_expiry() -> None:
    """`connection.expiring` once, ahead of the time; at the time `error` and 4002."""
    it = make_session()
    assert it.timers(0.0) == ([], 940.0)
    assert it.timers(939.9) == ([], 940.0)
    effects, again = it.timers(940.0)
    assert one(effects, Reply).message == m.Expiring(expires_at="2033-05-18T03:33:20Z")
    assert again == 1000.0
    assert it.timers(941.0) == ([], 1000.0), "once is enough"
    (reply, close), again = it.timers(1000.0)
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, m.Error)
    assert reply.message.code == "token_expired"
    assert close == Close(CloseCode.TOKEN_EXPIRED, "token expired")
    assert again == inf


def test_renewal_moves_the_expiry() -> None:
    """After a renewal the new expiry counts, with a warning of its own."""
    it = make_session()
    it.timers(940.0)
    later = attrs.evolve(ALICE, expires_at=ALICE.expires_at + 500, life=550.0)
    it.authenticated(later, now=950.0)
    assert it.timers(1000.0) == ([], 1440.0)
    effects, again = it.timers(1440.0)
    assert one(effects, Reply).message == m.Expiring(expires_at="2033-05-18T03:41:40Z")
    assert again == 1500.0


@pytest.mark.parametrize("life", [0.5, 5.0, 60.0, 90.0, 119.0])
def test_a_short_token_is_renewed_half_way(life: float) -> None:
    """Where the warning would come at once it comes half-way: renewed as it asks, once in half a life."""
    it = make_session()
    now = 0.0
    for _ in range(5):
        it.authenticated(attrs.evolve(ALICE, life=life), now=now)
        assert it.timers(now) == ([], now + life / 2)
        now += life / 2
        effects, again = it.timers(now)
        assert isinstance(one(effects, Reply).message, m.Expiring)
        assert again == now + life / 2


def test_another_warning_by_a_reload() -> None:
    """A configuration that wants the warning sooner or later is gone by, but not beyond half of the life."""
    it = make_session()
    it.settings_changed(config.Limits(), 100.0, ALICE)
    assert it.timers(0.0) == ([], 900.0)
    it.settings_changed(config.Limits(), 5000.0, ALICE)
    assert it.timers(0.0) == ([], 500.0)


# --- subscribe -------------------------------------------------------------------------------------

POSITION = "abc-7"


@pytest.mark.parametrize(
    ("asked", "start"),
    [
        ({}, None),
        ({"snapshot": False}, None),
        ({"snapshot": True}, Snapshot()),
        ({"position": POSITION}, After(Position("abc", 7))),
        ({"position": POSITION, "snapshot": False}, After(Position("abc", 7))),
        ({"last": 1}, Last(1)),
        ({"last": 1000}, Last(1000)),
        ({"since": "2026-01-31T12:00:00Z"}, Since(datetime(2026, 1, 31, 12, tzinfo=UTC))),
        (
            {"since": "2026-01-31T13:30:00.25+01:30"},
            Since(datetime(2026, 1, 31, 12, 0, 0, 250000, tzinfo=UTC)),
        ),
        ({"since": "2026-01-31t12:00:00z"}, Since(datetime(2026, 1, 31, 12, tzinfo=UTC))),
        (
            {"since": "2026-01-31T12:00:00.123456999Z"},
            Since(datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)),
        ),
    ],
)
def test_starts(asked: dict[str, Any], start: Start | None) -> None:
    """Each start; a time is never taken for a later one than it is."""
    assert joined(make_session(), {"channel": "orders.1", **asked}).start == start


@pytest.mark.parametrize(
    ("asked", "code", "sentence"),
    [
        ({"position": ""}, "invalid_position", "position: ''"),
        ({"position": "abc"}, "invalid_position", "position: 'abc'"),
        ({"position": "abc--7"}, "invalid_position", "position: "),
        ({"last": 0}, "bad_message", "payload.last: must be 1 to 1000"),
        ({"last": -1}, "bad_message", "payload.last: must be 1 to 1000"),
        ({"last": 1001}, "bad_message", "payload.last: must be 1 to 1000"),
        ({"last": 10**30}, "bad_message", "payload.last: must be 1 to 1000"),
        ({"since": ""}, "bad_message", "payload.since: ''"),
        ({"since": "yesterday"}, "bad_message", "payload.since: 'yesterday'"),
        ({"since": "2026-01-31T12:00:00"}, "bad_message", "payload.since: "),
        ({"since": "2026-01-31"}, "bad_message", "payload.since: "),
        ({"since": "1769860800"}, "bad_message", "payload.since: "),
        ({"since": "2026-02-30T12:00:00Z"}, "bad_message", "payload.since: "),
        ({"since": "0001-01-01T00:00:00+01:00"}, "bad_message", "payload.since: "),
        ({"since": "9999-12-31T23:59:59-01:00"}, "bad_message", "payload.since: "),
        ({"last": 1, "snapshot": True}, "bad_message", "payload: last and snapshot exclude each other"),
        (
            {"position": POSITION, "since": "2026-01-31T12:00:00Z", "last": 1},
            "bad_message",
            "payload: position and since and last exclude each other",
        ),
        ({"durable": ""}, "bad_message", "payload.durable: "),
        ({"durable": "a.b"}, "bad_message", "payload.durable: "),
        ({"durable": "ä"}, "bad_message", "payload.durable: "),
        ({"durable": "d\n"}, "bad_message", "payload.durable: "),
        ({"durable": "x" * 65}, "bad_message", "payload.durable: "),
    ],
)
def test_starts_refused(asked: dict[str, Any], code: str, sentence: str) -> None:
    """A start that is none refuses the whole request, and says why."""
    error = refusal(say(make_session(), "subscribe", {"channel": "orders.1", **asked}))
    assert error.code == code
    assert error.message.startswith(sentence)


@settings(deadline=None)
@given(
    time=st.datetimes() | st.sampled_from([datetime.min, datetime.max]),  # noqa: DTZ901  the zone follows
    zone=st.sampled_from(["Z", "+00:00", "-23:59", "+23:59"]),
)
def test_every_time_can_be_compared(time: datetime, zone: str) -> None:
    """What is taken for a time is one that exists in UTC, from the first year to the last."""
    text = time.isoformat() + zone
    effects = say(make_session(), "subscribe", {"channel": "orders.1", "since": text})
    if isinstance(join := wish_of(effects[0]), Join):
        assert isinstance(join.start, Since)
        assert join.start.time.utcoffset() is not None
        assert join.start.time.astimezone(UTC)


def test_list() -> None:
    """What is accepted of a list, what is refused of it and why; each pattern once."""
    asked = ["orders.1", "other.1", "orders.1", "me.inbox", "users.alice.inbox", "orders..1", "live.secret"]
    join = joined(make_session(), {"channel": asked})
    assert join.patterns == {"orders.1": (), "users.alice.inbox": ()}
    assert [(each.channel, each.code) for each in join.refused] == [
        ("other.1", "forbidden"),
        ("orders..1", "invalid_channel"),
        ("live.secret", "forbidden"),
    ]
    assert join.listed
    assert not joined(make_session(), {"channel": "orders.1"}).listed


@pytest.mark.parametrize(
    ("channel", "code"),
    [
        ("other.1", "forbidden"),
        (">", "forbidden"),
        ("orders.secret.1", "forbidden"),
        ("users.bob.inbox", "forbidden"),
        ("users.*.inbox", "forbidden"),
        ("live.users.bob.x", "forbidden"),
        ("", "invalid_channel"),
        ("live", "invalid_channel"),
        ("$JS.API.>", "invalid_channel"),
        ("_INBOX.>", "invalid_channel"),
        ("_all.orders", "invalid_channel"),
        ("orders.\r\n", "invalid_channel"),
        ("orders." + "x" * 10_000, "invalid_channel"),
        (["other.1", ""], "forbidden"),
    ],
)
def test_nothing_accepted(channel: Any, code: str) -> None:
    """When nothing was accepted the answer is an `error`, that of the first."""
    assert refusal(say(make_session(), "subscribe", {"channel": channel})).code == code


def test_denied_channels_are_left_out() -> None:
    """A subscription is never narrowed, except by what is denied within it."""
    assert joined(make_session(), {"channel": "orders.>"}).patterns == {"orders.>": ("orders.secret.>",)}
    assert joined(make_session(), {"channel": "live.*"}).patterns == {"live.*": ("live.secret",)}
    assert joined(make_session(), {"channel": "orders.1.>"}).patterns == {"orders.1.>": ()}


def test_me() -> None:
    """`me` is the client's own room, encoded, in what it asks for and in what is answered."""
    it = make_session(principal=attrs.evolve(ALICE, user="a.b", encoded_user="a%2Eb"))
    join = joined(it, {"channel": ["me.>", "live.me.x", "me"]})
    assert list(join.patterns) == ["users.a%2Eb.>", "live.users.a%2Eb.x"]
    assert [each.channel for each in join.refused] == ["me"]
    leave = left(it, {"channel": "me.>"})
    assert leave.channel == "users.a%2Eb.>"


def test_subscription_limit() -> None:
    """A connection's subscriptions are counted once each; what stands can be subscribed again."""
    it = make_session(subscriptions_per_connection=3)
    joined(it, {"channel": ["orders.1", "orders.2"]})
    join = joined(it, {"channel": ["orders.1", "orders.3", "orders.4"]})
    assert list(join.patterns) == ["orders.1", "orders.3"]
    assert [(each.channel, each.code) for each in join.refused] == [("orders.4", "limit_subscriptions")]
    assert refusal(say(it, "subscribe", {"channel": "orders.5"})).code == "limit_subscriptions"
    assert joined(it, {"channel": "orders.3"}).patterns == {"orders.3": ()}
    left(it, {"channel": "orders.1"})
    assert joined(it, {"channel": "orders.5"}).patterns == {"orders.5": ()}


@pytest.mark.parametrize("good", [[], ["orders.1"]])
def test_a_list_longer_than_any_connection_can_hold(good: list[str]) -> None:
    """It is refused as a whole: an answer to each of 20,000 items would be far larger than the request."""
    it = make_session(subscriptions_per_connection=3)
    error = refusal(say(it, "subscribe", {"channel": [*good, "", "", "", ""]}))
    assert error.code == "limit_subscriptions"
    assert len(msgspec.json.encode(error.message)) < 300


def test_refused_names_are_short() -> None:
    """A refused channel of any length comes back shortened."""
    join = joined(make_session(), {"channel": ["orders.1", "x" * 60_000]})
    assert len(join.refused[0].channel) + len(join.refused[0].message) < 600


@pytest.mark.parametrize(
    ("channel", "lag", "code"),
    [
        ("orders.1", "replay", None),
        ("orders.1", "latest", None),
        ("orders.1", "drop", None),
        ("orders.1", "close", None),
        ("live.x", "latest", None),
        ("live.x", "drop", None),
        ("live.x", "close", None),
        ("live.x", "replay", "bad_message"),
    ],
)
def test_lag(channel: str, lag: str, code: str | None) -> None:
    """Live channels are stored nowhere and cannot be replayed to who is slow."""
    effects = say(make_session(), "subscribe", {"channel": channel, "lag": lag})
    if code:
        assert refusal(effects).code == code
    else:
        assert one(effects, Join).lag == lag


def test_draining() -> None:
    """A broker that is about to stop takes no subscription, and goes on with all else."""
    it = make_session()
    joined(it, {"channel": "orders.1"})
    it.draining = True
    error = refusal(say(it, "subscribe", {"channel": "orders.2"}))
    assert (error.code, error.retryable) == ("unavailable", True)
    assert one(say(it, "publish", {"channel": "orders.1", "event": 1}), Send)
    assert one(say(it, "unsubscribe", {"channel": "orders.1"}), Leave)


# --- unsubscribe -----------------------------------------------------------------------------------


def test_unsubscribe() -> None:
    """Answered as it was asked: one with one, a list with a list."""
    it = make_session()
    joined(it, {"channel": ["orders.1", "orders.2", "orders.3"]})
    assert left(it, {"channel": "orders.1"}) == Leave(patterns=["orders.1"], channel="orders.1")
    leave = left(it, {"channel": ["orders.3", "orders.2", "orders.3"]})
    assert leave.channel == leave.patterns
    assert set(leave.patterns) == {"orders.2", "orders.3"}
    assert not stood(it)


def test_unsubscribe_what_is_not_there() -> None:
    """One that does not stand refuses the request, and all others go on."""
    it = make_session()
    joined(it, {"channel": ["orders.1", "orders.>"]})
    for channel in ("orders.2", "orders.*", ["orders.1", "orders.2"], "x" * 1000, "\r\n"):
        assert refusal(say(it, "unsubscribe", {"channel": channel})).code == "not_subscribed"
    assert list(stood(it)) == ["orders.1", "orders.>"]


# --- publish ---------------------------------------------------------------------------------------


def test_publish() -> None:
    """An event is the same JSON value in its shortest form, into the channel that `me` stands for."""
    it = make_session()
    wish = one(
        say(it, "publish", {"channel": "me.x", "event": {"a": [1, 2.5, "ä\n"]}, "id": "i"}),
        Send,
    )
    assert wish == Send(channel="users.alice.x", body='{"a":[1,2.5,"ä\\n"]}'.encode(), id="i", echo=True)
    assert one(say(it, "publish", {"channel": "live.me.x", "event": None}), Send).body == b"null"
    assert (
        one(say(it, "publish", {"channel": "users.bob.inbox", "event": 1}), Send).channel == "users.bob.inbox"
    )


@pytest.mark.parametrize(
    ("payload", "code", "sentence"),
    [
        ({"channel": "other", "event": 1}, "forbidden", "other: not within"),
        ({"channel": "users.bob.other", "event": 1}, "forbidden", "users.bob.other"),
        ({"channel": "orders.secret.1", "event": 1}, "forbidden", "orders.secret.1: denied"),
        ({"channel": "orders.*", "event": 1}, "invalid_channel", "'orders.*'"),
        ({"channel": "orders.>", "event": 1}, "invalid_channel", "'orders.>'"),
        ({"channel": "me", "event": 1}, "invalid_channel", "'users.alice'"),
        ({"channel": "$JS.API.STREAM.DELETE.EVENTS", "event": 1}, "invalid_channel", "'$JS"),
        ({"channel": "orders.1\r\nPUB x 0", "event": 1}, "invalid_channel", "'orders.1\\r\\n"),
        ({"channel": "orders.1", "event": 1, "id": ""}, "bad_message", "payload.id: a string of 1 to 64"),
        (
            {"channel": "orders.1", "event": 1, "id": "ä" * 33},
            "bad_message",
            "payload.id: a string of 1 to 64",
        ),
        ({"channel": "orders.1", "event": 2**64}, "bad_message", "payload.event: an integer of more than 64"),
        ({"channel": "orders.1", "event": -(2**63) - 1}, "bad_message", "payload.event: an integer of more"),
        ({"channel": "orders.1", "event": {"a": [[10**400]]}}, "bad_message", "payload.event: an integer of"),
        (
            {"channel": "orders.1", "event": "x" * 10_239},
            "too_large",
            "payload.event: 10241 bytes; the limit",
        ),
        ({"channel": "orders.1", "event": "ä" * 5_120}, "too_large", "payload.event: 10242 bytes; the limit"),
        (
            {"channel": "orders.1", "event": {"metadata": {"tenant_id": "other"}}},
            "forbidden",
            "payload.event: metadata.tenant_id",
        ),
    ],
)
def test_publish_refused(payload: dict[str, Any], code: str, sentence: str) -> None:
    """What may not be published, with the reason; nothing of it reaches NATS."""
    error = refusal(say(make_session(), "publish", payload))
    assert error.code == code
    assert error.message.startswith(sentence)
    assert not error.retryable


@pytest.mark.parametrize(
    "event",
    [
        2**64 - 1, -(2**63), 1e300, "x" * 10_238, [], {}, {"metadata": {"tenant_id": "acme"}},
        {"metadata": 5}, {"tenant": "other", "user": "bob"},
    ],
)  # fmt: skip
def test_publish_at_the_limits(event: Any) -> None:
    """All of 64 bits, exactly the size, and fields that only look like the broker's own."""
    wish = one(say(make_session(), "publish", {"channel": "orders.1", "event": event}), Send)
    assert json.loads(wish.body) == event


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_events(opening: str, closing: str) -> None:
    """As deep as the protocol page allows, and refused at every depth beyond it."""
    for depth in (1023, 1024, 1025, *range(1500, 2100, 7), *range(2020, 2060), 5000):
        deep = opening * (depth - 1) + "[]" + closing * (depth - 1)
        text = f'{{"type":"publish","payload":{{"channel":"orders.1","event":{deep}}}}}'
        effects = make_session().receive(text.encode(), 0.0)
        if depth <= 1024:
            assert one(effects, Send).body == deep.encode()
        else:
            assert refusal(effects).code in ("bad_message", "too_large")


def test_monitoring_only_listens() -> None:
    """A monitoring token publishes nothing, not even into its own room."""
    it = make_session(principal=attrs.evolve(ALICE, monitoring=True))
    assert refusal(say(it, "publish", {"channel": "me.x", "event": 1})).code == "forbidden"


# --- limits ----------------------------------------------------------------------------------------


def test_requests_have_a_burst_and_a_rate() -> None:
    """What is over the rate is refused, with the time to wait, and the connection goes on."""
    it = make_session(requests_per_second=10, requests_burst=20)
    for _ in range(20):
        assert one(say(it, "ping"), m.Ping)
    effects = say(it, "ping", messageId="7")
    error = refusal(effects)
    assert (error.code, error.retryable, error.retry_after_ms) == ("rate_limited", True, 100)
    assert one(effects, Reply).message_id == "7"
    assert one(say(it, "ping", now=0.125), m.Ping)
    assert refusal(say(it, "ping", now=0.125)).code == "rate_limited"
    assert one(say(it, "publish", {"channel": "orders.1", "event": 1}, now=0.125), Send)


def test_publishes_have_a_rate_of_their_own_that_a_user_shares() -> None:
    """Two connections of a user share one bucket; their other requests do not count."""
    one_of, other = make_session(), make_session()
    one_of.budgets = other.budgets = (user_budget(rate=1.0, burst=4),)
    for it in (one_of, other, one_of, other):
        say(it, "ping")
        assert one(say(it, "publish", {"channel": "orders.1", "event": 1}), Send)
    for it in (one_of, other):
        error = refusal(say(it, "publish", {"channel": "orders.1", "event": 1}))
        assert (error.code, error.retry_after_ms) == ("rate_limited", 1000)
        assert one(say(it, "ping"), m.Ping)


def test_failed_messages_use_up_what_a_user_may_publish() -> None:
    """A client that makes mistakes all the time has nothing left to publish with; a later try is free."""
    it = make_session()
    it.budgets = (user_budget(rate=1.0, burst=4),)
    say(it, "subscribe", {"channel": "other"})
    say(it, "nonsense")
    it.failed(errors.Unavailable("not now"), None, 0.0)
    assert level(it) == 2
    say(it, "publish", {"channel": "other", "event": 1})
    assert level(it) == 0
    assert refusal(say(it, "publish", {"channel": "orders.1", "event": 1})).code == "rate_limited"


@settings(deadline=None)
@given(rate=st.integers(1, 1000), steps=st.lists(st.floats(0, 0.2), max_size=20))
def test_who_waits_as_told_is_served(rate: int, steps: list[float]) -> None:
    """`retry_after_ms` is never too short: 50 polite retries must not look like persistence."""
    it = make_session(requests_per_second=rate, requests_burst=2)
    now = 0.0
    for step in [*steps, 0.0, 0.0, 0.0]:
        now += step
        effects = say(it, "ping", now=now)
        if isinstance(effects[0], Reply):
            wait = refusal(effects).retry_after_ms
            assert isinstance(wait, int)
            assert 1 <= wait <= ceil(1000 / rate) + 1
            now += wait / 1000 + 1e-9  # of a clock that counts in floats
            assert one(say(it, "ping", now=now), m.Ping)


def test_persistently_over_the_rate() -> None:
    """The fiftieth refusal within a minute closes with 4029; spread over more it does not."""
    it = make_session(requests_per_second=1, requests_burst=1)
    say(it, "ping")
    for _ in range(49):
        assert refusal(say(it, "ping", now=0.0)).code == "rate_limited"
    assert one(say(it, "ping", now=59.0), m.Ping), "a second's worth has come back meanwhile"
    _, close = say(it, "ping", now=59.0)
    assert isinstance(close, Close)
    assert close.code == CloseCode.RATE_LIMIT
    it = make_session(requests_per_second=1, requests_burst=1)
    for second in range(0, 200, 2):
        say(it, "ping", now=second)
        assert refusal(say(it, "ping", now=second)).code == "rate_limited"


@pytest.mark.parametrize(
    "data",
    [b"nonsense", b'{"type":"nonsense"}', b'{"type":"subscribe","payload":{"channel":"orders.1","last":0}}'],
)
@pytest.mark.parametrize("authenticated", [True, False])
def test_bad_messages(data: bytes, authenticated: bool) -> None:
    """The tenth bad message within 60 s closes with 4510, whatever kind of bad; one every 7 s does not."""
    if not authenticated and b"last" in data:
        return  # there it is refused for another reason
    it = make_session(principal=ALICE if authenticated else None)
    for second in range(0, 200, 7):
        assert refusal(it.receive(data, float(second))).code in ("bad_message", "unknown_type")
    it = make_session(principal=ALICE if authenticated else None)
    for _ in range(9):
        it.receive(data, 0.0)
    _, close = it.receive(data, 59.9)
    assert isinstance(close, Close)
    assert close.code == CloseCode.PROTOCOL_VIOLATION


def test_other_refusals_are_no_bad_messages() -> None:
    """A client may be told `forbidden` as often as its rate allows."""
    it = make_session()
    for _ in range(100):
        assert refusal(say(it, "subscribe", {"channel": "other"})).code == "forbidden"


@settings(deadline=None)
@given(
    data=st.binary(max_size=80),
    kind=st.sampled_from(["subscribe", "publish", "unsubscribe"]),
    payload=st.data(),
)
def test_nothing_raises(data: bytes, kind: str, payload: st.DataObject) -> None:
    """Whatever comes from a client has an effect that can be carried out."""
    it = make_session()
    assert it.receive(data, 0.0)
    text = st.text(st.sampled_from(".*>a$_@live\x00 me users ä"), max_size=12)
    fields = st.fixed_dictionaries(
        {"channel": text | st.lists(text, min_size=1, max_size=4)},
        optional={
            "since": text,
            "position": text,
            "last": st.integers(),
            "lag": text,
            "id": text,
            "event": text,
        },
    )
    assert say(it, kind, payload.draw(fields))


def test_rfc3339() -> None:
    """Times are told in UTC, to the second."""
    assert rfc3339(0.9) == "1970-01-01T00:00:00Z"
