"""Certificates, keys and tokens that rows name by files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import nkeys
import trustme

from tests.auth.forge import jwk, public_pem
from tests.faults.support.accounts import Operator, signer
from tests.support.configured import secret

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s" * 64
OTHER_SECRET = "o" * 64
ADMIN_TOKEN = "t" * 43
USER = signer(nkeys.PREFIX_BYTE_USER)  # of a nats-server
OPERATOR = Operator()


def make(directory: Path) -> None:
    """Write all of them into a directory."""
    for name, text in {
        "secret": SECRET,
        "other-secret": OTHER_SECRET,
        "admin-token": ADMIN_TOKEN,
        "password": "good",
        "wrong-password": "bad",
        "user.nk": USER.seed.decode(),
        "other.nk": signer(nkeys.PREFIX_BYTE_USER).seed.decode(),
        "user.creds": OPERATOR.credentials(),
        "other.creds": Operator().credentials(),
        "es256.pem": public_pem("ES256").decode(),
        "other.pem": public_pem("ES256", 1).decode(),
        "es256.json": json.dumps({"keys": [jwk("ES256", kid="test")]}),
        "schema.json": json.dumps({"properties": {"n": {"maximum": 1}}}),
        "other.json": json.dumps({"keys": [jwk("ES256", 1, kid="test")]}),
    }.items():
        secret(directory / name, text)
    for name in ("a", "b"):
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "localhost")
        issued.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
        secret(directory / f"{name}.key", issued.private_key_pem.bytes().decode())
        authority.cert_pem.write_to_path(directory / f"{name}.ca")
