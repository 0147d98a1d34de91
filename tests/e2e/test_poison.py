"""What a service or a client could do to others, and cannot: poison, stolen ids, rights that ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.bus import ingest
from tests.support.broker import Broker, configure, run_broker
from tests.support.metrics import scrape

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        (b"events.acme.p.\xff", b"1"),
        (b"events.acme." + b"\xff" * 900, b"1"),
        (b"events.acme." + b"y" * 4070, b"1"),
        (b"events.acme.p", b'"' + b"x" * (1024 * 1024 - 100) + b'"'),
    ],
    ids=["not utf-8", "long, not utf-8", "long", "as large as NATS takes"],
)
async def test_dead_letter_that_nats_would_not_take(
    broker: Broker, publisher: RawNats, subject: bytes, body: bytes
) -> None:
    """A dead letter whose subject or size NATS would refuse ends neither broker nor connection."""
    async with broker.client() as client:
        await client.subscribe("a")
        await publisher.publish(subject, body)
        await publisher.store("events.acme.bad", b"no json")
        with trio.fail_after(45):
            while (await publisher.api("STREAM.INFO.DEADLETTER"))["state"]["messages"] < 2:
                await trio.sleep(0.05)
        await publisher.store("events.acme.a", b"1")
        assert (await client.expect("event"))["event"] == 1  # and no `source` before it


async def test_dead_letter_read_again_is_no_new_one(
    tmp_path: Path,
    nats: NatsServer,
    publisher: RawNats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Replays that pass over a dead letter neither count it again nor push others out."""
    monkeypatch.setattr(ingest, "HEAD_START_SECONDS", 0)
    settings = configure(tmp_path / "b", nats.url)
    async with run_broker(tmp_path / "b", settings):
        await publisher.store("events.acme.a", b"no json")
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        for _ in range(3):
            await client.subscribe("a", last=5)
        letters = (await scrape(broker.running.admin)).samples["broker_dead_letters_total"]
        assert [(labels["reason"], count) for labels, count in letters if count] == [("not_json", 1)]


@pytest.mark.parametrize("how", ["unsubscribe", "renewal", "deny"])
async def test_snapshot_under_way_obeys(broker: Broker, publisher: RawNats, how: str) -> None:
    """After `unsubscribed`, or a renewal that takes rights away, the rest of a snapshot leaves it out."""
    body = b'"' + b"x" * 8000 + b'"'
    for number in range(200):
        await publisher.publish(f"events.acme.a.{number}", body)
        await publisher.publish(f"events.acme.s.{number}", body)
    await publisher.store("events.acme.last", b"1")
    await broker.caught_up()
    async with broker.client() as client:
        await client.subscribe([">"] if how == "deny" else ["a.>", "s.>", "last"], snapshot=True)
        if how == "unsubscribe":
            await client.send("unsubscribe", {"channel": "s.>"})
            await client.until("unsubscribed")
        else:
            rights: dict[str, Any] = {"subscribe": ["a.>", "last"]}
            if how == "deny":
                rights = {"subscribe": [">"], "deny": ["s.>"]}
            await client.send("authenticate", {"token": broker.token(**rights)})
            await client.until("connection.authenticated")
            if how == "renewal":
                await client.until("unsubscribed")
        seen = len(client.log)
        await client.until("subscription.live")
        channels = [each["payload"]["channel"] for each in client.log[seen:] if each["type"] == "event"]
        assert channels
        assert not [each for each in channels if each.startswith("s.")]


async def test_nobody_takes_anothers_id(broker: Broker, publisher: RawNats) -> None:
    """A client's `id` is taken neither by another client, whatever its name, nor stands for a service's."""
    async with broker.client(user="a") as one, broker.client(user="a:b") as other:
        await one.send("publish", {"channel": "b:c", "event": 1, "id": "x"})
        await one.until("published")
        await other.send("publish", {"channel": "c", "event": 2, "id": "x"})
        assert "duplicate" not in await other.until("published")
        header = b"NATS/1.0\r\nNats-Msg-Id: acme:a:b:c:x\r\n\r\n"
        answer = await publisher.request("events.acme.a", b"3", header=header)
        assert "duplicate" not in json.loads(answer.body)
