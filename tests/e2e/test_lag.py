"""Slow clients: what each lag policy leaves out, and that it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.broker import Broker
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client

PADDING = "x" * 2000
EVENTS = 3000  # 6 MB: more than the kernel holds for a client that does not read
SMALL = 4096  # bytes of receive buffer


async def flood(publisher: RawNats, channels: int, *, prefix: str = "events.acme.q") -> None:
    """Numbered events, in turn over the channels, faster than the client reads: it does not."""
    for number in range(EVENTS):
        body = f'{{"n":{number},"p":"{PADDING}"}}'.encode()
        await publisher.publish(f"{prefix}.{number % channels}", body)
    await publisher.flush()


async def settled(broker: Broker, publisher: RawNats) -> None:
    """The broker has fanned out all that was published before: a quick client has seen it."""
    async with broker.client(user="quick") as quick:
        await quick.subscribe("mark")
        await publisher.store("events.acme.mark", b"1")
        await quick.until("event")


async def read_to(client: Client, last: int) -> tuple[list[int], list[dict[str, Any]]]:
    """The numbers of the events up to one, and the gaps on the way."""
    seen: list[int] = []
    gaps: list[dict[str, Any]] = []
    while not seen or seen[-1] < last:
        message = await client.receive()
        if message["type"] == "event":
            seen.append(message["payload"]["event"]["n"])
        elif message["type"] == "gap":
            gaps.append(message["payload"])
    return seen, gaps


async def test_latest_keeps_the_newest_of_each_channel(broker: Broker, publisher: RawNats) -> None:
    """Of each channel the newest comes, in stream order; what is passed over is counted exactly."""
    async with broker.client(receive_buffer=SMALL) as client:
        await client.subscribe("q.*", lag="latest")
        await flood(publisher, 10)
        await settled(broker, publisher)
        seen, gaps = await read_to(client, EVENTS - 1)
        assert seen == sorted(set(seen))
        assert seen[-10:] == list(range(EVENTS - 10, EVENTS))
        assert {gap["reason"] for gap in gaps} == {"lag"}
        assert {gap["channel"] for gap in gaps} == {"q.*"}
        assert len(seen) + sum(gap["count"] for gap in gaps) == EVENTS
        assert len(seen) < EVENTS


async def test_latest_beside_replay(broker: Broker, publisher: RawNats) -> None:
    """A policy is its subscription's own: what another one replays is not passed over."""
    async with broker.client(receive_buffer=SMALL) as client:
        await client.subscribe("q.*", lag="latest")
        await client.subscribe("q.3")
        await flood(publisher, 10)
        await settled(broker, publisher)
        seen, gaps = await read_to(client, EVENTS - 1)
        assert [number for number in seen if number % 10 == 3] == list(range(3, EVENTS, 10))
        assert len(seen) + sum(gap["count"] for gap in gaps) == EVENTS


async def test_drop_goes_on_from_now(broker: Broker, publisher: RawNats) -> None:
    """With `drop` a connection that is too far behind lets go of what waits, and is told how much."""
    async with broker.client(receive_buffer=SMALL) as client:
        await client.subscribe("q.*", lag="drop")
        await flood(publisher, 10)
        await settled(broker, publisher)
        await publisher.store("events.acme.q.0", b'{"n":1000000}')
        seen, gaps = await read_to(client, 1000000)
        assert seen == sorted(set(seen))
        assert gaps
        assert {gap["reason"] for gap in gaps} == {"lag"}
        assert len(seen) - 1 + sum(gap["count"] for gap in gaps) == EVENTS
        assert all("to" in gap for gap in gaps)


async def test_live_events_drop_their_oldest(broker: Broker, publisher: RawNats) -> None:
    """Live channels drop the oldest of a small queue by default; stored ones beside them lose nothing."""
    async with broker.client(receive_buffer=SMALL) as client:
        await client.subscribe("live.q.*")
        await client.subscribe("s")
        await flood(publisher, 10, prefix="live.acme.q")
        await settled(broker, publisher)
        await publisher.store("events.acme.s", b'{"n":-1}')
        seen, gaps = await read_to(client, EVENTS - 1)
        while -1 not in seen:  # between stored and live events there is no order
            seen.append((await client.until("event"))["event"]["n"])
        seen.remove(-1)
        assert seen == sorted(set(seen))
        assert {gap["channel"] for gap in gaps} == {"live.q.*"}
        assert {gap["reason"] for gap in gaps} == {"lag"}
        assert len(seen) + sum(gap["count"] for gap in gaps) == EVENTS
        assert len(seen) < EVENTS


async def test_close_ends_the_connection(broker: Broker, publisher: RawNats) -> None:
    """With `close` the connection is closed with 4008 once more waits than may; others are not touched."""
    async with broker.client(receive_buffer=SMALL) as client, broker.client(user="bob") as other:
        await client.subscribe("q.*", lag="close")
        await other.subscribe("q.*")
        await flood(publisher, 10)
        seen, _ = await read_to(other, EVENTS - 1)
        assert seen == list(range(EVENTS))
        assert await client.closed() in (4008, 1006)  # 1006: the last frame did not fit any more
        assert len([message for message in client.log if message["type"] == "event"]) < EVENTS


async def test_slow_reader_with_replay_gets_everything(broker: Broker, publisher: RawNats) -> None:
    """The default leaves nothing out, however late the client reads; its replies keep their place."""
    async with broker.client(receive_buffer=SMALL) as client:
        await client.subscribe("q.*")
        await flood(publisher, 10)
        await settled(broker, publisher)
        await client.send("ping", messageId="p")
        position, seen = 0, 0
        while seen < EVENTS:
            message = await client.receive()
            told = message["payload"].get("position")
            if message["type"] == "event":
                assert message["payload"]["event"]["n"] == seen
                seen += 1
            assert message["type"] != "gap"
            if told:
                assert int(told.split("-")[1]) >= position
                position = int(told.split("-")[1])
