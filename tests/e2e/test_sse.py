"""`GET /sse`: the connection of a client that can only listen."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e.test_lag import EVENTS, SMALL, flood, settled
from tests.support.broker import Broker, configure, run_broker
from tests.support.http import ask, opened, parsed
from tests.support.sse import Parser, listen

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.sse import Stream


def stream(
    broker: Broker, *channels: str, token: str | None = None, user: str = "alice", **options: Any
) -> AbstractAsyncContextManager[Stream]:
    return listen(broker.running.http, *channels, token=token or broker.token(user=user), **options)


async def publish(broker: Broker, channel: str, *events: Any) -> list[str]:
    """Their positions. The broker has read them: a start means what it has by then."""
    positions = []
    async with broker.client(user="publisher") as client:
        await client.subscribe(channel)
        for event in events:
            await client.send("publish", {"channel": channel, "event": event})
            published, _ = await client.all_of("published", "event")
            positions.append(published.get("position", ""))
    return positions


def sequence(position: str) -> int:
    return int(position.rpartition("-")[2] or 0)


async def test_the_messages_are_those_of_a_websocket(broker: Broker) -> None:
    """From the greeting on; every one that carries P has it as its id."""
    async with broker.client() as other, stream(broker, "orders.>", "live.cursor") as sse:
        assert (sse.status, sse.headers["content-type"]) == (200, "text/event-stream")
        assert sse.headers["cache-control"] == "no-store, no-transform"
        assert sse.headers["x-accel-buffering"] == "no"
        await sse.until("subscribed")
        assert [each["type"] for each in sse.log] == [
            "connection.established", "connection.authenticated", "subscribed",
        ]  # fmt: skip
        begun = sse.place
        assert begun == sse.log[-1]["payload"]["position"]
        assert 1000 <= (sse.parser.retry or 0) <= 5000
        await other.subscribe(["orders.>", "live.cursor"])
        await publish(broker, "live.cursor", {"x": 1})
        [live] = await sse.events(1)
        assert sse.place == begun  # a live event moves no position
        [position] = await publish(broker, "orders.7", {"n": "ü\u2028"})
        [event] = await sse.events(1)
        assert sse.place == position == event["position"]
        assert [live, event] == await other.events(2)


async def test_last_event_id_beats_the_start_in_the_address(broker: Broker) -> None:
    """A client that comes back goes on after what it had, although its address is still the first one."""
    positions = await publish(broker, "orders.7", *range(5))
    async with stream(broker, "orders.>", last="2") as sse:
        assert [each["event"] for each in await sse.events(2)] == [3, 4]
    async with stream(broker, "orders.>", last="2", headers={"Last-Event-ID": positions[0]}) as sse:
        assert [each["event"] for each in await sse.events(4)] == [1, 2, 3, 4]
        assert (await sse.until("subscription.live"))["position"] == sse.place


@pytest.mark.parametrize("name", ["lastEventId", "Last-Event-ID", "last-event-id", "lasteventid"])
async def test_polyfills_say_the_last_event_id_in_the_address(broker: Broker, name: str) -> None:
    """As those do that cannot set the header; empty it says nothing, and the header is the newer one."""
    positions = await publish(broker, "orders.7", *range(5))
    async with stream(broker, "orders.>", last="2", **{name: positions[1]}) as sse:
        assert [each["event"] for each in await sse.events(3)] == [2, 3, 4]
    async with stream(broker, "orders.>", last="2", **{name: ""}) as sse:
        assert [each["event"] for each in await sse.events(2)] == [3, 4]
    later = {"Last-Event-ID": positions[3]}
    async with stream(broker, "orders.>", headers=later, **{name: positions[1]}) as sse:
        assert [each["event"] for each in await sse.events(1)] == [4]


async def test_a_cut_is_no_end(broker: Broker, supervisors: list[Supervisor]) -> None:
    """What the broker ends is complete by HTTP; what is cut in the middle is not."""
    async with stream(broker, "a", token=broker.token(ttl=2)) as sse:
        await sse.ended()
        assert sse.chunks.complete
    async with stream(broker, "a") as sse:
        await sse.until("subscribed")
        for connection in supervisors[0].connections:
            connection.transport.abort()
        with suppress(trio.BrokenResourceError):
            await sse.ended()
        assert not sse.chunks.complete


async def test_http_1_0(broker: Broker) -> None:
    """No chunks, and the end is that of the link; without Host, as it needs none."""
    [position] = await publish(broker, "a", 1)
    token = f"Authorization: Bearer {broker.token(ttl=2)}"
    asked = f"GET /sse?channel=a&last=1 HTTP/1.0\r\n{token}\r\n\r\n".encode()
    async with opened(broker.running.http, asked) as link:
        received = b""
        with trio.fail_after(45):
            async for data in link:
                received += data
    head, _, body = received.partition(b"\r\n\r\n")
    status, headers = parsed(head)
    assert (status, headers["connection"]) == (200, "close")
    assert "transfer-encoding" not in headers
    parser = Parser()
    told = [json.loads(text) for text, _ in parser.feed(body)]
    assert [each["payload"]["event"] for each in told if each["type"] == "event"] == [1]
    assert parser.last_event_id == position
    assert parser.comments[-1].startswith("closed: 4002")


@pytest.mark.parametrize(
    ("start", "expected"),
    [({"position": "1"}, [2, 3]), ({"since": ""}, [0, 1, 2, 3]), ({"last": "1"}, [3]), ({}, [])],
    ids=["position", "since", "last", "now"],
)
async def test_starts(broker: Broker, start: dict[str, str], expected: list[int]) -> None:
    """They mean what they mean in `subscribe`."""
    positions = await publish(broker, "a.b", 0, 1, 2)
    positions += await publish(broker, "a.c", 3)
    if "position" in start:
        start = {"position": positions[1]}
    elif "since" in start:
        start = {"since": "2020-01-01T00:00:00Z"}
    async with stream(broker, "a.*", **start) as sse:
        await sse.until("subscribed")
        await publish(broker, "a.d", "end")
        found = await sse.events(len(expected) + 1)
        assert [each["event"] for each in found] == [*expected, "end"]


async def test_a_snapshot_gives_no_id_before_it_is_over(broker: Broker) -> None:
    """Who is cut off in the middle of it comes back without an id, and gets all of it again."""
    await publish(broker, "state.a", 1, 2)
    await publish(broker, "state.b", 3)
    async with stream(broker, "state.>", snapshot="true") as sse:
        found = await sse.events(2)
        assert [each["event"] for each in found] == [2, 3]
        assert {each["catch_up"] for each in found} == {1}
        assert sse.place == ""
        live = await sse.until("subscription.live")
        assert sse.place == live["position"]


async def test_durable(broker: Broker) -> None:
    """It begins where the user's acknowledgements stand."""
    positions = await publish(broker, "jobs.x", 1, 2, 3)
    async with broker.client() as alice:
        await alice.subscribe("jobs.>", durable="d", position=positions[0])
        await alice.events(2)
        await alice.send("acknowledge", {"durable": "d", "position": positions[1]}, messageId="a")
        await alice.until("acknowledged")
    async with stream(broker, "jobs.>", durable="d") as sse:
        assert [each["event"] for each in await sse.events(1)] == [3]


async def test_a_pretty_printed_body_stays_one_line(broker: Broker, publisher: RawNats) -> None:
    """Line ends between tokens would end the field."""
    async with stream(broker, "a", "live.a") as sse:
        await sse.until("subscribed")
        body = b'{\r\n "a": [1,\n2],\r "b": "x"\n}'
        for subject in ("events.acme.a", "live.acme.a"):
            await publisher.publish(subject, body)
        assert [each["event"] for each in await sse.events(2)] == [{"a": [1, 2], "b": "x"}] * 2


REFUSED: dict[str, tuple[str, dict[str, str], int]] = {
    "no channel": ("", {}, 400),
    "unknown parameter": ("?chanel=a", {}, 400),
    "bad channel": ("?channel=a..b", {}, 400),
    "two starts": ("?channel=a&last=1&snapshot=true", {}, 400),
    "a start twice": ("?channel=a&last=1&last=2", {}, 400),
    "last is no number": ("?channel=a&last=x", {}, 400),
    "last is too large": ("?channel=a&last=100000", {}, 400),
    "lag": ("?channel=a&lag=never", {}, 400),
    "lag of a live channel": ("?channel=live.a&lag=replay", {}, 400),
    "snapshot": ("?channel=a&snapshot=1", {}, 400),
    "position": ("?channel=a&position=x", {}, 400),
    "Last-Event-ID": ("?channel=a", {"Last-Event-ID": "x"}, 400),
    "forbidden": ("?channel=users.bob.x", {}, 403),
    "another tenant": ("?channel=a&tenant=other", {}, 403),
    "origin": ("?channel=a", {"Origin": "https://evil.example"}, 403),
    "token in the address": ("?channel=a&access_token=x", {}, 400),
    "not UTF-8": ("?channel=%ff", {}, 400),
    "too many": ("?" + "&".join(f"channel=c{number}" for number in range(200)), {}, 429),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_has_a_status(broker: Broker, name: str) -> None:
    """Before a stream has begun: a problem document, and nothing of the connection stays."""
    query, headers, status = REFUSED[name]
    answer = await ask(broker.running.http, "GET", f"/sse{query}", token=broker.token(), headers=headers)
    assert answer.problem["status"] == status, answer


async def test_tokens(broker: Broker) -> None:
    for token in ("a.b.c", broker.token(ttl=-100)):
        async with stream(broker, "a", token=token) as sse:
            answer = await sse.answer()
            assert (answer.status, token in answer.body.decode()) == (401, False)
            assert "invalid_token" in answer.headers["www-authenticate"]
    async with listen(broker.running.http, "a", token=None) as sse:
        assert (await sse.answer()).status == 401


async def test_some_channels_are_refused(broker: Broker) -> None:
    """As in `subscribed`."""
    async with stream(broker, "a", "users.bob.x") as sse:
        told = await sse.until("subscribed")
        assert (told["channel"], told["refused"][0]["code"]) == (["a"], "forbidden")


async def test_the_stream_ends_with_the_token(broker: Broker) -> None:
    """After an error that says so; the next request is refused."""
    async with stream(broker, "a", token=broker.token(ttl=2)) as sse:
        assert (await sse.until("error"))["code"] == "token_expired"
        await sse.ended()
        assert sse.parser.comments[-1].startswith("closed: 4002")


async def test_limits_of_connections(tmp_path: Path, nats: NatsServer) -> None:
    """A stream is one connection of its user, like any other."""
    limits = {"connections_per_user": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, stream(broker, "a") as first:
        await first.until("subscribed")
        async with stream(broker, "a") as second:
            answer = await second.answer()
            assert (answer.status, answer.problem["code"]) == (429, "limit_connections")
            assert int(answer.headers["retry-after"]) >= 1


async def test_heartbeats(tmp_path: Path, nats: NatsServer) -> None:
    """Each carries P, which advances while the stream's channels are quiet; nobody has to answer."""
    limits = {"heartbeat_seconds": 0.3, "heartbeat_timeout_seconds": 0.2}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, stream(broker, "quiet") as sse:
        await sse.until("subscribed")
        [position] = await publish(broker, "elsewhere", 1)
        with trio.fail_after(45):
            while sequence(sse.parser.last_event_id) < sequence(position):
                sse.feed(await sse.stream.receive_some())
        assert not sse.ready


async def test_draining(broker: Broker) -> None:
    """The stream says when to come back, and ends."""
    async with stream(broker, "a") as sse:
        await sse.until("subscribed")
        broker.stop.wanted.set()
        told = await sse.until("connection.draining")
        assert (sse.parser.retry, sse.place) == (told["reconnect_after_ms"], told["position"])
        await sse.ended()


async def read_to(sse: Stream, last: int) -> tuple[list[int], list[dict[str, Any]]]:
    """The numbers of the events up to one, and the gaps on the way."""
    seen: list[int] = []
    gaps: list[dict[str, Any]] = []
    while not seen or seen[-1] < last:
        message = await sse.receive()
        assert message is not None
        if message["type"] == "event":
            seen.append(message["payload"]["event"]["n"])
            assert message["payload"]["position"] == sse.place
        elif message["type"] == "gap":
            gaps.append(message["payload"])
    return seen, gaps


async def test_a_slow_reader_gets_all_of_it(broker: Broker, publisher: RawNats) -> None:
    """What it has not read waits in the ring and the stream, not in its connection; nothing is missing."""
    async with stream(broker, "q.*", receive_buffer=SMALL) as sse:
        await sse.until("subscribed")
        await flood(publisher, 10)
        await settled(broker, publisher)
        assert await read_to(sse, EVENTS - 1) == (list(range(EVENTS)), [])


async def test_a_slow_reader_by_its_lag_policy(broker: Broker, publisher: RawNats) -> None:
    """`latest` and `close` do what they do to a WebSocket."""
    async with (
        stream(broker, "q.*", receive_buffer=SMALL, lag="latest") as latest,
        stream(broker, "q.*", receive_buffer=SMALL, lag="close") as closing,
    ):
        await latest.until("subscribed")
        await closing.until("subscribed")
        await flood(publisher, 10)
        await settled(broker, publisher)
        seen, gaps = await read_to(latest, EVENTS - 1)
        assert seen == sorted(set(seen))
        assert len(seen) + sum(gap["count"] for gap in gaps) == EVENTS > len(seen)
        await closing.ended()
        assert closing.parser.comments[-1].startswith("closed: 4008")
