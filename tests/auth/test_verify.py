"""Which tokens are believed: the rows "Tokens" of the fault list, with real keys of all kinds."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from broker import config
from broker.auth.keys import MAX_TRIES
from broker.errors import BrokerError, TokenExpired, TokenInvalid
from tests.auth.forge import (
    KEY,
    NOW,
    PUBLIC,
    SECRET,
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

DEEP = 100_000
ROOMY = config.Limits(token_bytes=2_000_000)


async def refusal(token: str, *keys: config.Key, error: type[BrokerError] = TokenInvalid, **how: Any) -> str:
    """The message with which `token` is refused, which never shows the token."""
    with pytest.raises(error) as caught:
        await verifier(*keys, **how).verify(token, now=NOW)
    assert len(token) < 10 or token not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_secrets(algorithm: str) -> None:
    """A token signed with the secret is believed under each hash, and no other secret's is."""
    key = attrs.evolve(KEY, algorithms=(algorithm,))
    principal = await verifier(key).verify(forge(algorithm=algorithm), now=NOW)
    assert (principal.tenant, principal.user, principal.expires_at) == ("acme", "alice", NOW + 600)
    message = await refusal(forge(algorithm=algorithm, key=b"t" * 64), key)
    assert message == "signature: it does not match"


@pytest.mark.parametrize("algorithm", PUBLIC)
async def test_public_keys(algorithm: str, tmp_path: Path) -> None:
    """A token signed with the private key is believed by the PEM of its public key, and no other is."""
    path = tmp_path / "public.pem"
    path.write_bytes(public_pem(algorithm))
    key = config.Key(name="k", algorithms=(algorithm,), pem_file=path, tenants=("acme",))
    token = forge(algorithm=algorithm, key=private_key(algorithm))
    assert (await verifier(key).verify(token, now=NOW)).user == "alice"
    other = forge(algorithm=algorithm, key=private_key(algorithm, 1))
    assert await refusal(other, key) == "signature: it does not match"


@pytest.mark.parametrize("algorithm", PUBLIC)
async def test_signatures_of_any_length(algorithm: str, tmp_path: Path) -> None:
    """A signature that is none, of whatever length, is refused like any other that does not match."""
    path = tmp_path / "public.pem"
    path.write_bytes(public_pem(algorithm))
    key = config.Key(name="k", algorithms=(algorithm,), pem_file=path, tenants=("acme",))
    message = forge(algorithm=algorithm, key=private_key(algorithm)).rpartition(".")[0]
    for size in (0, 1, 63, 64, 65, 96, 132, 256, 257, 2000):
        for byte in (b"\0", b"\x30", b"\xff"):
            assert await refusal(f"{message}.{b64(byte * size)}", key) == "signature: it does not match"


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", "HS256 ", "hs256"])
async def test_alg_none(name: str) -> None:
    """`none` is refused however it is spelled, unsigned and signed; so is an `alg` almost right."""
    message = f"{b64(json.dumps({'alg': name}))}.{b64(json.dumps(claims()))}"
    for token in (message + ".", signed(message)):
        assert await refusal(token) == "alg, kid: no configured key has them"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_confusion(algorithm: str, tmp_path: Path) -> None:
    """The public key is no secret: HS256 signed with its PEM is refused."""
    path = tmp_path / "public.pem"
    path.write_bytes(public_pem(algorithm))
    key = config.Key(name="k", algorithms=(algorithm,), pem_file=path, tenants=("acme",))
    for secret in (public_pem(algorithm), public_pem(algorithm).strip()):
        message = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'k'}))}.{b64(json.dumps(claims()))}"
        token = f"{message}.{b64(hmac.new(secret, message.encode(), hashlib.sha256).digest())}"
        assert await refusal(token, key) == "alg, kid: no configured key has them"


async def test_algorithm_not_allowed(tmp_path: Path) -> None:
    """A key checks only the algorithms that its entry names, though it could check others."""
    path = tmp_path / "public.pem"
    path.write_bytes(public_pem("RS256"))
    key = config.Key(name="k", algorithms=("RS256",), pem_file=path, tenants=("acme",))
    for algorithm in ("RS384", "PS256"):
        token = forge(algorithm=algorithm, key=private_key("RS256"))
        assert await refusal(token, key) == "alg, kid: no configured key has them"
    assert await refusal(forge(algorithm="HS512"), KEY) == "alg, kid: no configured key has them"


HEADS: list[tuple[dict[str, Any], str]] = [
    ({"alg": "HS256", "crit": ["exp"], "exp": 1}, "crit:"),
    ({"alg": "HS256", "crit": []}, "crit:"),
    ({"alg": "HS256", "crit": ["b64"], "b64": False}, "crit:"),
    ({"alg": "HS256", "typ": "at+jwt"}, "typ: must be 'JWT'"),
    ({"alg": "HS256", "typ": 1}, "typ:"),
    ({"alg": "HS256", "typ": None}, "typ:"),
    ({}, "alg, kid: must be text"),
    ({"alg": ["HS256"]}, "alg, kid: must be text"),
    ({"alg": "HS256", "kid": 7}, "alg, kid: must be text"),
    ({"alg": "HS256", "kid": {"a": 1}}, "alg, kid: must be text"),
    ({"alg": "HS256", "kid": "other"}, "alg, kid: no configured key has them"),
    ({"alg": "HS256", "kid": ""}, "alg, kid: no configured key has them"),
]


@pytest.mark.parametrize(("head", "told"), HEADS)
async def test_bad_head(head: dict[str, Any], told: str) -> None:
    """A head is refused that asks for what is not understood, is of another type or names no key."""
    assert (await refusal(forge(head=head))).startswith(told)


@pytest.mark.parametrize("kind", ["JWT", "jwt", ...])
async def test_type(kind: object) -> None:
    """`typ` is JWT in any case, or absent."""
    head = {"alg": "HS256"} | ({} if kind is ... else {"typ": kind})
    assert (await verifier().verify(forge(head=head), now=NOW)).user == "alice"


async def test_configured_type() -> None:
    """Where the configuration says another type, a token has to have it (RFC 8725 section 3.11)."""
    good = forge(head={"alg": "HS256", "typ": "AT+jwt"})
    assert (await verifier(type="at+jwt").verify(good, now=NOW)).user == "alice"
    for head in ({"alg": "HS256"}, {"alg": "HS256", "typ": "JWT"}):
        assert await refusal(forge(head=head), type="at+jwt") == "typ: must be 'at+jwt'"


TIMES: list[tuple[dict[str, Any], type[BrokerError], str]] = [
    ({"exp": ...}, TokenInvalid, "exp: must be a time"),
    ({"exp": None}, TokenInvalid, "exp: must be a time"),
    ({"exp": str(NOW + 60)}, TokenInvalid, "exp: must be a time"),
    ({"exp": True}, TokenInvalid, "exp: must be a time"),
    ({"exp": [NOW + 60]}, TokenInvalid, "exp: must be a time"),
    ({"exp": 10**400}, TokenInvalid, "exp: must be a time"),
    ({"exp": NOW + 86400 * 365}, TokenInvalid, "exp: 3.1536e+07 s away; at most 86400 s are allowed"),
    ({"exp": NOW + 86406}, TokenInvalid, "exp: 86406 s away"),
    ({"exp": NOW - 35}, TokenExpired, "exp: the token expired 35 s ago"),
    ({"exp": NOW}, TokenExpired, "exp: the token expired 0 s ago"),
    ({"exp": -1e308}, TokenExpired, "exp: the token expired 1e+308 s ago"),
    ({"nbf": NOW + 6}, TokenInvalid, "nbf: still 6 s in the future"),
    ({"nbf": "soon"}, TokenInvalid, "nbf: must be a time"),
    ({"nbf": None}, TokenInvalid, "nbf: must be a time"),
    ({"iat": NOW + 60}, TokenInvalid, "iat: still 60 s in the future"),
    ({"iat": False}, TokenInvalid, "iat: must be a time"),
]


@pytest.mark.parametrize(("changes", "error", "told"), TIMES)
async def test_bad_times(changes: dict[str, Any], error: type[BrokerError], told: str) -> None:
    """Times must be finite numbers; `exp` is required, ahead and near; `nbf` and `iat` are past."""
    assert (await refusal(forge(claims(**changes)), error=error)).startswith(told)


@pytest.mark.parametrize(
    "changes",
    [{"exp": NOW + 0.5}, {"exp": NOW + 86405}, {"nbf": NOW + 5}, {"iat": NOW + 5}, {"nbf": -1, "iat": 0}],
)
async def test_good_times(changes: dict[str, Any]) -> None:
    """Clocks may differ by the leeway of 5 s, and fractions of a second are allowed."""
    wanted = claims(**changes)["exp"]
    assert (await verifier().verify(forge(claims(**changes)), now=NOW)).expires_at == wanted


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
async def test_no_number(number: str) -> None:
    """An `exp` that no clock could show is refused, whether JSON knows it or not."""
    text = json.dumps(claims(exp=1)).replace('"exp": 1', f'"exp": {number}')
    assert (await refusal(forge(text))).startswith(("payload: NaN", "exp: must be a time"))


PARTIES: list[tuple[dict[str, Any], bool]] = [
    ({"iss": "https://id.example", "aud": "broker"}, True),
    ({"iss": "https://id.example", "aud": ["other", "broker"]}, True),
    ({"iss": "https://id.example/", "aud": "broker"}, False),
    ({"iss": ["https://id.example"], "aud": "broker"}, False),
    ({"aud": "broker"}, False),
    ({"iss": "https://id.example"}, False),
    ({"iss": "https://id.example", "aud": []}, False),
    ({"iss": "https://id.example", "aud": "brokers"}, False),
    ({"iss": "https://id.example", "aud": {"broker": 1}}, False),
    ({"iss": "https://id.example", "aud": [["broker"]]}, False),
]


@pytest.mark.parametrize(("changes", "good"), PARTIES)
async def test_issuer_and_audience(changes: dict[str, Any], good: bool) -> None:
    """Where the key's entry names them, `iss` and `aud` must be exactly these."""
    key = attrs.evolve(KEY, issuer="https://id.example", audience="broker")
    token = forge(claims(**changes))
    if good:
        assert (await verifier(key).verify(token, now=NOW)).user == "alice"
    else:
        assert (await refusal(token, key)).startswith(("iss: must be", "aud: must name"))


async def test_same_kid_at_two_issuers(tmp_path: Path) -> None:
    """Each of two issuers with the same `kid` signs for its own tenants and under its own name only."""
    keys = []
    for which, issuer in enumerate(("one", "two")):
        path = tmp_path / issuer
        path.write_text(json.dumps({"keys": [jwk("ES256", which, kid="1")]}))
        keys.append(
            config.Key(
                name=issuer, algorithms=("ES256",), jwks_file=path, issuer=issuer, tenants=(f"t-{issuer}",)
            )
        )

    def token(which: int, issuer: str) -> str:
        wanted = claims(iss=issuer, tenant=f"t-{issuer}")
        return forge(
            wanted,
            head={"alg": "ES256", "kid": "1"},
            algorithm="ES256",
            key=private_key("ES256", which),
        )

    believer = verifier(*keys)
    assert (await believer.verify(token(0, "one"), now=NOW)).tenant == "t-one"
    assert (await believer.verify(token(1, "two"), now=NOW)).tenant == "t-two"
    assert await refusal(token(0, "two"), *keys) == "iss: must be 'one'"
    assert await refusal(token(1, "one"), *keys) == "iss: must be 'two'"


async def test_kid_chooses() -> None:
    """With a `kid` only the key of that name counts; without one, all of the algorithm are tried."""
    first, second = KEY, config.Key(name="l", secret="t" * 32, tenants=("acme",))
    for head, secret, good in [
        ({"alg": "HS256", "kid": "k"}, SECRET, True),
        ({"alg": "HS256", "kid": "l"}, SECRET, False),
        ({"alg": "HS256", "kid": "l"}, "t" * 32, True),
        ({"alg": "HS256"}, "t" * 32, True),
        ({"alg": "HS256"}, "u" * 32, False),
    ]:
        token = forge(head=head, key=secret.encode())
        if good:
            assert (await verifier(first, second).verify(token, now=NOW)).user == "alice"
        else:
            assert await refusal(token, first, second) == "signature: it does not match"


async def test_too_many_keys_to_try() -> None:
    """A token without a `kid` cannot make the broker try any number of keys."""
    keys = [attrs.evolve(KEY, name=f"k{number}") for number in range(MAX_TRIES + 1)]
    assert await refusal(forge(), *keys) == "kid: missing, and more than 16 keys may have signed"
    named = forge(head={"alg": "HS256", "kid": "k16"})
    assert (await verifier(*keys).verify(named, now=NOW)).user == "alice"


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("change", ["{}=", "{}==", "={}", "{}\n", "{} ", "{}!", "{}+", "{}A", "{}AAAA"])
async def test_base64(part: int, change: str) -> None:
    """No padding, nothing that decoders skip, nothing after the end: each part is written one way."""
    parts = forge().split(".")
    parts[part] = change.format(parts[part])
    assert await refusal(".".join(parts))


async def test_base64_has_one_way_to_write_each_value() -> None:
    """The unused bits of the last character are zero, although the decoder would not mind others."""
    parts = forge().split(".")
    last = parts[2][-1]
    other = chr(ord(last) + 1)
    parts[2] = parts[2][:-1] + other
    assert await refusal(".".join(parts)) == "signature: not canonical base64url without padding"


PAYLOADS: list[tuple[str, str]] = [
    ('{"sub":"alice","sub":"bob","tenant":"acme","exp":1}', "a name stands twice"),
    ('{"sub":"a","permissions":{"deny":[],"deny":["x"]}}', "a name stands twice"),
    ('{"sub":"a","s\\u0075b":"b"}', "a name stands twice"),
    ('{"sub":"\\ud800"}', "holds invalid Unicode"),
    ('{"\\udfff":1}', "holds invalid Unicode"),
    ("[" * DEEP + "]" * DEEP, "nested too deeply"),
    ('{"a":' * DEEP + "1" + "}" * DEEP, "nested too deeply"),
    ('{"a":' * DEEP, "nested too deeply"),
    ('{"x":NaN}', "NaN and Infinity are not JSON"),
    ('{"x":[-Infinity]}', "NaN and Infinity are not JSON"),
    ("[]", "not a JSON object"),
    ("null", "not a JSON object"),
    ('"text"', "not a JSON object"),
    ("", "Expecting value"),
    ("{", "Expecting property name"),
    ("{} {}", "Extra data"),
    ("\ufeff{}", "Unexpected UTF-8 BOM"),
]


@pytest.mark.parametrize(("text", "told"), PAYLOADS)
@pytest.mark.parametrize("where", ["head", "payload"])
async def test_bad_json(text: str, told: str, where: str) -> None:
    """Head and payload are JSON objects with each name once and true Unicode, however deep they pretend."""
    token = forge(head=text) if where == "head" else forge(text)
    message = await refusal(token, limits=ROOMY)
    assert message.startswith(f"{where}: ")
    assert told in message


async def test_not_utf8() -> None:
    """Bytes that are no UTF-8 are refused, UTF-16 included, which JSON parsers like to guess."""
    for data in (b'{"sub":"\xff"}', json.dumps(claims()).encode("utf-16")):
        token = signed(f"{b64(json.dumps({'alg': 'HS256'}))}.{b64(data)}")
        assert await refusal(token) == "payload: holds invalid Unicode"


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.b", "....", "a.b.c.d", "é.é.é", "\ud800..", "x" * 1_000_000]
)
async def test_no_token_at_all(token: str) -> None:
    """Text that is no JWT is refused, cheaply when it is long."""
    await refusal(token)


async def test_size() -> None:
    """The limit on the size of a token is exact."""
    token = forge()
    exact = config.Limits(token_bytes=len(token))
    assert (await verifier(limits=exact).verify(token, now=NOW)).user == "alice"
    assert "longer" in await refusal(token, limits=config.Limits(token_bytes=len(token) - 1))


async def test_signature_first() -> None:
    """Nothing of a payload is told, nor even parsed, before the signature holds."""
    token = forge(claims(sub=5, exp="unseen"), key=b"wrong" * 10)
    assert await refusal(token) == "signature: it does not match"
    assert await refusal(forge("{", key=b"wrong" * 10)) == "signature: it does not match"


async def test_any_changed_character() -> None:
    """Whichever character of a token is another one, the token is refused."""
    token, believer = forge(), verifier()
    for index, char in enumerate(token):
        changed = token[:index] + ("A" if char != "A" else "B") + token[index + 1 :]
        with pytest.raises(TokenInvalid):
            await believer.verify(changed, now=NOW)


def test_common_path_does_not_wait() -> None:
    """A token of a known key is verified in one go, outside any event loop, and so is a bad one."""
    believer = verifier()
    with pytest.raises(StopIteration) as done:
        believer.verify(forge(), now=NOW).send(None)
    assert done.value.value.user == "alice"
    with pytest.raises(TokenInvalid):
        believer.verify(forge(key=b"x" * 32), now=NOW).send(None)
