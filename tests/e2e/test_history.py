"""`history` and `GET /history`: pages of stored events, over a real nats-server."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
import trio

from broker.bus import ingest
from broker.eventlog import index
from tests.support.broker import Broker, configure, run_broker
from tests.support.http import Answer, ask
from tests.support.metrics import scrape

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client

SMALL: dict[str, Any] = {"events": 4}  # of the ring: nearly everything is in the stream
OFTEN: dict[str, Any] = {"connections_per_user": 1000, "history_per_minute": 100_000}


async def history(client: Client, channel: str | list[str], **more: Any) -> dict[str, Any]:
    """The payload of the page, or of the error."""
    await client.send("history", {"channel": channel, **more})
    while True:
        message = await client.receive()
        if message["type"] in ("history", "error"):
            payload: dict[str, Any] = message["payload"]
            return payload


async def get(broker: Broker, channel: str | list[str], *, token: str = "", **more: Any) -> Answer:
    if "filter" in more:
        more["filter"] = json.dumps(more["filter"])
    query = urlencode({"channel": channel, **more}, doseq=True)
    return await ask(broker.running.http, "GET", f"/history?{query}", token=token or broker.token())


def numbers(page: dict[str, Any]) -> list[int]:
    return [event["event"] for event in page["events"]]


async def test_a_page_from_memory(broker: Broker, publisher: RawNats) -> None:
    """The newest events with all that belongs to one, and the place at which a subscription joins."""
    for number in range(5):
        await publisher.store("events.acme.a.b", b"%d" % number)
    await publisher.store("events.acme.c", b"5", header=b"NATS/1.0\r\nBroker-User: al%2Eice\r\n\r\n")
    await publisher.store("events._all.a.x", b"")
    await publisher.store("events.globex.a.b", b"7")
    await broker.caught_up()
    async with broker.client() as client:
        assert "history" in client.log[0]["payload"]["features"]
        page = await history(client, ["a.>", "c"], limit=4)
        assert numbers(page) == [3, 4, 5, None]
        assert page["channel"] == ["a.>", "c"]
        assert [page["more"], page["recovered"]] == [True, True]
        first, _, third, last = page["events"]
        assert page["first"] == first["position"]
        assert [first["channel"], third["channel"], last["channel"]] == ["a.b", "c", "a.x"]
        assert [each.get("publisher") for each in page["events"]] == [None, None, {"user": "al.ice"}, None]
        times = [datetime.fromisoformat(each["stored_at"]) for each in page["events"]]
        assert times == sorted(times)

        older = await history(client, ["a.>", "c"], before=page["first"])
        assert (numbers(older), older["more"]) == ([0, 1, 2], False)
        newer = await history(client, ["a.>", "c"], after=older["last"], limit=2)
        assert (numbers(newer), newer["more"], newer["first"]) == ([3, 4], True, page["first"])
        since = await history(client, "a.>", since=page["events"][1]["stored_at"])
        assert (numbers(since), since["channel"]) == ([4, None], "a.>")
        assert (await history(client, "nothing"))["events"] == []

        subscribed = await client.subscribe("a.>", position=page["last"])
        assert (subscribed["position"], subscribed["recovered"]) == (page["last"], True)
        await publisher.store("events.acme.a.b", b"8")
        assert [each["event"] for each in await client.events(1)] == [8]
        over_http = await get(broker, ["a.>", "c"], limit=4, before=page["events"][-1]["position"])
        assert (over_http.status, numbers(over_http.json)) == (200, [2, 3, 4, 5])
    found = await scrape(broker.running.admin)
    assert found.total("broker_history_duration_seconds_count", source="ring") == 6
    assert found.total("broker_history_duration_seconds_count", source="stream") == 0


@pytest.mark.parametrize("known", [True, False], ids=["index", "windows"])
async def test_pages_from_the_stream(
    known: bool, tmp_path: Path, nats: NatsServer, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back to the beginning and on to the end, with pages from memory and stream; deleted ones are left out.

    What was published before this broker is not in its index.
    """
    async with run_broker(tmp_path / "a", configure(tmp_path / "a", nats.url)):
        pass  # it has made the stream
    if not known:
        monkeypatch.setattr(ingest, "HEAD_START_RECORDS", 0)
    wanted: dict[str, list[int]] = {"a": [], "*.b": [], ">": []}
    for number in range(600):
        channel = "a" if number % 100 == 3 else f"{'xyz'[number % 3]}.{'bc'[number % 2]}"
        sequence = await publisher.store(f"events.acme.{channel}", b"%d" % number)
        if number in (203, 400):
            await publisher.api("STREAM.MSG.DELETE.EVENTS", seq=sequence)
            continue
        for pattern in wanted:
            if pattern == ">" or channel == pattern or (pattern == "*.b" and channel.endswith(".b")):
                wanted[pattern].append(number)
    settings = configure(tmp_path / "b", nats.url, ring=SMALL, limits=OFTEN)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await broker.caught_up()
        for channel, expected in wanted.items():
            page = await history(client, channel, limit=90)
            events, newest = numbers(page), page["last"]
            while page["more"]:
                page = await history(client, channel, limit=90, before=page["first"])
                events = numbers(page) + events
            assert events == expected, channel
            page = {"last": newest.rpartition("-")[0] + "-0", "more": True}
            events = []
            while page["more"]:
                page = await history(client, channel, limit=90, after=page["last"])
                events += numbers(page)
            assert (events, page["last"]) == (expected, newest), channel
        found = await scrape(broker.running.admin)
        assert found.total("broker_history_duration_seconds_count", source="stream") > 5


async def test_bounds_of_a_page(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By bytes, from memory and the stream; a larger event comes alone; by work, where it makes progress."""
    monkeypatch.setattr(ingest, "HEAD_START_RECORDS", 0)
    limits: dict[str, Any] = {**OFTEN, "event_bytes": 500_000, "history_bytes": 262_144, "history_reads": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await broker.caught_up()
        for size in (100_000, 100_000, 300_000, 100_000, 100_000, 10):
            await publisher.store("events.acme.a", json.dumps("x" * size).encode())
        await broker.caught_up()
        page = await history(client, "a")
        sizes = [[len(event["event"]) for event in page["events"]]]
        while page["more"]:
            page = await history(client, "a", before=page["first"])
            sizes.append([len(event["event"]) for event in page["events"]])
        assert sizes == [[100_000, 100_000, 10], [300_000], [100_000, 100_000]]
        page = await history(client, "a", after=page["first"].rpartition("-")[0] + "-0")
        sizes = [[len(event["event"]) for event in page["events"]]]
        while page["more"]:
            page = await history(client, "a", after=page["last"])
            sizes.append([len(event["event"]) for event in page["events"]])
        assert sizes == [[100_000, 100_000], [300_000], [100_000, 100_000, 10]]


async def test_with_a_filter(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From memory, by exact gets and in windows: what passes, and tombstones; a page without any goes on."""
    monkeypatch.setattr(index, "KEPT", 300)
    settings = configure(tmp_path / "b", nats.url, ring={"events": 100}, limits=OFTEN)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await broker.caught_up()
        for number in range(600):
            body = b"" if number % 200 == 7 else b'{"n": %d}' % number
            await publisher.store(f"events.acme.{'ab'[number % 2]}", body)
        await broker.caught_up()
        for channel in ("a", "b", "*"):
            for wanted, numbers in (({"/n": {"lt": 20}}, range(20)), ({"/n": {"gte": 450}}, range(450, 600))):
                page = await history(client, channel, limit=40, filter=wanted)
                events, newest = page["events"], page["last"]
                while page["more"]:
                    page = await history(client, channel, limit=40, filter=wanted, before=page["first"])
                    events = page["events"] + events
                expected = [
                    None if number % 200 == 7 else {"n": number}
                    for number in range(600)
                    if (number in numbers or number % 200 == 7)
                    and (channel == "*" or "ab"[number % 2] == channel)
                ]
                assert [event["event"] for event in events] == expected
                page = {"more": True, "last": newest.rpartition("-")[0] + "-0"}
                found = []
                while page["more"]:
                    page = (await get(broker, channel, filter=wanted, after=page["last"])).json
                    found += page["events"]
                assert (found, page["last"]) == (events, newest)


async def test_positions_that_are_not_there(broker: Broker, publisher: RawNats) -> None:
    """Trimmed, in the future, of another stream, of none."""
    for number in range(10):
        await publisher.store("events.acme.a", b"%d" % number)
    await publisher.api("STREAM.PURGE.EVENTS", seq=5)
    await broker.caught_up()
    async with broker.client() as client:
        incarnation = (await client.position()).rpartition("-")[0]

        async def read(**start: Any) -> tuple[list[int], bool, bool]:
            page = await history(client, "a", **start)
            return numbers(page), page["more"], page["recovered"]

        rest = [4, 5, 6, 7, 8, 9]
        with trio.fail_after(60):  # deletions are noticed within two seconds
            while await read(before=f"{incarnation}-3") != ([], False, True):
                await trio.sleep(0.05)
        assert await read(before=f"{incarnation}-0") == ([], False, True)
        assert await read(before=f"{incarnation}-11") == (rest, False, True)
        assert await read(before=f"{incarnation}-999") == (rest, False, False)
        assert await read(before="abc-3") == (rest, False, False)
        assert await read(after=f"{incarnation}-2") == (rest, False, False)
        assert await read(after=f"{incarnation}-4") == (rest, False, True)
        assert await read(after=f"{incarnation}-999") == (rest, False, False)
        assert await read(after="abc-3") == (rest, False, False)
        assert await read(since="2001-01-01T00:00:00Z") == (rest, False, False)
        assert await read(since="2101-01-01T00:00:00Z") == ([], False, True)
        for wrong in ("x", "abc-", "abc--1", f"{incarnation}-1e3"):
            assert (await history(client, "a", before=wrong))["code"] == "invalid_position"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "live": ({"channel": "live.a"}, "invalid_channel"),
    "live among others": ({"channel": ["a", "live.me.x"]}, "invalid_channel"),
    "no channel": ({"channel": "a..b"}, "invalid_channel"),
    "denied": ({"channel": "secret.a"}, "forbidden"),
    "of somebody else": ({"channel": ["users.bob.>"]}, "forbidden"),
    "too many": ({"channel": ["a"] * 17}, "bad_message"),
    "two starts": ({"channel": "a", "before": "a-1", "after": "a-1"}, "bad_message"),
    "no time": ({"channel": "a", "since": "yesterday"}, "bad_message"),
    "nothing": ({"channel": "a", "limit": 0}, "bad_message"),
    "too much": ({"channel": "a", "limit": 1001}, "bad_message"),
    "no filter": ({"channel": "a", "filter": {"/a": {"near": 1}}}, "bad_message"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refusals(name: str, broker: Broker) -> None:
    """Over a connection, and without one."""
    payload, code = REFUSED[name]
    rights: dict[str, Any] = {"subscribe": [">"], "deny": ["secret.>"]}
    async with broker.client(**rights) as client:
        assert (await history(client, **payload))["code"] == code
    answer = await get(broker, **payload, token=broker.token(**rights))
    assert answer.json["code"] == code
    assert answer.status in (400, 403)


async def test_denied_channels_are_left_out(broker: Broker, publisher: RawNats) -> None:
    for number, channel in enumerate(("a.x", "a.secret", "b", "users.alice.i", "users.bob.i")):
        await publisher.store(f"events.acme.{channel}", b"%d" % number)
    await broker.caught_up()
    async with broker.client(subscribe=["a.*"], deny=["a.secret"]) as client:
        page = await history(client, ["a.*", "b", "me.>", "users.bob.i", "a.secret"])
        assert (page["channel"], numbers(page)) == (["a.*", "users.alice.>"], [0, 3])


async def test_ids_are_shown_to_their_publisher(broker: Broker) -> None:
    """An event that was not echoed is there too."""
    async with broker.client() as alice, broker.client(user="bob") as bob:
        await alice.send("publish", {"channel": "a", "event": 1, "id": "x", "echo": False})
        await alice.until("published")
        await broker.caught_up()
        for client, publisher in ((alice, {"user": "alice", "id": "x"}), (bob, {"user": "alice"})):
            (event,) = (await history(client, "a"))["events"]
            assert event["publisher"] == publisher


async def test_pages_from_the_stream_are_limited(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per user, over connections and requests alike; pages from memory are not."""
    monkeypatch.setattr(ingest, "HEAD_START_RECORDS", 0)
    async with run_broker(tmp_path / "a", configure(tmp_path / "a", nats.url)):
        for number in range(10):
            await publisher.store("events.acme.a", b"%d" % number)
    settings = configure(tmp_path / "b", nats.url, limits={"history_per_minute": 2})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        assert len((await history(client, "a"))["events"]) == 10
        assert (await get(broker, "a")).status == 200
        error = await history(client, "a")
        assert (error["code"], error["retryable"]) == ("rate_limited", True)
        assert 0 < error["retry_after_ms"] <= 30_000
        answer = await get(broker, "a")
        assert (answer.status, answer.json["code"]) == (429, "rate_limited")
        assert int(answer.headers["retry-after"]) > 0
        await publisher.store("events.acme.a", b"10")
        await broker.caught_up()
        assert numbers(await history(client, "a", limit=1)) == [10]
        bob = await get(broker, "a", token=broker.token(user="bob"))
        assert bob.status == 200


@pytest.mark.parametrize(
    "query",
    ["", "limit=1", "channel=a&limit=x", "channel=a&last=1", "channel=a&since=", "channel=a&filter={"],
)
async def test_queries_that_are_wrong(query: str, broker: Broker) -> None:
    answer = await ask(broker.running.http, "GET", f"/history?{quote(query, '=&')}", token=broker.token())
    assert answer.status == 400
