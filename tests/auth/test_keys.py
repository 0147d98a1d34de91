"""Faults of configured keys: every one is found when they are loaded, all at once, key first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from broker import config
from broker.auth.keys import Keys
from broker.auth.sources import MAX_BYTES
from broker.errors import ConfigError
from tests.auth.forge import (
    KEY,
    NOW,
    PUBLIC,
    SECRET,
    SIGNERS,
    forge,
    jwk,
    private_key,
    private_pem,
    public_pem,
    verifier,
)


def faults(*keys: config.Key) -> list[str]:
    """The faults of `keys`, of which no message shows a secret."""
    with pytest.raises(ConfigError) as caught:
        Keys.load(config.Auth(keys=keys))
    assert SECRET[:20] not in str(caught.value)
    return caught.value.faults


def pem_key(tmp_path: Path, data: bytes, *algorithms: str) -> config.Key:
    path = tmp_path / "key.pem"
    path.write_bytes(data)
    return config.Key(name="p", algorithms=algorithms, pem_file=path, tenants=("acme",))


def set_key(tmp_path: Path, document: object, *algorithms: str) -> config.Key:
    path = tmp_path / "keys.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return config.Key(name="j", algorithms=algorithms, jwks_file=path, tenants=("acme",))


ENTRIES: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "auth.keys.0.name: may not be empty"),
    (
        {"tenants": ()},
        "auth.keys.0.tenants: list those that the key may sign for, or '*' for all; or fix a single one",
    ),
    ({"tenants": ("_all",)}, "auth.keys.0.tenants: '_all' is not a tenant name"),
    ({"tenants": ("acme", "a.b")}, "auth.keys.0.tenants: 'a.b' is not a tenant name"),
    ({"tenants": (), "tenant": "a.b"}, "auth.keys.0.tenant: 'a.b' is not a tenant name"),
    ({"tenant": "main"}, "auth.keys.0.tenants: leave it out, since tenant fixes 'main' as the only one"),
    ({"secret": None}, "auth.keys.0.secret_file: exactly one of"),
    ({"pem_file": Path("x")}, "auth.keys.0.secret: exactly one of"),
    ({"algorithms": ("none",)}, "auth.keys.0.algorithms: 'none' would accept every token"),
    ({"algorithms": ("NoNe",)}, "auth.keys.0.algorithms: 'none' would accept every token"),
    ({"algorithms": ("HS265",)}, "auth.keys.0.algorithms: 'HS265' is not known; 'HS256'?"),
    ({"algorithms": ("ES256K",)}, "auth.keys.0.algorithms: 'ES256K' is not known"),
    ({"algorithms": ("rot13",)}, "auth.keys.0.algorithms: 'rot13' is not known"),
    ({"algorithms": ("HS256", "RS256")}, "auth.keys.0.algorithms: RS256 takes a public key, not a secret"),
    (
        {"secret": "s" * 31},
        "auth.keys.0.secret: 31 bytes, but 32 are needed (RFC 7518 section 3.2): `openssl rand",
    ),
    ({"secret": " " + "s" * 31 + "\n"}, "auth.keys.0.secret: 31 bytes, but 32 are needed"),
    ({"secret": ""}, "auth.keys.0.secret: 0 bytes, but 32 are needed"),
    ({"secret": "s" * 47, "algorithms": ("HS256", "HS384")}, "auth.keys.0.secret: 47 bytes, but 48"),
    ({"secret": "s" * 63, "algorithms": ("HS512",)}, "auth.keys.0.secret: 63 bytes, but 64"),
    ({"secret": "é" * 32}, "auth.keys.0.secret: is not ASCII text"),
    ({"secret": json.dumps({"kty": "oct", "k": "A" * 43})}, "auth.keys.0.secret: is a public key"),
]


@pytest.mark.parametrize(("changes", "told"), ENTRIES)
def test_entry(changes: dict[str, Any], told: str) -> None:
    """Each fault of an entry is told once, with the key of the configuration that it is in."""
    found = faults(attrs.evolve(KEY, **changes))
    assert len(found) == 1
    assert found[0].startswith(told)


def test_all_at_once() -> None:
    """All faults of all keys come in one error, in the order of the file."""
    found = faults(
        attrs.evolve(KEY, tenants=(), algorithms=("none", "RS256")),
        KEY,
        attrs.evolve(KEY, secret="short"),
    )
    assert [fault.partition(": ")[0] for fault in found] == [
        "auth.keys.0.tenants",
        "auth.keys.0.algorithms",
        "auth.keys.0.algorithms",
        "auth.keys.1.name",
        "auth.keys.2.name",
    ]


def test_no_keys() -> None:
    """A broker that can believe nobody does not start."""
    assert faults() == ["auth.keys: at least one is needed, since otherwise every token is refused"]


def test_duplicate_names() -> None:
    """Two keys of one name cannot be told apart by `kid`."""
    assert faults(KEY, KEY) == ["auth.keys.1.name: 'k' is the name of an earlier key too"]


def test_secret_is_not_shown() -> None:
    """A loaded key shows no secret when it is printed."""
    assert SECRET not in repr(list(Keys.load(config.Auth(keys=(KEY,))).known()))


@pytest.mark.parametrize(
    ("mode", "good"), [(0o600, True), (0o400, True), (0o640, True), (0o644, False), (0o604, False)]
)
def test_secret_file_mode(tmp_path: Path, mode: int, good: bool) -> None:
    """A secret that everybody on the machine can read is refused, with the way out of it."""
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(mode)
    key = config.Key(name="k", secret_file=path, tenants=("acme",))
    if good:
        assert [found.material for found in Keys.load(config.Auth(keys=(key,))).known()] == [SECRET.encode()]
    else:
        told = f"{path} is open to every user of this machine (mode {mode:03o}): `chmod o= {path}`"
        assert faults(key) == [f"auth.keys.0.secret_file: {told}"]


@pytest.mark.parametrize("content", [b"s" * 32 + b"\n", b"  " + b"s" * 32 + b"\r\n", b"s" * 32])
async def test_secret_file_content(tmp_path: Path, content: bytes) -> None:
    """White space around a secret, which editors add, does not belong to it."""
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(0o600)
    key = config.Key(name="k", secret_file=path, tenants=("acme",))
    assert (await verifier(key).verify(forge(key=b"s" * 32), now=NOW)).user == "alice"


@pytest.mark.parametrize("field", ["secret_file", "pem_file", "jwks_file"])
def test_unreadable(tmp_path: Path, field: str) -> None:
    """A file that is missing, a directory or endless is told with its path and the reason."""
    large = tmp_path / "large"
    large.write_bytes(b"x" * (MAX_BYTES + 1))
    large.chmod(0o600)
    entry = config.Key(name="k", algorithms=() if field == "secret_file" else ("RS256",), tenants=("acme",))
    for path, why in [
        (tmp_path / "missing", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (large, "is longer than 262144 bytes"),
    ]:
        source: dict[str, Any] = {field: path}
        assert faults(attrs.evolve(entry, **source)) == [f"auth.keys.0.{field}: {path} {why}"]


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_public_key_as_a_secret(tmp_path: Path, algorithm: str) -> None:
    """HS256 with a public key, as a secret or as a PEM, is refused: everybody could sign."""
    path = tmp_path / "secret"
    path.write_bytes(public_pem(algorithm))
    path.chmod(0o600)
    secret = config.Key(name="k", secret_file=path, tenants=("acme",))
    assert faults(secret) == [
        "auth.keys.0.secret_file: is a public key, a certificate or a JWK, not a secret"
    ]
    for key in (
        pem_key(tmp_path, public_pem(algorithm), algorithm, "HS256"),
        set_key(tmp_path, {"keys": [jwk(algorithm)]}, algorithm, "HS256"),
        config.Key(
            name="u",
            algorithms=("HS256",),
            jwks_url="https://id.example/jwks",
            audience="b",
            tenants=("acme",),
        ),
    ):
        assert faults(key) == [
            "auth.keys.0.algorithms: HS256 takes a secret; with a public key everybody could sign"
        ]


def test_algorithms_are_required(tmp_path: Path) -> None:
    """A public key without algorithms is refused: none is guessed from its kind."""
    assert faults(pem_key(tmp_path, public_pem("RS256"))) == [
        "auth.keys.0.algorithms: name those that pem_file is for"
    ]


KINDS = {
    "RSA": PUBLIC[:6],
    "ES256": ("ES256",),
    "ES384": ("ES384",),
    "ES512": ("ES512",),
    "EdDSA": ("EdDSA",),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", PUBLIC)
def test_kind_and_algorithm(tmp_path: Path, kind: str, algorithm: str) -> None:
    """A PEM takes exactly the algorithms of its kind, for elliptic curves the one of its curve."""
    key = pem_key(tmp_path, public_pem(kind), algorithm)
    if algorithm in KINDS[kind]:
        assert [found.algorithm for found in Keys.load(config.Auth(keys=(key,))).known()] == [algorithm]
    else:
        (told,) = faults(key)
        assert told.startswith(f"auth.keys.0.algorithms: {algorithm} cannot be checked with a")


def test_several_algorithms(tmp_path: Path) -> None:
    """Each algorithm that a PEM cannot check is a fault of its own."""
    found = faults(pem_key(tmp_path, public_pem("ES256"), "ES256", "ES384", "EdDSA"))
    assert found == [
        "auth.keys.0.algorithms: ES384 cannot be checked with a key on secp256r1",
        "auth.keys.0.algorithms: EdDSA cannot be checked with a key on secp256r1",
    ]


def test_weak_and_unknown_keys(tmp_path: Path) -> None:
    """RSA below 2,048 bits and kinds that JWT does not use here are refused."""
    weak = faults(pem_key(tmp_path, public_pem("weak"), "RS256"))
    assert weak == ["auth.keys.0.algorithms: an RSA key has 2048 to 8192 bits here, not 1024"]
    other = faults(pem_key(tmp_path, public_pem("Ed448"), "EdDSA"))
    assert other == ["auth.keys.0.algorithms: EdDSA cannot be checked with a key of this kind"]


def test_other_pem(tmp_path: Path) -> None:
    """A private key, a certificate and anything else are refused with what to do about it."""
    path = tmp_path / "key.pem"
    for data, told in [
        (private_pem("ES256"), "a private key, which the broker must not have; openssl pkey -pubout gives"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n", "a certificate; openssl x509 -pubkey -noout gives"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key in PEM"),
        (b"", "not a public key in PEM"),
    ]:
        (fault,) = faults(pem_key(tmp_path, data, "ES256"))
        assert fault.startswith(f"auth.keys.0.pem_file: {path} is {told}")


async def test_set_in_a_file(tmp_path: Path) -> None:
    """A JWK Set may hold keys of all kinds; each checks the algorithms that entry and key allow."""
    chosen = ("RS256", "PS256", "ES256", "ES512", "EdDSA")
    keys = [jwk("RS256", kid="r"), jwk("ES512", kid="e5", use="sig"), jwk("ES256", kid="e2", alg="ES256")]
    keys.append(jwk("EdDSA", kid="d", key_ops=["verify"]))
    entry = set_key(tmp_path, {"keys": keys}, *chosen)
    believer = verifier(entry)
    kids = {"RS256": "r", "PS256": "r", "ES512": "e5", "ES256": "e2", "EdDSA": "d"}
    for algorithm, kid in kids.items():
        head = {"alg": algorithm, "kid": kid}
        token = forge(head=head, algorithm=algorithm, key=private_key(algorithm))
        assert (await believer.verify(token, now=NOW)).user == "alice"
    assert len(list(believer.keys.known())) == len(kids)


UNUSABLE: list[dict[str, Any]] = [
    {"use": "enc"},
    {"key_ops": ["sign"]},
    {"key_ops": "verify"},
    {"alg": "RS512"},
    {"alg": None},
    {"kid": 7},
    {"d": "AAAA"},
    {"kty": "oct", "k": "A" * 43},
    {"kty": None},
    {"kty": "OKP"},
    {"n": 5},
    {"n": ""},
    {"n": "é"},
    {"n": "AQAB"},
    {"n": "_" * 200_000},
    {"e": "AQ"},
    {"e": {}},
]


@pytest.mark.parametrize("changes", UNUSABLE)
def test_unusable_members(tmp_path: Path, changes: dict[str, Any]) -> None:
    """What cannot be used in a set is passed over, and is a fault only where nothing else is left."""
    bad = {**jwk("RS256"), **changes}
    good = jwk("RS256", 1, kid="good")
    loaded = Keys.load(config.Auth(keys=(set_key(tmp_path, {"keys": [bad, 7, good]}, "RS256"),)))
    assert [key.kid for key in loaded.known()] == ["good"]
    (told,) = faults(set_key(tmp_path, {"keys": [bad]}, "RS256"))
    assert told.endswith("keys.json: no key for RS256 among the 1 of the set")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_private_key_in_a_set(tmp_path: Path, algorithm: str) -> None:
    """A private key that its owner let into a set is not believed any more."""
    leaked = SIGNERS[algorithm].to_jwk(private_key(algorithm), as_dict=True)
    (told,) = faults(set_key(tmp_path, {"keys": [leaked]}, algorithm))
    assert told.endswith(f"no key for {algorithm} among the 1 of the set")


@pytest.mark.parametrize("document", ["", "{", "[]", "{}", '{"keys": {}}', "[" * 100_000, "\ud7ff\x00"])
def test_no_set(tmp_path: Path, document: str) -> None:
    """A file that is no JWK Set is told as such, however deep it pretends to be."""
    (told,) = faults(set_key(tmp_path, document, "RS256"))
    assert told.startswith("auth.keys.0.jwks_file: ")
    assert told.endswith(("not JSON", "not a JWK Set: no list 'keys'"))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://id.example/jwks", "needs https"),
        ("http://127.0.0.1.example/jwks", "needs https"),
        ("http://localhost.example/jwks", "needs https"),
        ("http://0.0.0.0/jwks", "needs https"),
        ("https://user:word@id.example/jwks", "may not contain a user or password"),
        ("file:///etc/passwd", "is not an https address"),
        ("ftp://id.example/", "is not an https address"),
        ("https://", "is not an https address"),
        ("https:///jwks", "is not an https address"),
        ("id.example/jwks", "is not an https address"),
        ("https://id.example:99999/", "is not an https address"),
        ("https://[::1/", "is not an https address"),
        ("https://id.example/a b", "is not an https address"),
        ("https://id.example/\r\nX: y", "is not an https address"),
        ("", "is not an https address"),
    ],
)
def test_bad_address(url: str, told: str) -> None:
    """Keys come over https, without credentials in the address; plain http is for loopback alone."""
    key = config.Key(name="u", algorithms=("RS256",), jwks_url=url, audience="b", tenants=("acme",))
    (found,) = faults(key)
    assert found.startswith(f"auth.keys.0.jwks_url: {told}")


@pytest.mark.parametrize(
    "url",
    ["https://id.example/jwks", "http://127.0.0.1:1/", "http://localhost/x", "http://[::1]:8080/x?y=z"],
)
def test_good_address(url: str) -> None:
    """An address is only noted at load: the broker starts while the issuer is down."""
    key = config.Key(name="u", algorithms=("RS256",), jwks_url=url, issuer="i", tenants=("acme",))
    assert [source.url for source in Keys.load(config.Auth(keys=(key,))).remotes] == [url]


def test_an_address_needs_a_party() -> None:
    """Who says neither issuer nor audience would believe everybody's tokens; "*" says that this is meant."""
    entry = config.Key(name="u", algorithms=("RS256",), jwks_url="https://id.example/jwks", tenants=("acme",))
    (told,) = faults(entry)
    assert told.startswith("auth.keys.0.audience: it or issuer is required beside jwks_url")
    assert "'*' to accept them all" in told
    parties: list[dict[str, Any]] = [{name: text} for name in ("issuer", "audience") for text in ("x", "*")]
    for party in parties:
        assert Keys.load(config.Auth(keys=(attrs.evolve(entry, **party),))).remotes
