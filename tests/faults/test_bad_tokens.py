"""Bad input, tokens: each that is none is told `token_invalid` and closed with 4500, however it comes.

Left out, as the broker has no such thing yet: revocation, and what becomes of a connection whose key is
removed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.auth.forge import b64, claims, forge, jwk, private_key, public_pem, signed
from tests.auth.issuer import Issuer, key_set
from tests.auth.test_verify import HEADS, PARTIES, PAYLOADS
from tests.faults.support.rude import RUDE, Row, bad_input, listen_on, note, until
from tests.support.raw import hear, open_raw, say
from tests.web.harness import TEXT, frame, head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report

# Room for a megabyte and for 100,000 levels, so that it is not their length that they are refused for.
TOKEN_BYTES = 2_000_000
LIMITS = {"token_bytes": TOKEN_BYTES, "head_bytes": 4_000_000, "message_bytes": 8_000_000}
KINDS = ("none", "None", "NONE", "nOnE", "", "HS256 ", "hs256")
UNKNOWN_KIDS, AT_ONCE = 1000, 20
LIFE_SECONDS = 4
INVALID, EXPIRED = ("token_invalid", 4500), ("token_expired", 4002)


@attrs.frozen(kw_only=True)
class Keys:
    """What the broker of this row believes, and who would like to be believed."""

    secret: bytes
    forger: str  # an address with the forger's key

    def hs256(self, payload: dict[str, Any] | str, **head: Any) -> str:
        return forge(payload, head={"alg": "HS256", "typ": "JWT"} | head, key=self.secret)


def entries(issuer: Issuer) -> list[dict[str, Any]]:
    """Beside the secret: a PEM, one that wants its parties named, two with the same `kid`, an address."""
    public = {"name": "pem", "algorithms": ["RS256"], "pem_file": "pem", "tenants": [RUDE]}
    strict = {"issuer": "https://id.example", "audience": "broker", "pem_file": "strict", "tenants": ["acme"]}
    same = [
        {"name": name, "algorithms": ["ES512"], "jwks_file": name, "issuer": name, "tenants": [f"t-{name}"]}
        for name in ("one", "two")
    ]
    address = {
        "name": "idp",
        "algorithms": ["EdDSA"],
        "jwks_url": issuer.url,
        "issuer": "*",
        "tenants": [RUDE],
    }
    return [public, {"name": "strict", "algorithms": ["ES256"]} | strict, *same, address]


FILES = {
    "pem": public_pem("RS256").decode(),
    "strict": public_pem("ES256").decode(),
    "one": json.dumps({"keys": [jwk("ES512", 0, kid="1")]}),
    "two": json.dumps({"keys": [jwk("ES512", 1, kid="1")]}),
}


def good(**changes: Any) -> dict[str, Any]:
    return claims(**{"tenant": RUDE, "exp": int(time.time()) + 600} | changes)


def strict(changes: dict[str, Any]) -> str:
    return forge(good(tenant="acme", **changes), algorithm="ES256", key=private_key("ES256"))


def same_kid(which: int, issuer: str, tenant: str) -> str:
    payload = good(iss=issuer, tenant=tenant)
    return forge(
        payload, head={"alg": "ES512", "kid": "1"}, algorithm="ES512", key=private_key("ES512", which)
    )


def from_address(kid: str, which: int = 0, **head: Any) -> str:
    named = {"alg": "EdDSA", "kid": kid} | head
    return forge(good(), head=named, algorithm="EdDSA", key=private_key("EdDSA", which))


def confused(secret: bytes, **head: Any) -> str:
    message = f"{b64(json.dumps({'alg': 'HS256'} | head))}.{b64(json.dumps(good()))}"
    return f"{message}.{b64(hmac.new(secret, message.encode(), hashlib.sha256).digest())}"


def believed(keys: Keys) -> dict[str, str]:
    """One token of each key: what is refused below is refused for its fault alone."""
    named = {"iss": "https://id.example", "aud": "broker"}
    return {
        "the secret": keys.hs256(good()),
        "a PEM": forge(good(), algorithm="RS256", key=private_key("RS256")),
        "one with its parties": strict(named),
        "the first issuer": same_kid(0, "one", "t-one"),
        "the second issuer": same_kid(1, "two", "t-two"),
        "an address": from_address("known"),
    }


def bad(keys: Keys) -> dict[str, str]:
    """Every token that is invalid, by what is wrong with it."""
    rs256, public = private_key("RS256"), public_pem("RS256")
    payload = b64(json.dumps(good()))
    found = {f"head {given}": forge(good(), head=given, key=keys.secret) for given, _ in HEADS}
    for kind in KINDS:
        message = f"{b64(json.dumps({'alg': kind}))}.{payload}"
        found |= {f"alg {kind!r}, unsigned": f"{message}.", f"alg {kind!r}": signed(message, key=keys.secret)}
    found |= {
        f"HS256 with the public key, {kid}": confused(secret, **kid)
        for secret in (public, public.strip())
        for kid in ({}, {"kid": "pem"}, {"kid": "main"})
    }
    found |= {
        f"{name} with a key for RS256": forge(good(), algorithm=name, key=rs256)
        for name in ("RS384", "PS256")
    }
    found["HS512"] = forge(good(), algorithm="HS512", key=keys.secret)
    found |= {f"parties {named}": strict(named) for named, told in PARTIES if told}
    found |= {f"claims {changes}": keys.hs256(good(**changes)) for changes in bad_claims(time.time())}
    for number in ("NaN", "Infinity", "1e999", "9" * 5000):
        text = json.dumps(good(exp=1)).replace('"exp": 1', f'"exp": {number}')
        found[f"exp {number[:9]}"] = keys.hs256(text)
    for text, _ in PAYLOADS:
        found[f"payload {text[:30]}"] = keys.hs256(text)
        found[f"head {text[:30]}"] = forge(good(), head=text, key=keys.secret)
    found |= {
        "issuer of the other key": same_kid(0, "two", "t-two"),
        "tenant of the other key": same_kid(0, "one", "t-two"),
        "a key of the other issuer": same_kid(1, "one", "t-one"),
        "jku": from_address("known", 1, jku=keys.forger),
        "x5u": from_address("known", 1, x5u=keys.forger),
        "jwk": from_address("known", 1, jwk=jwk("EdDSA", 1, kid="known")),
        "another secret": forge(good(), key=b"t" * 64),
    }
    token = keys.hs256(good())
    for part in range(3):
        for change in ("{}=", "{}==", "={}", "{}!", "{}A", "{}\u00e9"):
            parts = token.split(".")
            parts[part] = change.format(parts[part])
            found[f"part {part} as {change}"] = ".".join(parts)
    found |= {
        f"text {text[:9]!r}": text for text in (".", "..", "a.b", "....", "a.b.c.d", "\u00e9.\u00e9.\u00e9")
    }
    return found | {"1 MB": "x" * 1_000_000, "over the limit": token + "x" * TOKEN_BYTES}


def bad_claims(now: float) -> list[dict[str, Any]]:
    times: list[Any] = [..., None, str(now + 60), True, [now + 60], 10**400, now + 86400 * 365]
    return [
        *({"exp": each} for each in times),
        *({"nbf": each} for each in (now + 900, "soon", None)),  # never good: not before it has expired
        {"iat": "now"},
        *({"sub": each} for each in (..., True, 5.5, -5, None, "", "\u00e9" * 129)),
        *({"tenant": each} for each in (..., True, -5, "_all", "_broker", "a.b", "*", "", "t" * 65)),
        {"tenants": ["*"]},
        {"tenants": ["*"], "tenant": ...},
        {"tenants": ["acme"], "tenant": ...},
        {"permissions": {"subscribe": ["a..b"]}},
        {"permissions": {"admin": [">"]}},
        {"permissions": None},
    ]


async def by_message(row: Row, token: str) -> tuple[tuple[str, ...], int | None]:
    """What a client is told that sends the token as a message."""
    async with open_raw(row.url) as client:
        await client.upgrade()
        await say(client, "authenticate", {"token": token})
        told = await listen_on(client)
    return told.errors, told.close


async def by_header(row: Row, token: str) -> tuple[tuple[str, ...], int | None]:
    told = await row.told(head(authorization=f"Bearer {token}"))
    return told.errors, told.close


@pytest.mark.fault("tokens")
async def test_bad_tokens(open_world: OpenWorld, report: Report) -> None:
    """Each bad token is refused as invalid, in a header and in a message; those of the keys are believed."""
    issuer, forger = Issuer(key_set(jwk("EdDSA", kid="known"))), Issuer(key_set(jwk("EdDSA", 1, kid="known")))
    async with trio.open_nursery() as nursery:
        for each in (issuer, forger):
            serve = partial(trio.serve_tcp, each.serve, 0, host="127.0.0.1")
            (listener,) = await nursery.start(serve)
            each.port = listener.socket.getsockname()[1]
        async with (
            open_world(churning=0, keys=entries(issuer), files=FILES, limits=LIMITS) as world,
            bad_input(world) as row,
        ):
            secret = Path(world.broker.directory, "secret").read_bytes()
            keys = Keys(secret=secret, forger=forger.url)
            for name, token in believed(keys).items():
                async with open_raw(row.url) as client:
                    await client.upgrade(head(authorization=f"Bearer {token}"))
                    await until(client, "connection.authenticated")
                await row.works(name)
            await refused(row, bad(keys), *INVALID)
            await refused(row, {"expired": keys.hs256(good(exp=time.time() - 60))}, *EXPIRED)
            await not_even_json(row)
            await unknown_kids(row, issuer, forger.url)
            await expiry(row, keys)
            assert forger.requests == []
        nursery.cancel_scope.cancel()
    note(report, "tokens", row)


async def refused(row: Row, tokens: Mapping[str, str], error: str, code: int) -> None:
    """In a message, and in a header where one can hold it."""
    for name, token in tokens.items():
        assert await by_message(row, token) == ((error,), code), name
        if token.isascii() and token.isprintable():
            assert await by_header(row, token) == ((error,), code), name
        await row.works(name)


async def not_even_json(row: Row) -> None:
    """A lone surrogate in the message itself is no token yet, so it is a bad message and ends nothing."""
    async with row.member("surrogate") as client:
        await client.send(frame(TEXT, b'{"type":"authenticate","payload":{"token":"\\ud800.."}}'))
        assert (await hear(client))["payload"]["code"] == "bad_message"
        await say(client, "ping")
        await until(client, "pong")
    await row.works("a lone surrogate")


async def not_yet(row: Row, token: str) -> tuple[str, bool]:
    """What a client is told whose token nobody can judge yet, and whether that says when to come again."""
    async with open_raw(row.url) as client:
        await client.upgrade(head(authorization=f"Bearer {token}"))
        error = await until(client, "error")
        await say(client, "ping")
        await until(client, "pong")  # it is not closed for that
        return error["code"], error["retryable"] and 0 < error["retry_after_ms"] <= 60_000


async def unknown_kids(row: Row, issuer: Issuer, forger: str) -> None:
    """A thousand tokens with a `kid` each that nobody knows let nobody in, and cause hardly a fetch.

    They are not refused for good, since such a key may be new: they may come again in less than a minute.
    """
    before = len(issuer.requests)
    told = set()

    async def some(first: int) -> None:
        for number in range(first, UNKNOWN_KIDS, AT_ONCE):
            brought = {} if number % 2 else {"jku": forger}
            told.add(await not_yet(row, from_address(f"unknown{number}", 1, **brought)))

    async with trio.open_nursery() as nursery:
        for first in range(AT_ONCE):
            nursery.start_soon(some, first)
        await row.works("unknown kids, while they come")
    assert told == {("unavailable", True)}
    assert len(issuer.requests) <= before + 2  # one for each minute that this may take
    await row.works("unknown kids")


async def expiry(row: Row, keys: Keys) -> None:
    """At `exp` a client that is at work is told so, and closed with 4002; until then it is served."""
    async with open_raw(row.url) as client:
        token = keys.hs256(good(exp=int(time.time()) + LIFE_SECONDS))
        await client.upgrade(head(authorization=f"Bearer {token}"))
        await until(client, "connection.authenticated")
        await say(client, "subscribe", {"channel": ">"})
        await until(client, "subscribed")
        told = await listen_on(client)
    assert (told.errors, told.close) == ((EXPIRED[0],), EXPIRED[1])
    await row.works("expiry")
