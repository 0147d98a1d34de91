"""What was deleted from the stream is given to nobody any more, and who resumes across it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.bus import looks
from tests.support.broker import Broker, configure, run_broker
from tests.support.polling import Poller
from tests.support.rawnats import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client

TTL = b"NATS/1.0\r\nNats-TTL: 1s\r\n\r\n"


async def one_by_one(publisher: RawNats, sequences: list[int]) -> None:
    for sequence in sequences:
        await publisher.api("STREAM.MSG.DELETE.EVENTS", seq=sequence)


async def by_subject(publisher: RawNats, sequences: list[int]) -> None:
    await publisher.api("STREAM.PURGE.EVENTS", filter="events.acme.doomed")


async def by_time(publisher: RawNats, sequences: list[int]) -> None:
    """They went in with a time to live."""


async def from_the_front(publisher: RawNats, sequences: list[int]) -> None:
    """Everything but the newest."""
    await publisher.api("STREAM.PURGE.EVENTS", seq=max(sequences) + 1)


HOW = [one_by_one, by_subject, by_time, from_the_front]


async def fill(publisher: RawNats, *, ttl: bool, heard_by: Client | None = None) -> list[int]:
    """Events 1 to 25 in channels `kept` and `doomed`, the last five in `kept`; where the doomed stand.

    With `heard_by` each is stored when a client has the one before.
    """
    doomed = []
    for number in range(1, 26):
        if number % 2 or number > 20:
            await publisher.store("events.acme.kept", b"%d" % number)
        else:
            header = TTL if ttl else b""
            doomed.append(await publisher.store("events.acme.doomed", b"%d" % number, header=header))
        if heard_by is not None:
            await heard_by.events(1)
    return doomed


async def forgotten(supervisor: Supervisor, sequences: list[int]) -> None:
    """Waits until the broker has seen what it is about."""
    with trio.fail_after(45):
        while not all(supervisor.intake.gone.has(each) for each in sequences):
            await trio.sleep(0.01)


async def read_all(client: Client, *, upto: int = 25) -> tuple[list[int], list[dict[str, Any]]]:
    """The numbers of all events up to the last, and the gaps."""
    seen: list[int] = []
    gaps: list[dict[str, Any]] = []
    while not seen or seen[-1] != upto:
        message = await client.receive()
        if message["type"] == "event":
            seen.append(message["payload"]["event"])
        elif message["type"] == "gap":
            gaps.append(message["payload"])
    return seen, gaps


@pytest.mark.parametrize("where", ["ring", "stream"])
@pytest.mark.parametrize("how", HOW)
async def test_nothing_of_it_is_replayed(
    tmp_path: Path,
    nats: NatsServer,
    publisher: RawNats,
    supervisors: list[Supervisor],
    how: Callable[[RawNats, list[int]], Awaitable[None]],
    where: str,
) -> None:
    """By no start, from memory or from the stream; a resume across it is told of a gap, one beyond is not."""
    ring = {"events": 1} if where == "stream" else {}
    settings = configure(tmp_path / "broker", nats.url, ring=ring)
    async with run_broker(tmp_path / "broker", settings) as broker:
        async with broker.client() as client:
            begun = (await client.subscribe(">"))["position"]
            doomed = await fill(publisher, ttl=how is by_time)
            positions = [event["position"] for event in await client.events(25)]
        await how(publisher, doomed)
        await forgotten(supervisors[0], doomed)
        left = list(range(21, 26)) if how is from_the_front else [*range(1, 21, 2), *range(21, 26)]
        async with broker.client() as client:
            answer = await client.subscribe(">", position=begun)
            seen, gaps = await read_all(client)
            assert seen == left
            assert not answer["recovered"]
            assert {gap["reason"] for gap in gaps} == {"trimmed"}
            await client.subscribe(">", position=positions[20])
            seen, gaps = await read_all(client)
            assert (seen, gaps) == (list(range(22, 26)), [])
        async with broker.client() as client:
            answer = await client.subscribe(">", position=positions[14])
            assert not answer["recovered"]
        for start in ({"last": 100}, {"since": "2020-01-01T00:00:00Z"}):
            async with broker.client() as client:
                await client.subscribe(">", **start)
                assert (await read_all(client))[0] == left
        async with broker.client() as client:
            await client.subscribe(">", snapshot=True)
            assert (await client.events(1))[0]["event"] == 25
            await client.until("subscription.live")
        poller = Poller(broker.running.http, broker.token(), [">"], start={"position": begun})
        await poller.poll()
        await poller.until(len(left))
        assert [event["event"] for event in poller.events] == left
        assert {gap["reason"] for gap in poller.gaps} == {"trimmed"}


async def test_the_newest_of_a_channel_was_deleted(
    broker: Broker, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """A snapshot and the newest one by `last` have the one before it."""
    async with broker.client() as client:
        await client.subscribe(">")
        for number in range(3):
            newest = await publisher.store("events.acme.a", b"%d" % number)
        await client.events(3)
    await one_by_one(publisher, [newest])
    await forgotten(supervisors[0], [newest])
    for start in ({"snapshot": True}, {"last": 1}):
        async with broker.client() as client:
            await client.subscribe("a", **start)
            assert (await client.until("event"))["event"] == 1


async def test_whose_it_was(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """A tenant hears of no gap for another one's events, nor a channel for those of another channel."""
    async with run_broker(tmp_path / "broker", configure(tmp_path / "broker", nats.url)) as broker:
        async with broker.client() as client:
            await client.subscribe(">")
            doomed = [
                await publisher.store("events.globex.a", b"1"),
                await publisher.store("events.acme.a", b"2"),
            ]
            await publisher.store("events.acme.b", b"3")
            begun = (await client.events(1))[0]["position"].rpartition("-")[0] + "-0"
        await one_by_one(publisher, doomed[:1])
        await forgotten(supervisors[0], doomed[:1])
        async with broker.client() as client:
            assert (await client.subscribe(">", position=begun))["recovered"]
            assert [event["event"] for event in await client.events(2)] == [2, 3]
        await one_by_one(publisher, doomed)
        await forgotten(supervisors[0], doomed)
        async with broker.client() as client:
            assert (await client.subscribe("b", position=begun))["recovered"]
            assert [event["event"] for event in await client.events(1)] == [3]
            await client.until("subscription.live")
            assert not (await client.subscribe("a", position=begun))["recovered"]
            assert (await client.until("gap"))["channel"] == "a"


async def test_a_slow_client(broker: Broker, publisher: RawNats, supervisors: list[Supervisor]) -> None:
    """Who is behind and reads on from the ring gets nothing of it, and is told where something is missing."""
    padding = "x" * 2000
    async with broker.client(receive_buffer=4096) as client:
        await client.subscribe("q.*")
        for number in range(3000):
            body = f'{{"n":{number},"p":"{padding}"}}'.encode()
            await publisher.publish(f"events.acme.q.{number % 2}", body)
        await publisher.flush()
        async with broker.client(user="quick") as quick:
            await quick.subscribe("mark")
            await publisher.store("events.acme.mark", b"1")
            await quick.until("event")
        await publisher.api("STREAM.PURGE.EVENTS", filter="events.acme.q.0")
        await publisher.store("events.acme.q.1", b'{"n":3001}')
        await forgotten(supervisors[0], [1, 2999])
        seen: list[int] = []
        gaps: list[dict[str, Any]] = []
        while not seen or seen[-1] != 3001:
            message = await client.receive()
            if message["type"] == "event":
                seen.append(message["payload"]["event"]["n"])
            elif message["type"] == "gap":
                gaps.append(message["payload"])
        assert [number for number in seen if number % 2] == [*range(1, 3000, 2), 3001]
        assert len(seen) < 2500, "what was on its way may come, and no more"
        assert {gap["reason"] for gap in gaps} == {"trimmed"}


async def test_deleted_before_the_broker_read_it(
    broker: Broker, nats: NatsServer, publisher: RawNats
) -> None:
    """Stored and deleted while the broker was cut off: its clients, who were there all the time, are told."""
    async with broker.client() as client:
        await client.subscribe("a")
        await publisher.store("events.acme.a", b"1")
        await client.events(1)
        port = nats.port
        await nats.term()
        nats.port = -1  # where the broker does not find it
        await nats.start()
        async with connect(nats.url) as elsewhere:
            for _ in range(3):
                await elsewhere.store("events.acme.a", b"2")
            await one_by_one(elsewhere, [2, 4])
        await nats.term()
        nats.port = port
        await nats.start()
        async with connect(nats.url) as back:
            await back.store("events.acme.a", b"3")
        seen, gaps = await read_all(client, upto=3)
        assert seen == [2, 3]
        assert {gap["reason"] for gap in gaps} == {"trimmed"}


async def test_too_many_to_be_named(
    broker: Broker, publisher: RawNats, supervisors: list[Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then everything leaves the memory, and all that was stored before is taken to have a hole."""
    monkeypatch.setattr(looks, "NAMED", 5)
    async with broker.client() as client:
        begun = (await client.subscribe(">"))["position"]
        doomed = await fill(publisher, ttl=False)
        await client.events(25)
        await by_subject(publisher, doomed)
        with trio.fail_after(45):
            while supervisors[0].intake.floor < 25:
                await trio.sleep(0.01)
        position = (await client.subscribe("other"))["position"]
        await publisher.store("events.acme.kept", b"26")
        await client.events(1)
    async with broker.client() as client:
        assert not (await client.subscribe(">", position=begun))["recovered"]
        assert (await read_all(client, upto=26))[0] == [*range(1, 21, 2), *range(21, 27)]
        assert (await client.subscribe(">", position=position))["recovered"]
        assert (await read_all(client, upto=26)) == ([26], [])


async def test_a_stream_that_keeps_the_newest(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """What was replaced stays in memory and is no gap; a channel that was purged is gone with all it had."""
    stream = {"max_msgs_per_subject": 1}
    settings = configure(tmp_path / "broker", nats.url, stream=stream)
    async with run_broker(tmp_path / "broker", settings) as broker:
        async with broker.client() as client:
            begun = (await client.subscribe(">"))["position"]
            # A slow broker would not see what is replaced at once.
            doomed = await fill(publisher, ttl=False, heard_by=client)
        await forgotten(supervisors[0], doomed[:-1])
        async with broker.client() as client:
            assert (await client.subscribe(">", position=begun))["recovered"]
            assert await read_all(client) == (list(range(1, 26)), [])
        await by_subject(publisher, doomed)
        await forgotten(supervisors[0], doomed)
        async with broker.client() as client:
            assert not (await client.subscribe(">", position=begun))["recovered"]
            seen, gaps = await read_all(client)
            assert seen == [*range(1, 21, 2), *range(21, 26)]
            assert {gap["reason"] for gap in gaps} == {"trimmed"}
