"""Keys from an address: real HTTP on loopback, from an issuer that also behaves badly."""

from __future__ import annotations

import ssl
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing
import trustme
from structlog.testing import capture_logs

from broker import config
from broker.auth.jwks import BACKOFF, MAX_MISSED, Timing
from broker.auth.keys import Keys
from broker.auth.tokens import Verifier
from broker.errors import TokenInvalid, Unavailable
from tests.auth.forge import NOW, claims, forge, jwk, private_key
from tests.auth.issuer import Issuer, document, endless, key_set, raw, response, silence, trickle

if TYPE_CHECKING:
    from pathlib import Path

    from broker.auth.jwks import Remote
    from broker.auth.signatures import VerifyingKey

ALGORITHMS = ("RS256", "ES256", "EdDSA")
PATIENT = Timing(apart_seconds=0.0, fetch_seconds=30.0)  # each unknown key causes a fetch
EAGER = attrs.evolve(PATIENT, settled_seconds=0.0)  # which decides
HASTY = attrs.evolve(PATIENT, fetch_seconds=0.2)  # and is not waited for long


@pytest.fixture
async def issuer(nursery: trio.Nursery) -> Issuer:
    """An issuer with one RSA key, kid "a"."""
    return await listening(nursery, jwk("RS256", kid="a"))


async def listening(nursery: trio.Nursery, *keys: dict[str, Any]) -> Issuer:
    found = Issuer(key_set(*keys))
    (listener,) = await nursery.start(partial(trio.serve_tcp, found.serve, 0, host="127.0.0.1"))
    found.port = listener.socket.getsockname()[1]
    return found


def believer(url: str, timing: Timing | None = None) -> Verifier:
    key = config.Key(name="idp", algorithms=ALGORITHMS, jwks_url=url, audience="*", tenants=("acme",))
    auth = config.Auth(keys=(key,))
    return Verifier(auth, config.Limits(), config.Permissions(), Keys.load(auth, timing=timing))


async def started(url: str, nursery: trio.Nursery, timing: Timing | None = None) -> Verifier:
    """A verifier that fetches, and has the first answer."""
    found = believer(url, timing)
    await nursery.start(found.keys.run)
    await remote(found).refresh()
    return found


def remote(verifier: Verifier) -> Remote:
    (found,) = verifier.keys.remotes
    return found


def token(kid: str | None = "a", algorithm: str = "RS256", which: int = 0, **head: Any) -> str:
    named = {} if kid is None else {"kid": kid}
    return forge(
        head={"alg": algorithm, **named, **head}, algorithm=algorithm, key=private_key(algorithm, which)
    )


async def test_keys_of_all_kinds(issuer: Issuer, nursery: trio.Nursery) -> None:
    """Keys that an address publishes check tokens, with a `kid` and without; one request brings them."""
    issuer.publish(*(jwk(name, kid=name) for name in ALGORITHMS))
    verifier = await started(issuer.url, nursery)
    for name in ALGORITHMS:
        for kid in (name, None):
            assert (await verifier.verify(token(kid, name), now=NOW)).user == "alice"
    assert len(issuer.requests) == 1
    assert issuer.requests[0].startswith(b"GET /jwks?v=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nUser-Agent: nats-websocket-broker/" in issuer.requests[0]


@pytest.mark.parametrize("kid", ["a", None])
async def test_first_token_waits_for_the_first_answer(
    issuer: Issuer, nursery: trio.Nursery, kid: str | None
) -> None:
    """Who comes while the keys are first fetched is neither refused nor causes a second fetch."""
    verifier = believer(issuer.url)
    nursery.start_soon(verifier.keys.run)
    assert (await verifier.verify(token(kid), now=NOW)).user == "alice"
    assert len(issuer.requests) == 1


async def test_a_thousand_unknown_kids(issuer: Issuer, nursery: trio.Nursery) -> None:
    """Unknown keys cause no fetch within a minute of the last one, and known keys go on.

    Who names one is told to come again when the next fetch may be, and little is kept of it.
    """
    verifier = await started(issuer.url, nursery)
    for number in range(MAX_MISSED + 10):
        with pytest.raises(Unavailable, match=f"no key of idp is called 'x{number}' yet") as caught:
            await verifier.verify(token(f"x{number}"), now=NOW)
        assert 0 < (caught.value.retry_after or 0) <= 60
    assert (await verifier.verify(token(), now=NOW)).user == "alice"
    assert len(issuer.requests) == 1
    assert len(remote(verifier).missed) == MAX_MISSED
    assert remote(verifier).statistics().unknown == MAX_MISSED + 10


async def test_rotation_within_the_pause(issuer: Issuer, nursery: trio.Nursery) -> None:
    """A token of a key that is newer than the last fetch is not refused for good: it comes again."""
    verifier = await started(issuer.url, nursery)
    issuer.publish(jwk("RS256", kid="a"), jwk("RS256", 1, kid="b"))
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await verifier.verify(token("b", which=1), now=NOW)
    assert len(issuer.requests) == 1
    remote(verifier).asked_at -= caught.value.retry_after or 0  # it waits as it was told
    assert (await verifier.verify(token("b", which=1), now=NOW)).user == "alice"
    assert len(issuer.requests) == 2


async def test_a_set_that_is_behind(issuer: Issuer, nursery: trio.Nursery) -> None:
    """A key that a fresh set does not have may be in one of ten minutes later; then it is settled.

    The caches of a provider hold sets for as long. A verdict takes a fresh look, whatever was before.
    """
    verifier = await started(issuer.url, nursery, PATIENT)
    source = remote(verifier)
    for fetches in (2, 3):
        with pytest.raises(Unavailable):
            await verifier.verify(token("b", which=1), now=NOW)
        assert len(issuer.requests) == fetches
    source.missed = {name: since - 600 for name, since in source.missed.items()}
    source.timing = Timing()  # within the pause
    with pytest.raises(Unavailable):
        await verifier.verify(token("b", which=1), now=NOW)
    source.asked_at -= 60
    with pytest.raises(TokenInvalid, match="no configured key for 'RS256' is called 'b'"):
        await verifier.verify(token("b", which=1), now=NOW)
    issuer.publish(jwk("RS256", 1, kid="b"))
    source.asked_at -= 60
    assert (await verifier.verify(token("b", which=1), now=NOW)).user == "alice"


async def test_a_set_without_names_rotates(issuer: Issuer, nursery: trio.Nursery) -> None:
    """Where keys have no `kid` a signature that matches none may be of a new one."""
    issuer.publish(jwk("RS256"))
    verifier = await started(issuer.url, nursery)
    issuer.publish(jwk("RS256", 1))
    for kid in (None, "any"):
        with pytest.raises(Unavailable):
            await verifier.verify(token(kid, which=1), now=NOW)
    remote(verifier).asked_at -= 60
    for kid in (None, "any"):
        assert (await verifier.verify(token(kid, which=1), now=NOW)).user == "alice"
    assert len(issuer.requests) == 2


def for_audience(name: str) -> str:
    return forge(
        claims(aud=name), head={"alg": "RS256", "kid": "a"}, algorithm="RS256", key=private_key("RS256")
    )


async def entries(
    nursery: trio.Nursery, web: str, ios: str, timing: Timing | None = None
) -> tuple[Verifier, Remote]:
    """A verifier with entries for two audiences; of the second one nobody fetches the keys yet."""
    first = config.Key(name="web", algorithms=("RS256",), jwks_url=web, audience="web", tenants=("acme",))
    auth = config.Auth(keys=(first, attrs.evolve(first, name="ios", jwks_url=ios, audience="ios")))
    keys = Keys.load(auth, timing=timing)
    nursery.start_soon(keys.remotes[0].run)
    await keys.remotes[0].refresh()
    return Verifier(auth, config.Limits(), config.Permissions(), keys), keys.remotes[1]


async def test_one_set_for_two_audiences(issuer: Issuer, nursery: trio.Nursery) -> None:
    """While one entry has the set and another of the same address has not, whose token it is remains open."""
    verifier, late = await entries(nursery, issuer.url, issuer.url, HASTY)
    with pytest.raises(Unavailable, match="the keys of ios cannot be fetched"):
        await verifier.verify(for_audience("ios"), now=NOW)
    nursery.start_soon(late.run)
    await late.refresh()
    assert (await verifier.verify(for_audience("ios"), now=NOW)).user == "alice"
    with pytest.raises(TokenInvalid, match="aud: 'tv' is not 'web'; aud: 'tv' is not 'ios'"):
        await verifier.verify(for_audience("tv"), now=NOW)


@pytest.mark.parametrize("alive", [True, False])
async def test_another_providers_set_does_not_matter(
    issuer: Issuer, nursery: trio.Nursery, alive: bool
) -> None:
    """A token that one provider has signed for somebody else is refused at once, with the reason."""
    other = await listening(nursery, jwk("RS256", 1, kid="b"))
    verifier, second = await entries(nursery, issuer.url, other.url)
    if alive:
        nursery.start_soon(second.run)
        await second.refresh()
    for _ in range(2):
        with pytest.raises(TokenInvalid, match="aud: 'ios' is not 'web'"):
            await verifier.verify(for_audience("ios"), now=NOW)
    assert len(other.requests) == alive


async def test_a_foreign_token_with_an_unknown_key(issuer: Issuer, nursery: trio.Nursery) -> None:
    """Whatever key it is, no entry takes it: that is said at once, also while keys cannot be fetched."""
    verifier, unread = await entries(nursery, issuer.url, issuer.url, PATIENT)
    assert unread.fault
    head, key = {"alg": "RS256", "kid": "b"}, private_key("RS256", 1)
    with pytest.raises(TokenInvalid, match="aud: 'tv' is not 'web'; aud: 'tv' is not 'ios'"):
        await verifier.verify(forge(claims(aud="tv"), head=head, algorithm="RS256", key=key), now=NOW)
    assert len(issuer.requests) == 1


async def test_time_spent_on_a_key_counts(issuer: Issuer, nursery: trio.Nursery) -> None:
    """What a token has left when its key has come is less by what that took."""
    issuer.gate = trio.Event()
    verifier = believer(issuer.url)
    nursery.start_soon(verifier.keys.run)
    lives, come_by = [], trio.Event()

    async def come() -> None:
        come_by.set()
        lives.append((await verifier.verify(token(), now=NOW)).life)

    async with trio.open_nursery() as clients:
        clients.start_soon(come)
        await come_by.wait()
        began = trio.current_time()  # it waits by now
        await issuer.asked.wait()
        while trio.current_time() < began + 0.06:
            await trio.sleep(0.01)
        issuer.gate.set()
    assert lives[0] <= 600 - 0.05


async def test_single_flight(issuer: Issuer, nursery: trio.Nursery) -> None:
    """Any number of tokens that name an unknown key at the same time share one fetch, and its answer."""
    verifier = await started(issuer.url, nursery, EAGER)
    issuer.publish(jwk("RS256", kid="a"), jwk("RS256", 1, kid="b"))
    issuer.gate = trio.Event()
    users = []

    async def verify() -> None:
        users.append((await verifier.verify(token("b", which=1), now=NOW)).user)

    async with trio.open_nursery() as clients:
        for _ in range(50):
            clients.start_soon(verify)
        await issuer.asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        issuer.gate.set()
    assert users == ["alice"] * 50
    assert len(issuer.requests) == 2


async def test_a_client_that_leaves(issuer: Issuer, nursery: trio.Nursery) -> None:
    """The fetch that a token caused goes on for others when its client has gone."""
    verifier = await started(issuer.url, nursery, EAGER)
    issuer.publish(jwk("RS256", 1, kid="b"))
    issuer.gate = trio.Event()
    async with trio.open_nursery() as clients:
        clients.start_soon(partial(verifier.verify, token("b", which=1), now=NOW))
        await issuer.asked.wait()
        clients.cancel_scope.cancel()
    issuer.gate.set()
    assert (await verifier.verify(token("b", which=1), now=NOW)).user == "alice"
    assert len(issuer.requests) == 2


async def test_rotation(issuer: Issuer, nursery: trio.Nursery) -> None:
    """A new key is fetched when a token names it; the one that it replaced is no longer believed."""
    verifier = await started(issuer.url, nursery, EAGER)
    issuer.publish(jwk("RS256", 1, kid="b"))
    assert (await verifier.verify(token("b", which=1), now=NOW)).user == "alice"
    with pytest.raises(TokenInvalid):
        await verifier.verify(token("a"), now=NOW)


async def test_removal(issuer: Issuer, nursery: trio.Nursery) -> None:
    """A key that the issuer withdrew is forgotten at the next regular fetch, without any new token."""
    verifier = await started(issuer.url, nursery, Timing(refresh_seconds=0.01))
    assert (await verifier.verify(token(), now=NOW)).user == "alice"
    issuer.publish(jwk("RS256", 1, kid="b"))
    while "a" in [key.kid for key in remote(verifier).keys]:
        await remote(verifier).answered.park()
    with pytest.raises(Unavailable):  # it might come back, for all that we know
        await verifier.verify(token(), now=NOW)


async def test_wrong_key(issuer: Issuer, nursery: trio.Nursery) -> None:
    """Another key under a known `kid` checks nothing of the old one, and causes no fetch."""
    issuer.publish(jwk("RS256", 1, kid="a"))
    verifier = await started(issuer.url, nursery, EAGER)
    for _ in range(10):
        with pytest.raises(TokenInvalid, match="signature: it does not match"):
            await verifier.verify(token("a"), now=NOW)
    assert len(issuer.requests) == 1


BAD = {
    "silent": (silence, "no whole answer within 0.2 s"),
    "slow": (trickle, "no whole answer within 0.2 s"),
    "endless": (endless, "the answer is longer than 262144 bytes"),
    "large": (response("200 OK", b" " * 1_000_000), "the answer is longer than 262144 bytes"),
    "redirect": (
        response("302 Found", b"", "Location: http://127.0.0.1:1/"),
        "the address answered 302 instead of 200",
    ),
    "error": (response("500 Oh No", b"{}"), "the address answered 500 instead of 200"),
    "no content": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), "the address answered 204 instead of 200"),
    "cut": (response("200 OK", b'{"keys"', length=100), "the address cannot be read: "),
    "empty": (raw(b""), "the address cannot be read: "),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), "the address cannot be read: "),
    "long head": (raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000), "the address cannot be read: "),
    "no JSON": (response("200 OK", b"<html>"), "not JSON"),
    "deep": (response("200 OK", b"[" * 100_000), "not JSON"),
    "no set": (document([]), "not a JWK Set"),
    "no keys": (document({"keys": []}), "no key for RS256 or ES256 or EdDSA among the 0 of the set"),
    "no usable keys": (document({"keys": [{"kty": "oct", "k": "A"}]}), "no key for RS256"),
}


@pytest.mark.parametrize("how", BAD)
async def test_bad_answers(issuer: Issuer, nursery: trio.Nursery, how: str) -> None:
    """Whatever an address does, known keys go on, unknown ones may be tried again, and it can recover."""
    good = issuer.answer
    verifier = await started(issuer.url, nursery, EAGER)
    issuer.answer, told = BAD[how]
    if "within" in told:
        remote(verifier).timing = HASTY
    with pytest.raises(Unavailable) as caught:
        await verifier.verify(token("b", which=1), now=NOW)
    assert caught.value.message == "kid: the keys of idp cannot be fetched at the moment"
    assert caught.value.retry_after is not None
    while remote(verifier).fetching:
        await remote(verifier).answered.park()
    assert (remote(verifier).fault or "").startswith(told)
    assert (await verifier.verify(token("a"), now=NOW)).user == "alice"
    issuer.answer, remote(verifier).timing = good, EAGER
    await remote(verifier).refresh()
    assert remote(verifier).fault is None
    with pytest.raises(TokenInvalid):
        await verifier.verify(token("b", which=1), now=NOW)


async def test_what_nobody_expects(issuer: Issuer, nursery: trio.Nursery) -> None:
    """An answer that breaks us, again and again, ends neither known keys nor the fetches, and is told."""
    verifier = await started(issuer.url, nursery, EAGER)
    source, crashes = remote(verifier), 0
    parse = source.parse

    def crash(data: bytes) -> tuple[VerifyingKey, ...]:
        nonlocal crashes
        crashes += 1
        raise RuntimeError(data)

    source.parse = crash
    with capture_logs() as logs:
        for count in (1, 2, 3):
            await source.refresh()
            assert crashes == count
            with pytest.raises(Unavailable):
                await verifier.verify(token("b", which=1), now=NOW)
            assert (await verifier.verify(token("a"), now=NOW)).user == "alice"
            crashes = count
    assert {each["log_level"] for each in logs} == {"error"}
    source.parse = parse
    await source.refresh()
    assert source.fault is None


async def test_redirect_is_not_followed(issuer: Issuer, nursery: trio.Nursery) -> None:
    """The address in the configuration is the one that is trusted, not where it points to."""
    issuer.answer = response("307 Temporary Redirect", b"", f"Location: {issuer.url}")
    verifier = await started(issuer.url, nursery)
    with pytest.raises(Unavailable):
        await verifier.verify(token(), now=NOW)
    assert len(issuer.requests) == 1


async def test_down(nursery: trio.Nursery) -> None:
    """With an address that nobody listens at, tokens are refused for now, quickly and by bounded tries."""
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        verifier = await started(f"http://127.0.0.1:{unused.getsockname()[1]}/", nursery)
        asked_at = remote(verifier).asked_at
        for _ in range(100):
            with pytest.raises(Unavailable):
                await verifier.verify(token(), now=NOW)
        assert remote(verifier).asked_at == asked_at


async def test_retries_by_itself(issuer: Issuer, nursery: trio.Nursery) -> None:
    """An address that failed is asked again without any token, after a pause."""
    good, issuer.answer = issuer.answer, response("503 Busy", b"")
    verifier = await started(issuer.url, nursery)
    assert remote(verifier).due_at > remote(verifier).asked_at + 1
    issuer.answer = good
    await remote(verifier).answered.park()
    assert (await verifier.verify(token(), now=NOW)).user == "alice"


def test_pauses_between_failed_fetches() -> None:
    """A failing address is fetched again after 2, 4 … 64 s, without chance."""
    assert [BACKOFF.delay(failures) for failures in range(7)] == [2, 4, 8, 16, 32, 64, 64]


def test_who_has_no_address_needs_no_http_client() -> None:
    """The HTTP client library is imported for the first fetch, not when the broker starts."""
    check = "import sys, broker.app; sys.exit('httpcore2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


async def test_flapping(issuer: Issuer, nursery: trio.Nursery) -> None:
    """While an address answers well and badly in turn, tokens of the known key never fail."""
    good = issuer.answer
    verifier = await started(issuer.url, nursery, EAGER)
    for number in range(20):
        issuer.answer = response("502 Bad", b"") if number % 2 else good
        await remote(verifier).refresh()
        assert (remote(verifier).fault is None) == (number % 2 == 0)
        assert (await verifier.verify(token(), now=NOW)).user == "alice"
    assert len(issuer.requests) == 21


async def test_not_running() -> None:
    """A verifier whose keys nobody fetches says so in time and does not hang."""
    verifier = believer("https://id.example/jwks", HASTY)
    with pytest.raises(Unavailable):
        await verifier.verify(token(), now=NOW)


async def test_other_algorithms_cause_no_fetch(issuer: Issuer, nursery: trio.Nursery) -> None:
    """A token under an algorithm that no address is configured for asks none."""
    verifier = await started(issuer.url, nursery, EAGER)
    with pytest.raises(TokenInvalid):
        await verifier.verify(forge(head={"alg": "HS256", "kid": "x"}), now=NOW)
    assert len(issuer.requests) == 1


@pytest.mark.parametrize("where", ["jku", "x5u"])
async def test_addresses_in_a_token(issuer: Issuer, nursery: trio.Nursery, where: str) -> None:
    """An address in the head of a token is never fetched: here a second issuer with the forger's key."""
    forger = await listening(nursery, jwk("RS256", 1, kid="a"))
    verifier = await started(issuer.url, nursery, EAGER)
    brought: dict[str, Any] = {where: forger.url}
    for kid in ("a", "b", None):
        with pytest.raises(TokenInvalid):
            await verifier.verify(token(kid, which=1, **brought), now=NOW)
    assert (await verifier.verify(token("a", **brought), now=NOW)).user == "alice"
    assert forger.requests == []


@pytest.mark.parametrize("where", ["jwk", "x5c"])
async def test_keys_in_a_token(issuer: Issuer, nursery: trio.Nursery, where: str) -> None:
    """A key that a token brings along checks nothing."""
    verifier = await started(issuer.url, nursery)
    brought: dict[str, Any] = {where: jwk("RS256", 1, kid="a") if where == "jwk" else ["MIIB"]}
    for kid in ("a", None):
        with pytest.raises(TokenInvalid, match="signature: it does not match"):
            await verifier.verify(token(kid, which=1, **brought), now=NOW)


async def test_same_kid_at_two_addresses(issuer: Issuer, nursery: trio.Nursery) -> None:
    """Two issuers with the same `kid` each sign for their own tenant only, and one's fetch is its own."""
    other = await listening(nursery, jwk("RS256", 1, kid="a"))
    first = config.Key(name="1", algorithms=("RS256",), jwks_url=issuer.url, audience="*", tenants=("acme",))
    second = attrs.evolve(first, name="2", jwks_url=other.url, tenants=("globex",))
    auth = config.Auth(keys=(first, second))
    verifier = Verifier(auth, config.Limits(), config.Permissions(), Keys.load(auth))
    await nursery.start(verifier.keys.run)
    pairs = [(0, "acme", True), (1, "globex", True), (0, "globex", False), (1, "acme", False)]
    for which, tenant, good in pairs:
        made = forge(
            claims(tenant=tenant),
            head={"alg": "RS256", "kid": "a"},
            algorithm="RS256",
            key=private_key("RS256", which),
        )
        if good:
            assert (await verifier.verify(made, now=NOW)).tenant == tenant
        else:
            with pytest.raises(TokenInvalid, match="may not be signed by this key"):
                await verifier.verify(made, now=NOW)


@pytest.mark.parametrize("trusted", [True, False])
async def test_https(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    """Over https the issuer's certificate must be signed by an authority of this system."""
    authority, stranger = trustme.CA(), trustme.CA()
    (authority if trusted else stranger).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    issuer = Issuer(key_set(jwk("RS256", kid="a")))
    serve = partial(trio.serve_ssl_over_tcp, issuer.serve, 0, context, host="127.0.0.1")
    (listener,) = await nursery.start(serve)
    port = listener.transport_listener.socket.getsockname()[1]
    verifier = await started(f"https://localhost:{port}/jwks", nursery)
    if trusted:
        assert (await verifier.verify(token(), now=NOW)).user == "alice"
    else:
        with pytest.raises(Unavailable):
            await verifier.verify(token(), now=NOW)
        assert "certificate verify failed" in (remote(verifier).fault or "")
        assert issuer.requests == []
