"""The address that keys come from is down, slow, talks nonsense, or changes its mind."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.auth.forge import claims, forge, jwk, private_key
from tests.auth.issuer import Issuer, endless, key_set, trickle
from tests.faults.support.client import Client
from tests.faults.support.follower import Lost
from tests.faults.support.proxy import run_proxy
from tests.faults.support.world import EVERYTHING, PATIENCE_SECONDS, TENANTS

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld
    from tests.faults.support.world import World

REFRESH_SECONDS = 1.0
STRANGERS = 50
# Of the address, from the first failure until three more have been seen: the pause doubles with each.
FETCHES = 4


def token(kid: str, which: int = 0, user: str = "keyed") -> str:
    """A token of the issuer, signed by its key number `which`."""
    permissions = {"subscribe": EVERYTHING, "publish": EVERYTHING}
    payload = claims(sub=user, tenant=TENANTS[0], exp=int(time.time()) + 3600, permissions=permissions)
    head = {"alg": "ES256", "typ": "JWT", "kid": kid}
    return forge(payload, head=head, algorithm="ES256", key=private_key("ES256", which))


async def refused(world: World, bad: str) -> int | None:
    """The close code that a client with this token gets."""
    follower = Client(
        name="stranger",
        tenant=TENANTS[0],
        user="stranger",
        patterns=[],
        denied=[],
        token=lambda: bad,
        address=lambda: world.broker.ws,
        random=world.random,
    )
    assert world.broker.ws
    try:
        await follower.read(await follower.open(world.broker.ws))
    except Lost as lost:
        return lost.code
    finally:
        follower.closed(None)
    raise AssertionError("the connection stands")


async def strangers(world: World) -> tuple[set[int | None], set[int | None]]:
    """Many at once: how those end that sign with another key, and those that name unknown keys."""
    forged: set[int | None] = set()
    unknown: set[int | None] = set()

    async def come(bad: str, codes: set[int | None]) -> None:
        codes.add(await refused(world, bad))

    async with trio.open_nursery() as nursery:
        for number in range(STRANGERS):
            nursery.start_soon(come, token("known", which=1), forged)
            nursery.start_soon(come, token(f"unknown{number}", which=1), unknown)
    return forged, unknown


@pytest.mark.fault(22)
async def test_bad_address(open_world: OpenWorld) -> None:
    """Whatever the address does, clients with known keys come and go; it is asked with pauses, never by them.

    Tokens that name unknown keys, or are signed by another one, are refused all the while.
    """
    known = jwk("ES256", kid="known")
    issuer = Issuer(key_set(known))
    entry = {"name": "idp", "algorithms": ["ES256"], "tenants": [TENANTS[0]], "audience": "*"}
    async with trio.open_nursery() as nursery, run_proxy(lambda: issuer.port) as address:
        (listener,) = await nursery.start(partial(trio.serve_tcp, issuer.serve, 0, host="127.0.0.1"))
        issuer.port = listener.socket.getsockname()[1]
        url = f"http://127.0.0.1:{address.port}/jwks"
        async with open_world(
            keys=[{**entry, "jwks_url": url}],
            variables={"FAULTS_REFRESH": str(REFRESH_SECONDS)},
            limits={"authentication_seconds": 2},
        ) as world:
            follower = world.client([">"], tenant=TENANTS[0], user="keyed", denied=[])
            follower.token = partial(token, "known")
            await world.all_subscribed()
            for name in ("down", "slow", "1 MB", "wrong key", "down"):
                connection, fetches = follower.connection, address.opened
                match name:
                    case "down":
                        address.down = True
                    case "slow":
                        issuer.answer = trickle
                    case "1 MB":
                        issuer.answer = endless
                    case "wrong key":
                        issuer.publish(jwk("EdDSA", kid="known"))
                await failed_again(world, 2)
                follower.cut()
                with trio.fail_after(PATIENCE_SECONDS):
                    while follower.connection == connection or not follower.subscribed.is_set():
                        await trio.sleep(0.05)
                forged, unknown = await strangers(world)
                assert forged == {4500}, name
                assert unknown <= {4500, 4001}, name  # unknown while nobody can be asked: told to come again
                assert address.opened - fetches <= FETCHES, name
                address.heal()
                issuer.publish(known)
                await fetched(world)
            issuer.publish(known, jwk("ES256", 1, kid="newer"))
            follower.token = partial(token, "newer", 1)
            connection = follower.connection
            await trio.sleep(2 * REFRESH_SECONDS)
            follower.cut()
            with trio.fail_after(PATIENCE_SECONDS):
                while follower.connection == connection or not follower.subscribed.is_set():
                    await trio.sleep(0.05)
            await world.flows()
        nursery.cancel_scope.cancel()


def said(world: World, what: str) -> int:
    """How often the broker's log says so."""
    return world.broker.log.read_text().count(f'"{what}"')


async def failed_again(world: World, count: int) -> None:
    """Waits until so many further fetches have failed."""
    before = said(world, "jwks_failed")
    with trio.fail_after(PATIENCE_SECONDS):
        while said(world, "jwks_failed") < before + count:
            await trio.sleep(0.05)


async def fetched(world: World) -> None:
    """Waits until the address has been read again."""
    before = said(world, "jwks_fetched")
    with trio.fail_after(PATIENCE_SECONDS):
        while said(world, "jwks_fetched") == before:
            await trio.sleep(0.05)
