"""Streams that exist already: adjusted, or refused with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker.errors import Unavailable
from tests.support.bus import ready_bus, running_bus, until_trouble

if TYPE_CHECKING:
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "`nats stream edit EVENTS --allow-direct`"),
        ({"subjects": ["events.acme.>"]}, "`nats stream edit EVENTS --subjects 'events.>'`"),
        ({"retention": "workqueue"}, "retention='workqueue'"),
        ({"allow_direct": True, "no_ack": True}, "`nats stream edit EVENTS --ack`"),
    ],
)
async def test_a_stream_that_cannot_be_used(
    nats: NatsServer, publisher: RawNats, settings: dict[str, Any], sentence: str
) -> None:
    """Whoever asks is told what is wrong and the command that mends it; mended, the broker goes on."""
    await publisher.api("STREAM.CREATE.EVENTS", **{"name": "EVENTS", "subjects": ["events.>"], **settings})
    async with running_bus(nats.url) as (bus, sink):
        await until_trouble(bus, sentence)
        with pytest.raises(Unavailable, match="EVENTS"):
            await bus.publish("events.acme.a", b"1")
        assert sink.states == []
        await publisher.api("STREAM.DELETE.EVENTS")
        await sink.until(lambda: sink.up)


async def test_settings_that_are_none_of_ours_stay(nats: NatsServer, publisher: RawNats) -> None:
    """An operator's stream keeps its description, compression and metadata; only the limits change."""
    await publisher.api(
        "STREAM.CREATE.EVENTS",
        name="EVENTS",
        subjects=["events.>"],
        allow_direct=True,
        allow_rollup_hdrs=True,
        description="ours",
        compression="s2",
        metadata={"team": "7"},
    )
    async with ready_bus(nats.url):
        found = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
        assert (found["description"], found["compression"], found["metadata"]["team"]) == ("ours", "s2", "7")
        assert found["duplicate_window"] == 600 * 10**9
        assert not found["allow_rollup_hdrs"], "a publisher could purge everybody's history by a header"


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
