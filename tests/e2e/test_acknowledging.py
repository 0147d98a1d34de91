"""`POST /acknowledge`: what `acknowledge` is on a connection, for clients that only listen or poll."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e.test_sse import publish, stream
from tests.support.broker import Broker, configure, run_broker
from tests.support.http import SECONDS, Answer, ask
from tests.support.polling import Poller

if TYPE_CHECKING:
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.support.nats import NatsServer


async def acknowledge(
    broker: Broker, durable: Any, position: Any, *, user: str = "alice", query: str = "", **options: Any
) -> Answer:
    options.setdefault("token", broker.token(user=user))
    payload = {"durable": durable, "position": position}
    return await ask(broker.running.http, "POST", f"/acknowledge{query}", json=payload, **options)


def moved(position: str, by: int) -> str:
    incarnation, _, sequence = position.rpartition("-")
    return f"{incarnation}-{int(sequence) + by}"


async def test_a_stream_goes_on_where_it_was_acknowledged(broker: Broker) -> None:
    """The next one begins after that; the one that is open misses nothing and gets nothing again."""
    async with stream(broker, "a", durable="page") as sse:
        await sse.until("subscribed")
        await publish(broker, "a", 1, 2, 3)
        second = (await sse.events(3))[1]["position"]
        answer = await acknowledge(broker, "page", second)
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        assert answer.json == {"durable": "page", "position": second}
        await publish(broker, "a", 4)
        assert (await sse.until("event"))["event"] == 4
    async with stream(broker, "a", durable="page") as sse:
        assert (await sse.until("subscribed"))["position"] == second
        assert [each["event"] for each in await sse.events(2)] == [3, 4]
    async with stream(broker, "a", durable="page", headers={"Last-Event-ID": moved(second, 1)}) as sse:
        assert (await sse.until("event"))["event"] == 4  # what it has got already does not come again


async def test_a_poll_goes_on_where_it_was_acknowledged(broker: Broker) -> None:
    """Another session does, and so does the same one when it asks for the name instead of a position."""
    url, token = broker.running.http, broker.token()
    first = Poller(url, token, ["a"], {"durable": "page"})
    await first.poll()
    await publish(broker, "a", 1, 2, 3)
    await first.until(3)
    second = first.events[1]["position"]
    assert (await acknowledge(broker, "page", second)).json["position"] == second
    await publish(broker, "a", 4)
    assert await first.until(4) == [1, 2, 3, 4]
    assert await Poller(url, token, ["a"], {"durable": "page"}).until(2) == [3, 4]
    for channels in (["a"], ["a", "b"], ["a"]):
        again = Poller(url, token, channels, {"durable": "page"}, session=first.session)
        assert await again.until(2) == [3, 4]
        assert again.session == first.session


async def test_a_poll_that_names_a_start_begins_once_more(broker: Broker) -> None:
    """Also in a session that has the same channels already; a snapshot under way is not begun again."""
    url, token = broker.running.http, broker.token()
    await publish(broker, "a", 1, 2, 3)
    first = Poller(url, token, ["a"], {"last": 2})
    assert await first.until(2) == [2, 3]
    again = Poller(url, token, ["a"], {"last": 3}, session=first.session)
    assert await again.until(3) == [1, 2, 3]
    newest = Poller(url, token, ["a"], {"snapshot": True}, session=first.session)
    while not newest.position:
        await newest.poll()
    assert [each["event"] for each in newest.events] == [3]


async def test_it_only_raises(broker: Broker) -> None:
    """The answer says where the cursor stands; on a connection that holds the name it stands there too."""
    positions = await publish(broker, "a", 1, 2, 3, 4)
    assert (await acknowledge(broker, "d", positions[1])).json["position"] == positions[1]
    assert (await acknowledge(broker, "d", positions[0])).json["position"] == positions[1]
    assert (await acknowledge(broker, "d", positions[1])).json["position"] == positions[1]
    async with broker.client() as alice:
        assert (await alice.subscribe("a", durable="d"))["position"] == positions[1]
        assert (await acknowledge(broker, "d", positions[3])).json["position"] == positions[3]
        await alice.events(2)
        await alice.send("acknowledge", {"durable": "d", "position": positions[2]}, messageId="1")
        await alice.until("acknowledged")
    async with broker.client() as alice:
        assert (await alice.subscribe("a", durable="d"))["position"] == positions[3]


async def test_a_cursor_is_its_users(broker: Broker) -> None:
    """A name that has none yet gets one; somebody else's of that name is another."""
    first, second = await publish(broker, "a", 1, 2)
    assert (await acknowledge(broker, "new", first)).json["position"] == first
    assert (await acknowledge(broker, "new", second, user="bob")).json["position"] == second
    async with broker.client() as alice, broker.client(user="bob") as bob:
        assert (await alice.subscribe("a", durable="new"))["position"] == first
        assert (await bob.subscribe("a", durable="new"))["position"] == second


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "above the newest event": ({"durable": "d", "position": "{above}"}, "invalid_position", "position"),
    "of another stream": ({"durable": "d", "position": "other-1"}, "invalid_position", "position"),
    "malformed": ({"durable": "d", "position": "7"}, "invalid_position", "position"),
    "no text": ({"durable": "d", "position": 7}, "bad_message", "position: must be a string"),
    "none": ({"durable": "d"}, "bad_message", "position: is required"),
    "no name": ({"position": "{good}"}, "bad_message", "durable: is required"),
    "a bad name": ({"durable": "a.b", "position": "{good}"}, "bad_message", "durable: 1 to 64"),
    "an empty name": ({"durable": "", "position": "{good}"}, "bad_message", "durable: 1 to 64"),
    "unknown field": ({"durabel": "d", "position": "{good}"}, "bad_message", "did you mean 'durable'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused(broker: Broker, name: str) -> None:
    """With the protocol's code, and a sentence on what is wrong."""
    payload, code, words = REFUSED[name]
    [good] = await publish(broker, "a", 1)
    texts = {"{good}": good, "{above}": moved(good, 1_000_000)}
    payload = {key: texts.get(value, value) for key, value in payload.items()}
    answer = await ask(broker.running.http, "POST", "/acknowledge", token=broker.token(), json=payload)
    assert (answer.status, answer.problem["code"]) == (400, code)
    assert words in answer.problem["detail"]


@pytest.mark.parametrize("body", [b"{", b"", b'{},"messageId":"x"', b"[]", b"\xff"])
async def test_a_body_that_is_none(broker: Broker, body: bytes) -> None:
    answer = await ask(broker.running.http, "POST", "/acknowledge", token=broker.token(), body=body)
    assert answer.problem["status"] == 400


async def test_tokens(broker: Broker) -> None:
    """As for `/publish`: 401 without a good one, and no other tenant than its own."""
    [position] = await publish(broker, "a", 1)
    for token in (None, "a.b.c", broker.token(ttl=-100)):
        answer = await acknowledge(broker, "d", position, token=token)
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
    answer = await acknowledge(broker, "d", position, query="?tenant=other")
    assert (answer.status, answer.problem["code"]) == (403, "forbidden")
    answer = await acknowledge(broker, "d", position, query="?durable=d")
    assert "unknown parameter" in answer.problem["detail"]


async def test_limits(tmp_path: Path, nats: NatsServer) -> None:
    """Names count as on a connection; requests have a rate of the user, which is not that of publishing."""
    limits = {"durables_per_user": 2, "requests_per_second": 0.01, "requests_burst": 5, "messages_burst": 2}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker:
        [position] = await publish(broker, "a", 1)
        for name in ("one", "two", "one", "two"):
            assert (await acknowledge(broker, name, position)).status == 200
        answer = await acknowledge(broker, "three", position)
        assert (answer.status, answer.problem["code"]) == (429, "limit_subscriptions")
        answer = await acknowledge(broker, "one", position)
        assert (answer.status, answer.problem["code"]) == (429, "rate_limited")
        assert int(answer.headers["retry-after"]) > 60
        assert (await acknowledge(broker, "one", position, user="bob")).status == 200


async def test_another_broker_sees_it(tmp_path: Path, nats: NatsServer, broker: Broker) -> None:
    """Also one that has not read the event yet; and one that holds the cursor does not write it back."""
    positions = await publish(broker, "a", 1, 2, 3)
    settings = configure(tmp_path / "broker", nats.url)
    async with run_broker(tmp_path / "two", settings) as other:
        async with stream(other, "a", durable="d", position=positions[0]) as sse:
            first = (await sse.until("event"))["position"]
            assert (await acknowledge(other, "d", first)).json["position"] == positions[1]
            sent = await ask(
                broker.running.http,
                "POST",
                "/publish",
                token=broker.token(),
                json={"channel": "a", "event": 4},
            )
            newest = sent.json["position"]
            assert (await acknowledge(broker, "d", newest)).json["position"] == newest
            assert (await acknowledge(other, "d", first)).json["position"] == newest
        async with other.client() as alice:
            assert (await alice.subscribe("a", durable="d"))["position"] == newest


async def test_nats_away(broker: Broker, nats: NatsServer) -> None:
    """503 with Retry-After, however the position is known."""
    [position] = await publish(broker, "a", 1)
    async with stream(broker, "a", durable="d") as sse:
        await sse.until("subscribed")
        await nats.kill9()
        for each in (position, moved(position, 1_000_000)):
            answer = await acknowledge(broker, "d", each)
            assert (answer.status, answer.problem["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1


async def test_what_operators_see(supervisors: list[Supervisor], broker: Broker) -> None:
    """A connection that holds the name shows the move; nothing stays of the request; errors are counted."""
    position = (await publish(broker, "a", 1, 2))[1]
    [supervisor] = supervisors
    async with stream(broker, "a", durable="d", last="1") as sse:
        await sse.until("event")
        await acknowledge(broker, "d", position)
        await acknowledge(broker, "e", "other-1")
        [connection] = supervisor.connections
        assert str(supervisor.durables.of(connection)["d"].cursor.position) == position
    assert supervisor.services.meters.errors["invalid_position"] == 1
    with trio.fail_after(SECONDS):
        while supervisor.durables.cursors.used:
            await trio.sleep(0.01)
