"""Streams with which nobody could work: refused, with what is wrong and each way out."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.errors import Unavailable
from tests.support.bus import ready_bus, running_bus, until_trouble

if TYPE_CHECKING:
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


BACK = {"src": "_broker.canary.*", "dest": "_broker.seen.{{wildcard(1)}}"}
EDITS: dict[str, dict[str, Any]] = {
    "--allow-direct": {"allow_direct": True},
    "--ack": {"no_ack": False},
    "--retention limits": {"retention": "limits"},
    "--subjects 'events.>'": {"subjects": ["events.>"]},
    "--allow-msg-ttl": {"allow_msg_ttl": True},
    f"--republish-source '{BACK['src']}' --republish-destination '{BACK['dest']}'": {"republish": BACK},
}
KEYS = {
    "EVENTS": "stream.name",
    "DEADLETTER": "stream.deadletter_name",
    "KV_broker_cursors": "stream.cursor_bucket",
    "KV_broker_control": "stream.control_bucket",
    "BROKER": "stream.own_name or subjects.own",
}
EVENTS = {"name": "EVENTS", "subjects": ["events.>"], "allow_direct": True}
LETTERS = {"name": "DEADLETTER", "subjects": ["deadletter.>"], "allow_direct": True}
OWN = {"name": "BROKER", "subjects": ["_broker.canary.*"], "allow_direct": True}
CONTROL = {"name": "KV_broker_control", "subjects": ["$KV.broker_control.>"], "allow_direct": True}
BUCKET = {"name": "KV_broker_cursors", "subjects": ["$KV.broker_cursors.>"], "allow_direct": True}


async def follow(nats: RawNats, advice: str) -> None:
    """Does what the commands of `nats` in a message would do."""
    if edit := re.search(r"`nats stream edit (\S+) ([^`]+)`", advice):
        config = (await nats.api(f"STREAM.INFO.{edit[1]}"))["config"]
        answer = await nats.api(f"STREAM.UPDATE.{edit[1]}", **config | EDITS[edit[2]])
        assert "error" not in answer
        return
    steps = re.findall(r"`nats stream (\S+) ([^\s`]+)[^`]*`", advice)
    change = re.search(r'put ("\w+": \S+) into', advice)
    assert change
    name = steps[0][1]
    assert steps == [("backup", name), ("rm", name), ("restore", f"{name}.backup")]
    await restore(nats, name, json.loads(f"{{{change[1]}}}"))


async def restore(nats: RawNats, name: str, change: dict[str, Any]) -> None:
    """Backs a stream up, removes it, and restores it with another configuration."""
    chunks: list[bytes] = []
    arriving = await nats.subscribe("backup")
    backup = await nats.api(f"STREAM.SNAPSHOT.{name}", deliver_subject="backup")
    async for message in arriving:
        if not message.body:
            break
        chunks.append(message.body)
        if message.reply:
            await nats.publish(message.reply)
    await nats.api(f"STREAM.DELETE.{name}")
    begun = await nats.api(f"STREAM.RESTORE.{name}", config=backup["config"] | change, state=backup["state"])
    for chunk in [*chunks, b""]:
        answer = await nats.request(begun["deliver_subject"], chunk)
    assert b"error" not in answer.body


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (EVENTS | {"allow_direct": False}, "`nats stream edit EVENTS --allow-direct`"),
        (EVENTS | {"subjects": ["events.acme.>"]}, "`nats stream edit EVENTS --subjects 'events.>'`"),
        (OWN, "`nats stream edit BROKER --republish-source '_broker.canary.*' "),
        (CONTROL, "`nats stream edit KV_broker_control --allow-msg-ttl`"),
        (EVENTS | {"no_ack": True}, "`nats stream edit EVENTS --ack`"),
        (EVENTS | {"retention": "interest"}, "`nats stream edit EVENTS --retention limits`"),
        (EVENTS | {"retention": "workqueue"}, 'put "retention": "limits" into'),
        (EVENTS | {"persist_mode": "async"}, 'put "persist_mode": "default" into'),
        (EVENTS | {"storage": "memory"}, 'put "storage": "file" into'),
        (EVENTS | {"sealed": True}, 'put "sealed": false into'),
        (LETTERS | {"allow_direct": False}, "`nats stream edit DEADLETTER --allow-direct`"),
        (LETTERS | {"retention": "workqueue"}, "`nats stream backup DEADLETTER DEADLETTER.backup`"),
        (BUCKET | {"allow_direct": False}, "`nats stream edit KV_broker_cursors --allow-direct`"),
        (BUCKET | {"persist_mode": "async"}, "`nats stream restore KV_broker_cursors.backup`"),
    ],
)
async def test_a_stream_that_cannot_be_used(
    nats: NatsServer, publisher: RawNats, settings: dict[str, Any], sentence: str
) -> None:
    """It is said what is wrong and what mends it; that done, the broker works, and nothing stored is lost."""
    sealed = {"sealed": True} if settings.get("sealed") else {}
    made = await publisher.api(f"STREAM.CREATE.{settings['name']}", **settings | {"sealed": False})
    subject = settings["subjects"][0].replace(
        ">", "kept" if "acme" in settings["subjects"][0] else "acme.kept"
    )
    subject = subject.replace("*", "kept")
    await publisher.publish(subject, b"1")
    if settings.get("retention") != "interest":  # that keeps nothing which nobody waits for
        while not (await publisher.api(f"STREAM.INFO.{settings['name']}"))["state"]["messages"]:
            await trio.sleep(0.01)
    if sealed:
        await publisher.api("STREAM.UPDATE.EVENTS", **made["config"] | sealed)
    async with running_bus(nats.url) as (bus, sink):
        await until_trouble(bus, sentence)
        advice = bus.jetstream.trouble
        assert f". Set {KEYS[settings['name']]}" in advice
        assert " to use another one, or change this one: " in advice
        with pytest.raises(Unavailable, match=settings["name"]):
            await bus.publish("events.acme.a", b"1")
        assert sink.states == []
    await follow(publisher, advice)
    info = await publisher.api(f"STREAM.INFO.{settings['name']}", subjects_filter=">")
    async with ready_bus(nats.url) as (bus, _):
        await bus.publish("events.acme.a", b"1")
    if settings.get("retention") != "interest":
        assert subject in info["state"]["subjects"]


async def test_a_dead_letter_is_kept_once(nats: NatsServer) -> None:
    """Each broker stores it under the same id; the stream's window is as long as its memory."""
    async with ready_bus(nats.url) as (one, _), ready_bus(nats.url) as (other, _):
        first = await one.publish("deadletter.acme.a", b"x", message_id="EVENTS:1")
        second = await other.publish("deadletter.acme.a", b"x", message_id="EVENTS:1")
        assert (first.duplicate, second.duplicate) == (False, True)


async def test_a_dead_letter_of_a_subject_that_is_no_text(nats: NatsServer, publisher: RawNats) -> None:
    """Bytes that are not UTF-8 go out readable, so that such a record can be put aside too."""
    async with ready_bus(nats.url) as (bus, sink):
        await publisher.store(b"events.acme.\xff")
        await sink.until(lambda: len(sink.records) == 1)
        await bus.publish(sink.records[0][1].replace("events", "deadletter"), b"x")
        found = (await publisher.api("STREAM.INFO.DEADLETTER", subjects_filter=">"))["state"]["subjects"]
        assert found == {r"deadletter.acme.\xff": 1}
