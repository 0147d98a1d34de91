"""Keys from an address: who cannot be judged yet is told to come again, over every transport."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker import config
from broker.auth import keys
from broker.auth.jwks import Timing
from tests.auth.forge import claims, forge, jwk, private_key
from tests.auth.issuer import Issuer, key_set, response
from tests.support.broker import Broker, configure, run_broker
from tests.support.http import ask
from tests.support.metrics import scrape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.support.nats import NatsServer

PARTIES: dict[str, Any] = {"iss": "https://id.example", "aud": "broker"}


def token(kid: str, which: int = 0, **changes: Any) -> str:
    payload = claims(**{"exp": int(time.time()) + 600, "iat": int(time.time())} | PARTIES | changes)
    return forge(
        payload, head={"alg": "ES256", "kid": kid}, algorithm="ES256", key=private_key("ES256", which)
    )


@asynccontextmanager
async def served(tmp_path: Path, nats: NatsServer, issuer: Issuer, **sections: Any) -> AsyncIterator[Broker]:
    """A broker that believes the issuer, and has read its keys."""
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, issuer.serve, 0, host="127.0.0.1"))
        issuer.port = listener.socket.getsockname()[1]
        entry = config.Key(
            name="idp",
            algorithms=("ES256",),
            jwks_url=issuer.url,
            issuer=PARTIES["iss"],
            audience=PARTIES["aud"],
            tenants=("acme",),
        )
        settings = configure(tmp_path / "b", nats.url, **sections)
        auth = attrs.evolve(settings.auth, keys=(*settings.auth.keys, entry))
        async with run_broker(tmp_path / "b", attrs.evolve(settings, auth=auth)) as broker:
            async with broker.client(token=token("old")):
                pass
            yield broker
        nursery.cancel_scope.cancel()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(key_set(jwk("ES256", kid="old")))


async def test_rotation(
    tmp_path: Path,
    nats: NatsServer,
    issuer: Issuer,
    supervisors: list[Supervisor],
) -> None:
    """A key that is newer than the last fetch: the connection stays, and its token is let in later."""
    async with served(tmp_path, nats, issuer) as broker, broker.stranger() as client:
        issuer.publish(jwk("ES256", kid="old"), jwk("ES256", 1, kid="new"))
        fetched = len(issuer.requests)
        await client.expect("connection.established")
        for number in range(3):
            await client.send("authenticate", {"token": token("new", 1)}, messageId=str(number))
            error = await client.expect("error")
            assert (error["code"], error["retryable"]) == ("unavailable", True)
            assert client.log[-1]["messageId"] == str(number)
            assert 0 < error["retry_after_ms"] <= 60_000
        assert len(issuer.requests) == fetched
        (remote,) = supervisors[0].verifier.keys.remotes
        remote.asked_at -= error["retry_after_ms"] / 1000  # it waits as it was told
        await client.send("authenticate", {"token": token("new", 1)})
        await client.expect("connection.authenticated")
        assert len(issuer.requests) == fetched + 1
        await client.subscribe("a")


async def test_a_renewal_that_nobody_can_judge_yet(tmp_path: Path, nats: NatsServer, issuer: Issuer) -> None:
    """The connection goes on under the token that it has."""
    async with (
        served(tmp_path, nats, issuer) as broker,
        broker.client(token=token("old")) as client,
    ):
        for early in (token("newer", 1), token("old", nbf=int(time.time()) + 300)):
            await client.send("authenticate", {"token": early})
            assert (await client.expect("error"))["code"] == "unavailable"
        await client.subscribe("a")


async def test_the_deadline_holds(tmp_path: Path, nats: NatsServer, issuer: Issuer) -> None:
    """Who is told to come again stays unauthenticated, and is closed when the time for that is over."""
    limits = {"authentication_seconds": 3.0}
    async with (
        served(tmp_path, nats, issuer, limits=limits) as broker,
        broker.stranger() as client,
    ):
        await client.expect("connection.established")
        await client.send("authenticate", {"token": token("old", iat=int(time.time()) + 300)})
        error = await client.expect("error")
        assert (error["code"], error["retry_after_ms"]) == ("unavailable", 30_000)
        await client.send("subscribe", {"channel": "a"})
        assert (await client.expect("error"))["code"] == "unauthenticated"
        assert (await client.expect("error"))["code"] == "unauthenticated"
        assert await client.closed() == 4001


@pytest.mark.parametrize("early", ["kid", "iat"])
async def test_over_http(
    tmp_path: Path,
    nats: NatsServer,
    issuer: Issuer,
    supervisors: list[Supervisor],
    early: str,
) -> None:
    """Streams, polls and posts are 503 with the time after which to come again, and no 401; nothing stays."""
    limits = {"authentication_seconds": 1000.0}
    async with served(tmp_path, nats, issuer, limits=limits) as broker:
        made = token("new", 1) if early == "kid" else token("old", iat=int(time.time()) + 300)
        for method, path, body in (
            ("GET", "/sse?channel=a", None),
            ("GET", "/poll?channel=a", None),
            ("POST", "/poll", b'{"channels": ["a"]}'),
            ("POST", "/publish", b'{"channel": "a", "event": 1}'),
            ("POST", "/acknowledge", b'{"durable": "d", "position": "a-1"}'),
        ):
            answer = await ask(broker.running.http, method, path, token=made, body=body)
            assert answer.status == 503, (path, answer)
            assert answer.problem["code"] == "unavailable"
            assert 0 < answer.problem["retry_after_ms"] <= 60_000
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        with trio.fail_after(45):
            while supervisors[0].connections:
                await trio.sleep(0.02)


async def test_a_dead_set_is_said(
    tmp_path: Path, nats: NatsServer, monkeypatch: pytest.MonkeyPatch, issuer: Issuer
) -> None:
    """It makes the broker no less ready; both health pages have a line on it, and there is a metric."""
    issuer.answer = response("500 Oh No", b"")
    monkeypatch.setattr(keys, "Timing", partial(Timing, apart_seconds=0.0))
    entry = config.Key(name="idp", algorithms=("ES256",), jwks_url="", audience="*", tenants=("acme",))
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, issuer.serve, 0, host="127.0.0.1"))
        issuer.port = listener.socket.getsockname()[1]
        settings = configure(tmp_path / "b", nats.url)
        listed = (*settings.auth.keys, attrs.evolve(entry, jwks_url=issuer.url))
        settings = attrs.evolve(settings, auth=attrs.evolve(settings.auth, keys=listed))
        async with run_broker(tmp_path / "b", settings) as broker:
            for port in (broker.running.http, broker.running.admin):
                answer = await ask(port, "GET", "/readyz")
                assert answer.status == 200
                first, second = answer.body.decode().splitlines()
                assert first == "ok"
                assert second.startswith("key set idp: cannot be fetched")
                assert "all tokens of its issuer are refused" in second
            found = await scrape(broker.running.admin)
            assert found.total("broker_key_set_up") == 0
            issuer.publish(jwk("ES256", kid="old"))
            with trio.fail_after(45):
                while (await scrape(broker.running.admin)).total("broker_key_set_up") == 0:
                    await trio.sleep(0.1)
            assert (await ask(broker.running.admin, "GET", "/readyz")).body == b"ok\n"
        nursery.cancel_scope.cancel()
