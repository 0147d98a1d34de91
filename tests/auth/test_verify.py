"""Which tokens are believed: the rows "Tokens" of the fault list, with real keys of all kinds."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from structlog.testing import capture_logs

from broker import config
from broker.auth.claims import TooEarly
from broker.auth.keys import MAX_TRIES
from broker.errors import BrokerError, TokenExpired, TokenInvalid, Unavailable
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


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """To verify takes no time: how far away a time is said to be is exact on a busy machine too."""
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)


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
        assert await refusal(token) == f"alg: no configured key is for {name!r}"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_confusion(algorithm: str, tmp_path: Path) -> None:
    """The public key is no secret: HS256 signed with its PEM is refused."""
    path = tmp_path / "public.pem"
    path.write_bytes(public_pem(algorithm))
    key = config.Key(name="k", algorithms=(algorithm,), pem_file=path, tenants=("acme",))
    for secret in (public_pem(algorithm), public_pem(algorithm).strip()):
        message = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'k'}))}.{b64(json.dumps(claims()))}"
        token = f"{message}.{b64(hmac.new(secret, message.encode(), hashlib.sha256).digest())}"
        assert await refusal(token, key) == "alg: no configured key is for 'HS256'"


async def test_algorithm_not_allowed(tmp_path: Path) -> None:
    """A key checks only the algorithms that its entry names, though it could check others."""
    path = tmp_path / "public.pem"
    path.write_bytes(public_pem("RS256"))
    key = config.Key(name="k", algorithms=("RS256",), pem_file=path, tenants=("acme",))
    for algorithm in ("RS384", "PS256"):
        token = forge(algorithm=algorithm, key=private_key("RS256"))
        assert await refusal(token, key) == f"alg: no configured key is for {algorithm!r}"
    assert await refusal(forge(algorithm="HS512"), KEY) == "alg: no configured key is for 'HS512'"


HEADS: list[tuple[dict[str, Any], str]] = [
    ({"alg": "HS256", "crit": ["exp"], "exp": 1}, "crit:"),
    ({"alg": "HS256", "crit": []}, "crit:"),
    ({"alg": "HS256", "crit": ["b64"], "b64": False}, "crit:"),
    ({"alg": "HS256", "typ": "logout+jwt"}, "typ: 'logout+jwt' is not 'JWT' or 'at+jwt'"),
    ({"alg": "HS256", "typ": "text/JWT"}, "typ: 'text/JWT' is not"),
    ({"alg": "HS256", "typ": "application/application/jwt"}, "typ:"),
    ({"alg": "HS256", "typ": ""}, "typ:"),
    ({"alg": "HS256", "typ": 1}, "typ: 1 is not"),
    ({"alg": "HS256", "typ": None}, "typ: nothing is not"),
    ({}, "alg, kid: must be text"),
    ({"alg": ["HS256"]}, "alg, kid: must be text"),
    ({"alg": "HS256", "kid": 7}, "alg, kid: must be text"),
    ({"alg": "HS256", "kid": {"a": 1}}, "alg, kid: must be text"),
    ({"alg": "RS256", "kid": "k"}, "alg: no configured key is for 'RS256'"),
]


@pytest.mark.parametrize(("head", "told"), HEADS)
async def test_bad_head(head: dict[str, Any], told: str) -> None:
    """A head is refused that asks for what is not understood, is of another type or names no key."""
    assert (await refusal(forge(head=head))).startswith(told)


KINDS = ["JWT", "jwt", "at+jwt", "AT+JWT", "application/jwt", "Application/at+JWT", ...]


@pytest.mark.parametrize("kind", KINDS)
async def test_type(kind: object) -> None:
    """`typ` is JWT or at+jwt (RFC 9068) in any case, with "application/" or without, or absent."""
    head = {"alg": "HS256"} | ({} if kind is ... else {"typ": kind})
    assert (await verifier().verify(forge(head=head), now=NOW)).user == "alice"


async def test_configured_type() -> None:
    """Where the configuration says another type, a token has to have it (RFC 8725 section 3.11)."""
    good = forge(head={"alg": "HS256", "typ": "AT+jwt"})
    assert (await verifier(type=("at+jwt",)).verify(good, now=NOW)).user == "alice"
    for head in ({"alg": "HS256"}, {"alg": "HS256", "typ": "JWT"}):
        assert await refusal(forge(head=head), type=("at+jwt",)) == "typ: 'JWT' is not 'at+jwt'"


TIMES: list[tuple[dict[str, Any], type[BrokerError], str]] = [
    ({"exp": ...}, TokenInvalid, "exp: must be a time"),
    ({"exp": None}, TokenInvalid, "exp: must be a time"),
    ({"exp": str(NOW + 60)}, TokenInvalid, "exp: must be a time"),
    ({"exp": True}, TokenInvalid, "exp: must be a time"),
    ({"exp": [NOW + 60]}, TokenInvalid, "exp: must be a time"),
    ({"exp": 10**400}, TokenInvalid, "exp: must be a time"),
    ({"exp": NOW + 86400 * 365}, TokenInvalid, "exp: 3.1536e+07 s away; at most 86400 s are allowed"),
    ({"exp": NOW + 86461}, TokenInvalid, "exp: 86461 s away"),
    ({"exp": NOW - 35}, TokenExpired, "exp: the token expired 35 s ago"),
    ({"exp": NOW}, TokenExpired, "exp: the token expired 0 s ago"),
    ({"exp": -1e308}, TokenExpired, "exp: the token expired 1e+308 s ago"),
    ({"nbf": NOW + 61}, TooEarly, "nbf: 61 s ahead of the broker's clock"),
    ({"nbf": "soon"}, TokenInvalid, "nbf: must be a time"),
    ({"nbf": None}, TokenInvalid, "nbf: must be a time"),
    ({"iat": NOW + 70}, TooEarly, "iat: 70 s ahead of the broker's clock"),
    ({"iat": NOW + 7200, "exp": NOW + 7260}, TooEarly, "iat: 7200 s ahead of the broker's clock"),
    ({"iat": NOW + 7200, "exp": NOW + 7200 + 86400}, TooEarly, "iat: 7200 s ahead"),
    ({"iat": NOW + 7200, "exp": NOW + 7200 + 86461}, TokenInvalid, "exp: 86461 s away"),
    ({"iat": NOW + 90, "nbf": NOW + 7200, "exp": NOW + 9000}, TooEarly, "nbf: 7200 s ahead"),
    ({"nbf": NOW + 600}, TokenInvalid, "nbf: not before exp"),
    ({"iat": 1000 * NOW, "exp": 1000 * NOW + 3_600_000}, TokenInvalid, "exp: 3.6e+06 s away"),
    ({"iat": False}, TokenInvalid, "iat: must be a time"),
]


@pytest.mark.parametrize(("changes", "error", "told"), TIMES)
async def test_bad_times(changes: dict[str, Any], error: type[BrokerError], told: str) -> None:
    """Times must be finite numbers; `exp` is required and near; `nbf` and `iat` are past, or waited for."""
    assert (await refusal(forge(claims(**changes)), error=error)).startswith(told)


@pytest.mark.parametrize(
    "changes",
    [{"exp": NOW + 0.5}, {"exp": NOW + 86460}, {"nbf": NOW + 60}, {"iat": NOW + 60}, {"nbf": -1, "iat": 0}],
)
async def test_good_times(changes: dict[str, Any]) -> None:
    """Clocks may differ by the leeway of 60 s, and fractions of a second are allowed."""
    wanted = claims(**changes)["exp"]
    found = await verifier().verify(forge(claims(**changes)), now=NOW)
    assert found.expires_at == wanted
    assert found.life == pytest.approx(wanted - NOW, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "wait"),
    [
        ({"nbf": NOW + 75}, 15),
        ({"iat": NOW + 62}, 2),
        (
            {"iat": NOW + 7200, "exp": NOW + 7260},
            30,
        ),  # whose clock is wrong? It may be put right at any moment
    ],
)
async def test_when_to_come_again(changes: dict[str, Any], wait: float) -> None:
    """A token that is not good yet is no verdict: the client is told when it will be, or to look again."""
    with pytest.raises(Unavailable) as caught:
        await verifier().verify(forge(claims(**changes)), now=NOW)
    assert caught.value.retryable
    assert caught.value.close_code is None
    assert caught.value.retry_after == pytest.approx(wait, abs=0.1)
    assert (await verifier().verify(forge(claims(**changes)), now=max(changes.values()) - 60)).user == "alice"


async def test_a_token_ahead_of_the_clock_is_said_once() -> None:
    """The log says by how much, once for each key, and again after a good one."""
    believer = verifier()
    with capture_logs() as logs:
        for _ in range(2):
            for _ in range(3):
                with pytest.raises(TooEarly):
                    await believer.verify(forge(claims(iat=NOW + 100)), now=NOW)
            await believer.verify(forge(), now=NOW)
    assert [(each["event"], each["key"], each["claim"], each["ahead_seconds"]) for each in logs] == [
        ("token_ahead_of_clock", "k", "iat", 100)
    ] * 2


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
async def test_no_number(number: str) -> None:
    """An `exp` that no clock could show is refused, whether JSON knows it or not."""
    text = json.dumps(claims(exp=1)).replace('"exp": 1', f'"exp": {number}')
    assert (await refusal(forge(text))).startswith(("payload: NaN", "exp: must be a time"))


IDP = "https://id.example"
PARTIES: list[tuple[dict[str, Any], str]] = [  # and how they are refused
    ({"iss": IDP, "aud": "broker"}, ""),
    ({"iss": IDP, "aud": ["other", "broker"]}, ""),
    ({"iss": f"{IDP}/", "aud": "broker"}, f"iss: '{IDP}/' is not '{IDP}'"),
    ({"iss": [IDP], "aud": "broker"}, f"iss: ['{IDP}'] is not '{IDP}'"),
    ({"iss": {"a": 1}, "aud": "broker"}, f"iss: an object is not '{IDP}'"),
    ({"iss": 7, "aud": "broker"}, f"iss: 7 is not '{IDP}'"),
    ({"aud": "broker"}, f"iss: nothing is not '{IDP}'"),
    ({"iss": IDP}, "aud: nothing is not 'broker'"),
    ({"iss": IDP, "aud": []}, "aud: [] does not name 'broker'"),
    ({"iss": IDP, "aud": ["a", "b"]}, "aud: ['a', 'b'] does not name 'broker'"),
    ({"iss": IDP, "aud": list("abcde")}, "aud: ['a', 'b', 'c', 'd', …] does not name 'broker'"),
    ({"iss": IDP, "aud": "brokers"}, "aud: 'brokers' is not 'broker'"),
    ({"iss": IDP, "aud": {"broker": 1}}, "aud: an object is not 'broker'"),
    ({"iss": IDP, "aud": [["broker"]]}, "aud: a list does not name 'broker'"),
]


@pytest.mark.parametrize(("changes", "told"), PARTIES)
async def test_issuer_and_audience(changes: dict[str, Any], told: str) -> None:
    """Where the key's entry names them, `iss` and `aud` must be exactly these; it is said what they are."""
    key = attrs.evolve(KEY, issuer="https://id.example", audience="broker")
    token = forge(claims(**changes))
    if told:
        assert await refusal(token, key) == told
    else:
        assert (await verifier(key).verify(token, now=NOW)).user == "alice"
    anybody = attrs.evolve(KEY, issuer="*", audience="*")
    assert (await verifier(anybody).verify(token, now=NOW)).user == "alice"


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
    assert await refusal(token(0, "two"), *keys) == "iss: 'two' is not 'one'"
    assert await refusal(token(1, "one"), *keys) == "iss: 'one' is not 'two'"


@pytest.mark.parametrize("kid", ["k", "l", "other", "", None, "x" * 2000])
async def test_a_secret_takes_any_kid(kid: str | None) -> None:
    """Whatever a token calls its key, a secret (or PEM) is tried; whose it is, its signature decides."""
    first, second = KEY, config.Key(name="l", secret="t" * 32, tenants=("acme",))
    head = {"alg": "HS256"} | ({} if kid is None else {"kid": kid})
    for secret in (SECRET, "t" * 32):
        token = forge(head=head, key=secret.encode())
        assert (await verifier(first, second).verify(token, now=NOW)).user == "alice"
    assert await refusal(forge(head=head, key=b"u" * 32), first, second) == "signature: it does not match"


async def test_a_kid_of_a_set_hides_no_secret(tmp_path: Path) -> None:
    """A PEM takes what it has signed though a set of the same algorithm knows the `kid`, or does not."""
    (tmp_path / "pem").write_bytes(public_pem("ES256", 1))
    (tmp_path / "set").write_text(json.dumps({"keys": [jwk("ES256", kid="1")]}))
    of_set = config.Key(name="set", algorithms=("ES256",), jwks_file=tmp_path / "set", tenants=("acme",))
    of_pem = attrs.evolve(of_set, name="pem", jwks_file=None, pem_file=tmp_path / "pem", tenants=("globex",))
    believer = verifier(of_set, of_pem)
    for which, tenant, kid, good in [
        (0, "acme", "1", True), (1, "globex", "1", True), (1, "globex", "2", True),
        (0, "acme", "2", False), (1, "acme", "1", False), (0, "globex", "1", False),
    ]:  # fmt: skip
        token = forge(
            claims(tenant=tenant),
            head={"alg": "ES256", "kid": kid},
            algorithm="ES256",
            key=private_key("ES256", which),
        )
        if good:
            assert (await believer.verify(token, now=NOW)).tenant == tenant
        else:
            assert await refusal(token, of_set, of_pem)


async def test_a_set_of_a_key_without_a_name(tmp_path: Path) -> None:
    """A JWK that has no `kid` (RFC 7517 section 4.5: it is optional) takes any, too."""
    (tmp_path / "set").write_text(json.dumps({"keys": [jwk("ES256")]}))
    key = config.Key(name="set", algorithms=("ES256",), jwks_file=tmp_path / "set", tenants=("acme",))
    for named in ({}, {"kid": "1"}):
        token = forge(head={"alg": "ES256", **named}, algorithm="ES256", key=private_key("ES256"))
        assert (await verifier(key).verify(token, now=NOW)).user == "alice"


async def test_too_many_keys_to_try() -> None:
    """A token cannot make the broker try any number of keys; one that names its key has it tried first."""
    keys = [attrs.evolve(KEY, name=f"k{number}", secret=f"{number:032}") for number in range(MAX_TRIES + 1)]
    last = f"{MAX_TRIES:032}".encode()
    told = "kid: 17 keys may have signed, and no more than 16 are tried"
    for head in ({"alg": "HS256"}, {"alg": "HS256", "kid": "other"}):
        assert await refusal(forge(head=head, key=last), *keys) == told
    named = forge(head={"alg": "HS256", "kid": "k16"}, key=last)
    assert (await verifier(*keys).verify(named, now=NOW)).user == "alice"


async def test_key_and_parties_choose_together() -> None:
    """Of entries with one secret that is chosen which `iss` and `aud` fit, the first; it decides all else."""
    web = attrs.evolve(KEY, name="web", issuer="i", audience="web", tenants=("acme",))
    ios = attrs.evolve(KEY, name="ios", issuer="i", audience="ios", tenants=("globex",))
    rest = attrs.evolve(KEY, name="rest", issuer="i", tenants=("initech", "acme"))
    believer = verifier(web, ios, rest)
    for named, tenant in [("web", "acme"), ("ios", "globex"), (["ios", "web"], "acme"), ("tv", "initech")]:
        token = forge(claims(iss="i", aud=named, tenant=tenant))
        assert (await believer.verify(token, now=NOW)).tenant == tenant
    for named, tenant in [("ios", "acme"), ("web", "initech"), ("web", "globex")]:  # no falling through
        token = forge(claims(iss="i", aud=named, tenant=tenant))
        assert await refusal(token, web, ios, rest) == f"tenant: {tenant!r} may not be signed by this key"
    told = await refusal(forge(claims(iss="j", aud="tv")), web, ios)
    assert told == "iss: 'j' is not 'i'"
    told = await refusal(forge(claims(iss="i", aud="tv")), web, ios)
    assert told == "aud: 'tv' is not 'web'; aud: 'tv' is not 'ios'"


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
    ('{"sub":"alice","sub":"bob","tenant":"acme","exp":1}', "an object has a name twice"),
    ('{"sub":"a","permissions":{"deny":[],"deny":["x"]}}', "an object has a name twice"),
    ('{"sub":"a","s\\u0075b":"b"}', "an object has a name twice"),
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
