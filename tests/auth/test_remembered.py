"""A token that was verified once is known again, but never for longer or for more than it is good for."""

from __future__ import annotations

import itertools
import json
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from broker import config
from broker.auth.claims import TooEarly
from broker.auth.jwks import Timing
from broker.auth.keys import Keys
from broker.auth.remembered import Remembered
from broker.auth.tokens import Verifier
from broker.errors import BrokerError, TenantForbidden, TokenExpired, TokenInvalid
from tests.auth.forge import KEY, NOW, SECRET, b64, claims, forge, jwk, private_key, verifier
from tests.auth.issuer import Issuer, key_set

OTHER = attrs.evolve(KEY, name="other", secret="o" * 64, tenants=("acme", "globex"), monitoring=True)
EVERYTHING = attrs.evolve(KEY, tenants=("*",), monitoring=True)


def closed(found: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no signature is looked at."""

    async def signer(*_: Any) -> Any:
        pytest.fail("the token is verified again")

    monkeypatch.setattr(Keys, "signer", signer)


async def test_known_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same principal as before, but for the life that is left to it, and no signature is checked."""
    found = verifier()
    token = forge(claims(permissions={"subscribe": ["me.>"]}))
    first = await found.verify(token, now=NOW)
    closed(found, monkeypatch)
    again = await found.verify(token, now=NOW + 100)
    assert again == attrs.evolve(first, life=500.0)


async def test_until_it_expires() -> None:
    """From `exp` on it is expired, as a token that nobody has seen before."""
    found, token = verifier(), forge()
    await found.verify(token, now=NOW)
    assert (await found.verify(token, now=NOW + 599.9)).user == "alice"
    with pytest.raises(TokenExpired, match="expired 0 s ago"):
        await found.verify(token, now=NOW + 600)
    with pytest.raises(TokenExpired):
        await found.verify(token, now=NOW + 599.9 + 600)


async def test_a_clock_that_is_set_back() -> None:
    """A token that is valid by a clock which is put right then is too early, as it was before."""
    found, token = verifier(), forge(claims(nbf=NOW))
    await found.verify(token, now=NOW)
    with pytest.raises(TooEarly):
        await found.verify(token, now=NOW - 300)


async def test_of_the_tenant_that_was_asked_for() -> None:
    """What was found for one tenant is no answer for another, and a monitoring token needs one each time."""
    found = verifier(EVERYTHING)
    token, monitoring = forge(), forge(claims(tenant=..., tenants=["*"]))
    seconds = itertools.count(NOW)
    for _ in range(2):
        assert (await found.verify(token, now=next(seconds))).tenant == "acme"
        assert (await found.verify(token, now=next(seconds), tenant="acme")).tenant == "acme"
        with pytest.raises(TenantForbidden):
            await found.verify(token, now=next(seconds), tenant="globex")
        for tenant in ("acme", "globex"):
            principal = await found.verify(monitoring, now=next(seconds), tenant=tenant)
            assert (principal.tenant, principal.monitoring) == (tenant, True)
        with pytest.raises(TokenInvalid, match="needs `tenant`"):
            await found.verify(monitoring, now=next(seconds))


async def test_any_other_token_is_another_one() -> None:
    """Another payload under a known signature, and another signature under a known payload, are refused."""
    found, token = verifier(), forge()
    await found.verify(token, now=NOW)
    head, payload, signature = token.split(".")
    forged, unsigned = b64(json.dumps(claims(sub="mallory"))), b64('{"alg":"none"}')
    for wrong in (
        f"{head}.{forged}.{signature}",
        f"{head}.{payload}.{signature[::-1]}",
        f"{head}.{payload}.",
        f"{unsigned}.{payload}.",
        f"{token}=",
        f" {token}",
        token.lower(),
    ):
        for now in (NOW + 1, NOW + 2):
            with pytest.raises(TokenInvalid):
                await found.verify(wrong, now=now)


async def test_a_key_that_is_withdrawn(nursery: trio.Nursery) -> None:
    """Once a fetch shows that the key is gone its tokens are refused, however well known."""
    issuer = Issuer(key_set(jwk("RS256", kid="a"), jwk("ES256", kid="b")))
    (listener,) = await nursery.start(partial(trio.serve_tcp, issuer.serve, 0, host="127.0.0.1"))
    issuer.port = listener.socket.getsockname()[1]
    key = config.Key(
        name="idp", algorithms=("RS256", "ES256"), jwks_url=issuer.url, audience="*", tenants=("acme",)
    )
    auth = config.Auth(keys=(key,))
    timing = Timing(apart_seconds=0.0, settled_seconds=0.0, fetch_seconds=30.0)
    found = Verifier(auth, config.Limits(), config.Permissions(), Keys.load(auth, timing=timing))
    await nursery.start(found.keys.run)
    tokens = {
        kid: forge(head={"alg": name, "kid": kid}, algorithm=name, key=private_key(name))
        for kid, name in (("a", "RS256"), ("b", "ES256"))
    }
    for token in tokens.values():
        assert (await found.verify(token, now=NOW)).user == "alice"
    issuer.publish(jwk("ES256", kid="b"))
    (remote,) = found.keys.remotes
    await remote.refresh()
    with pytest.raises(TokenInvalid):
        await found.verify(tokens["a"], now=NOW + 1)
    assert (await found.verify(tokens["b"], now=NOW + 1)).user == "alice"


def test_the_memory_is_bounded() -> None:
    """The tokens used last are known, refused ones are not, and of none the text is kept."""
    found, principal = Remembered(limit=2), trio.run(partial(verifier().verify, forge(), now=NOW))
    for token in ("a", "b"):
        found.add(token, None, principal, now=NOW, keys=())
    assert found.find("a", None, now=NOW, keys=())
    found.add("c", None, principal, now=NOW, keys=())
    known = [token for token in "abc" if found.find(token, None, now=NOW, keys=())]
    assert known == ["a", "c"]
    assert len(found.answers) == 2
    assert "'a'" not in repr(found.answers)


async def test_refusals_are_not_remembered() -> None:
    """What is refused takes no memory: anybody can send it."""
    found = verifier()
    for number in range(10):
        with pytest.raises(TokenInvalid):
            await found.verify(forge(claims(sub=f"u{number}"), key=b"t" * 64), now=NOW)
    with pytest.raises(TokenExpired):
        await found.verify(forge(claims(exp=NOW - 1)), now=NOW)
    assert not found.remembered.answers


TOKENS = [
    forge(),
    forge(claims(exp=NOW + 50, nbf=NOW - 100)),
    forge(claims(sub="bob"), key=b"o" * 64),
    forge(claims(tenant="globex"), key=b"o" * 64),
    forge(claims(tenant=..., tenants=["*"]), key=b"o" * 64),
    forge(claims(), key=b"t" * 64),
    forge(claims(nbf=NOW + 500)),
]
KEY_SETS = [(KEY,), (KEY, OTHER), (OTHER,), (OTHER, attrs.evolve(OTHER, name="again", secret=SECRET))]


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(TOKENS),
            st.sampled_from([None, "acme", "globex"]),
            st.integers(-1000, 1000),
            st.sampled_from([None, None, None, *range(len(KEY_SETS))]),
        ),
        max_size=40,
    )
)
def test_agrees_with_a_verifier_that_forgets(steps: list[tuple[str, str | None, int, int | None]]) -> None:
    """Whatever tokens, tenants, clocks and keys come in whatever order, the memory makes no difference."""
    found = verifier()

    async def outcome(token: str, tenant: str | None, now: float, **how: Any) -> Any:
        try:
            principal = await found.verify(token, now=now, tenant=tenant, **how)
        except BrokerError as error:
            return type(error)
        return attrs.evolve(principal, life=0.0)  # a verification takes a moment of it

    async def play() -> None:
        for token, tenant, ahead, keys in steps:
            if keys is not None:
                found.keys.sources = Keys.load(config.Auth(keys=KEY_SETS[keys])).sources
            for later in range(3):  # not known, perhaps; then known, by the memory alone
                wish = token, tenant, NOW + ahead + later
                assert await outcome(*wish) == await outcome(*wish, passed=lambda *_: None)

    trio.run(play)
