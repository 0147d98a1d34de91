"""From a JWT to a `Principal`, and for development and tests the other way (RFC 7519, RFC 8725).

PyJWT checks signatures. The rest is ours, because PyJWT accepts what the broker does not: an `exp` years
away, a duplicate claim, base64 that is not canonical, any `typ`. The payload is not parsed before the
signature is valid, so a message never shows unsigned content.
"""

from __future__ import annotations

import secrets
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs
import jwt
import structlog

from broker import config, subjects
from broker.auth.claims import (
    ANY,
    LISTS,
    TooEarly,
    claim_path,
    encode_user,
    foreign,
    found,
    good_until,
    info_of,
    may_sign,
    parties_fault,
    permissions_of,
    read_time,
    tenant_of,
    token_id_of,
    user_of,
)
from broker.auth.parts import decode, read_object
from broker.auth.remembered import Remembered
from broker.auth.signatures import Signed
from broker.auth.sources import algorithms_of, read_secret
from broker.errors import ConfigError, InvalidChannel, TokenInvalid
from broker.permissions import Principal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.auth.keys import Keys, Passed
    from broker.auth.signatures import VerifyingKey

# The steps of a verification, in order. The one that fails is the first that has not passed.
STEPS = ("token", "key", "signature", "parties", "times", "user", "tenant", "permissions")
USER, TENANT = "{user}", "{tenant}"
IGNORED = {  # claims of others that share a name with ours, and what to tell the operator
    "permissions": "a list or text is not ours; these tokens have the permissions of [permissions]",
    "tenants": 'only ["*"] is ours; the tenant is read from auth.tenant_claim',
}

log = structlog.get_logger()


def unheard(_step: str, _found: str) -> None:
    """Ignore the steps of a verification."""


@attrs.frozen
class Verifier:
    """Verifier of tokens. Raises `ConfigError` for an invalid claim path or default pattern."""

    auth: config.Auth
    limits: config.Limits
    permissions: config.Permissions
    keys: Keys
    warned: set[tuple[str, str]] = attrs.field(factory=set, eq=False, repr=False)  # warnings given
    remembered: Remembered = attrs.field(factory=Remembered, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        faults = []
        if not all(claim_path(self.auth.tenant_claim)) or self.auth.tenant_claim == "tenants":
            faults.append(f"auth.tenant_claim: {self.auth.tenant_claim!r} is not a path to a tenant's name")
        for name in LISTS:
            for index, pattern in enumerate(getattr(self.permissions, name)):
                try:
                    fill(pattern, user="user", tenant="tenant")
                except InvalidChannel as error:
                    faults.append(f"permissions.{name}.{index}: {error.message}")
        if not self.auth.type:
            faults.append("auth.type: name what `typ` may be, such as 'JWT'")
        if faults:
            raise ConfigError(faults)

    async def verify(
        self, token: str, *, now: float, tenant: str | None = None, passed: Passed = unheard
    ) -> Principal:
        """Return the principal of `token` at the Unix time `now`; `tenant` is the one that the client
        requests.

        `passed` is called for each of the `STEPS` that passes, with what was found, never with a secret.
        Without it, a token that was verified lately is not verified again.

        Waits only if the token names an unknown key that an address may have by now. Raises `TokenInvalid`,
        `TokenExpired`, `TenantForbidden`, or `Unavailable` when that address cannot be fetched.
        """
        if not token.isascii() or len(token) > self.limits.token_bytes:
            raise TokenInvalid(f"the token is not ASCII, or longer than {self.limits.token_bytes} bytes")
        if passed is unheard:
            known = self.remembered.find(token, tenant, now=now, keys=self.keys.sets())
            if known is not None:
                return known
        began, parts = time.monotonic(), token.split(".")
        if len(parts) != 3:
            raise TokenInvalid(f"a token has three parts (RFC 7515 section 3.1), not {len(parts)}")
        algorithm, kid = self.read_head(read_object(parts[0], "head"))
        signed = Signed(
            algorithm=algorithm,
            kid=kid,
            message=token.rpartition(".")[0].encode(),
            signature=decode(parts[2], "signature"),
        )
        passed("token", f"alg {algorithm}, kid {'missing' if kid is None else subjects.shown(kid)}")
        claims = cache(lambda: read_object(parts[1], "payload"))
        key = await self.keys.signer(signed, lambda entry: parties_fault(claims(), entry), passed)
        entry = key.entry
        passed("parties", f"issuer {entry.issuer or 'any'}, audience {entry.audience or 'any'}")
        now += time.monotonic() - began  # a key may have been waited for
        principal = self.principal(claims(), key, now, tenant, passed)
        self.remembered.add(token, tenant, principal, now=now, keys=self.keys.sets())
        return principal

    def again(self, held: Principal) -> Principal:
        """Return a principal as it is under this configuration; it was verified under another one.

        Raises `TokenInvalid` when its token would not be accepted any more: its key is gone, or may not
        sign for the tenant. The lifetime is not checked again.
        """
        key = self.keys.successor(held.signer)
        if key is None or not may_sign(key.entry, held.tenant) or held.monitoring > key.entry.monitoring:
            raise TokenInvalid("the key of the token is not accepted any more")
        now: dict[str, Any] = {"signer": key}
        if held.standard:
            now |= self.patterns(None, held.encoded_user, held.tenant, held.monitoring)
        return attrs.evolve(held, **now)

    def read_head(self, head: dict[str, Any]) -> tuple[str, str | None]:
        """Return `alg` and `kid`. Addresses and keys within a head are ignored."""
        if "crit" in head:
            raise TokenInvalid("crit: the broker supports no extension (RFC 7515 section 4.1.11)")
        kind = head.get("typ", "JWT")
        if not isinstance(kind, str) or media_type(kind) not in map(media_type, self.auth.type):
            raise TokenInvalid(f"typ: {found(kind)} is not {' or '.join(map(repr, self.auth.type))}")
        algorithm, kid = head.get("alg"), head.get("kid")
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):
            raise TokenInvalid("alg, kid: must be text")
        return algorithm, kid

    def principal(
        self, claims: dict[str, Any], key: VerifyingKey, now: float, wanted: str | None, passed: Passed
    ) -> Principal:
        expires_at = self.expiry(claims, key.entry, now)
        passed("times", f"good for another {expires_at - now:.0f} s")
        (user, encoded_user), token_id = user_of(claims), token_id_of(claims)
        passed("user", encoded_user)
        tenant, monitoring = tenant_of(claims, key.entry, claim=self.auth.tenant_claim, wanted=wanted)
        passed("tenant", f"{tenant}, chosen by a monitoring token" if monitoring else tenant)
        listed, others = permissions_of(claims), list(foreign(claims))
        patterns = self.patterns(listed, encoded_user, tenant, monitoring)
        beside = f"; its {' and '.join(others)} mean something else and are ignored" if others else ""
        passed("permissions", ("the defaults" if listed is None else "the token's own") + beside)
        for name in others:
            self.warn_once(key.entry, name, "claim_ignored", claim=name, next=IGNORED[name])
        return Principal(
            tenant=tenant,
            user=user,
            encoded_user=encoded_user,
            expires_at=expires_at,
            life=expires_at - now,
            monitoring=monitoring,
            info=info_of(claims),
            token_id=token_id,
            issued_at=read_time(claims, "iat") if "iat" in claims else None,
            signer=key,
            standard=listed is None,
            **patterns,
        )

    def expiry(self, claims: dict[str, Any], entry: config.Key, now: float) -> float:
        """Return as `good_until`, and log tokens that are ahead of our clock."""
        longest = self.limits.token_max_seconds
        try:
            expires_at = good_until(claims, now=now, leeway=self.auth.leeway, longest=longest)
        except TooEarly as early:
            self.warn_once(
                entry, "ahead", "token_ahead_of_clock",
                claim=early.claim, ahead_seconds=round(early.ahead),
                next="compare the clock of this machine (timedatectl) with the issuer's",
            )  # fmt: skip
            raise
        self.warned.discard((entry.name, "ahead"))
        return expires_at

    def warn_once(self, entry: config.Key, about: str, event: str, **more: object) -> None:
        if (entry.name, about) not in self.warned:
            self.warned.add((entry.name, about))
            log.warning(event, key=entry.name, **more)

    def patterns(
        self, listed: Mapping[str, Sequence[str]] | None, encoded_user: str, tenant: str, monitoring: bool
    ) -> dict[str, tuple[str, ...]]:
        """Return the patterns by the names of `LISTS`: those in `listed`, else the defaults."""
        if listed is None:
            listed = {name: getattr(self.permissions, name) for name in LISTS}
        filled = {
            name: fill_all(each, f"permissions.{name}", user=encoded_user, tenant=tenant)
            for name, each in listed.items()
        }
        if monitoring:
            filled |= dict.fromkeys(("publish", "request", "change", "presence"), ())
        return filled


def media_type(kind: str) -> str:
    """Return `typ` in lower case and without "application/" (RFC 7515 section 4.1.9), for comparison."""
    return kind.lower().removeprefix("application/")


def fill_all(patterns: Sequence[str], where: str, *, user: str, tenant: str) -> tuple[str, ...]:
    try:
        filled = tuple(fill(pattern, user=user, tenant=tenant) for pattern in patterns)
        # The defaults are shared by all clients, where nothing in them depends on who it is.
        return patterns if isinstance(patterns, tuple) and patterns == filled else filled
    except InvalidChannel as error:
        raise TokenInvalid(f"{where}: {error.message}") from None


def fill(pattern: str, *, user: str, tenant: str) -> str:
    """Return `pattern` with the encoded user and the tenant for its placeholders, and `me.` written out.

    Raises `InvalidChannel` when the result is not a pattern. A user called "users" or "live" must not turn
    `{user}.>` into everybody's private channels.
    """
    values = {USER: user, TENANT: tenant}
    tokens = subjects.expand_me(pattern, USER).split(".")
    filled = [values.get(token, token) for token in tokens]
    for index, token in enumerate(tokens):
        if token in values and subjects.walled(filled, index):
            raise InvalidChannel(
                f"{subjects.shown(pattern)}: {token} would be the reserved name {filled[index]!r}"
            )
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
    request: Sequence[str] | None = None,
    change: Sequence[str] | None = None,
    presence: Sequence[str] | None = None,
    observe: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
    info: object = None,
) -> str:
    """Return a token that is valid from `now` for `ttl` seconds, signed with the first suitable secret.

    The tenant "*" makes a monitoring token. Without any list of patterns the broker's defaults apply. `info`
    is what others see of the user where it is present. Raises `ConfigError` when no key is suitable,
    `TokenInvalid` when the broker would refuse the token.
    """
    key = signing_key(auth, tenant)
    given = {
        "subscribe": subscribe, "publish": publish, "request": request, "change": change,
        "presence": presence, "observe": observe, "deny": deny,
    }  # fmt: skip
    permissions = {name: list(listed) for name, listed in given.items() if listed is not None}
    encoded_user = encode_user(user)
    for name, listed in permissions.items():
        fill_all(listed, name, user=encoded_user, tenant=tenant)
    claims: dict[str, Any] = {
        "jti": secrets.token_hex(8),
        "sub": user,
        "iat": int(now),
        "exp": int(now + ttl),
    }
    claims |= {"tenants": [tenant]} if tenant == ANY else nest(claim_path(auth.tenant_claim), tenant)
    claims |= {"iss": key.issuer} if key.issuer not in (None, ANY) else {}
    claims |= {"aud": key.audience} if key.audience not in (None, ANY) else {}
    claims |= {"permissions": permissions} if permissions else {}
    claims |= {} if info is None else {"info": info}
    head = {"kid": key.name, "typ": auth.type[0]}
    return jwt.encode(claims, read_secret(key), algorithm=algorithms_of(key)[0], headers=head)


def signing_key(auth: config.Auth, tenant: str) -> config.Key:
    if tenant != ANY and not subjects.is_tenant(tenant):
        raise TokenInvalid(f"tenant: {subjects.shown(tenant)} is not a tenant name")
    for key in auth.keys:
        secret = key.secret is not None or key.secret_file is not None
        if secret and (key.monitoring if tenant == ANY else may_sign(key, tenant)):
            return key
    raise ConfigError([f"auth.keys: no secret among them may sign for the tenant {tenant!r}"])


def nest(path: list[str], value: object) -> dict[str, Any]:
    name, *rest = path
    return {name: nest(rest, value) if rest else value}
