"""What a client cannot have too much of, and what of its input never gets any further."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker import subjects
from broker.errors import InvalidChannel
from tests.support.broker import Broker, configure, run_broker
from tests.support.raw import ask, open_raw
from tests.web.harness import BINARY, CLOSE, TEXT, frame, head

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import Message, RawNats
    from tests.support.websocket import Client

EVIL = [
    "", ".", "a.", ".a", "a..b", " ", "a b", "a\r\nPUB x 0\r\n", "a\nb", "a\rb", "a\tb", "a\0b", "a\x7fb",
    "a\x0bb", "a\u00a0b", "a\u2028b", "a\u3000b", "$JS.API.>", "$JS.API.STREAM.DELETE.EVENTS", "$SYS.>",
    "_INBOX.>", "_all.a", "_broker.canary", "@x", "a" * 257, "ä" * 129, "x" * 10240, ".".join("a" * 17),
    "a.>.b", "a*", ">a", "a.b>", "live", "live.", "live..a", "live. .a",
]  # fmt: skip


@pytest.fixture
async def tap(publisher: RawNats) -> Tap:
    """Hears everything that passes through NATS."""
    return Tap(publisher, await publisher.subscribe(">"))


@attrs.define(eq=False)
class Tap:
    publisher: RawNats
    messages: trio.MemoryReceiveChannel[Message]

    async def heard(self) -> list[bytes]:
        """The subjects of what has passed since the last time, but for what a broker says by itself."""
        await self.publisher.flush()
        subjects = []
        while self.messages.statistics().current_buffer_used:
            subjects.append(self.messages.receive_nowait().subject)
        return [subject for subject in subjects if not own(subject)]


def own(subject: bytes) -> bool:
    """Canary and anchors, requests about the streams, and answers."""
    beginnings = (b"events._broker.", b"$JS.API.", b"$JS.ACK.", b"$JS.FC.", b"$JS.EVENT.", b"_INBOX.")
    return subject.startswith(beginnings) and not any(
        part in subject for part in (b"DELETE.EVENTS", b"PURGE", b">", b"*")
    )


async def error(client: Client) -> dict[str, Any]:
    return await client.expect("error")


async def works(broker: Broker, publisher: RawNats) -> None:
    """Another client is served."""
    async with broker.client(user="witness") as witness:
        await witness.subscribe("witness")
        await publisher.store("events.acme.witness", b"1")
        assert (await witness.expect("event"))["event"] == 1


# --- connections -----------------------------------------------------------------------------------


async def test_connections_per_user(tmp_path: Path, nats: NatsServer) -> None:
    """The new connection is the one refused, with 4010; it counts per tenant, and a place freed is free."""
    settings = configure(tmp_path / "b", nats.url, limits={"connections_per_user": 2})
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as first, AsyncExitStack() as stack:
            await stack.enter_async_context(broker.client())
            for _ in range(3):
                async with broker.stranger() as third:
                    await third.expect("connection.established")
                    await third.send("authenticate", {"token": broker.token()}, messageId="a")
                    refusal = await error(third)
                    assert (refusal["code"], refusal["retryable"]) == ("limit_connections", True)
                    assert refusal["retry_after_ms"] > 0
                    assert third.log[-1]["messageId"] == "a"
                    assert await third.closed() == 4010
            async with broker.client("globex"), broker.client(user="bob"):
                await first.quiet()
        async with broker.client(), broker.client() as second:
            await second.quiet()


async def test_connections_of_the_process(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Above `connections` the upgrade is refused with 503 and Retry-After, whoever asks."""
    settings = configure(tmp_path / "b", nats.url, limits={"connections": 3})
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as first, broker.stranger(), broker.client("globex"):
            answer = await ask(broker.running.ws, "/ws")
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert "connections" in answer.problem["detail"]
            assert (await ask(broker.running.ws, "/healthz")).status == 200
            await first.quiet()
        await until_free(broker)
        await works(broker, publisher)


async def until_free(broker: Broker) -> None:
    """Waits until the broker has noticed that a client is gone."""
    with trio.fail_after(15):
        while b"broker_connections 0.0" not in (await ask(broker.running.admin, "/metrics")).body:
            pass


async def test_a_crowd_does_not_pass_the_limit(tmp_path: Path, nats: NatsServer) -> None:
    """Of many that come at the same moment no more are let in than there are places."""
    settings = configure(tmp_path / "b", nats.url, limits={"connections": 5})
    statuses: list[bytes] = []
    async with run_broker(tmp_path / "b", settings) as broker, AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(open_raw(broker.running.ws)) for _ in range(40)]
        async with trio.open_nursery() as nursery:
            for client in crowd:
                nursery.start_soon(client.send, head())
        for client in crowd:
            with trio.fail_after(15):
                statuses.append(bytes(await client.stream.receive_some())[:12])
    assert statuses.count(b"HTTP/1.1 101") == 5
    assert statuses.count(b"HTTP/1.1 503") == 35


# --- subscriptions ---------------------------------------------------------------------------------


async def test_subscriptions_per_connection(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """What goes beyond is refused by name, what fits stands; subscribing the same again is no further one."""
    settings = configure(tmp_path / "b", nats.url, limits={"subscriptions_per_connection": 3})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await client.subscribe(["a", "b"])
        answer = await client.subscribe(["c", "d", "a"])
        assert answer["channel"] == ["c", "a"]
        assert [(each["channel"], each["code"]) for each in answer["refused"]] == [
            ("d", "limit_subscriptions")
        ]
        await client.send("subscribe", {"channel": "e"})
        assert (await error(client))["code"] == "limit_subscriptions"
        assert (await client.subscribe("b"))["live"]
        await client.send("unsubscribe", {"channel": ["a", "b"]})
        await client.expect("unsubscribed")
        assert (await client.subscribe(["d", "e"]))["channel"] == ["d", "e"]
        for channel in "abcde":
            await publisher.store(f"events.acme.{channel}", b"1")
        assert [event["channel"] for event in await client.events(3)] == ["c", "d", "e"]
        await works(broker, publisher)


async def test_ten_thousand_subscriptions(broker: Broker, publisher: RawNats) -> None:
    """However many are asked for, the answer stays small and the limit holds."""
    async with broker.client() as client:
        await client.send("subscribe", {"channel": [f"c{number}" for number in range(6000)]})
        refusal = await error(client)
        assert refusal["code"] == "limit_subscriptions"
        await client.subscribe([f"c{number}" for number in range(128)])
        answered = 0
        for number in range(0, 2000, 100):
            await client.send("subscribe", {"channel": [f"d{number + i}" for i in range(100)]})
            answered += (await error(client))["code"] == "limit_subscriptions"
        assert answered == 20
        await publisher.store("events.acme.c127", b"1")
        assert (await client.expect("event"))["channel"] == "c127"
        await works(broker, publisher)


async def test_subscribing_and_unsubscribing_a_thousand_times(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """It leaves nothing behind: the last state counts, each event comes once."""
    limits = {"requests_burst": 10**6}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:

        async def ask_all() -> None:
            for number in range(1000):
                await client.send("subscribe", {"channel": ["a", "live.a", ">"]})
                await client.send("unsubscribe", {"channel": ["a", "live.a", ">"]})
                if not number % 100:
                    await publisher.store("events.acme.a", b"0")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_all)
            for _ in range(1000):
                await client.until("subscribed")
                await client.until("unsubscribed")
        await client.quiet()
        await client.subscribe(["a", "live.a"])
        await publisher.store("events.acme.a", b"1")
        await publisher.publish("live.acme.a", b"2")
        await publisher.flush()
        assert {event["event"] for event in await client.events(2)} == {1, 2}
        await client.quiet()
        await works(broker, publisher)


# --- rates -----------------------------------------------------------------------------------------


async def test_publish_rate_is_the_users(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """All connections of a user share it; above it `rate_limited` says when to try again; others go on."""
    limits = {"messages_burst": 5, "messages_per_minute": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with (
        run_broker(tmp_path / "b", settings) as broker,
        broker.client() as one,
        broker.client() as two,
        broker.client(user="bob") as bob,
    ):
        for client in (one, one, one, two, two):
            await client.send("publish", {"channel": "a", "event": 1})
            await client.expect("published")
        for client in (one, two):
            await client.send("publish", {"channel": "a", "event": 1}, messageId="m")
            refusal = await error(client)
            assert (refusal["code"], refusal["retryable"]) == ("rate_limited", True)
            assert 0 < refusal["retry_after_ms"] <= 60000
            assert client.log[-1]["messageId"] == "m"
            assert (await client.subscribe("b"))["live"]
        await bob.send("publish", {"channel": "a", "event": 1})
        await bob.expect("published")
        info = await publisher.api("STREAM.INFO.EVENTS", subjects_filter="events.acme.>")
        assert info["state"]["subjects"] == {"events.acme.a": 6}
        await works(broker, publisher)


async def test_failed_messages_count_against_the_rate(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """Whoever uses up the rate with what is refused has none left to publish."""
    limits = {"messages_burst": 5, "messages_per_minute": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        for _ in range(5):
            await client.send("subscribe", {"channel": "users.bob.>"})
            assert (await error(client))["code"] == "forbidden"
        await client.send("publish", {"channel": "a", "event": 1})
        assert (await error(client))["code"] == "rate_limited"
        await works(broker, publisher)


async def test_request_rate(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Above it `rate_limited`, and 4029 for whoever does not stop."""
    limits = {"requests_burst": 5, "requests_per_second": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as client:
            for _ in range(100):
                await client.send("ping")
            assert await client.closed() == 4029
            kinds = [message["type"] for message in client.log[2:]]
            assert kinds[:5] == ["pong"] * 5
            refusals = [message["payload"] for message in client.log if message["type"] == "error"]
            assert {refusal["code"] for refusal in refusals} == {"rate_limited"}
            assert all(0 < refusal["retry_after_ms"] <= 1000 for refusal in refusals)
        await works(broker, publisher)


async def test_strangers_have_a_rate_too(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """Without a token nobody can try tokens, or anything else, faster than that."""
    limits = {"requests_burst": 5, "requests_per_second": 1}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.stranger() as client:
            for _ in range(100):
                await client.send("subscribe", {"channel": "a"})
            assert await client.closed() == 4029
        await works(broker, publisher)


# --- bad messages ----------------------------------------------------------------------------------

BAD = [
    "", "{", "[]", "null", "1", '"x"', "{}", '{"type":5}', '{"type":"no.such"}', '{"type":"ping","x":1}',
    '{"type":"ping","payload":[]}', '{"type":"ping","payload":{"x":1}}', '{"type":"ping","messageId":5}',
    '{"type":"ping","messageId":"' + "x" * 65 + '"}', "[" * 30000, '{"a":' * 10000, '{"type":NaN}',
    '{"type":"ping","messageId":"\\ud800"}', '{"type":"subscribe"}', '{"type":"subscribe","payload":{}}',
    '{"type":"subscribe","payload":{"channel":[]}}', '{"type":"subscribe","payload":{"channel":[1]}}',
    '{"type":"subscribe","payload":{"channel":{}}}',
    '{"type":"subscribe","payload":{"channel":"a","last":1e3}}',
    '{"type":"subscribe","payload":{"channel":"a","last":1' + "0" * 400 + "}}",
    '{"type":"subscribe","payload":{"channel":"a","last":true}}',
    '{"type":"subscribe","payload":{"channel":"a","snapshot":1}}',
    '{"type":"subscribe","payload":{"channel":"a","last":1,"position":"a-1"}}',
    '{"type":"subscribe","payload":{"channel":"a","lag":"never"}}',
    '{"type":"publish","payload":{"channel":"a"}}', '{"type":"publish","payload":{"event":1}}',
    '{"type":"publish","payload":{"channel":"a","event":1,"id":""}}',
    '{"type":"publish","payload":{"channel":"a","event":1,"id":"' + "x" * 65 + '"}}',
    '{"type":"publish","payload":{"channel":"a","event":1,"tenant":"globex"}}',
    '{"type":"publish","payload":{"channel":"a","event":1,"user":"bob"}}',
    '{"type":"publish","payload":{"channel":"a","event":' + "[" * 1100 + "]" * 1100 + "}}",
    '{"type":"publish","payload":{"channel":"a","event":' + "9" * 5000 + "}}",
    '{"type":"authenticate","payload":{}}', '{"type":"authenticate","payload":{"token":5}}',
]  # fmt: skip


async def test_bad_messages_are_errors(broker: Broker, publisher: RawNats, tap: Tap) -> None:
    """Each is answered, says what is wrong, and neither ends the connection nor reaches NATS."""
    for start in range(0, len(BAD), 8):
        async with broker.client() as client:
            for text in BAD[start : start + 8]:
                await client.socket.send_message(text)
                refusal = await error(client)
                assert refusal["code"] in ("bad_message", "unknown_type"), text[:80]
                assert not refusal["retryable"]
                assert 0 < len(refusal["message"]) < 500, text[:80]
            await client.quiet()
    assert not await tap.heard()
    await works(broker, publisher)


async def test_ten_bad_messages_end_the_connection(broker: Broker, publisher: RawNats) -> None:
    """After the tenth within a minute: 4510. With good ones in between too."""
    async with broker.client() as client:
        for _ in range(9):
            await client.socket.send_message("{")
            assert (await error(client))["code"] == "bad_message"
            await client.quiet()
        await client.send("unheard.of")
        assert (await error(client))["code"] == "unknown_type"
        assert await client.closed() == 4510
    await works(broker, publisher)


async def test_unknown_field_names_the_nearest(broker: Broker) -> None:
    """A typing error is told from what was meant."""
    async with broker.client() as client:
        await client.send("subscribe", {"chanel": "a"}, messageId="m")
        assert "channel" in (await error(client))["message"]
        assert client.log[-1]["messageId"] == "m"
        await client.send("subscribe", {"channel": "a", "positon": "x"})
        assert "'position'" in (await error(client))["message"]


# --- sizes -----------------------------------------------------------------------------------------


async def test_message_bytes(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """A message of just the limit is read; one byte more is 1009."""
    settings = configure(tmp_path / "b", nats.url, limits={"message_bytes": 1000})
    async with run_broker(tmp_path / "b", settings) as broker:
        async with broker.client() as client:
            text = json.dumps({"type": "ping"})
            await client.socket.send_message(text + " " * (1000 - len(text)))
            await client.expect("pong")
            await client.socket.send_message(text + " " * (1001 - len(text)))
            assert await client.closed() == 1009
        await works(broker, publisher)


async def test_publish_bytes(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """An event of just the limit is published; one byte more is `too_large`, stored or live."""
    settings = configure(tmp_path / "b", nats.url, limits={"publish_bytes": 100})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        await client.subscribe(["a", "live.a"])
        for channel in ("a", "live.a"):
            await client.send("publish", {"channel": channel, "event": "x" * 99})
            assert (await error(client))["code"] == "too_large"
            await client.send("publish", {"channel": channel, "event": "ä" * 50})
            assert (await error(client))["code"] == "too_large"
            await client.send("publish", {"channel": channel, "event": "ä" * 49})
            got = {(await client.receive())["type"] for _ in range(2)}
            assert got == {"published", "event"}
        await works(broker, publisher)


async def test_other_frames_than_text(broker: Broker, publisher: RawNats) -> None:
    """Binary is 1003, invalid UTF-8 is 1007; a Close is answered with its code."""
    for sent, code in (
        (frame(BINARY, b"{}"), 1003),
        (frame(TEXT, b"\xff"), 1007),
        (frame(CLOSE, b"\x0f\xa0"), 4000),
        (frame(CLOSE, b"\x03\xe8"), 1000),
    ):
        async with open_raw(broker.running.ws) as client:
            await client.upgrade()
            await client.send(sent)
            assert (await client.closed())[0] == code
    await works(broker, publisher)


# --- names -----------------------------------------------------------------------------------------


async def test_evil_channels_reach_nobody(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, tap: Tap
) -> None:
    """Whatever a channel is called: what is none is refused, and not a byte of it is seen in NATS."""
    settings = configure(tmp_path / "b", nats.url, limits={"messages_burst": 10**6, "requests_burst": 10**6})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        for channel in EVIL:
            for kind, payload in (
                ("publish", {"channel": channel, "event": 1}),
                ("subscribe", {"channel": channel}),
                ("subscribe", {"channel": channel, "last": 5}),
                ("subscribe", {"channel": channel, "snapshot": True}),
                ("unsubscribe", {"channel": channel}),
            ):
                await client.send(kind, payload)
                refusal = await error(client)
                assert refusal["code"] in ("invalid_channel", "not_subscribed"), (kind, channel)
                assert len(refusal["message"]) < 400
        assert not await tap.heard()
        info = await publisher.api("STREAM.INFO.EVENTS", subjects_filter="events.acme.>")
        assert "subjects" not in info["state"]
        await works(broker, publisher)


async def test_odd_but_good_channels_come_through(broker: Broker, publisher: RawNats) -> None:
    """Names that only look evil are names: they arrive as they were written."""
    names = ["a$b", "a-b_c", "a%2Eb", "grüß.dich", "a/b:c", "a\u200bb", "a.live", "a.users.b", "a._x.@y"]
    names += ['"q"', "\\"]
    async with broker.client() as client:
        await client.subscribe(names)
        for name in names:
            assert subjects.parse_channel(name) == name
            await client.send("publish", {"channel": name, "event": name})
            got = [await client.receive() for _ in range(2)]
            event = next(each["payload"] for each in got if each["type"] == "event")
            assert event["channel"] == event["event"] == name


async def test_clients_cannot_reach_other_tenants_or_users(
    broker: Broker, publisher: RawNats, tap: Tap
) -> None:
    """A channel is always one of the client's own tenant, whatever prefix it is given."""
    async with broker.client() as client:
        for channel in ("events.globex.a", "globex.a", "live.globex.a", "deadletter.acme.a"):
            await client.send("publish", {"channel": channel, "event": 1})
            await client.expect("published")
        for channel in ("users.bob.a", "live.users.bob.a"):
            await client.send("publish", {"channel": channel, "event": 1})
            assert (await error(client))["code"] == "forbidden"
        for channel in ("users.bob", "me", "users", "live.users.bob", "live.me"):
            await client.send("publish", {"channel": channel, "event": 1})
            assert (await error(client))["code"] == "invalid_channel"
    assert list(dict.fromkeys(await tap.heard())) == [  # the feed's copies look the same
        b"events.acme.events.globex.a",
        b"events.acme.globex.a",
        b"live.acme.globex.a",
        b"events.acme.deadletter.acme.a",
    ]


@pytest.mark.parametrize("user", ["a.b", "a b", "ü", "*", ">", "a\r\nX: y", "users", "live", "%2E", "\u200b"])
async def test_users_with_odd_names(broker: Broker, publisher: RawNats, user: str) -> None:
    """Any user has a room of its own, and its publishes say who it was, exactly."""
    async with broker.client(user=user) as client:
        assert client.log[1]["payload"]["user"] == user
        answer = await client.subscribe("me.>")
        await client.send("publish", {"channel": "me.a", "event": 1, "id": "é \r\n"})
        got = [await client.receive() for _ in range(2)]
        event = next(each["payload"] for each in got if each["type"] == "event")
        assert event["publisher"] == {"user": user}
        assert answer["channel"] == [f"users.{subjects.encode_user(user)}.>"]
        with pytest.raises(InvalidChannel):
            subjects.parse_channel(f"users.{user}.a b")
    await works(broker, publisher)


async def test_ids_are_one_users_own(broker: Broker, publisher: RawNats) -> None:
    """The same id of another user, channel or tenant is another event; with another body it is the same."""
    async with (
        broker.client() as alice,
        broker.client(user="bob") as bob,
        broker.client("globex") as globex,
    ):
        await alice.send("publish", {"channel": "a", "event": 1, "id": "same"})
        first = await alice.expect("published")
        for client, channel in ((bob, "a"), (globex, "a"), (alice, "b")):
            await client.send("publish", {"channel": channel, "event": 1, "id": "same"})
            other = await client.expect("published")
            assert "duplicate" not in other
            assert other["position"] != first["position"]
        await alice.send("publish", {"channel": "a", "event": 2, "id": "same"})
        assert await alice.expect("published") == first | {"duplicate": True}
    await works(broker, publisher)
