"""From a JWT to a `Principal`, and for development and tests the other way (RFC 7519, RFC 8725).

PyJWT checks signatures. The rest is ours, because PyJWT takes what the broker does not: an `exp` years
away, a claim that stands twice, base64 that is not canonical, any `typ`. The payload is not even parsed
before the signature held, so a message never shows what nobody vouched for.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import secrets
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
import jwt

from broker import config, subjects
from broker.auth.keys import algorithms_of, read_secret
from broker.errors import ConfigError, InvalidChannel, TenantForbidden, TokenExpired, TokenInvalid
from broker.permissions import Principal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.auth.keys import Keys, Passed, VerifyingKey

MAX_PATTERNS = 256  # in one list: each subscribe is compared with all of them
LISTS = ("subscribe", "publish", "deny")
EVERY_TENANT = "*"
# What a verification looks at, in this order. The one at which it fails is the first that has not passed.
STEPS = ("token", "key", "signature", "times", "parties", "user", "tenant", "permissions")
USER, TENANT = "{user}", "{tenant}"


def unheard(_step: str, _found: str) -> None:
    """Nobody asks why."""


@attrs.frozen
class Verifier:
    """Decides which tokens are believed. Raises `ConfigError` for a bad claim path or default pattern."""

    auth: config.Auth
    limits: config.Limits
    permissions: config.Permissions
    keys: Keys

    def __attrs_post_init__(self) -> None:
        faults = []
        if not all(claim_path(self.auth.tenant_claim)) or self.auth.tenant_claim == "tenants":
            faults.append(f"auth.tenant_claim: {self.auth.tenant_claim!r} is no path to a tenant's name")
        for name in LISTS:
            for index, pattern in enumerate(getattr(self.permissions, name)):
                try:
                    fill(pattern, room="user", tenant="tenant")
                except InvalidChannel as error:
                    faults.append(f"permissions.{name}.{index}: {error.message}")
        if faults:
            raise ConfigError(faults)

    async def verify(
        self, token: str, *, now: float, tenant: str | None = None, passed: Passed = unheard
    ) -> Principal:
        """The principal of `token` at the Unix time `now`; `tenant` is the one that the client asks for.

        `passed` hears of each of the `STEPS` that holds, with what was found; never of a secret.

        Does not wait unless the token names an unknown key that an address may have by now. Raises
        `TokenInvalid`, `TokenExpired`, `TenantForbidden`, or `Unavailable` when that address is down.
        """
        if not token.isascii() or len(token) > self.limits.token_bytes:
            raise TokenInvalid(f"the token is not ASCII, or longer than {self.limits.token_bytes} bytes")
        parts = token.split(".")
        if len(parts) != 3:
            raise TokenInvalid(f"a token has three parts (RFC 7515 section 3.1), not {len(parts)}")
        algorithm, kid = self.read_head(read_object(parts[0], "head"))
        message, signature = token.rpartition(".")[0].encode(), decode(parts[2], "signature")
        passed("token", f"alg {algorithm}, kid {'missing' if kid is None else subjects.shown(kid)}")
        key = await self.keys.signer(algorithm, kid, message, signature, passed)
        passed("key", key.entry.name)
        passed("signature", "matches")
        return self.principal(read_object(parts[1], "payload"), key, now, tenant, passed)

    def again(self, held: Principal) -> Principal:
        """A principal under this configuration, which it was not verified with.

        Raises `TokenInvalid` where its token would not be believed any more: another key, or one that may
        not sign for the tenant. How long tokens may live is not asked again.
        """
        key = self.keys.successor(held.signer)
        if key is None or not may_sign(key.entry, held.tenant) or held.monitoring > key.entry.monitoring:
            raise TokenInvalid("the key of the token is not believed any more")
        now: dict[str, Any] = {"signer": key}
        if held.standard:
            now |= self.patterns({}, held.room, held.tenant, held.monitoring)
        return attrs.evolve(held, **now)

    def read_head(self, head: dict[str, Any]) -> tuple[str, str | None]:
        """`alg` and `kid`. Addresses and keys that a head may bring along are not looked at."""
        if "crit" in head:
            raise TokenInvalid("crit: the broker understands no extension (RFC 7515 section 4.1.11)")
        kind = head.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() != self.auth.type.lower():
            raise TokenInvalid(f"typ: must be {self.auth.type!r}")
        algorithm, kid = head.get("alg"), head.get("kid")
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):
            raise TokenInvalid("alg, kid: must be text")
        return algorithm, kid

    def principal(
        self, claims: dict[str, Any], key: VerifyingKey, now: float, wanted: str | None, passed: Passed
    ) -> Principal:
        expires_at = self.check_times(claims, now)
        passed("times", f"expires in {expires_at - now:.0f} s")
        check_parties(claims, key.entry)
        passed("parties", f"issuer {key.entry.issuer or 'any'}, audience {key.entry.audience or 'any'}")
        user, token_id = claims.get("sub"), claims.get("jti")
        if not isinstance(user, str) or not isinstance(token_id, str | None):
            raise TokenInvalid("sub, jti: must be text")
        room = encode_user(user)
        passed("user", room)
        tenant, monitoring = self.choose_tenant(claims, key.entry, wanted)
        passed("tenant", f"{tenant}, chosen by a monitoring token" if monitoring else tenant)
        patterns = self.patterns(claims, room, tenant, monitoring)
        passed("permissions", "the token's own" if "permissions" in claims else "the defaults")
        return Principal(
            tenant=tenant,
            user=user,
            room=room,
            expires_at=expires_at,
            monitoring=monitoring,
            token_id=token_id,
            issued_at=read_time(claims, "iat") if "iat" in claims else None,
            signer=key,
            standard="permissions" not in claims,
            **patterns,
        )

    def patterns(
        self, claims: dict[str, Any], room: str, tenant: str, monitoring: bool
    ) -> dict[str, tuple[str, ...]]:
        """What may be subscribed and published, and what is denied."""
        found = {
            name: fill_all(listed, f"permissions.{name}", room=room, tenant=tenant)
            for name, listed in self.read_permissions(claims).items()
        }
        return found | {"publish": ()} if monitoring else found

    def check_times(self, claims: dict[str, Any], now: float) -> float:
        """`exp`. There is no leeway after it, since delivery stops at it."""
        leeway = self.auth.leeway
        expires_at = read_time(claims, "exp")
        if expires_at <= now:
            raise TokenExpired(f"exp: the token expired {now - expires_at:.6g} s ago")
        if expires_at - now > self.limits.token_max_seconds + leeway:
            raise TokenInvalid(
                f"exp: {expires_at - now:.6g} s away; at most {self.limits.token_max_seconds:g} s are allowed"
            )
        for name in ("nbf", "iat"):
            if name in claims and (ahead := read_time(claims, name) - now) > leeway:
                raise TokenInvalid(f"{name}: still {ahead:.6g} s in the future")
        return expires_at

    def choose_tenant(self, claims: dict[str, Any], key: config.Key, wanted: str | None) -> tuple[str, bool]:
        """The tenant, and whether the token is one for monitoring, which takes the tenant asked for."""
        name, tenant = self.auth.tenant_claim, read_path(claims, claim_path(self.auth.tenant_claim))
        if "tenants" in claims:
            if tenant is not None or claims["tenants"] != [EVERY_TENANT]:
                raise TokenInvalid(f"tenants: may only be ['*'], and stands instead of {name}")
            if not key.monitoring:
                raise TokenInvalid("tenants: this key may not sign monitoring tokens")
            if wanted is None:
                raise TokenInvalid("tenants: a monitoring token needs `tenant` beside it, the one to look at")
            if not subjects.is_tenant(wanted) or not may_sign(key, wanted):
                raise TenantForbidden(f"tenant: {subjects.shown(wanted)} is not within the token's tenants")
            return wanted, True
        if not isinstance(tenant, str) or not subjects.is_tenant(tenant):
            raise TokenInvalid(f"{name}: must be the name of a tenant, [A-Za-z0-9_-]{{1,64}} with no _ first")
        if not may_sign(key, tenant):
            raise TokenInvalid(f"{name}: {tenant!r} may not be signed by this key")
        if wanted not in (None, tenant):
            raise TenantForbidden(f"tenant: the token is for {tenant!r} alone")
        return tenant, False

    def read_permissions(self, claims: dict[str, Any]) -> dict[str, Sequence[str]]:
        """The lists of the claim, which replaces the defaults as a whole; else the defaults."""
        if "permissions" not in claims:
            return {name: getattr(self.permissions, name) for name in LISTS}
        claim = claims["permissions"]
        if not isinstance(claim, dict) or not claim.keys() <= set(LISTS):
            raise TokenInvalid(f"permissions: must be an object with nothing but {', '.join(LISTS)}")
        for name, patterns in claim.items():
            if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
                raise TokenInvalid(f"permissions.{name}: must be a list of patterns")
            if len(patterns) > MAX_PATTERNS:
                raise TokenInvalid(f"permissions.{name}: {len(patterns)} patterns; at most {MAX_PATTERNS}")
        return {name: claim.get(name, ()) for name in LISTS}


def check_parties(claims: dict[str, Any], key: config.Key) -> None:
    """`iss` and `aud`, where the key's entry says what they must be (RFC 7519 section 4.1)."""
    if key.issuer is not None and claims.get("iss") != key.issuer:
        raise TokenInvalid(f"iss: must be {key.issuer!r}")
    named = claims.get("aud")
    if key.audience is not None and key.audience not in (named if isinstance(named, list) else [named]):
        raise TokenInvalid(f"aud: must name {key.audience!r}")


def encode_user(user: str) -> str:
    try:
        return subjects.encode_user(user)
    except ValueError as error:
        raise TokenInvalid(f"sub: {error}") from None


def may_sign(key: config.Key, tenant: str) -> bool:
    return tenant in key.tenants or EVERY_TENANT in key.tenants


def claim_path(claim: str) -> list[str]:
    """Where the claim stands: "app.tenant" is `tenant` within `app`. A URI (Auth0 has them) is one name."""
    return [claim] if "://" in claim else claim.split(".")


def read_path(claims: dict[str, Any], path: list[str]) -> object:
    value: object = claims
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def read_time(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if not isinstance(value, float) or not math.isfinite(value):
        raise TokenInvalid(f"{name}: must be a time in seconds since 1970")
    return value


def read_object(part: str, where: str) -> dict[str, Any]:
    """The JSON object in a part of a token. Numbers become floats, so one too large is infinite."""
    try:
        value = json.loads(
            decode(part, where).decode(),
            object_pairs_hook=unique,
            parse_int=float,
            parse_constant=no_number,
        )
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate passes as an escape, but not here
    except UnicodeError:
        raise TokenInvalid(f"{where}: holds invalid Unicode") from None
    except RecursionError:
        raise TokenInvalid(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise TokenInvalid(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise TokenInvalid(f"{where}: not a JSON object")
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def no_number(_text: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def decode(part: str, where: str) -> bytes:
    """Base64url as RFC 7515 section 2 has it: no padding, nothing ignored, one way to write each value."""
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        data = b""
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode():
        raise TokenInvalid(f"{where}: not canonical base64url without padding")
    return data


def fill_all(patterns: Sequence[str], where: str, *, room: str, tenant: str) -> tuple[str, ...]:
    try:
        filled = tuple(fill(pattern, room=room, tenant=tenant) for pattern in patterns)
        # The defaults are shared by all clients, where nothing in them depends on who it is.
        return patterns if isinstance(patterns, tuple) and patterns == filled else filled
    except InvalidChannel as error:
        raise TokenInvalid(f"{where}: {error.message}") from None


def fill(pattern: str, *, room: str, tenant: str) -> str:
    """`pattern` with the encoded user and the tenant for its placeholders, and `me.` as a room.

    Raises `InvalidChannel` when that gives no pattern. A user called "users" or "live" must not turn
    `{user}.>` into everybody's private channels.
    """
    values = {USER: room, TENANT: tenant}
    tokens = subjects.expand_me(pattern, USER).split(".")
    filled = [values.get(token, token) for token in tokens]
    for index, token in enumerate(tokens):
        if token in values and subjects.walled(filled, index):
            raise InvalidChannel(f"{subjects.shown(pattern)}: {token} would open the room {filled[index]!r}")
        if token not in values and ("{" in token or "}" in token):
            raise InvalidChannel(f"{subjects.shown(pattern)}: only {USER} and {TENANT}, as whole tokens")
    return subjects.parse_pattern(".".join(filled))


def sign(
    auth: config.Auth,
    *,
    tenant: str,
    user: str,
    now: float,
    ttl: float,
    subscribe: Sequence[str] | None = None,
    publish: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
) -> str:
    """A token from `now` on for `ttl` seconds, signed with the first secret that may sign for `tenant`.

    The tenant "*" makes a monitoring token. Without any list of patterns the broker's defaults hold.
    Raises `ConfigError` when no key will do, `TokenInvalid` when the broker would not believe the token.
    """
    key = signing_key(auth, tenant)
    given = {"subscribe": subscribe, "publish": publish, "deny": deny}
    permissions = {name: list(listed) for name, listed in given.items() if listed is not None}
    room = encode_user(user)
    for name, listed in permissions.items():
        fill_all(listed, name, room=room, tenant=tenant)
    claims: dict[str, Any] = {
        "jti": secrets.token_hex(8),
        "sub": user,
        "iat": int(now),
        "exp": int(now + ttl),
    }
    claims |= {"tenants": [tenant]} if tenant == EVERY_TENANT else nest(claim_path(auth.tenant_claim), tenant)
    claims |= {"iss": key.issuer} if key.issuer is not None else {}
    claims |= {"aud": key.audience} if key.audience is not None else {}
    claims |= {"permissions": permissions} if permissions else {}
    head = {"kid": key.name, "typ": auth.type}
    return jwt.encode(claims, read_secret(key), algorithm=algorithms_of(key)[0], headers=head)


def signing_key(auth: config.Auth, tenant: str) -> config.Key:
    if tenant != EVERY_TENANT and not subjects.is_tenant(tenant):
        raise TokenInvalid(f"tenant: {subjects.shown(tenant)} is no name of a tenant")
    for key in auth.keys:
        secret = key.secret is not None or key.secret_file is not None
        if secret and (key.monitoring if tenant == EVERY_TENANT else may_sign(key, tenant)):
            return key
    raise ConfigError([f"auth.keys: no secret among them may sign for the tenant {tenant!r}"])


def nest(path: list[str], value: object) -> dict[str, Any]:
    name, *rest = path
    return {name: nest(rest, value) if rest else value}
