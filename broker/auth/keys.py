"""The keys that tokens are checked with: secrets, public keys, and JWK Sets from files and addresses.

What a key may check is fixed here, by the configuration and by the kind of the key. The `alg` of a token
only chooses among that (RFC 8725 section 3.1). The signatures themselves are PyJWT's.
"""

from __future__ import annotations

import difflib
import json
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import Algorithm, get_default_algorithms
from jwt.exceptions import PyJWTError

from broker import config, subjects
from broker.auth.claims import ANY
from broker.auth.fetching import MAX_BYTES, address_fault
from broker.auth.jwks import Remote, Timing
from broker.errors import ConfigError, TokenInvalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from broker.metrics.statistics import KeySet

SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518 section 3.2: at least the hash's size
CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}  # section 3.4
RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS: dict[str, Algorithm] = {
    name: algorithm
    for name, algorithm in get_default_algorithms().items()
    if name in (*SECRET_BYTES, *RSA, *CURVES, "EdDSA")
}
RSA_BITS = (2048, 8192)  # RFC 7518 section 3.3; above, one signature costs a millisecond
UNBOUND = (
    "audience: it or issuer is required beside jwks_url, since a provider signs for others with the same "
    f"keys: write what your tokens have in `aud` (or `iss`), or '{ANY}' to believe them all"
)
SOURCES = ("secret_file", "secret", "pem_file", "jwks_file", "jwks_url")
# Hears of each step of a verification that held, by its name, and what it found.
Passed: TypeAlias = "Callable[[str, str], None]"
# Why a token whose signature holds is not for an entry all the same; None when it is.
Unfit: TypeAlias = "Callable[[config.Key], str | None]"
MAX_TRIES = 16  # keys that are tried for one token


@attrs.frozen(kw_only=True)
class Signed:
    """What a token has of its signature: which algorithm and key it says, and what was signed with it."""

    algorithm: str
    kid: str | None
    message: bytes
    signature: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class VerifyingKey:
    """One key for one algorithm, and the entry of the configuration that says what it may sign.

    One without a `kid`, as a secret and a PEM are, takes tokens with any.
    """

    entry: config.Key = attrs.field(repr=False)  # may hold a secret, as does `material`
    kid: str | None
    algorithm: str
    material: Any = attrs.field(repr=False)

    @property
    def identity(self) -> tuple[object, ...]:
        """What of it decides whether a token is believed, but for whom it may sign."""
        return self.kid, self.algorithm, self.material, self.entry.issuer, self.entry.audience

    def named(self, kid: str | None) -> bool:
        """Whether a token means this key."""
        return kid in (self.kid, self.entry.name)

    def signed(self, token: Signed) -> bool:
        return ALGORITHMS[self.algorithm].verify(token.message, self.material, token.signature)


@attrs.frozen
class Local:
    """The keys of an entry that is read from the configuration and its files."""

    keys: tuple[VerifyingKey, ...]


@attrs.define(eq=False)
class Keys:
    """All keys of a configuration, in its order.

    Each JWK Set is a room of its own: its keys never leave the entry, so the same `kid` at two issuers is two
    keys.
    """

    sources: tuple[Local | Remote, ...]
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)  # of `run`

    @classmethod
    def load(cls, auth: config.Auth, *, timing: Timing | None = None, before: Iterable[Remote] = ()) -> Keys:
        """Reads secrets and files, parsed once. Addresses are fetched by `run`.

        What `before` holds of addresses that are configured as they were is kept: keys that are known go
        on. Raises `ConfigError` with one sentence for each fault.
        """
        faults: list[str] = []
        sources: list[Local | Remote] = []
        if not auth.keys:
            faults.append("auth.keys: there is none, so no token could be believed")
        for index, entry in enumerate(auth.keys):
            told = list(entry_faults(entry))
            if entry.name in [other.name for other in auth.keys[:index]]:
                told.append(f"name: {entry.name!r} is the name of an earlier key too")
            try:
                if entry.jwks_url is not None:
                    parse = partial(read_set, entry=entry)
                    known = (source for source in before if source.entry == entry)
                    remote = Remote(entry, entry.jwks_url, parse, timing or Timing())
                    sources.append(next(known, remote))
                elif not told:
                    sources.append(Local(read_keys(entry)))
            except ConfigError as error:
                told += error.faults
            faults += [f"auth.keys.{index}.{fault}" for fault in told]
        if faults:
            raise ConfigError(faults)
        return cls(tuple(sources))

    @property
    def remotes(self) -> tuple[Remote, ...]:
        return tuple(source for source in self.sources if isinstance(source, Remote))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the keys from addresses fresh, until `scope` is cancelled. Reports started at once."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                for source in self.remotes:
                    nursery.start_soon(source.run)
                task_status.started()

    def statistics(self) -> dict[str, KeySet]:
        """Of the addresses that keys come from, by the entry's name."""
        return {source.entry.name: source.statistics() for source in self.remotes}

    def remarks(self) -> list[str]:
        """A line on each address that cannot be read: known keys go on, so that it makes nobody unready."""
        return [
            f"key set {name}: cannot be fetched, see jwks_failed in the log; {kept(each)}"
            for name, each in self.statistics().items()
            if each.fault
        ]

    async def signer(self, token: Signed, unfit: Unfit, passed: Passed) -> VerifyingKey:
        """The first key that has signed the token and whose entry it fits; that entry decides all else.

        Waits only for addresses that may know an unknown key. `passed` hears of "key" once there is one that
        may have signed, and of "signature" when one has. Raises `TokenInvalid`, or `Unavailable` while it is
        not known whether such an address has the key.
        """
        signers, fresh = self.signers(token), list[Remote]()
        key = fitting(signers, unfit)
        if not key and (lacking := self.lacking(token, signers, unfit)):
            fresh = await asked(lacking)
            signers = self.signers(token)
            key = fitting(signers, unfit)
        if candidates := signers or self.candidates(token):
            passed("key", " or ".join(dict.fromkeys(each.entry.name for each in candidates)))
        if signers:
            passed("signature", "matches")
        if key:
            passed("key", key.entry.name)
            return key
        still = self.lacking(token, signers, unfit)
        waits = [wait for each in still if (wait := each.wait(token.kid, fresh=each in fresh)) is not None]
        if waits:
            raise Unavailable(missing(still, token.kid), retry_after=min(waits))
        unread = [] if candidates else [each for each in self.remotes if lacks(each, token)]
        reasons = dict.fromkeys(unfit(each.entry) or "" for each in signers or unread)
        if reasons and "" not in reasons:
            raise TokenInvalid("; ".join(reasons))
        raise TokenInvalid(self.unsigned(token, candidates))

    def unsigned(self, token: Signed, candidates: list[VerifyingKey]) -> str:
        """Why no key has signed the token."""
        if len(candidates) > MAX_TRIES:
            return f"kid: {len(candidates)} keys may have signed, and no more than {MAX_TRIES} are tried"
        if candidates:
            return "signature: it does not match"
        algorithm = subjects.shown(token.algorithm)
        if token.algorithm not in self.algorithms():
            return f"alg: no configured key is for {algorithm}"
        return f"kid: no configured key for {algorithm} is called {subjects.shown(token.kid or '')}"

    def algorithms(self) -> set[str]:
        remote = {name for source in self.remotes for name in source.entry.algorithms}
        return remote | {key.algorithm for key in self.known()}

    def lacking(self, token: Signed, signers: list[VerifyingKey], unfit: Unfit) -> list[Remote]:
        """The addresses that may have a key for the token which they did not have so far.

        Only those whose entry it fits, and where it is known who has signed it, other entries of the same
        address, read at another time.
        """
        urls = {each.entry.jwks_url for each in signers}
        may = [each for each in self.remotes if lacks(each, token) and unfit(each.entry) is None]
        return [each for each in may if not signers or each.url in urls]

    def signers(self, token: Signed) -> list[VerifyingKey]:
        """The keys that have signed it, in order."""
        return [key for key in self.candidates(token)[:MAX_TRIES] if key.signed(token)]

    def candidates(self, token: Signed) -> list[VerifyingKey]:
        """The keys that may have, those that it names first."""
        may = [
            key
            for key in self.known()
            if key.algorithm == token.algorithm and (None in (token.kid, key.kid) or key.kid == token.kid)
        ]
        return sorted(may, key=lambda key: not key.named(token.kid))

    def known(self) -> Iterator[VerifyingKey]:
        """All keys that there are now."""
        for source in self.sources:
            yield from source.keys

    def successor(self, signer: object) -> VerifyingKey | None:
        """The key here that believes just what a key of other `Keys` believed; None when there is none."""
        if not isinstance(signer, VerifyingKey):
            return None
        return next((key for key in self.known() if key.identity == signer.identity), None)


def kept(of: KeySet) -> str:
    if of.age is None:
        return "there are no keys, and tokens of its issuer let nobody in"
    return f"{of.keys} keys are kept, {of.age:.0f} s old"


def fitting(signers: Iterable[VerifyingKey], unfit: Unfit) -> VerifyingKey | None:
    return next((key for key in signers if unfit(key.entry) is None), None)


def lacks(source: Remote, token: Signed) -> bool:
    """Whether a fetch from `source` may bring a key for the token that its present keys are not."""
    if token.algorithm not in source.entry.algorithms:
        return False
    if token.kid is None:  # where all keys have a name, tokens name them
        return not source.keys or any(key.kid is None for key in source.keys)
    return all(key.kid != token.kid for key in source.keys)


def missing(sources: list[Remote], kid: str | None) -> str:
    """Why nobody can say yet whether a token is good."""
    if down := [each.entry.name for each in sources if each.fault or each.fetching]:
        return f"kid: the keys of {' and '.join(down)} cannot be fetched at the moment"
    names = " and ".join(each.entry.name for each in sources)
    return f"kid: no key of {names} is called {subjects.shown(kid or '')} so far"


async def asked(lacking: list[Remote]) -> list[Remote]:
    """Waits for fetches from these; which of them have been."""
    fresh: list[Remote] = []

    async def ask(source: Remote) -> None:
        if await source.refresh():
            fresh.append(source)

    with trio.move_on_after(max(source.timing.fetch_seconds for source in lacking)):
        async with trio.open_nursery() as nursery:
            for source in lacking:
                nursery.start_soon(ask, source)
    return fresh


def entry_faults(entry: config.Key) -> Iterator[str]:
    """What is wrong with an entry as it is written, before its source is read."""
    if not entry.name:
        yield "name: may not be empty"
    if not entry.tenants and entry.tenant is None:
        yield "tenants: name those that the key may sign for, or '*' for all; or fix the one by tenant"
    if entry.tenant is not None and not subjects.is_tenant(entry.tenant):
        yield f"tenant: {subjects.shown(entry.tenant)} is no name of a tenant"
    if entry.tenant is not None and entry.tenants not in ((), (entry.tenant,)):
        yield f"tenants: leave it out, since tenant fixes {subjects.shown(entry.tenant)} as the only one"
    for tenant in entry.tenants:
        if tenant != "*" and not subjects.is_tenant(tenant):
            yield f"tenants: {subjects.shown(tenant)} is no name of a tenant"
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
            yield "algorithms: 'none' would believe everybody"
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
    """The keys of an entry without faults. Raises `ConfigError`, its faults relative to the entry."""
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
    """The secret of an entry, without the white space around it. Raises `ConfigError`."""
    if entry.secret_file is not None:
        field, data = "secret_file", read_file("secret_file", entry.secret_file, secret=True)
    else:
        field, data = "secret", (entry.secret or "").encode()
    secret = data.strip()
    needed = max(SECRET_BYTES[name] for name in algorithms_of(entry))
    if not secret.isascii():
        raise ConfigError([f"{field}: is not ASCII text; write random bytes as base64 or hex"])
    if len(secret) < needed:
        raise ConfigError([f"{field}: {len(secret)} bytes, but {needed} are needed (RFC 7518 section 3.2)"])
    try:
        ALGORITHMS["HS256"].prepare_key(secret)
    except PyJWTError:
        raise ConfigError([f"{field}: is a public key, a certificate or a JWK, not a secret"]) from None
    return secret


def read_pem(path: Path) -> object:
    """The public key in a PEM file (SubjectPublicKeyInfo). Raises `ConfigError`.

    A private key is refused, since the broker has no use for it; a certificate, since nobody would look
    at its dates.
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
            hint = "no public key in PEM"
    raise ConfigError([f"pem_file: {path} is {hint}"])


def read_set(data: bytes, entry: config.Key) -> tuple[VerifyingKey, ...]:
    """The keys of a JWK Set that `entry` may use. Raises `ValueError` when there are none.

    Others in the set are passed over (RFC 7517 section 5): for encryption, of another kind, out of range,
    and symmetric or private ones, which are no longer secret once they stand in a set.
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


def misfit(algorithm: str, key: object) -> str | None:
    """Why `algorithm` cannot be checked with the public `key`; None when it can."""
    low, high = RSA_BITS
    match key:
        case RSAPublicKey():
            fits, kind = algorithm in RSA, "an RSA key"
            if not low <= key.key_size <= high:
                return f"an RSA key has {low} to {high} bits here, not {key.key_size}"
        case EllipticCurvePublicKey():
            fits, kind = CURVES.get(algorithm) == key.curve.name, f"a key on {key.curve.name}"
        case Ed25519PublicKey():
            fits, kind = algorithm == "EdDSA", "an Ed25519 key"
        case _:
            fits, kind = False, "a key of this kind"
    return None if fits else f"{algorithm} cannot be checked with {kind}"


def read_file(field: str, path: Path, *, secret: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{field}: {path} cannot be read: {error.strerror}"]) from None
    if secret and mode & stat.S_IROTH:
        raise ConfigError([f"{field}: {path} is readable by everybody (mode {mode:04o}); chmod 600 it"])
    if len(data) > MAX_BYTES:
        raise ConfigError([f"{field}: {path} is longer than {MAX_BYTES} bytes"])
    return data
