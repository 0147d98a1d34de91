"""Positions and starting points: nothing missing, nothing twice, and the truth about what is gone."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.broker import Broker, configure, run_broker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


async def store(
    publisher: RawNats, first: int, last: int, *, channel: str = "a", tenant: str = "acme"
) -> int:
    sequence = 0
    for number in range(first, last + 1):
        sequence = await publisher.store(f"events.{tenant}.{channel}", str(number).encode())
    return sequence


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["event"] for event in events]


async def test_resume_brings_what_was_missed(broker: Broker, publisher: RawNats) -> None:
    """A reconnected client sends its position and gets the rest, unmarked, then `subscription.live`."""
    async with broker.client() as client:
        await client.subscribe("a")
        await store(publisher, 1, 3)
        position = (await client.events(3))[-1]["position"]
    await store(publisher, 4, 300)
    await broker.caught_up()
    async with broker.client() as client:
        answer = await client.subscribe("a", position=position)
        assert answer["recovered"]
        assert not answer["live"]
        assert "catch_up" not in answer
        assert answer["position"] == position
        events = await client.events(297)
        assert numbers(events) == list(range(4, 301))
        assert not any("catch_up" in event for event in events)
        live = await client.expect("subscription.live")
        assert live["channel"] == "a"
        await store(publisher, 301, 301)
        assert (await client.expect("event"))["event"] == 301


async def test_resume_reaches_a_fresh_broker_through_the_stream(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """A position given by one broker is good at another one, whose memory holds nothing of it."""
    settings = configure(tmp_path / "one", nats.url)
    async with run_broker(tmp_path / "one", settings) as broker, broker.client() as client:
        position = (await client.subscribe("a"))["position"]
    await store(publisher, 1, 1000)
    settings = configure(tmp_path / "one", nats.url, ring={"events": 1})
    async with run_broker(tmp_path / "two", settings) as broker:
        await broker.caught_up()
        async with broker.client() as client:
            await client.subscribe(["a", "b.>"], position=position)
            assert numbers(await client.events(1000)) == list(range(1, 1001))
            assert (await client.expect("subscription.live"))["channel"] == ["a", "b.>"]


async def test_catch_up_beside_the_live_flow(broker: Broker, publisher: RawNats) -> None:
    """A start in the past beside a live subscription is marked, ends at P, and moves no position."""
    await store(publisher, 1, 600)
    await broker.caught_up()
    async with broker.client() as client:
        await client.subscribe("b")
        p = await client.position()
        answer = await client.subscribe("a", last=500)
        assert answer["catch_up"] == 1
        assert not answer["live"]
        assert answer["position"] == p
        await store(publisher, 1, 1, channel="b")
        caught: list[int] = []
        while True:
            message = await client.receive()
            if message["type"] == "subscription.live":
                break
            if message["payload"].get("catch_up"):
                caught.append(message["payload"]["event"])
            else:
                assert message["payload"]["channel"] == "b"
        assert caught == list(range(101, 601))
        assert message["payload"]["catch_up"] == 1
        await store(publisher, 601, 601)
        event = await client.until("event")
        while event["channel"] == "b":
            event = await client.until("event")
        assert (event["event"], "catch_up" in event) == (601, False)


async def test_starts_join_without_hole_or_double_while_events_arrive(
    broker: Broker, publisher: RawNats
) -> None:
    """Every kind of start, while events keep arriving: each matching event once, in order."""
    total = 500
    sent = trio.Event()

    async def publish() -> None:
        for number in range(1, total + 1):
            await publisher.publish("events.acme.a", str(number).encode())
            if not number % 10:
                await publisher.flush()
                await trio.lowlevel.checkpoint()
        await publisher.flush()
        sent.set()

    async def follow(first: bool, **start: Any) -> None:
        async with broker.client() as client:
            if not first:
                await client.subscribe("other")
            await client.subscribe("a", **start)
            seen: list[int] = []
            while not seen or seen[-1] < total:
                seen.append((await client.until("event"))["event"])
            assert seen == list(range(seen[0], total + 1)), start
            assert not any(message["type"] == "gap" for message in client.log)

    async with broker.client() as early:
        position = await early.subscribe("a")
    now = datetime.now(UTC).isoformat()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        for _ in range(5):
            for first in (True, False):
                for start in (
                    {},
                    {"position": position["position"]},
                    {"last": 20},
                    {"since": now},
                    {"snapshot": True},
                ):
                    nursery.start_soon(partial(follow, first, **start))
            await trio.sleep(0.02)  # spreads the starts over the publishing


async def test_last_counts_over_the_whole_list(broker: Broker, publisher: RawNats) -> None:
    """`last` is the newest N over all channels of the list, broadcasts included, denied ones not."""
    await store(publisher, 1, 5, channel="a.x")
    await store(publisher, 6, 7, channel="b")
    await store(publisher, 8, 9, channel="a.secret")
    await store(publisher, 10, 10, channel="a.x", tenant="_all")
    await broker.caught_up()
    async with broker.client(subscribe=[">"], deny=["a.secret"]) as client:
        answer = await client.subscribe(["a.>", "a.x", "b"], last=4)
        assert answer["recovered"]
        assert numbers(await client.events(4)) == [5, 6, 7, 10]
        await client.expect("subscription.live")
        await client.quiet()


@pytest.mark.parametrize("old", [False, True], ids=["ring", "stream"])
async def test_snapshot(
    tmp_path: Path, nats: NatsServer, broker: Broker, publisher: RawNats, old: bool
) -> None:
    """The newest event of each channel, tenant's or broadcast, without tombstones, by position; then live."""
    await store(publisher, 1, 3, channel="s.a")
    await store(publisher, 4, 5, channel="s.b")
    await store(publisher, 6, 6, channel="s.c")
    await store(publisher, 7, 7, channel="s.a", tenant="_all")
    await publisher.store("events.acme.s.c", b"")
    await store(publisher, 9, 9, channel="t.a")
    await store(publisher, 10, 10, channel="s.a", tenant="globex")
    settings = configure(tmp_path / "tiny", nats.url, ring={"events": 1})
    async with (
        run_broker(tmp_path / "tiny", settings) as other,
        (other if old else broker).client() as client,
    ):
        answer = await client.subscribe("s.>", snapshot=True)
        assert answer["recovered"]
        assert not answer["live"]
        events = await client.events(2)
        assert numbers(events) == [5, 7]
        assert {event["catch_up"] for event in events} == {answer["catch_up"]}
        await client.expect("subscription.live")
        await store(publisher, 11, 11, channel="s.b")
        event = await client.expect("event")
        assert (event["event"], "catch_up" in event) == (11, False)


async def test_snapshot_limit(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """More channels than a snapshot may have are refused, and nothing is subscribed."""
    settings = configure(tmp_path / "few", nats.url, limits={"snapshot_channels": 3})
    async with run_broker(tmp_path / "few", settings) as broker, broker.client() as client:
        for number in range(4):
            await store(publisher, 1, 1, channel=f"s.{number}")
        await client.send("subscribe", {"channel": "s.*", "snapshot": True})
        assert (await client.expect("error"))["code"] == "limit_snapshot"
        await client.send("unsubscribe", {"channel": "s.*"})
        assert (await client.expect("error"))["code"] == "not_subscribed"


async def test_foreign_and_future_positions(broker: Broker, publisher: RawNats) -> None:
    """A position of another incarnation, or above the end: `recovered: false`, `gap`, then what there is."""
    await store(publisher, 1, 3)
    async with broker.client() as client:
        current = (await client.subscribe("z"))["position"].split("-")[0]
    for position in ("other1-5", f"{current}-999999"):
        async with broker.client() as client:
            answer = await client.subscribe("a", position=position)
            assert not answer["recovered"]
            gap = await client.expect("gap")
            assert gap["reason"] == "reset"
            assert gap["channel"] == "a"
            assert gap["to"] == answer["position"]
            assert numbers(await client.events(3)) == [1, 2, 3]
    async with broker.client() as client:
        for nonsense in ("", "5", "-5", f"{current}--5", f"{current}-05", "x" * 100):
            await client.send("subscribe", {"channel": "a", "position": nonsense})
            assert (await client.expect("error"))["code"] == "invalid_position"


async def test_trimmed_history_is_announced(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """A client whose missed events are gone from the stream is told so, and gets what is left."""
    settings = configure(tmp_path / "tiny", nats.url, ring={"events": 1})
    async with run_broker(tmp_path / "tiny", settings) as broker:
        async with broker.client() as client:
            position = (await client.subscribe("a"))["position"]
        last = await store(publisher, 1, 50)
        await broker.caught_up()
        await publisher.api("STREAM.PURGE.EVENTS", seq=last - 9)
        async with broker.client() as client:
            answer = await client.subscribe("a", position=position)
            assert not answer["recovered"]
            gap = await client.expect("gap")
            assert gap["reason"] == "trimmed"
            assert gap["from"] == position
            assert gap["to"] == answer["position"] == f"{position.split('-')[0]}-{last - 10}"
            assert numbers(await client.events(10)) == list(range(41, 51))


async def test_replay_limit_is_announced(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Of more than `replay_events` missed events the newest come, and a `gap` counts the others."""
    settings = configure(tmp_path / "b", nats.url, ring={"events": 1}, limits={"replay_events": 20})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        position = (await client.subscribe("z"))["position"]
        await store(publisher, 1, 50)
        await client.passed(await store(publisher, 1, 30, channel="b"))
        await client.send("unsubscribe", {"channel": "z"})
        await client.until("unsubscribed")
        answer = await client.subscribe("a", position=position)
        assert not answer["recovered"]
        gap = await client.expect("gap")
        assert (gap["reason"], gap["count"]) == ("limit", 30)
        assert numbers(await client.events(20)) == list(range(31, 51))


async def test_recreated_stream(broker: Broker, publisher: RawNats) -> None:
    """Connected clients are told of a new incarnation, and get what it holds from its first event on."""
    async with broker.client() as client:
        await client.subscribe("a")
        await store(publisher, 1, 5)
        old = (await client.events(5))[-1]["position"].split("-")[0]
        info = await publisher.api("STREAM.INFO.EVENTS")
        await publisher.api("STREAM.DELETE.EVENTS")
        await publisher.api("STREAM.CREATE.EVENTS", **info["config"])
        await store(publisher, 6, 8)
        gap = await client.until("gap")
        assert gap["reason"] == "reset"
        assert gap["to"].split("-")[0] != old
        events = await client.events(3)
        assert numbers(events) == [6, 7, 8]
        assert {event["position"].split("-")[0] for event in events} == {gap["to"].split("-")[0]}


async def test_position_advances_while_quiet(broker: Broker, publisher: RawNats) -> None:
    """P moves with events of others, so that a quiet channel resumes without reading them again."""
    async with broker.client() as client:
        before = (await client.subscribe("quiet"))["position"]
        last = await store(publisher, 1, 20, channel="busy", tenant="globex")
        await client.passed(last)
        assert int(before.split("-")[1]) < last


async def test_bad_starts(broker: Broker) -> None:
    """Starts that exclude each other, or that are none, are refused with what is wrong."""
    async with broker.client() as client:
        for options in (
            {"last": 0},
            {"last": 1001},
            {"last": True},
            {"since": "yesterday"},
            {"since": "2026-01-01T00:00:00"},
            {"since": "2026-01-01T00:00:00Z", "last": 3},
            {"durable": "no blanks"},
            {"lag": "slow"},
        ):
            await client.send("subscribe", {"channel": "a", **options})
            assert (await client.expect("error"))["code"] == "bad_message", options
    async with broker.client() as client:
        answer = await client.subscribe("a", since="2100-01-01T00:00:00Z")
        assert answer["live"]
        assert answer["recovered"]
