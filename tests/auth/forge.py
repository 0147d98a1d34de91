"""Real keys of every kind, and tokens made by hand, so that they can be wrong in any way."""

from __future__ import annotations

import base64
import functools
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import get_default_algorithms

from broker import config
from broker.auth.keys import Keys
from broker.auth.tokens import Verifier

NOW = 1_700_000_000.0
SECRET = "s" * 64
SECRET_BYTES = SECRET.encode()
KEY = config.Key(name="k", secret=SECRET, tenants=("acme",))
PUBLIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SIGNERS = get_default_algorithms()


def private_key(algorithm: str, which: int = 0) -> Any:
    """The private key number `which` for an algorithm; RSA keys are shared, since making one is slow."""
    return make_key("RSA" if algorithm[:2] in ("RS", "PS") else algorithm, which)


@functools.cache
def make_key(kind: str, _which: int) -> Any:
    match kind:
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case "Ed448":
            return ed448.Ed448PrivateKey.generate()
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ES384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ES512":
            return ec.generate_private_key(ec.SECP521R1())
        case "weak":
            return rsa.generate_private_key(65537, 1024)
    return rsa.generate_private_key(65537, 2048)


def public_pem(algorithm: str, which: int = 0) -> bytes:
    public = private_key(algorithm, which).public_key()
    pem: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def private_pem(algorithm: str) -> bytes:
    pem: bytes = private_key(algorithm).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem


def jwk(algorithm: str, which: int = 0, **more: Any) -> dict[str, Any]:
    """The public key as a JWK, with `more` members."""
    return {**SIGNERS[algorithm].to_jwk(private_key(algorithm, which).public_key(), as_dict=True), **more}


def b64(data: bytes | str) -> str:
    return base64.urlsafe_b64encode(data.encode() if isinstance(data, str) else data).rstrip(b"=").decode()


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with changes; `...` takes one away."""
    good = {"sub": "alice", "tenant": "acme", "exp": NOW + 600}
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


def forge(
    payload: dict[str, Any] | str | None = None,
    *,
    head: dict[str, Any] | str | None = None,
    algorithm: str = "HS256",
    key: Any = SECRET_BYTES,
) -> str:
    """A token with a true signature over whatever is given; text stands for itself."""
    head = {"alg": algorithm, "typ": "JWT"} if head is None else head
    payload = claims() if payload is None else payload
    parts = [part if isinstance(part, str) else json.dumps(part) for part in (head, payload)]
    return signed(".".join(b64(part) for part in parts), algorithm, key)


def signed(message: str, algorithm: str = "HS256", key: Any = SECRET_BYTES) -> str:
    return f"{message}.{b64(SIGNERS[algorithm].sign(message.encode(), key))}"


def verifier(
    *keys: config.Key,
    limits: config.Limits | None = None,
    permissions: config.Permissions | None = None,
    **auth: Any,
) -> Verifier:
    section = config.Auth(keys=keys or (KEY,), **auth)
    return Verifier(
        section, limits or config.Limits(), permissions or config.Permissions(), Keys.load(section)
    )
