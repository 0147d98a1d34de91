"""The keys of one entry of the configuration: a secret, a public key in PEM, or a JWK Set."""

from __future__ import annotations

import difflib
import json
import os
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.exceptions import PyJWTError

from broker import config, subjects
from broker.auth.addresses import address_fault
from broker.auth.claims import ANY
from broker.auth.signatures import ALGORITHMS, SECRET_BYTES, VerifyingKey, misfit
from broker.config.files import exposed, unreadable
from broker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 256 * 1024  # of a file or set: some hundred RSA keys; real sets have two to ten
UNBOUND = (
    "audience: it or issuer is required beside jwks_url, since a provider signs for others with the same "
    f"keys: write what your tokens have in `aud` (or `iss`), or '{ANY}' to accept them all"
)
SOURCES = ("secret_file", "secret", "pem_file", "jwks_file", "jwks_url")


def entry_faults(entry: config.Key) -> Iterator[str]:
    """Yield what is wrong with an entry as written, before its source is read."""
    if not entry.name:
        yield "name: may not be empty"
    if not entry.tenants and entry.tenant is None:
        yield "tenants: list those that the key may sign for, or '*' for all; or fix a single one by tenant"
    if entry.tenant is not None and not subjects.is_tenant(entry.tenant):
        yield f"tenant: {subjects.shown(entry.tenant)} is not a tenant name"
    if entry.tenant is not None and entry.tenants not in ((), (entry.tenant,)):
        yield f"tenants: leave it out, since tenant fixes {subjects.shown(entry.tenant)} as the only one"
    for tenant in entry.tenants:
        if tenant != "*" and not subjects.is_tenant(tenant):
            yield f"tenants: {subjects.shown(tenant)} is not a tenant name"
    given = [source for source in SOURCES if getattr(entry, source) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        yield f"{(given or SOURCES)[0]}: exactly one of {', '.join(SOURCES)} is needed, not {found}"
        return
    secret = given[0] in ("secret", "secret_file")
    if not entry.algorithms and not secret:
        yield f"algorithms: name those that {given[0]} is for"
    for name in entry.algorithms:
        if name.lower() == "none":
            yield "algorithms: 'none' would accept every token"
        elif name not in ALGORITHMS:
            near = difflib.get_close_matches(name, ALGORITHMS, 1)
            yield f"algorithms: {name!r} is not known" + (f"; {near[0]!r}?" if near else "")
        elif secret and name not in SECRET_BYTES:
            yield f"algorithms: {name} takes a public key, not a secret"
        elif not secret and name in SECRET_BYTES:
            yield f"algorithms: {name} takes a secret; with a public key everybody could sign"
    if entry.jwks_url is not None and (fault := address_fault(entry.jwks_url)):
        yield f"jwks_url: {fault}"
    if entry.jwks_url is not None and entry.issuer is None and entry.audience is None:
        yield UNBOUND


def read_keys(entry: config.Key) -> tuple[VerifyingKey, ...]:
    """Return the keys of a faultless entry. Raises `ConfigError`, its faults relative to the entry."""
    if entry.pem_file is not None:
        material = read_pem(entry.pem_file)
        unfit = [fault for name in entry.algorithms if (fault := misfit(name, material))]
        if unfit:
            raise ConfigError([f"algorithms: {fault}" for fault in unfit])
    elif entry.jwks_file is not None:
        try:
            return read_set(read_file("jwks_file", entry.jwks_file), entry)
        except ValueError as error:
            raise ConfigError([f"jwks_file: {entry.jwks_file}: {error}"]) from None
    else:
        material = read_secret(entry)
    return tuple(
        VerifyingKey(entry=entry, kid=None, algorithm=name, material=material)
        for name in algorithms_of(entry)
    )


def algorithms_of(entry: config.Key) -> tuple[str, ...]:
    return entry.algorithms or ("HS256",)


def read_secret(entry: config.Key) -> bytes:
    """Return the secret of an entry, stripped of white space. Raises `ConfigError`."""
    if entry.secret_file is not None:
        field, data = "secret_file", read_file("secret_file", entry.secret_file, secret=True)
    else:
        field, data = "secret", (entry.secret or "").encode()
    secret = data.strip()
    needed = max(SECRET_BYTES[name] for name in algorithms_of(entry))
    if not secret.isascii():
        raise ConfigError([f"{field}: is not ASCII text; write random bytes as base64 or hex"])
    if len(secret) < needed:
        fault = f"{len(secret)} bytes, but {needed} are needed (RFC 7518 section 3.2)"
        raise ConfigError([f"{field}: {fault}: `openssl rand -base64 {needed}` makes such a secret"])
    try:
        ALGORITHMS["HS256"].prepare_key(secret)
    except PyJWTError:
        raise ConfigError([f"{field}: is a public key, a certificate or a JWK, not a secret"]) from None
    return secret


def read_pem(path: Path) -> object:
    """Return the public key in a PEM file (SubjectPublicKeyInfo). Raises `ConfigError`.

    A private key is refused, since the broker does not need it; a certificate, since its dates would be
    ignored.
    """
    data = read_file("pem_file", path)
    if b"PRIVATE KEY" in data:
        hint = "a private key, which the broker must not have; openssl pkey -pubout gives the public one"
    elif b"CERTIFICATE" in data:
        hint = "a certificate; openssl x509 -pubkey -noout gives its public key"
    else:
        try:
            return load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            hint = "not a public key in PEM"
    raise ConfigError([f"pem_file: {path} is {hint}"])


def read_set(data: bytes, entry: config.Key) -> tuple[VerifyingKey, ...]:
    """Return the keys of a JWK Set that `entry` may use. Raises `ValueError` when there are none.

    Others in the set are ignored (RFC 7517 section 5): for encryption, of another type or size, and symmetric
    or private ones, which are not secret any more once published.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError("not a JWK Set: no list 'keys'")
    usable = tuple(key for jwk in keys if isinstance(jwk, dict) for key in read_jwk(jwk, entry))
    if not usable:
        raise ValueError(f"no key for {' or '.join(entry.algorithms)} among the {len(keys)} of the set")
    return usable


def read_jwk(jwk: dict[str, Any], entry: config.Key) -> Iterator[VerifyingKey]:
    kid, operations = jwk.get("kid"), jwk.get("key_ops", ["verify"])
    if not isinstance(kid, str | None) or not isinstance(operations, list):
        return
    if jwk.get("use", "sig") != "sig" or "verify" not in operations or "d" in jwk:
        return
    for name in entry.algorithms:
        if jwk.get("alg", name) == name:
            try:
                material = ALGORITHMS[name].from_jwk(jwk)
            except (PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
                continue
            if misfit(name, material) is None:
                yield VerifyingKey(entry=entry, kid=kid, algorithm=name, material=material)


def read_file(field: str, path: Path, *, secret: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{field}: {unreadable(path, error)}"]) from None
    if secret and (fault := exposed(path, mode)):
        raise ConfigError([f"{field}: {fault}"])
    if len(data) > MAX_BYTES:
        raise ConfigError([f"{field}: {path} is longer than {MAX_BYTES} bytes"])
    return data
