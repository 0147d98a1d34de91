"""`/poll` where answers are lost, are slow to be read, or come late: nothing is missing in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e.test_lag import settled
from tests.support.broker import Broker, configure, run_broker
from tests.support.http import ask, opened, request
from tests.support.polling import Poller

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

STATES = 40
STATE = b'"' + b"x" * 5000 + b'"'  # more of them than one answer holds


def poller(broker: Broker, *channels: str, **start: object) -> Poller:
    return Poller(broker.running.http, broker.token(), list(channels), start)


async def states(publisher: RawNats, count: int = STATES) -> set[str]:
    for number in range(count):
        await publisher.store(f"events.acme.s.{number}", STATE)
    return {f"s.{number}" for number in range(count)}


@pytest.mark.parametrize("count", [STATES, STATES // 2])
async def test_a_part_of_a_snapshot_that_was_lost(count: int, broker: Broker, publisher: RawNats) -> None:
    """In the middle or at its end, there is no position to go back to: the client begins anew."""
    channels = await states(publisher, count)
    await settled(broker, publisher)
    alice = poller(broker, "s.*", snapshot=True)
    await alice.poll(5)
    assert alice.position is None
    await alice.ask(5)  # and its answer gets lost
    while alice.position is None:
        await alice.poll(5)
    assert {each["channel"] for each in alice.events} == channels


async def test_other_channels_in_the_middle_of_a_snapshot(broker: Broker, publisher: RawNats) -> None:
    """It begins anew with all of them, also where the client does not say so again."""
    channels = await states(publisher)
    await broker.caught_up()
    alice = poller(broker, "s.*", snapshot=True)
    await alice.poll(5)
    alice.start = {}
    alice.channels = ["s.*", "t"]
    while alice.position is None:
        await alice.poll(5)
    assert {each["channel"] for each in alice.events} == channels


async def test_an_answer_that_is_read_slowly(broker: Broker, publisher: RawNats) -> None:
    """All of it arrives, also after the time that a client has to close."""
    await states(publisher)
    await settled(broker, publisher)
    body = b'{"channels":["s.*"],"last":8,"wait":5}'
    asked = request(broker.running.http, "POST", "/poll", token=broker.token(), body=body)
    async with opened(broker.running.http, asked, receive_buffer=4096) as stream:
        received = bytearray()
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some(1)
        await trio.sleep(3)  # longer than the link is kept for those that do not close
        async for data in stream:
            received += data
    head, _, rest = bytes(received).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(rest)}".encode() in head
    assert len(rest) > 8 * len(STATE)


async def test_a_session_that_the_ring_has_left_behind(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """It reads on from the stream by the answer, and not by the event."""
    settings = configure(tmp_path / "b", nats.url, ring={"events": 10})
    async with run_broker(tmp_path / "b", settings) as broker:
        alice = poller(broker, "a")
        await alice.poll()
        for number in range(100):
            await publisher.store("events.acme.a", b"%d" % number)
        await settled(broker, publisher)
        polls = 0
        while len(alice.events) < 100:
            await alice.poll(0)
            polls += 1
        assert [each["event"] for each in alice.events] == list(range(100))
        assert polls <= 3


async def test_live_events_of_a_lost_answer_are_a_gap(broker: Broker, publisher: RawNats) -> None:
    alice = poller(broker, "a", "live.x")
    await alice.poll()
    await publisher.publish("live.acme.x", b"1")
    await publisher.store("events.acme.a", b"2")
    await settled(broker, publisher)
    assert len((await alice.ask(5)).json["events"]) == 2  # lost
    assert await alice.until(1) == [2]
    assert [(gap["channel"], gap["reason"]) for gap in alice.gaps] == [("live.x", "lag")]


async def test_the_position_beats_the_start(broker: Broker, publisher: RawNats) -> None:
    """A client may say in each poll how it began."""
    alice = poller(broker, "a", last=1)
    await publisher.store("events.acme.a", b"1")
    assert await alice.until(1) == [1]
    alice.session = "gone"
    await publisher.store("events.acme.a", b"2")
    await publisher.store("events.acme.a", b"3")
    await settled(broker, publisher)
    body = alice.body(5) | alice.start
    answer = await ask(alice.url, "POST", "/poll", token=alice.token, json=body)
    assert [each["event"] for each in answer.json["events"]] == [2, 3]


async def test_live_channels_that_stay(broker: Broker, publisher: RawNats) -> None:
    """Others come and go beside them: what waited for the poll is there, and nothing was lost."""
    alice = poller(broker, "a", "live.x")
    await alice.poll()
    for number, channels in enumerate((["a", "live.x", "live.y"], ["a", "b", "live.x"], ["live.x"])):
        await publisher.publish("live.acme.x", b"%d" % number)
        await publisher.store("events.acme.a", b'"stored"')
        await settled(broker, publisher)
        alice.channels = channels
        await alice.poll(5)
    assert [each["event"] for each in alice.events if "position" not in each] == [0, 1, 2]
    assert [each["channel"] for each in alice.events if "position" in each] == ["a", "a"]
    assert not alice.gaps


async def test_live_channels_that_begin_anew_are_a_gap(broker: Broker, publisher: RawNats) -> None:
    """As with another lag policy: what waited for the poll may be lost, and not in silence."""
    alice = poller(broker, "a", "live.x")
    await alice.poll()
    await publisher.publish("live.acme.x", b"1")
    await settled(broker, publisher)
    body = alice.body(5) | {"lag": "latest"}
    alice.take(await ask(alice.url, "POST", "/poll", token=alice.token, json=body))
    assert [(gap["channel"], gap["reason"]) for gap in alice.gaps] == [("live.x", "lag")]


async def test_a_lost_answer_that_moved_no_position(broker: Broker, publisher: RawNats) -> None:
    """Live events alone: the session's name tells that the client has not got them; then they are a gap."""
    alice = poller(broker, "live.x")
    await alice.poll()
    for number in range(3):
        await publisher.publish("live.acme.x", b"%d" % number)
        answer = await alice.ask(5)
        if number != 1:  # that one gets lost
            alice.take(answer)
    numbers = [each["event"] for each in alice.events]
    assert (numbers[0], 1 in numbers) == (0, False)
    assert [(gap["channel"], gap["reason"]) for gap in alice.gaps] == [("live.x", "lag")]


async def test_a_client_that_goes_by_the_first_name(broker: Broker, publisher: RawNats) -> None:
    """It gets its live events all the same, one answer for each, and is told that some may be missing."""
    alice = poller(broker, "a", "live.x")
    first = (await alice.poll())["session"]
    for number in range(4):
        await publisher.publish("live.acme.x", b"%d" % number)
        alice.session = first
        answer = await alice.poll(20)
        assert [each["event"] for each in answer["events"]] == [number]
        assert [gap["reason"] for gap in answer["gaps"]] == ["lag"] * (number > 0)


async def test_an_answer_that_nobody_reads_repeats_a_position(broker: Broker, publisher: RawNats) -> None:
    """The session goes back for one client; another that stands where the answer ends lacks live events."""
    alice = poller(broker, "a", "live.x")
    await alice.poll()
    closed = poller(broker, "a", "live.x")
    closed.session, closed.position = alice.session, alice.position
    await publisher.store("events.acme.a", b'"stored"')
    await alice.poll(20)
    async with broker.client(user="bob") as bob:
        await bob.subscribe("live.x")
        for number in range(3):
            await publisher.publish("live.acme.x", b"%d" % number)
            await bob.expect("event")
            answer = (await closed.ask(5)).json  # as of a tab that was closed
            assert (answer["position"], bool(answer["gaps"])) == (alice.position, True)
        await publisher.publish("live.acme.x", b'"live"')
        await alice.poll(20)
    assert [each["event"] for each in alice.events] == ["stored", "live"]
    assert [(gap["channel"], gap["reason"]) for gap in alice.gaps] == [("live.x", "lag")]


async def test_a_client_that_goes_by_the_first_name_where_positions_move(
    broker: Broker, publisher: RawNats
) -> None:
    """Going back for it once does not have it told of gaps again and again at once."""
    alice = poller(broker, "a", "live.x")
    first = (await alice.poll())["session"]
    await publisher.store("events.acme.a", b'"a"')
    await settled(broker, publisher)
    await alice.ask(5)  # lost
    alice.session = first
    assert await alice.until(1) == ["a"]
    for number in range(3):
        await (
            publisher.publish("live.acme.x", b"0") if number == 1 else publisher.store("events.acme.a", b"0")
        )
        alice.session = first
        answer = await alice.poll(20)
        assert [each["event"] for each in answer["events"]] == [0]
        assert [gap["reason"] for gap in answer["gaps"]] == ["lag"]
