"""Explaining: the steps say what the verifier and the principal decide, and show no secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import config, subjects
from broker.auth.tokens import STEPS
from broker.bus.base import StreamState
from broker.errors import BrokerError, TokenRevoked, Unavailable
from broker.features.explain import Explanation, Held, Question, Step, explain
from broker.subjects import Names
from tests.auth.forge import KEY, NOW, SECRET, claims, forge, verifier

if TYPE_CHECKING:
    from broker.permissions import Principal

PERMISSIONS = {
    "subscribe": ["orders.>", "stock.*.level"],
    "publish": ["orders.7"],
    "change": ["orders.8"],
    "deny": ["orders.secret.>"],
}

ALLOWED = "orders.>, stock.*.level, users.alice.>, live.users.alice.>"


async def held(_subject: str) -> Held:
    return Held(state=StreamState(incarnation="inc", first=5, last=9), count=3, oldest=6)


async def away(_subject: str) -> Held:
    raise Unavailable("NATS is out of reach")


async def ask(channel: str, token: str | None = None, *, keys: Any = (), **how: Any) -> Explanation:
    source, admit = how.pop("held", held), how.pop("admit", lambda _: None)
    token = token or forge(claims(permissions=PERMISSIONS))
    return await explain(
        Question(token=token, channel=channel, **how),
        verifier=verifier(*keys),
        admit=admit,
        names=Names(),
        limits=config.Limits(),
        held=source,
        now=NOW,
    )


def step(explanation: Explanation, name: str) -> Step:
    (found,) = (each for each in explanation.steps if each.step == name)
    return found


async def test_every_step_of_a_good_token() -> None:
    """From the token's form to the limits: each step in order, with what it found."""
    found = await ask("orders.7")
    assert found.allowed
    assert [each.step for each in found.steps] == [
        *STEPS, "revocation", "channel", "subscribe", "publish", "change", "subject", "starts",
        "limits",
    ]  # fmt: skip
    assert step(found, "key").detail == "k"
    assert step(found, "tenant").detail == "acme"
    assert step(found, "subscribe").detail == "within the allowed orders.>"
    assert "events.acme.orders.7 and, for every tenant, events._all.orders.7" in step(found, "subject").detail
    assert "inc-4 to inc-9" in step(found, "starts").detail
    assert "at most 3 kept, the oldest at inc-6" in step(found, "starts").detail


async def test_changing_a_document() -> None:
    found = await ask("orders.8", change=True)
    assert found.allowed
    assert step(found, "change").detail == "within the allowed orders.8"
    other = await ask("orders.7", change=True)
    assert not other.allowed
    assert "the nearest is orders.8" in step(other, "change").detail
    assert not (await ask("orders.>", change=True)).allowed


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"exp": NOW - 1}, "times"),
        ({"nbf": NOW + 70}, "times"),
        ({"exp": NOW + 10**7}, "times"),
        ({"sub": ""}, "user"),
        ({"tenant": "globex"}, "tenant"),
        ({"permissions": {"subscribe": "x"}}, "permissions"),
        ({"permissions": None}, "permissions"),
    ],
)
async def test_a_bad_token_ends_at_its_step(changes: dict[str, Any], failed: str) -> None:
    """What was all right before is there, and the last step is the one that failed, with the reason."""
    found = await ask("orders.7", forge(claims(**changes)))
    assert not found.allowed
    *before, last = found.steps
    assert all(each.ok for each in before)
    assert (last.step, last.ok) == (failed, False)


async def test_bad_signatures_and_unknown_keys_are_told_apart() -> None:
    """With a wrong secret the key is found and the signature is wrong; with another algorithm no key is."""
    wrong = await ask("orders.7", forge(key=b"t" * 64))
    assert [(each.step, each.ok) for each in wrong.steps] == [
        ("token", True),
        ("key", True),
        ("signature", False),
    ]
    unknown = await ask("orders.7", forge(algorithm="HS512"))
    assert [(each.step, each.ok) for each in unknown.steps] == [("token", True), ("key", False)]
    broken = await ask("orders.7", "abc")
    assert [(each.step, each.ok) for each in broken.steps] == [("token", False)]


async def test_who_is_kept_out() -> None:
    """A revoked token, or a suspended tenant: the ban's own words, and nothing after them."""

    def keep_out(principal: Principal) -> None:
        raise TokenRevoked(f"this tenant is suspended: {principal.tenant}")

    found = await ask("orders.7", admit=keep_out)
    assert not found.allowed
    last = found.steps[-1]
    assert (last.step, last.ok, last.detail) == ("revocation", False, "this tenant is suspended: acme")


async def test_parties() -> None:
    """A key with an issuer: the step says which one it must be."""
    key = attrs.evolve(KEY, issuer="https://id.example")
    found = await ask("orders.7", forge(claims(iss="other")), keys=[key])
    assert found.steps[-1].step == "parties"
    assert "https://id.example" in found.steps[-1].detail


async def test_why_a_subscription_is_refused() -> None:
    """The nearest allowed pattern where none holds the channel; the denied one where that decides."""
    near = step(await ask("stock.7.price"), "subscribe")
    assert (near.ok, near.detail) == (
        False,
        f"within no allowed pattern ({ALLOWED}); the nearest is stock.*.level",
    )
    far = step(await ask("zzz"), "subscribe")
    assert (far.ok, far.detail) == (False, f"within no allowed pattern ({ALLOWED})")
    denied = step(await ask("orders.secret.x"), "subscribe")
    assert (denied.ok, denied.detail) == (
        False,
        "within the allowed orders.>, but denied as a whole by orders.secret.>",
    )
    partly = step(await ask("orders.>"), "subscribe")
    assert partly.ok
    assert partly.detail == "within the allowed orders.>; denied and left out of it: orders.secret.>"


async def test_publishing() -> None:
    """`publish` asks for the other right; a pattern is no channel, and a monitoring token never may."""
    assert (await ask("orders.7", publish=True)).allowed
    other = await ask("orders.8", publish=True)
    assert not other.allowed
    assert "the nearest is orders.7" in step(other, "publish").detail
    assert step(other, "subscribe").ok
    assert not (await ask("orders.*", publish=True)).allowed
    key = attrs.evolve(KEY, tenants=("*",), monitoring=True)
    token = forge(claims(tenant=..., tenants=["*"]))
    watching = await ask("orders.7", token, keys=[key], tenant="globex", publish=True)
    assert step(watching, "publish").detail == "a monitoring token may only subscribe"
    assert step(watching, "tenant").detail == "globex, chosen by a monitoring token"


async def test_private_and_live_channels() -> None:
    """`me.` is shown as what it stands for; a private channel has no broadcast and a live one no history."""
    mine = await ask("live.me.x")
    assert mine.allowed
    assert "live.me.x stands for live.users.alice.x" in step(mine, "channel").detail
    assert step(mine, "subject").detail.endswith("published under live.acme.users.alice.x")
    assert "no history" in step(mine, "starts").detail


async def test_a_channel_that_is_none() -> None:
    """The explanation ends with what is wrong with the channel's name."""
    found = await ask("a..b")
    assert not found.allowed
    assert (found.steps[-1].step, found.steps[-1].ok) == ("channel", False)


async def test_without_nats_all_else_is_told() -> None:
    """What the stream holds is not known then; it decides nothing."""
    found = await ask("orders.7", held=away)
    assert found.allowed
    assert step(found, "starts").detail == "not known: NATS is out of reach"


async def test_no_secret_is_shown() -> None:
    """Neither the token, nor a part of it, nor the key's secret."""
    for token in (forge(claims(permissions=PERMISSIONS)), forge(key=b"t" * 64)):
        text = repr(await ask("orders.7", token)) + repr(Question(token=token, channel="a"))
        assert SECRET not in text
        assert not any(part in text for part in token.split("."))


TOKENS = st.sampled_from(["a", "b", "users", "live", "alice", "me", "*", ">"])
PATTERNS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)


@given(lists=st.tuples(*[st.lists(PATTERNS, max_size=3)] * 3), channel=PATTERNS)
async def test_it_says_what_would_happen(lists: tuple[list[str], ...], channel: str) -> None:
    """Whatever the permissions: allowed is what the client would be, for subscribing and publishing."""
    subscribe, publish, deny = lists
    token = forge(claims(permissions={"subscribe": subscribe, "publish": publish, "deny": deny}))
    found = await ask(channel, token)
    try:
        principal = await verifier().verify(token, now=NOW)
        pattern = subjects.parse_pattern(subjects.expand_me(channel, principal.encoded_user))
        principal.check_subscribe(pattern)
    except BrokerError:
        assert not found.allowed
    else:
        assert found.allowed
    told = await ask(channel, token, publish=True)
    try:
        principal = await verifier().verify(token, now=NOW)
        principal.check_publish(subjects.parse_channel(subjects.expand_me(channel, principal.encoded_user)))
    except BrokerError:
        assert not told.allowed
    else:
        assert told.allowed
