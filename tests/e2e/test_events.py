"""An event published to NATS reaches the clients that are entitled to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.broker import Broker
    from tests.support.rawnats import RawNats


async def test_event_passes_through_untouched(broker: Broker, publisher: RawNats) -> None:
    """A stored event arrives with channel and position, its body byte for byte."""
    body = b'{"id":"1",  "payload": {"b":1.0e0,"a":12345678901234567890123}}'
    async with broker.client() as client:
        answer = await client.subscribe("orders.>")
        assert answer["channel"] == ["orders.>"]
        assert answer["live"]
        assert answer["recovered"]
        sequence = await publisher.store("events.acme.orders.7", body)
        raw = await client.socket.get_message()
        assert body.decode() in raw
        event = json.loads(raw)["payload"]
        assert event["channel"] == "orders.7"
        assert event["position"].endswith(f"-{sequence}")


async def test_tenants_never_see_each_other(broker: Broker, publisher: RawNats) -> None:
    """Of two tenants with the same subscription each gets its own events, and both the broadcasts."""
    async with broker.client("acme") as acme, broker.client("globex") as globex:
        for client in (acme, globex):
            await client.subscribe([">", "live.>"])
        await publisher.store("events.acme.a", b"1")
        await publisher.store("events.globex.a", b"2")
        await publisher.store("events._all.a", b"3")
        await publisher.publish("live.acme.a", b"4")
        await publisher.publish("live._all.a", b"5")
        await publisher.flush()
        seen = {event["event"]: event for event in await acme.events(4)}
        assert seen.keys() == {1, 3, 4, 5}
        assert "position" not in seen[4]
        assert {event["event"] for event in await globex.events(3)} == {2, 3, 5}
        await acme.quiet()
        await globex.quiet()


async def test_event_comes_once_for_many_patterns(broker: Broker, publisher: RawNats) -> None:
    """An event that matches several subscriptions of a connection is sent once; order is the stream's."""
    async with broker.client() as client:
        await client.subscribe(["orders.>", "orders.*", "orders.1", ">"])
        for number in range(50):
            await publisher.store(f"events.acme.orders.{number % 3}", str(number).encode())
        events = await client.events(50)
        assert [event["event"] for event in events] == list(range(50))
        await client.quiet()


async def test_unsubscribed_channel_is_silent(broker: Broker, publisher: RawNats) -> None:
    """After `unsubscribed` no frame of the subscription follows, others go on."""
    async with broker.client() as client:
        await client.subscribe(["a", "b"])
        await client.send("unsubscribe", {"channel": "a"}, messageId="1")
        assert await client.receive() == {
            "type": "unsubscribed",
            "payload": {"channel": "a"},
            "messageId": "1",
        }
        await publisher.store("events.acme.a", b"1")
        await publisher.store("events.acme.b", b"2")
        assert (await client.expect("event"))["event"] == 2


async def test_private_channels_and_me(broker: Broker, publisher: RawNats) -> None:
    """`me.…` is the user's own room; nobody else's wildcards reach into it."""
    async with broker.client(user="al.ice") as alice, broker.client(user="bob") as bob:
        answer = await alice.subscribe(["me.>", "live.me.>"])
        assert answer["channel"] == ["users.al%2Eice.>", "live.users.al%2Eice.>"]
        await bob.subscribe([">", "live.>", "me.>"])
        await bob.send("subscribe", {"channel": "users.al%2Eice.>"})
        assert (await bob.expect("error"))["code"] == "forbidden"
        await publisher.store("events.acme.users.al%2Eice.inbox", b"1")
        await publisher.publish("live.acme.users.al%2Eice.hint", b"2")
        await publisher.flush()
        assert {event["event"] for event in await alice.events(2)} == {1, 2}
        await bob.quiet()


async def test_denied_channels_are_left_out(broker: Broker, publisher: RawNats) -> None:
    """A subscription lies within one allowed pattern; denied channels inside of it are left out."""
    async with broker.client(subscribe=["orders.>"], deny=["orders.secret.>"]) as client:
        await client.subscribe("orders.>")
        for refused in (">", "orders.secret.x", "other"):
            await client.send("subscribe", {"channel": refused})
            assert (await client.expect("error"))["code"] == "forbidden"
        await publisher.store("events.acme.orders.secret.x", b"1")
        await publisher.store("events.acme.orders.plain.x", b"2")
        assert (await client.expect("event"))["event"] == 2
        await client.quiet()


async def test_dead_letters(broker: Broker, publisher: RawNats) -> None:
    """What is no event goes to the dead letters, once, with why and whence; it makes no gap."""
    dead = await publisher.subscribe("deadletter.>")
    async with broker.client() as client:
        await client.subscribe("a.>")
        await publisher.store("events.acme.a.1", b"no json")
        await publisher.store("events.acme.a.2", b'{"metadata":{"tenant_id":"globex"}}')
        await publisher.store("events.acme.a.3", b'"' + b"x" * 70000 + b'"')
        await publisher.store("events._x.a.4", b"1")
        await publisher.store("events.acme.a.5", b'{"metadata":{"tenant_id":"acme"}}')
        assert (await client.expect("event"))["channel"] == "a.5"
        await client.quiet()
    reasons = {}
    for _ in range(4):
        letter = await dead.receive()
        header = letter.header.decode()
        reasons[letter.subject.decode()] = header.split("Broker-Reason: ")[1].split("\r\n")[0]
    assert reasons == {
        "deadletter.acme.a.1": "not_json",
        "deadletter.acme.a.2": "tenant_mismatch",
        "deadletter.acme.a.3": "too_large",
        "deadletter._x.a.4": "invalid_channel",
    }


async def test_tombstone_and_cloud_event(broker: Broker, publisher: RawNats) -> None:
    """An empty body is `null`; a CloudEvent in binary mode becomes a structured one."""
    async with broker.client() as client:
        await client.subscribe("a")
        await publisher.store("events.acme.a", b"")
        header = (
            b"NATS/1.0\r\nce-specversion: 1.0\r\nce-id: 7\r\nce-source: /s\r\nce-type: t\r\n"
            b"Content-Type: application/json\r\n\r\n"
        )
        await publisher.store("events.acme.a", b'{"x": 1}', header=header)
        first, second = await client.events(2)
        assert first["event"] is None
        assert second["event"] == {
            "specversion": "1.0",
            "id": "7",
            "source": "/s",
            "type": "t",
            "datacontenttype": "application/json",
            "data": {"x": 1},
        }


async def test_publish_by_a_client(broker: Broker, publisher: RawNats) -> None:
    """A client's event carries its publisher; a retry with its id is one copy at the first position."""
    async with broker.client(user="al.ice") as client:
        await client.subscribe("a")
        await client.send("publish", {"channel": "a", "event": {"x": 1}, "id": "n1"}, messageId="p")
        got = [await client.receive() for _ in range(2)]
        published = next(each for each in got if each["type"] == "published")
        event = next(each for each in got if each["type"] == "event")["payload"]
        assert published["messageId"] == "p"
        assert published["payload"]["position"] == event["position"]
        assert event["publisher"] == {"user": "al.ice", "id": "n1"}
        await client.send("publish", {"channel": "a", "event": {"x": 1}, "id": "n1"})
        again = await client.expect("published")
        assert again == {"id": "n1", "position": event["position"], "duplicate": True}
        await client.send("publish", {"channel": "a", "event": {"metadata": {"tenant_id": "globex"}}})
        assert (await client.expect("error"))["code"] == "forbidden"
        await client.send("publish", {"channel": "a", "event": "x" * 11000})
        assert (await client.expect("error"))["code"] == "too_large"
        await client.send("publish", {"channel": "a", "event": 2**70})
        assert (await client.expect("error"))["code"] == "bad_message"
        await client.send("publish", {"channel": "live.a", "event": 1})
        assert await client.expect("published") == {}


async def test_a_burst_of_small_unstored_events_arrives_whole(broker: Broker, publisher: RawNats) -> None:
    """What comes at once is bounded by its bytes, and not by how many they are."""
    count = 30_000
    async with broker.client() as client:
        await client.subscribe(["live.wanted", "live.end"])
        for number in range(0, count, 100):
            wanted = b"%d" % number
            said = b"PUB live.acme.wanted %d\r\n%b\r\n" % (len(wanted), wanted)
            await publisher.stream.send_all(said + b"PUB live.acme.other 2\r\n{}\r\n" * 99)
        await publisher.publish("live.acme.end", b"true")
        events = await client.events(count // 100 + 1)
        assert [each["event"] for each in events] == [*range(0, count, 100), True]
        await client.quiet()
