"""The broker's clock is set by hours, both ways, while clients are at work."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.faults.support.rude import listen_on, until
from tests.faults.support.world import EVERYTHING, PATIENCE_SECONDS, TENANTS
from tests.support.raw import hear, open_raw, say
from tests.web.harness import head

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.conftest import OpenWorld
    from tests.faults.support.follower import Follower
    from tests.faults.support.world import World

HOURS = 3 * 3600.0
LIFE_SECONDS = 12
LIMITS = {"heartbeat_seconds": 2, "heartbeat_timeout_seconds": 6, "authentication_seconds": 2}


@attrs.frozen
class Clock:
    """The broker's, which is wrong by what the file says."""

    path: Path
    world: World

    async def set(self, wrong: float) -> None:
        """Sets it, and waits until the broker has noticed."""
        before = self.noticed()
        self.path.write_text(str(wrong))
        with trio.fail_after(PATIENCE_SECONDS):
            while self.noticed() == before:
                await trio.sleep(0.05)

    def noticed(self) -> int:
        return self.world.broker.log.read_text().count('"clock_jumped"')


def bearer(world: World) -> bytes:
    return head(authorization=f"Bearer {world.broker.token(TENANTS[0], 'newcomer')}")


async def come(world: World) -> tuple[str, bool, bool]:
    """What a token of the right time is told: the type or code, may it come again, is it kept."""
    assert world.broker.ws
    async with open_raw(world.broker.ws) as client:
        await client.upgrade(bearer(world))
        await hear(client)
        answer: dict[str, Any] = await hear(client)
        payload = answer["payload"]
        if answer["type"] != "error":
            return answer["type"], True, True
        if payload["code"] == "unavailable":
            assert 0 < payload["retry_after_ms"] <= 30_000
            await say(client, "ping")
            await until(client, "pong")
            return payload["code"], payload["retryable"], True
        code, _ = await client.closed()
        return payload["code"], 4000 <= code < 4500, False


def brief(world: World, number: int) -> Follower:
    """A client whose tokens do not live for long, and that comes back with another one."""
    follower = world.client([">"], tenant=TENANTS[0], user=f"brief{number}", denied=[])
    token = partial(world.broker.token, TENANTS[0], f"brief{number}")
    follower.token = partial(token, ttl=LIFE_SECONDS, subscribe=EVERYTHING, publish=EVERYTHING)
    return follower


async def ended(follower: Follower) -> int | None:
    """Waits for the end of its first connection; the close code."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not (follower.stays and follower.stays[0].until):
            await trio.sleep(0.05)
    return follower.stays[0].code


@pytest.mark.fault(30)
async def test_the_clock_is_set(open_world: OpenWorld, tmp_path: Path) -> None:
    """Who is connected notices nothing; who comes is told to come again, never a verdict for good.

    A dead link is noticed, and delivery ends with a token's own life, whatever the clock says meanwhile: it
    is told of that once.
    """
    file = tmp_path / "clock"
    file.write_text("0")
    variables = {"FAULTS_CLOCK": str(file)}
    async with open_world(churning=0, variables=variables, limits=LIMITS) as world:
        clock = Clock(file, world)
        await world.all_subscribed()
        steady = list(world.clients)
        before = [each.connection for each in steady]
        wrong = ((HOURS, ("token_expired", True, False)), (-HOURS, ("unavailable", True, True)))
        for number, (hours, told) in enumerate(wrong):
            follower = brief(world, number)
            with trio.fail_after(PATIENCE_SECONDS):
                await follower.subscribed.wait()
            assert world.broker.ws
            async with open_raw(world.broker.ws) as silent:
                await silent.upgrade(bearer(world))
                await until(silent, "connection.authenticated")
                await clock.set(hours)
                assert await come(world) == told
                assert (await listen_on(silent)).close == 4009
            assert await ended(follower) == 4002
            warnings = [each for each in follower.notes if each.kind == "connection.expiring"]
            assert len([each for each in warnings if each.connection == 1]) == 1
            assert await come(world) == told
            await world.flows()
            await clock.set(0)
            assert await come(world) == ("connection.authenticated", True, True)
            with trio.fail_after(PATIENCE_SECONDS):
                await follower.subscribed.wait()
        assert [each.connection for each in steady] == before
        assert '"token_ahead_of_clock"' in world.broker.log.read_text()
