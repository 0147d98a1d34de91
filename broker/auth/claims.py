"""Read the claims of a token with a valid signature: times, user, tenant and permissions."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from broker import config, subjects
from broker.auth.parts import Integer, name_of
from broker.errors import TenantForbidden, TokenExpired, TokenInvalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ANY = "*"  # tenant, or in an entry's `issuer` or `audience`
LISTS = ("subscribe", "publish", "request", "change", "presence", "observe", "deny")
UNSAID = {"presence": config.Permissions().presence}  # what a list allows that is not there; others nothing
INFO_BYTES = 512
MAX_PATTERNS = 256  # in one list: each subscribe is compared with all
MAX_SHOWN = 4  # entries of a list, in a refusal
# A token that is not valid yet is checked again after so long at the latest: the wrong clock may be ours, and
# be corrected at any moment.
EARLY_SECONDS = 30.0


class TooEarly(Unavailable):
    """The token is not valid yet by our clock: `claim` is `ahead` seconds ahead of it."""

    def __init__(self, claim: str, ahead: float, leeway: float) -> None:
        wait = min(ahead - leeway, EARLY_SECONDS)
        super().__init__(f"{claim}: {shown(ahead)} ahead of the broker's clock", retry_after=wait)
        self.claim = claim
        self.ahead = ahead


# --- times ------------------------------------------------------------------------------------------


def good_until(claims: dict[str, Any], *, now: float, leeway: float, longest: float) -> float:
    """Return the Unix time at which a token that is presented at `now` expires.

    That is `exp` without leeway, since delivery stops then and a client could otherwise return with the same
    token. Raises `TokenExpired`, `TooEarly`, and `TokenInvalid` for a life of more than `longest` seconds, or
    for one that ends before it begins.
    """
    expires = read_time(claims, "exp")
    starts = [(read_time(claims, name), name) for name in ("nbf", "iat") if name in claims]
    if expires <= now:
        raise TokenExpired(f"exp: the token expired {shown(now - expires)} ago")
    start, name = max([*starts, (now, "")])
    if expires - start > longest + leeway:
        raise TokenInvalid(f"exp: {shown(expires - start)} away; at most {longest:g} s are allowed")
    if start - now > leeway:
        if start >= expires:
            raise TokenInvalid(f"{name}: not before exp, so the token is never valid")
        raise TooEarly(name, start - now, leeway)
    return expires


def shown(seconds: float) -> str:
    return f"{round(seconds, 1):g} s"


def read_time(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if not isinstance(value, float) or not math.isfinite(value):
        raise TokenInvalid(f"{name}: must be a time in seconds since 1970")
    return float(value)


# --- who ----------------------------------------------------------------------------------------------


def parties_fault(claims: dict[str, Any], key: config.Key) -> str | None:
    """Return why `iss` and `aud` (RFC 7519 section 4.1) do not match an entry; None when they do."""
    issuer, named = claims.get("iss"), claims.get("aud")
    if key.issuer not in (None, ANY) and issuer != key.issuer:
        return f"iss: {found(issuer)} is not {key.issuer!r}"
    audiences = named if isinstance(named, list) else [named]
    if key.audience not in (None, ANY) and key.audience not in audiences:
        verb = "does not name" if isinstance(named, list) else "is not"
        return f"aud: {found(named)} {verb} {key.audience!r}"
    return None


def found(value: object) -> str:
    """Return a claim's value for a refusal: text shortened, anything else by its type."""
    match value:
        case None:
            return "nothing"
        case str():
            return subjects.shown(value)
        case list() if all(isinstance(each, str) for each in value):
            more = ", …" if len(value) > MAX_SHOWN else ""
            return f"[{', '.join(subjects.shown(each) for each in value[:MAX_SHOWN])}{more}]"
        case bool():
            return str(value).lower()
        case Integer():
            return value.digits[:20]
        case float():
            return f"{value:g}"
    return "a list" if isinstance(value, list) else "an object"


def user_of(claims: dict[str, Any]) -> tuple[str, str]:
    """Return the user and its encoded form."""
    user = name_of(claims.get("sub"))
    if user is None:
        raise TokenInvalid(f"sub: must be text or a whole number, not {found(claims.get('sub'))}")
    return user, encode_user(user)


def encode_user(user: str) -> str:
    try:
        return subjects.encode_user(user)
    except ValueError as error:
        raise TokenInvalid(f"sub: {error}") from None


def token_id_of(claims: dict[str, Any]) -> str | None:
    token_id = claims.get("jti")
    if not isinstance(token_id, str | None):
        raise TokenInvalid("jti: must be text")
    return token_id


def info_of(claims: dict[str, Any]) -> bytes | None:
    """Return what others see of the user where it is present, as JSON."""
    if claims.get("info") is None:
        return None
    try:
        found = plain(claims["info"])
        text = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        raise TokenInvalid("info: a number that is too large, or too many levels") from None
    data = text.encode()
    if len(data) > INFO_BYTES:
        raise TokenInvalid(f"info: {len(data)} bytes of JSON; at most {INFO_BYTES}")
    return data


def plain(value: Any) -> Any:
    """Return a claim with its whole numbers as such."""
    match value:
        case Integer():
            return int(value.digits)
        case dict():
            return {name: plain(each) for name, each in value.items()}
        case list():
            return [plain(each) for each in value]
    return value


def tenant_of(claims: dict[str, Any], key: config.Key, *, claim: str, wanted: str | None) -> tuple[str, bool]:
    """Return the tenant (`wanted`, for a monitoring token), and whether it is a monitoring token.

    Where the entry fixes the tenant, a token need not name it and may not name another.
    """
    named = read_path(claims, claim_path(claim))
    if monitors(claims):
        if named is not None:
            raise TokenInvalid(f"tenants: ['*'] replaces {claim}; a token has one of the two")
        if not key.monitoring:
            raise TokenInvalid("tenants: this key may not sign monitoring tokens")
        if wanted is None:
            raise TokenInvalid("tenants: a monitoring token needs `tenant` beside it: the one to monitor")
        if not subjects.is_tenant(wanted) or not may_sign(key, wanted):
            raise TenantForbidden(f"tenant: {subjects.shown(wanted)} is not within the token's tenants")
        return wanted, True
    tenant = key.tenant if named is None else name_of(named)
    if tenant is None or not subjects.is_tenant(tenant):
        rule = "[A-Za-z0-9_-]{1,64} with no _ first"
        raise TokenInvalid(f"{claim}: must be the name of a tenant, {rule}, not {found(named)}")
    if not may_sign(key, tenant):
        raise TokenInvalid(f"{claim}: {tenant!r} may not be signed by this key")
    if wanted not in (None, tenant):
        raise TenantForbidden(f"tenant: the token is for {tenant!r} alone")
    return tenant, False


def monitors(claims: dict[str, Any]) -> bool:
    """Return whether this is a monitoring token. Any other value of `tenants` belongs to somebody else."""
    return bool(claims.get("tenants") == [ANY])


def may_sign(key: config.Key, tenant: str) -> bool:
    """Return whether the entry may sign for the tenant: one that it lists, or the one that it fixes."""
    return bool({tenant, ANY} & set(key.tenants or (key.tenant,)))


def claim_path(claim: str) -> list[str]:
    """Return the path of a claim: "app.tenant" is `tenant` within `app`. A URI (Auth0) is one name."""
    return [claim] if "://" in claim else claim.split(".")


def read_path(claims: dict[str, Any], path: list[str]) -> object:
    value: object = claims
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


# --- what it may do -----------------------------------------------------------------------------------


def permissions_of(claims: dict[str, Any]) -> dict[str, Sequence[str]] | None:
    """Return the lists in the claim `permissions`; None where the token has no such claim of ours."""
    if "permissions" not in claims or isinstance(claims["permissions"], list | str):
        return None
    claim = claims["permissions"]
    if not isinstance(claim, dict) or not claim.keys() <= set(LISTS):
        raise TokenInvalid(f"permissions: must be an object with nothing but {', '.join(LISTS)}")
    for name, patterns in claim.items():
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise TokenInvalid(f"permissions.{name}: must be a list of patterns")
        if len(patterns) > MAX_PATTERNS:
            raise TokenInvalid(f"permissions.{name}: {len(patterns)} patterns; at most {MAX_PATTERNS}")
    return {name: claim.get(name, UNSAID.get(name, ())) for name in LISTS}


def foreign(claims: dict[str, Any]) -> Iterator[str]:
    """Yield the claims that share a name with ours and mean something else.

    Auth0, WorkOS and FusionAuth have lists of their own there. An object under `permissions` is ours.
    """
    if isinstance(claims.get("permissions"), list | str):
        yield "permissions"
    if "tenants" in claims and not monitors(claims):
        yield "tenants"
