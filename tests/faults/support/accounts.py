"""NATS in operator mode, with as little as that takes: credentials are JWTs, and they expire.

https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from typing import Any

import attrs
import nkeys

HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
LIMITS = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
STORE_LIMITS = ("mem_storage", "disk_storage", "streams", "consumer")
UNLIMITED = {**dict.fromkeys((*LIMITS, *STORE_LIMITS), -1), "wildcards": True}


def coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@attrs.define
class Signer:
    """A key pair that signs claims."""

    seed: bytes

    @property
    def public(self) -> str:
        return str(nkeys.from_seed(bytearray(self.seed)).public_key.decode())

    def sign(self, data: bytes) -> str:
        return coded(nkeys.from_seed(bytearray(self.seed)).sign(data))

    def jwt(self, subject: str, nats: dict[str, Any], *, seconds: float | None = None) -> str:
        now = int(time.time())
        claims = {
            "jti": secrets.token_hex(8),
            "iat": now,
            "iss": self.public,
            "sub": subject,
            "name": subject[:8],
            "nats": nats | {"version": 2},
        }
        if seconds is not None:
            claims["exp"] = now + int(seconds)
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (HEADER, claims)
        ]
        signed = b".".join(parts)
        return f"{signed.decode()}.{self.sign(signed)}"


def signer(kind: int) -> Signer:
    return Signer(nkeys.encode_seed(secrets.token_bytes(32), kind))


@attrs.define
class Operator:
    """One account for events, and users in it."""

    key: Signer = attrs.field(factory=lambda: signer(nkeys.PREFIX_BYTE_OPERATOR))
    system: Signer = attrs.field(factory=lambda: signer(nkeys.PREFIX_BYTE_ACCOUNT))
    account: Signer = attrs.field(factory=lambda: signer(nkeys.PREFIX_BYTE_ACCOUNT))

    def options(self) -> dict[str, Any]:
        """What nats-server is configured with."""
        plain: dict[str, Any] = {"type": "account", "limits": UNLIMITED}
        return {
            "operator": self.key.jwt(self.key.public, {"type": "operator"}),
            "system_account": self.system.public,
            "resolver": "MEMORY",
            "resolver_preload": {
                self.system.public: self.key.jwt(self.system.public, {"type": "account"}),
                self.account.public: self.key.jwt(self.account.public, plain),
            },
        }

    def credentials(self, *, seconds: float | None = None) -> str:
        """A user's credentials file, good for so long."""
        user = signer(nkeys.PREFIX_BYTE_USER)
        rights = {"type": "user", "subs": -1, "data": -1, "payload": -1}
        jwt = self.account.jwt(user.public, rights, seconds=seconds)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )

    def login(self, info: dict[str, Any]) -> dict[str, str]:
        """What a user says when the server has told its nonce."""
        user = signer(nkeys.PREFIX_BYTE_USER)
        rights = {"type": "user", "subs": -1, "data": -1, "payload": -1}
        return {"jwt": self.account.jwt(user.public, rights), "sig": user.sign(info["nonce"].encode())}
