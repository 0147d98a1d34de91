"""NATS is killed, stopped, cut off and slow; the broker's consumer is taken away; its credentials change."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.bus.server import ended
from tests.faults.support.accounts import Operator
from tests.faults.support.visitor import Poller
from tests.faults.support.world import PATIENCE_SECONDS, SLACK

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report
    from tests.faults.support.world import World
    from tests.support.rawnats import RawNats

BACK_SECONDS = 2 * SLACK  # until delivery goes on
NOTICED_SECONDS = 15 * SLACK  # until a server that says nothing is given up
CREATE = b"$JS.API.CONSUMER.CREATE.EVENTS."


@pytest.mark.fault(1)
async def test_killed_again_and_again(open_world: OpenWorld, report: Report) -> None:
    """kill -9 and restart five times under load: nothing acknowledged is lost, delivery is back in 2 s."""
    async with open_world(mixed=True, documents=True) as world:
        for _ in range(5):
            await world.flows()
            async with world.outage():
                await world.nats.kill9()
                await world.red()
                await world.nats.start()
        assert max(world.recoveries) < BACK_SECONDS
    report.add("`kill -9` of nats-server, five times", world)


@pytest.mark.fault(2)
async def test_down_for_half_a_minute(open_world: OpenWorld) -> None:
    """Clients stay connected and are told; publications are refused, and none of them is swallowed."""
    async with open_world(mixed=True, documents=True, churning=0) as world:
        await world.flows()
        async with world.outage():
            await world.nats.kill9()
            await world.red()
            began = trio.current_time()
            await trio.sleep(30)
            refused = [each.code for each in world.refusals if each.at > began]
            accepted = [entry for entry in world.ledger.stored.values() if entry.taken > began]
            changed = world.books.since(began, "changed")
            codes = world.books.codes(began)
            await world.nats.start()
        assert not changed
        assert codes <= {"unavailable", "unknown_outcome"}
        assert "unavailable" in codes
        assert set(refused) == {"unavailable"}
        assert not accepted
        await world.flows()
        for follower in world.clients:
            assert follower.connection == 1, f"{follower.name} lost its connection"
            if not isinstance(follower, Poller):  # what that is told are gaps
                assert states(world, follower.name) == ["interrupted", "restored"]


def states(world: World, name: str) -> list[str]:
    (follower,) = (each for each in world.clients if each.name == name)
    return [note.payload["state"] for note in follower.notes if note.kind == "source"]


@pytest.mark.fault(3)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=["SIGTERM", "lame duck"])
async def test_stopped_in_order(open_world: OpenWorld, number: signal.Signals) -> None:
    """A server that is stopped, or drains as a lame duck, costs nothing."""
    options = {"lame_duck_duration": "30s", "lame_duck_grace_period": "1s"}
    async with open_world(mixed=True, options=options) as world:
        await world.flows()
        async with world.outage():
            world.nats.process.send_signal(number)
            with trio.fail_after(PATIENCE_SECONDS):
                await ended(world.nats.process)
            await world.red()
            await world.nats.start()
        await world.flows()


@pytest.mark.fault(4)
async def test_stands_still(open_world: OpenWorld, report: Report) -> None:
    """SIGSTOP for 1 s and for 20 s: the long one is noticed within 15 s, and no second consumer is left."""
    async with open_world(mixed=True, documents=True) as world:
        await world.flows()
        world.nats.stop()
        await trio.sleep(1)
        world.nats.cont()
        await world.flows()
        async with world.outage():
            world.nats.stop()
            noticed = await world.red()
            await trio.sleep(max(0.0, 20 - noticed))
            world.nats.cont()
        assert noticed < NOTICED_SECONDS
        assert max(world.recoveries) < BACK_SECONDS
    report.add("SIGSTOP of nats-server for 20 s", world)


@pytest.mark.fault(5)
async def test_black_hole(open_world: OpenWorld) -> None:
    """The network between broker and NATS swallows everything for 20 s; then what it swallowed comes."""
    async with open_world(mixed=True) as world:
        await world.flows()
        async with world.outage():
            world.proxy.black_hole()
            noticed = await world.red()
            await trio.sleep(max(0.0, 20 - noticed))
            world.proxy.heal()
        assert noticed < NOTICED_SECONDS
        await world.flows()


@pytest.mark.fault(5)
async def test_cut_in_the_middle(open_world: OpenWorld) -> None:
    """Links to NATS and to the clients are reset after so many bytes, wherever in a message that is."""
    async with open_world(mixed=True, ring={"events": 32, "seconds": 1}) as world:
        for _ in range(15):
            world.proxy.budget = world.random.randrange(1, 60_000)
            world.front.budget = world.random.randrange(1, 200_000)
            await world.flows(100)
        world.proxy.heal()
        world.front.heal()


@pytest.mark.fault(6)
async def test_slow_and_in_small_pieces(open_world: OpenWorld) -> None:
    """NATS byte by byte and 200 ms away, the clients in small pieces: right, only slow."""
    async with open_world(mixed=True, rate=5.0, churning=3) as world:
        world.proxy.slices, world.proxy.latency = 1, 0.2
        world.front.slices, world.front.latency, world.front.bandwidth = 16, 0.2, 20_000
        await world.flows(300)
        world.proxy.heal()
        world.front.heal()


@pytest.mark.fault(7)
async def test_consumer_deleted(open_world: OpenWorld) -> None:
    """Our consumer goes behind our back and cannot be made again three times: the hole is filled."""
    async with open_world(mixed=True) as world:
        refused = 0

        def refuse(data: bytes) -> bytes:
            nonlocal refused
            if refused < 3 and CREATE in data:
                refused += 1
                return data.replace(CREATE, CREATE.replace(b"EVENTS", b"ABSENT"))
            return data

        await world.flows()
        world.proxy.rewrite = refuse
        names = (await world.with_nats(lambda nats: nats.api("CONSUMER.NAMES.EVENTS")))["consumers"]
        assert len(names) == 1
        await world.with_nats(lambda nats: nats.api(f"CONSUMER.DELETE.EVENTS.{names[0]}"))
        await world.recovered()
        assert refused == 3
        await world.flows()


@pytest.mark.fault(12)
async def test_credentials_rotated(open_world: OpenWorld) -> None:
    """NATS knows us no more and cuts us off: a new client is built, and it resumes with the new password."""

    def users(password: str) -> dict[str, object]:
        known = {"service": "for-the-publishers", "broker": password}
        return {"users": [{"user": user, "password": secret} for user, secret in known.items()]}

    async with open_world(
        mixed=True,
        options={"authorization": users("old")},
        login=lambda _: {"user": "service", "pass": "for-the-publishers"},
        files={"password": "old"},
        nats_section={"user": "broker", "password_file": "password"},
    ) as world:
        await world.flows()
        async with world.outage():
            world.nats.options["authorization"] = users("new")
            world.nats.reload()
            await world.red()
            await world.flows()
            (world.broker.directory / "password").write_text("new")
        await world.flows()


@pytest.mark.fault(12)
async def test_credentials_expired(open_world: OpenWorld) -> None:
    """The credentials expire while they are used: the same, once there are new ones in the file."""
    operator = Operator()
    async with open_world(
        mixed=True,
        options=operator.options(),
        login=operator.login,
        files={"creds": operator.credentials(seconds=10)},
        nats_section={"credentials_file": "creds"},
    ) as world:
        async with world.outage():
            await world.red()
            await world.flows()
            (world.broker.directory / "creds").write_text(operator.credentials())
        await world.flows()


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"options": {"feature_flags": {"js_ack_fc_v2": True}}}, 11),
        ({"jetstream": {"domain": "hub"}, "nats_section": {"jetstream_domain": "hub"}}, 9),
    ],
    ids=["v2", "domain"],
)
async def test_other_acknowledgement_subjects(
    open_world: OpenWorld, options: dict[str, Any], tokens: int
) -> None:
    """A server that writes the newer, longer subjects; a JetStream domain. Over a restart, too."""

    async def length(nats: RawNats) -> int:
        async for message in await nats.subscribe("_INBOX_broker.>"):
            if message.reply.startswith(b"$JS.ACK."):
                return len(message.reply.split(b"."))
        raise AssertionError("the server is gone")

    async with open_world(mixed=True, **options) as world:
        assert await world.with_nats(length) == tokens
        await world.flows()
        async with world.outage():
            await world.nats.kill9()
            await world.red()
            await world.nats.start()
        await world.flows()
