"""What the store has lost makes a new generation of positions, and nothing else does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from structlog.testing import capture_logs

from broker.bus import looks
from broker.bus.generations import Milestone
from tests.support import damage
from tests.support.bus import ready_bus
from tests.support.rawnats import connect

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from pathlib import Path

    from broker.bus.nats import NatsBus
    from tests.support.bus import Recorder
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

KINDS = [damage.truncate, damage.flip_bits, damage.restore_copy]


async def fill(client: RawNats, count: int) -> None:
    for number in range(count):
        await client.publish(f"events.acme.c{number % 5}", b"%d" % number)
    await client.flush()


async def fed(sink: Recorder, count: int) -> None:
    await sink.until(lambda: bool(sink.heads) and sink.heads[-1] >= count)


def incarnations(sink: Recorder) -> list[str]:
    """Those that the sink was told of, each once."""
    return list(dict.fromkeys(state.incarnation for state in sink.states))


def losses(logs: list[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    return [line for line in logs if line["event"] == "stream_lost_events"]


async def kept(bus: NatsBus) -> None:
    """What is kept every 5 s is kept now."""
    await bus.generations.write_file()
    await bus.generations.store()


@pytest.mark.parametrize("harm", KINDS)
async def test_a_broker_that_was_running(nats: NatsServer, harm: Callable[[Path], None]) -> None:
    """It knows what it has read last: when that is gone all brokers agree on a new life."""
    async with ready_bus(nats.url) as (_, one), ready_bus(nats.url) as (_, other):
        async with connect(nats.url) as client:
            await fill(client, 50)
            await fed(one, 50)
            await fed(other, 50)
            await nats.term()
            damage.keep_copy(nats.directory)
            await nats.start()
        async with connect(nats.url) as client:
            await fill(client, 50)
            await fed(one, 100)
            await fed(other, 100)
        await nats.term()
        harm(nats.directory)
        with capture_logs() as logs:
            await nats.start()
            await one.until(lambda: len(incarnations(one)) == 2)
            await other.until(lambda: len(incarnations(other)) == 2)
        assert one.states[-1].incarnation == other.states[-1].incarnation
        assert [line["log_level"] for line in losses(logs)] == ["error"], "said once, by whoever saw it first"
        assert losses(logs)[0]["after"] == one.states[-1].last == 50
        assert losses(logs)[0]["count"] == 50


async def test_the_end_was_used_again(nats: NatsServer, tmp_path: Path) -> None:
    """A copy of yesterday to which more was published than was lost: same numbers, other events."""
    async with ready_bus(nats.url, milestones=tmp_path / "stream.json") as (bus, sink):
        async with connect(nats.url) as client:
            await fill(client, 50)
            await fed(sink, 50)
            await nats.term()
            damage.keep_copy(nats.directory)
            await nats.start()
        async with connect(nats.url) as client:
            await fill(client, 50)
            await fed(sink, 100)
        port = nats.port
        await nats.term()
        damage.restore_copy(nats.directory)
        nats.port = -1  # where the bus does not find it
        await nats.start()
        async with connect(nats.url) as client:
            await fill(client, 80)
        await nats.term()
        nats.port = port
        with capture_logs() as logs:
            await nats.start()
            await sink.until(lambda: len(incarnations(sink)) == 2)
            await fed(sink, 130)
        assert len(losses(logs)) == 1
        assert bus.generations.newest is not None
        assert bus.generations.newest.sequence == 130


async def test_what_was_deleted_in_another_life(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not missing in what came back: neither by its number nor as too much to be named."""
    monkeypatch.setattr(looks, "NAMED", 9)
    async with ready_bus(nats.url) as (bus, sink):
        async with connect(nats.url) as client:
            await fill(client, 50)
            await fed(sink, 50)
            await client.api("STREAM.MSG.DELETE.EVENTS", seq=3)
            await nats.term()
            damage.keep_copy(nats.directory)
            await nats.start()
        async with connect(nats.url) as client:
            await fill(client, 50)
            await fed(sink, 100)
            for sequence in range(20, 40):
                await client.api("STREAM.MSG.DELETE.EVENTS", seq=sequence)
        assert (await bus.state()).unnamed == 100
        await nats.term()
        damage.restore_copy(nats.directory)
        await nats.start()
        await sink.until(lambda: len(incarnations(sink)) == 2)
        state = await bus.state()
    assert (list(state.deleted), state.unnamed) == ([(3, 3)], 0)


@pytest.mark.parametrize("bucket", ["kept", "lost"])
@pytest.mark.parametrize("harm", KINDS)
async def test_a_broker_that_starts(
    nats: NatsServer, tmp_path: Path, harm: Callable[[Path], None], bucket: str
) -> None:
    """Its data directory knows, also when the bucket was in the damaged store."""
    file = tmp_path / "stream.json"
    async with ready_bus(nats.url, milestones=file) as (bus, sink):
        async with connect(nats.url) as client:
            await fill(client, 50)
        await fed(sink, 50)
        await kept(bus)
        before = sink.states[-1].incarnation
        await nats.term()
        damage.keep_copy(nats.directory)
        await nats.start()
        await sink.until(lambda: sink.up)
        async with connect(nats.url) as client:
            await fill(client, 50)
        await fed(sink, 100)
        await kept(bus)
    await nats.term()
    harm(nats.directory)
    if bucket == "lost":
        damage.forget_bucket(nats.directory)
    await nats.start()
    with capture_logs() as logs:
        async with ready_bus(nats.url, milestones=file) as (_, sink):
            assert sink.states[0].incarnation != before
    assert len(losses(logs)) == 1
    async with ready_bus(nats.url, milestones=file) as (_, again):
        assert again.states[0].incarnation == sink.states[0].incarnation, "it is lost once"


async def test_another_broker_has_seen_it(nats: NatsServer) -> None:
    """The bucket alone tells a broker that starts elsewhere, with nothing in its data directory."""
    async with ready_bus(nats.url) as (bus, sink):
        async with connect(nats.url) as client:
            await fill(client, 100)
        await fed(sink, 100)
        await kept(bus)
        before = sink.states[-1].incarnation
    await nats.term()
    damage.truncate(nats.directory)
    await nats.start()
    async with ready_bus(nats.url) as (_, sink):
        assert sink.states[0].incarnation != before


async def test_twice(nats: NatsServer, tmp_path: Path) -> None:
    """The same copy is restored two times: three lives, of which no two have one name."""
    file = tmp_path / "stream.json"
    seen = []
    for _ in range(3):
        async with ready_bus(nats.url, milestones=file) as (bus, sink):
            seen.append(sink.states[0].incarnation)
            async with connect(nats.url) as client:
                if len(seen) == 1:
                    await fill(client, 20)
                    await fed(sink, 20)
                    await nats.term()
                    damage.keep_copy(nats.directory)
                    await nats.start()
                    await sink.until(lambda sink=sink: sink.up)  # type: ignore[misc]
            async with connect(nats.url) as client:
                await fill(client, 30)
            await fed(sink, 50)
            await kept(bus)
        await nats.term()
        damage.restore_copy(nats.directory)
        await nats.start()
    assert len(set(seen)) == 3


async def test_again_before_a_milestone_is_due(nats: NatsServer, tmp_path: Path) -> None:
    """A generation has a milestone from its beginning: what it came with may be lost the next moment."""
    file = tmp_path / "stream.json"
    async with ready_bus(nats.url, milestones=file) as (bus, sink):
        async with connect(nats.url) as client:
            await fill(client, 100)
        await fed(sink, 100)
        await kept(bus)
    seen = []
    with capture_logs() as logs:
        for _ in range(2):
            await nats.term()
            damage.truncate(nats.directory)
            await nats.start()
            async with ready_bus(nats.url, milestones=file) as (bus, sink):
                seen += incarnations(sink)
                assert msgspec.json.decode(file.read_bytes(), type=Milestone) == bus.generations.newest
            file.unlink()  # so that the bucket has to know
    assert len(set(seen)) == 2
    assert len(losses(logs)) == 2


async def plain_restart(nats: NatsServer, client: RawNats) -> None:
    await nats.restart()


async def purge(nats: NatsServer, client: RawNats) -> None:
    await client.api("STREAM.PURGE.EVENTS")


async def purge_but_ten(nats: NatsServer, client: RawNats) -> None:
    await client.api("STREAM.PURGE.EVENTS", keep=10)


async def delete_the_newest(nats: NatsServer, client: RawNats) -> None:
    for sequence in (48, 49, 50):
        await client.api("STREAM.MSG.DELETE.EVENTS", seq=sequence)


async def lose_the_index(nats: NatsServer, client: RawNats) -> None:
    await nats.term()
    damage.forget_index(nats.directory)
    await nats.start()


async def lose_the_bucket(nats: NatsServer, client: RawNats) -> None:
    await nats.term()
    damage.forget_bucket(nats.directory)
    await nats.start()


async def edit(nats: NatsServer, client: RawNats) -> None:
    """By hand, by Terraform: without the metadata that was there."""
    settings = (await client.api("STREAM.INFO.EVENTS"))["config"]
    del settings["metadata"]
    await client.api("STREAM.UPDATE.EVENTS", **settings)


@pytest.mark.parametrize("generation", ["first", "later"])
@pytest.mark.parametrize(
    "what",
    [plain_restart, purge, purge_but_ten, delete_the_newest, lose_the_index, lose_the_bucket, edit],
)
async def test_no_reason(nats: NatsServer, tmp_path: Path, what: Any, generation: str) -> None:
    """What is deleted on purpose, or has lost no event, makes no position void, and none good again."""
    file = tmp_path / "stream.json"
    if generation == "later":
        async with ready_bus(nats.url, milestones=file) as (bus, sink):
            async with connect(nats.url) as client:
                await fill(client, 70)
            await fed(sink, 70)
            await kept(bus)
        await nats.term()
        damage.truncate(nats.directory, 0.3)
        await nats.start()
    with capture_logs() as logs:
        async with ready_bus(nats.url, milestones=file) as (bus, sink):
            async with connect(nats.url) as client:
                await fill(client, 50)
                last = (await bus.state()).last
                await fed(sink, last)
                await kept(bus)
                logs.clear()
                await what(nats, client)
            await sink.until(lambda: sink.up)
            first = await bus.state()
        async with ready_bus(nats.url, milestones=file) as (bus, sink):
            second = await bus.state()
            async with connect(nats.url) as client:
                settings = (await client.api("STREAM.INFO.EVENTS"))["config"]
    assert incarnations(sink) == [first.incarnation] == [second.incarnation]
    assert losses(logs) == []
    marked = settings.get("metadata", {}).get("broker_generation", "0")
    assert (marked != "0") == (generation == "later"), "metadata repeats what the bucket says"


async def test_a_data_directory_that_cannot_be_used(nats: NatsServer, tmp_path: Path) -> None:
    """It is said once, and the feed goes on."""
    file = tmp_path / "missing" / "stream.json"
    with capture_logs() as logs:
        async with ready_bus(nats.url, milestones=file) as (bus, sink):
            for count in (5, 10, 15):
                async with connect(nats.url) as client:
                    await fill(client, 5)
                await fed(sink, count)
                await bus.generations.write_file()
            file.parent.mkdir()
            await bus.generations.write_file()
    said = [line for line in logs if line["event"] == "milestone_file_unusable"]
    assert [(line["log_level"], line["path"]) for line in said] == [("warning", str(file))]
    assert file.exists()


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"created": "x"}', b"\xff"])
async def test_a_file_that_says_nothing(nats: NatsServer, tmp_path: Path, text: bytes) -> None:
    """Half written or somebody else's: as if there were none."""
    file = tmp_path / "stream.json"
    file.write_bytes(text)
    async with ready_bus(nats.url, milestones=file) as (bus, sink):
        async with connect(nats.url) as client:
            await fill(client, 5)
        await fed(sink, 5)
        await bus.generations.write_file()
        assert bus.generations.filed
        assert bus.generations.filed == bus.generations.newest
