"""Whose the streams are: nothing of others changes, and nothing of ours shrinks unasked."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from structlog.testing import capture_logs

from broker import config
from broker.bus.keeper import Keeper
from broker.errors import NotFound, Unavailable
from tests.support.bus import PATIENCE_SECONDS, ready_bus, running_bus, until_trouble
from tests.support.rawnats import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from broker.bus.nats import NatsBus
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

DAY = 86400 * 10**9
STARTS = 3
BACK = {"src": "_broker.canary.*", "dest": "_broker.seen.{{wildcard(1)}}"}
# What the broker works with, as somebody else may have made it: other limits in each setting that the broker
# has an opinion on, and settings on which it has none.
THEIRS: dict[str, dict[str, Any]] = {
    "EVENTS": {"subjects": ["events.>"], "allow_rollup_hdrs": True, "max_age": 20 * DAY},
    "DEADLETTER": {"subjects": ["deadletter.>"], "max_age": 20 * DAY},
    "AUDIT": {"subjects": ["audit.>"], "max_age": 60 * DAY, "max_bytes": 1 << 30},
    "BROKER": {"subjects": ["_broker.canary.*"], "max_age": DAY, "republish": BACK},
    "KV_broker_cursors": {"subjects": ["$KV.broker_cursors.>"], "max_age": 90 * DAY},
    "KV_broker_control": {"subjects": ["$KV.broker_control.>"], "allow_msg_ttl": True},
}
ANYHOW = {
    "allow_direct": True,
    "max_msgs": 100_000,
    "max_msgs_per_subject": 1000,
    "duplicate_window": 3600 * 10**9,
    "description": "ours",
    "compression": "s2",
    "metadata": {"team": "7"},
    "deny_delete": True,
}


@attrs.define
class Streams:
    """The streams of a server, as somebody beside the broker sees and changes them."""

    nats: RawNats

    async def make(self, name: str, **settings: object) -> dict[str, Any]:
        made = await self.nats.api(f"STREAM.CREATE.{name}", name=name, **settings)
        assert "error" not in made
        found: dict[str, Any] = made["config"]
        return found

    async def info(self, name: str = "EVENTS") -> dict[str, Any]:
        return await self.nats.api(f"STREAM.INFO.{name}")

    async def found(self, name: str = "EVENTS") -> dict[str, Any]:
        settings: dict[str, Any] = (await self.info(name))["config"]
        return settings

    async def edit(self, name: str = "EVENTS", **change: object) -> None:
        answer = await self.nats.api(f"STREAM.UPDATE.{name}", **await self.found(name) | change)
        assert "error" not in answer

    async def fill(self, subject: str, count: int) -> None:
        for number in range(count):
            await self.nats.publish(subject, b"%d" % number)
        await self.nats.flush()


@pytest.fixture
def streams(publisher: RawNats) -> Streams:
    return Streams(publisher)


@asynccontextmanager
async def started(nats: NatsServer, **options: Any) -> AsyncIterator[tuple[NatsBus, list[Any]]]:
    """A bus that is ready, its audit trail too, and what it said until then."""
    with capture_logs() as logs:
        async with ready_bus(nats.url, **options) as (bus, _):
            await bus.prepare_audit()
            yield bus, [line for line in logs if line["event"].startswith("stream_")]


def said(lines: list[Any], name: str) -> Mapping[str, Any]:
    """The one line about a stream."""
    [line] = [line for line in lines if line["stream"] == name]
    found: Mapping[str, Any] = line
    return found


@pytest.mark.parametrize("name", THEIRS)
async def test_others_streams_are_not_changed(nats: NatsServer, streams: Streams, name: str) -> None:
    """Neither at the first start nor later, by whatever configuration; one warning a process says how."""
    made = await streams.make(name, **ANYHOW | THEIRS[name])
    await streams.fill(made["subjects"][0].replace(">", "acme.a").replace("*", "a"), 900)
    while (before := (await streams.info(name))["state"])["messages"] < 900:
        pass
    small = config.Stream(
        max_age=3600.0,
        max_bytes=100_000,
        max_msgs_per_subject=1,
        deadletter_max_age=3600.0,
        duplicate_window=9.0,
        cursor_max_age=3600.0,
    )
    for stream in (config.Stream(), small, config.Stream(max_age=365 * 86400.0, max_bytes=1 << 40)):
        async with started(nats, stream=stream) as (bus, lines):
            line = said(lines, name)
            assert (line["event"], line["log_level"]) == ("stream_used_as_found", "warning")
            assert line["ours"] is False
            assert f"`broker admin adopt {name}`" in line["next"]
            assert await streams.found(name) == made
            standing = await bus.examine(name)
            assert (standing.ours, standing.fault) == (False, None)
            assert [str(each) for each in standing.changes] == line["differs"] != []
    after = (await streams.info(name))["state"]
    assert after["first_seq"] == before["first_seq"]
    assert after["messages"] == before["messages"] or name == "KV_broker_control", "that is written to"


async def test_a_generation_is_not_written_into_streams_of_others(nats: NatsServer, streams: Streams) -> None:
    """The bucket has it, and that is enough; ours say it too."""
    made = await streams.make("EVENTS", **ANYHOW | THEIRS["EVENTS"])
    async with started(nats) as (bus, _):
        await bus.generations.repeat(7)
        assert await streams.found() == made
        await bus.adopt("EVENTS")
    async with started(nats) as (bus, _):
        await bus.generations.repeat(7)
        assert (await streams.found())["metadata"]["broker_generation"] == "7"
        assert (await streams.found())["metadata"]["team"] == "7"


async def test_a_stream_of_others_that_is_made_as_we_would(nats: NatsServer, streams: Streams) -> None:
    """As an earlier version has made it: nothing differs, so nothing is warned of, and it may be adopted."""
    async with started(nats):
        ours = await streams.found()
    await streams.nats.api("STREAM.DELETE.EVENTS")
    await streams.make(**ours | {"metadata": {}})
    async with started(nats) as (bus, lines):
        line = said(lines, "EVENTS")
        assert (line["log_level"], line["ours"], line["differs"]) == ("info", False, [])
        await bus.adopt("EVENTS")
    async with started(nats, stream=config.Stream(max_age=30 * 86400.0)) as (bus, lines):
        assert said(lines, "EVENTS")["changed"] == ["stream.max_age: 7d → 30d"]
        assert (await bus.examine("EVENTS")).ours


async def test_a_copy_of_our_mark_is_none(nats: NatsServer, streams: Streams) -> None:
    """What was made from the settings of one of ours, metadata and all, is somebody's all the same."""
    async with started(nats):
        ours = await streams.found()
    await streams.nats.api("STREAM.DELETE.EVENTS")
    made = await streams.make(**ours | {"max_age": 3600 * 10**9})
    async with started(nats) as (bus, _):
        assert not (await bus.examine("EVENTS")).ours
        assert await streams.found() == made


@pytest.mark.parametrize(
    ("setting", "theirs"),
    [
        ("max_age", 3600 * 10**9),
        ("max_age", 90 * DAY),
        ("max_bytes", 5_000_000),
        ("max_msgs_per_subject", 3),
        ("allow_rollup_hdrs", True),
        ("duplicate_window", 60 * 10**9),
        ("duplicate_window", 3600 * 10**9),
        ("max_msgs", 70_000),
        ("discard", "new"),
        ("description", "EMEA"),
        ("republish", {"src": "events.acme.>", "dest": "copies.>"}),
        ("compression", "s2"),
    ],
)
async def test_what_an_operator_set_by_hand_stays(
    nats: NatsServer, streams: Streams, setting: str, theirs: Any
) -> None:
    """Also on a stream of ours, at each start, also with a file that was changed elsewhere meanwhile."""
    async with started(nats, stream=config.Stream(max_bytes=50_000_000)):
        await streams.edit(**{setting: theirs})
        by_hand = await streams.found()
    for _ in range(STARTS):
        async with started(nats, stream=config.Stream(max_bytes=50_000_000)) as (bus, lines):
            assert await streams.found() == by_hand
            assert (await bus.examine("EVENTS")).ours
            if setting in bus.keeper.wanted["EVENTS"].settings:
                assert said(lines, "EVENTS")["log_level"] == "warning"
            else:
                assert lines == []
    async with started(nats, stream=config.Stream(max_bytes=80_000_000, deadletter_max_age=30 * 86400.0)):
        changed = {} if setting == "max_bytes" else {"max_bytes": 80_000_000}
        assert await streams.found() == by_hand | changed
        assert (await streams.found("DEADLETTER"))["max_age"] == 30 * DAY


async def test_nothing_of_ours_shrinks_unasked(nats: NatsServer, streams: Streams) -> None:
    """A smaller limit in the file waits for consent, however often the broker starts; events stay."""
    large = config.Stream(max_bytes=50_000_000)
    small = config.Stream(
        max_bytes=200_000, max_age=3600.0, max_msgs_per_subject=5, duplicate_window=30, cursor_max_age=60.0
    )
    async with started(nats, stream=large):
        await streams.fill("events.acme.a", 3000)
        before = await streams.found()
    for _ in range(STARTS):
        async with started(nats, stream=small) as (bus, lines):
            line = said(lines, "EVENTS")
            assert line["differs"] == [
                "stream.max_age: 1h → 7d",
                "stream.max_msgs_per_subject: 5 → unlimited",
                "stream.duplicate_window: 30s → 10m",
                "stream.max_bytes: 200000 → 50000000",
            ]
            assert await streams.found() == before
            assert (await streams.info())["state"]["messages"] == 3000
            assert (await streams.found("KV_broker_cursors"))["max_age"] == 30 * DAY
            assert all(each.loses for each in (await bus.examine("EVENTS")).changes)
    async with started(nats, stream=small) as (bus, _):
        was = await bus.adopt("EVENTS")
        assert [each.setting for each in was.changes if each.loses] == [
            "max_age", "max_msgs_per_subject", "duplicate_window", "max_bytes",
        ]  # fmt: skip
        assert (await bus.examine("EVENTS")).changes == ()
        assert (await streams.info())["state"]["messages"] == 5
        assert (await streams.found("KV_broker_cursors"))["max_age"] == 30 * DAY, "nobody spoke of it"


async def test_brokers_with_different_files_do_not_fight(nats: NatsServer, streams: Streams) -> None:
    """However often they start and connect, nothing is changed back and forth; the larger limits stand."""
    files = [
        config.Stream(max_age=age, max_bytes=size, duplicate_window=window, adopt=adopt)
        for age, size, window, adopt in (
            (7 * 86400.0, 40_000_000, 600.0, False),
            (14 * 86400.0, 10_000_000, 60.0, False),
            (86400.0, 30_000_000, 1200.0, True),
        )
    ]
    for stream in files * 2:
        async with started(nats, stream=stream):
            pass
    settled = await streams.found()
    assert (settled["max_age"], settled["max_bytes"]) == (14 * DAY, 40_000_000)
    updates = await streams.nats.subscribe("$JS.API.STREAM.UPDATE.>")
    for stream in files * 2:
        async with started(nats, stream=stream) as (bus, _):
            await bus.keeper.ensure("EVENTS")
    await streams.nats.flush()
    assert updates.statistics().current_buffer_used == 0
    assert await streams.found() == settled


async def test_a_broker_that_runs_does_not_undo_another(nats: NatsServer, streams: Streams) -> None:
    """What was agreed to beside it stays when it connects again, though its own file has more."""
    async with started(nats, stream=config.Stream(max_age=7 * 86400.0)) as (bus, _):
        async with started(nats, stream=config.Stream(max_age=3600.0)) as (other, _):
            await other.adopt("EVENTS")
        await bus.keeper.ensure("EVENTS")
        assert (await streams.found())["max_age"] == 3600 * 10**9


@pytest.mark.parametrize("left", [{}, {"team": "7"}, {"broker_stream": "OTHER x"}])
async def test_a_mark_that_was_wiped(nats: NatsServer, streams: Streams, left: dict[str, str]) -> None:
    """By an edit without metadata, as Terraform's: it is put back, beside what others have put there."""
    for name in THEIRS:
        async with started(nats):
            mark = (await streams.found(name))["metadata"]["broker_stream"]
            created = (await streams.info(name))["created"]
            assert mark.startswith(f"{name} "), created
            await streams.edit(name, metadata=left)
            assert (await streams.found(name))["metadata"].get("broker_stream") != mark
        async with started(nats) as (bus, lines):
            assert said(lines, name)["event"] == "stream_mark_restored"
            metadata = (await streams.found(name))["metadata"]
            assert metadata["broker_stream"] == mark
            assert metadata.get("team") == left.get("team")
            assert (await bus.examine(name)).ours


async def test_the_bucket_is_lost(nats: NatsServer, streams: Streams) -> None:
    """With the control bucket goes what we last set, not whose the streams are; without mark and bucket they
    are nobody's that we know of.
    """
    async with started(nats):
        await streams.edit(max_age=3600 * 10**9)
    await streams.nats.api("STREAM.DELETE.KV_broker_control")
    by_hand = await streams.found()
    for _ in range(STARTS):
        async with started(nats, stream=config.Stream(deadletter_max_bytes=1 << 30)) as (bus, _):
            assert (await bus.examine("EVENTS")).ours
            assert await streams.found() == by_hand
            assert (await streams.found("DEADLETTER"))["max_bytes"] == 64 << 20, "who knows who set that"
    await streams.nats.api("STREAM.DELETE.KV_broker_control")
    await streams.edit(metadata={})
    bare = await streams.found()
    async with started(nats) as (bus, _):
        assert not (await bus.examine("EVENTS")).ours
        assert await streams.found() == bare


async def test_streams_that_are_deleted_while_it_runs(nats: NatsServer, streams: Streams) -> None:
    """The connection gives no sign of it, and without them nothing can be revoked, kept or be ready."""
    async with ready_bus(nats.url) as (bus, _):
        names = [name for name in bus.streams if name != "AUDIT"]
        for name in names:
            await streams.nats.api(f"STREAM.DELETE.{name}")
        with trio.fail_after(PATIENCE_SECONDS):
            while [name for name in names if "error" in await streams.info(name)]:
                await trio.sleep(0.1)
        assert await bus.control.put("a", b"1", revision=0)
        await bus.publish("_broker.canary.a", b"1")


async def test_adopted_by_the_configuration(nats: NatsServer, streams: Streams) -> None:
    """`stream.adopt` is consent to the settings beside it, once: to the stream of the events and no other."""
    theirs = {name: await streams.make(name, **ANYHOW | THEIRS[name]) for name in THEIRS}
    stream = config.Stream(max_age=3600.0, max_bytes=1 << 20, adopt=True)
    async with started(nats, stream=stream) as (_, lines):
        [adopted] = [line for line in lines if line["event"] == "stream_adopted"]
        assert adopted["log_level"] == "warning"
        assert "stream.max_age: 20d → 1h" in adopted["changed"]
        found = await streams.found()
        assert (found["max_age"], found["allow_rollup_hdrs"]) == (3600 * 10**9, False)
        for setting in ("max_msgs", "description", "compression", "deny_delete"):
            assert found[setting] == theirs["EVENTS"][setting]
        assert found["metadata"]["team"] == "7"
        for name in theirs.keys() - {"EVENTS"}:
            assert await streams.found(name) == theirs[name]
    await streams.edit(max_age=7200 * 10**9)
    by_hand = await streams.found()
    for _ in range(STARTS):
        async with started(nats, stream=stream):
            assert await streams.found() == by_hand
    async with started(nats, stream=attrs.evolve(stream, max_bytes=1 << 19)):
        assert (await streams.found())["max_bytes"] == 1 << 19, "another file, another consent"


async def test_a_stream_that_is_made_is_not_called_adopted(nats: NatsServer) -> None:
    """With consent in the configuration from the first start on there is nothing to consent to."""
    async with started(nats, stream=config.Stream(adopt=True)) as (bus, lines):
        assert said(lines, "EVENTS")["event"] == "stream_created"
        assert (await bus.examine("EVENTS")).ours


async def test_adoption_mends_what_could_not_be_used(nats: NatsServer, streams: Streams) -> None:
    """Where the server lets it; else its refusal is the answer, and nothing has changed."""
    made = await streams.make("EVENTS", subjects=["events.acme.>"], no_ack=True)
    async with running_bus(nats.url) as (bus, sink):
        await until_trouble(bus, "keeps ['events.acme.>'] and not events.> alone")
        assert await streams.found() == made
        was = await bus.adopt("EVENTS")
        assert was.fault is not None
        await sink.until(lambda: sink.up)
        await bus.publish("events.acme.a", b"1")
    await streams.nats.api("STREAM.DELETE.DEADLETTER")
    await streams.make("DEADLETTER", subjects=["deadletter.>"], retention="workqueue")
    made = await streams.found("DEADLETTER")
    async with running_bus(nats.url, stream=config.Stream(deadletter_name="DEADLETTER")) as (bus, _):
        await until_trouble(bus, "retention='workqueue'")
        with pytest.raises(Unavailable, match="retention"):
            await bus.adopt("DEADLETTER")
        assert await streams.found("DEADLETTER") == made
        with pytest.raises(NotFound, match="EVENTS, DEADLETTER"):
            await bus.adopt("ORDERS")
        with pytest.raises(NotFound, match="no such stream yet"):
            await bus.examine("AUDIT")


async def test_in_our_own_server_everything_is_ours(nats: NatsServer, streams: Streams) -> None:
    """Also what an earlier version has made there, without a mark: it grows with the file, and no more."""
    await streams.make("EVENTS", subjects=["events.>"], allow_direct=True, max_age=5 * DAY, max_bytes=1 << 20)
    file = config.Stream(max_bytes=1 << 10)
    async with started(nats, stream=file, embedded=True) as (bus, lines):
        assert said([line for line in lines if "differs" in line], "EVENTS")["ours"]
        assert (await streams.found())["max_age"] == 7 * DAY
        assert (await streams.found())["max_bytes"] == 1 << 20
        await bus.adopt("EVENTS")
        assert (await streams.found())["max_bytes"] == 1 << 10


async def test_subjects_that_another_stream_keeps(nats: NatsServer, streams: Streams) -> None:
    """It is said which keys name it, and how to find it; that one is not touched."""
    made = await streams.make("THEIRS", subjects=["events.acme.>"])
    async with running_bus(nats.url) as (bus, _):
        await until_trouble(bus, "another one keeps subjects of events.>")
        assert "Set stream.name or subjects.events" in bus.jetstream.trouble
        assert "`nats stream ls --subject 'events.>'`" in bus.jetstream.trouble
        assert await streams.found("THEIRS") == made


async def test_without_the_right_to_change_streams(nats: NatsServer, streams: Streams) -> None:
    """What is there and fits works, ours or not, marked or not; one warning says what could not be done."""
    async with started(nats):
        await streams.edit(metadata={})
        await streams.edit("DEADLETTER", description="theirs")
    kept = {name: await streams.found(name) for name in THEIRS}
    denied = {"publish": {"deny": ["$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>"]}}
    users = [{"user": "broker", "password": "p", "permissions": denied}, {"user": "o", "password": "p"}]
    nats.options["authorization"] = {"users": users}
    await nats.restart()
    login = nats.url.replace("nats://", "nats://broker:p@")
    for _ in range(STARTS):
        with capture_logs() as logs:
            async with ready_bus(login, stream=config.Stream(max_age=30 * 86400.0, adopt=True)) as (bus, _):
                await bus.prepare_audit()
                await bus.publish("events.acme.a", b"1")
                await bus.probe()
                await bus.keeper.ensure("EVENTS")
        refused = [line for line in logs if line["event"] == "stream_not_changed"]
        assert [line["stream"] for line in refused] == ["EVENTS"]
        assert "STREAM.UPDATE.EVENTS" in refused[0]["error"]
    async with connect(nats.url.replace("nats://", "nats://o:p@")) as operator:
        for name, settings in kept.items():
            assert (await operator.api(f"STREAM.INFO.{name}"))["config"] == settings
    del nats.options["authorization"]
    await nats.restart()
    async with (
        ready_bus(nats.url, stream=config.Stream(max_age=30 * 86400.0, adopt=True)) as (bus, _),
        connect(nats.url) as operator,
    ):
        assert (await bus.examine("EVENTS")).ours
        assert (await operator.api("STREAM.INFO.EVENTS"))["config"]["max_age"] == 30 * DAY, "now it may"


@pytest.mark.parametrize("adopt", [False, True])
async def test_without_the_right_to_note_it(nats: NatsServer, streams: Streams, adopt: bool) -> None:
    """What is ours is brought into line and used all the same; a warning says what could not be noted."""
    async with started(nats):
        pass
    denied = {"publish": {"deny": ["$KV.broker_control.>"]}}
    users = [{"user": "broker", "password": "p", "permissions": denied}]
    nats.options["authorization"] = {"users": users}
    await nats.restart()
    login = nats.url.replace("nats://", "nats://broker:p@")
    for _ in range(STARTS):
        with capture_logs() as logs:
            stream = config.Stream(max_age=30 * 86400.0, adopt=adopt)
            async with ready_bus(login, stream=stream) as (bus, _), connect(login) as operator:
                await bus.publish("events.acme.a", b"1")
                settings = (await operator.api("STREAM.INFO.EVENTS"))["config"]
                assert settings["max_age"] == 30 * DAY
                await operator.api("STREAM.UPDATE.EVENTS", **settings | {"max_age": 90 * DAY})
                await bus.keeper.ensure("EVENTS")
                assert (await operator.api("STREAM.INFO.EVENTS"))["config"]["max_age"] == 90 * DAY
                await operator.api("STREAM.UPDATE.EVENTS", **settings)
        [refused] = [line for line in logs if line["event"] == "stream_not_noted"]
        assert (refused["stream"], refused["log_level"]) == ("EVENTS", "warning")
        assert "$KV.broker_control.owned." in refused["error"]


async def test_streams_in_order_cost_one_question(
    nats: NatsServer, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The regular look examines just what somebody has changed since: a stream, its mark, or our memory."""
    looked: list[str] = []
    original = Keeper.ensure

    async def ensure(self: Keeper, name: str) -> None:
        looked.append(name)
        await original(self, name)

    async def settled(keeper: Keeper) -> set[str]:
        """Whom it looks at until nothing is new."""
        found: set[str] = set()
        for _ in range(5):
            looked.clear()
            await keeper.keep(list(keeper.wanted))
            found.update(looked)
            if not looked:
                return found
        pytest.fail(f"it never comes to rest: {found}")

    monkeypatch.setattr("broker.bus.nats.UPKEEP_SECONDS", 3600.0)
    async with ready_bus(nats.url) as (bus, _):
        monkeypatch.setattr(Keeper, "ensure", ensure)
        keeper = bus.keeper
        assert await settled(keeper) == set(keeper.wanted)
        await streams.edit("EVENTS", metadata={})
        assert await settled(keeper) == {"EVENTS"}
        assert (await streams.found("EVENTS"))["metadata"]["broker_stream"].startswith("EVENTS ")
        await streams.nats.api("STREAM.DELETE.DEADLETTER")
        assert await settled(keeper) == {"DEADLETTER"}
        await streams.nats.api("STREAM.PURGE.KV_broker_control")
        assert await settled(keeper) == set(keeper.wanted)
