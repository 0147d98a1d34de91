"""Whatever stands in a token: it is believed for what the configuration says, or refused in words."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import config, subjects
from broker.errors import BrokerError, TokenInvalid
from tests.auth.forge import (
    KEY,
    NOW,
    SECRET_BYTES,
    b64,
    claims,
    forge,
    jwk,
    private_key,
    public_pem,
    signed,
    verifier,
)

if TYPE_CHECKING:
    from pathlib import Path

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        ["", "*", "acme", "globex", "_all", "main", ">", "{user}", "me.>", "a.b", "ä", "x" * 200]
    )
    | st.sampled_from([NOW, NOW + 30, NOW + 90, NOW - 90, NOW + 600, NOW + 1e6, 1e308])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["subscribe", "publish", "deny", "a", "tenant"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = [
    "sub",
    "tenant",
    "tenants",
    "exp",
    "nbf",
    "iat",
    "iss",
    "aud",
    "jti",
    "permissions",
    "typ",
    "alg",
    "kid",
]
CLAIMS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)
FIXED = attrs.evolve(KEY, name="f", tenants=(), tenant="main", audience="fixed", monitoring=True)
PLAIN = attrs.evolve(KEY, name="p", audience="plain")


CODES = ("token_invalid", "token_expired", "forbidden", "unavailable")


@settings(deadline=None, max_examples=500)
@given(
    changes=CLAIMS,
    head=CLAIMS | st.just({}),
    audience=st.sampled_from([None, "plain", "fixed", ["x", "fixed"]]),
    wanted=st.none() | st.sampled_from(["acme", "main", "globex", "*", ""]),
)
async def test_any_claims(
    changes: dict[str, Any], head: dict[str, Any], audience: Any, wanted: str | None
) -> None:
    """A signed token with anything in it: refused by an error of ours, or within the tenant of its entry."""
    named = {} if audience is None else {"aud": audience}
    token = forge({**claims(), **changes, **named}, head={"alg": "HS256", **head})
    found, refused = None, None
    try:
        found = await verifier(PLAIN, FIXED).verify(token, now=NOW, tenant=wanted)
    except BrokerError as error:
        refused = error
    if refused:
        assert refused.code in CODES
        assert refused.retryable == (refused.code == "unavailable")
    if found:
        assert found.tenant == ("acme" if audience == "plain" else "main")
        assert 0 < found.life <= 86400 + 60
        assert subjects.encode_user(found.user) == found.encoded_user
        assert not found.monitoring or changes["tenants"] == ["*"]
        if not isinstance(changes.get("permissions"), dict):
            assert (found.subscribe, found.deny) == ((">", "live.>"), ())


@pytest.fixture
def keys(tmp_path: Path) -> tuple[config.Key, ...]:
    """One entry of each kind, for a tenant of its own."""
    (tmp_path / "pem").write_bytes(public_pem("RS256"))
    (tmp_path / "set").write_text(json.dumps({"keys": [jwk("ES256", kid="1"), jwk("EdDSA", kid="2")]}))
    pem = config.Key(name="pem", algorithms=("RS256",), pem_file=tmp_path / "pem", tenants=("t-pem",))
    of_set = config.Key(
        name="set", algorithms=("ES256", "EdDSA"), jwks_file=tmp_path / "set", tenants=("t-set",)
    )
    return KEY, pem, of_set


SPELLINGS = ["HS256", "HS384", "HS512", "hs256", "none", "None", "RS256", "ES256", "EdDSA", "PS256", ""]


@pytest.mark.parametrize(
    "kid", [None, "k", "pem", "set", "1", "2", "../secret", "' OR 1=1", "/dev/null", "\0"]
)
@pytest.mark.parametrize("algorithm", SPELLINGS)
async def test_confusion_of_algorithm_and_key(
    keys: tuple[config.Key, ...], algorithm: str, kid: str | None
) -> None:
    """Signed by HMAC with all that an attacker knows, under each name and each `kid`: never believed."""
    head = {"alg": algorithm} | ({} if kid is None else {"kid": kid})
    pem, words = public_pem("RS256"), json.dumps(jwk("ES256", kid="1"))
    known = (pem, pem.strip(), words.encode(), b"", b"null", b"k", b"pem", (kid or "").encode())
    for tenant in ("acme", "t-pem", "t-set"):
        message = f"{b64(json.dumps(head))}.{b64(json.dumps(claims(tenant=tenant)))}"
        for secret in known:
            for digest in (hashlib.sha256, hashlib.sha384, hashlib.sha512):
                token = f"{message}.{b64(hmac.new(secret, message.encode(), digest).digest())}"
                with pytest.raises(TokenInvalid):
                    await verifier(*keys).verify(token, now=NOW)
        with pytest.raises(TokenInvalid):
            await verifier(*keys).verify(f"{message}.", now=NOW)


async def test_no_key_signs_for_the_tenant_of_another(keys: tuple[config.Key, ...]) -> None:
    """Each entry's own signature is for its own tenant, whatever `kid` the token names."""
    signers = [
        ("HS256", SECRET_BYTES, "acme"),
        ("RS256", private_key("RS256"), "t-pem"),
        ("ES256", private_key("ES256"), "t-set"),
        ("EdDSA", private_key("EdDSA"), "t-set"),
    ]
    for algorithm, key, own in signers:
        for kid in (None, "k", "pem", "set", "1", "2"):
            for tenant in ("acme", "t-pem", "t-set"):
                head = {"alg": algorithm} | ({} if kid is None else {"kid": kid})
                token = forge(claims(tenant=tenant), head=head, algorithm=algorithm, key=key)
                try:
                    found = await verifier(*keys).verify(token, now=NOW)
                except TokenInvalid:
                    assert tenant != own or kid not in (None, {"ES256": "1", "EdDSA": "2"}.get(algorithm))
                else:
                    assert found.tenant == tenant == own


@pytest.mark.parametrize(
    "text",
    [
        '"exp":{exp},"exp":{exp}',
        '"exp":{exp},"tenant":"globex","tenant":"acme"',
        '"exp":{exp},"\\u0074enant":"globex"',
        '"exp":{exp},"permissions":{{"subscribe":[],"subscribe":[">"]}}',
        '"exp":{exp},"aud":"a","aud":"b"',
        '"exp":{exp},"iss":"a","i\\u0073s":"b"',
    ],
)
async def test_a_claim_twice(text: str) -> None:
    """However the second one is spelled, and wherever it stands."""
    rest = text.format(exp=int(NOW + 60))
    payload = f'{{"sub":"alice","tenant":"acme",{rest}}}'
    with pytest.raises(TokenInvalid, match="an object has a name twice"):
        await verifier().verify(forge(payload), now=NOW)


@pytest.mark.parametrize("number", ["1e3", "42.0", "-0", "-42", "4.2e1", "9" * 4400, "1E400"])
@pytest.mark.parametrize("claim", ["sub", "tenant"])
async def test_numbers_that_are_no_names(number: str, claim: str) -> None:
    """Only an integer as it is written is a name: no float of the same value, and none that is too long."""
    text = json.dumps(claims(**{claim: 1})).replace(f'"{claim}": 1', f'"{claim}": {number}')
    key = attrs.evolve(KEY, tenants=("*",))
    with pytest.raises(TokenInvalid, match=f"{claim}: "):
        await verifier(key).verify(forge(text), now=NOW)


async def test_what_is_signed_is_what_is_read() -> None:
    """Parts of two good tokens do not make a third."""
    one, two = forge(claims(sub="alice")).split("."), forge(claims(sub="bob")).split(".")
    for parts in ((one[0], two[1], one[2]), (one[0], one[1], two[2])):
        with pytest.raises(TokenInvalid, match="signature"):
            await verifier().verify(".".join(parts), now=NOW)
    assert signed(".".join(one[:2])) == ".".join(one)
