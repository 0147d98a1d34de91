"""What a client may send and nobody else ever sees: bad messages, evil names, and names that only look it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest

from broker import subjects
from broker.errors import InvalidChannel
from tests.support.broker import Broker, configure, run_broker

if TYPE_CHECKING:
    from pathlib import Path

    import trio

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
    """Canaries, probes, leases, what it remembers of its streams, the audit trail, requests and answers."""
    beginnings = (
        b"$KV.broker_control.owned.",
        b"$KV.broker_control.generation.",
        b"$KV.broker_control.stream.",
        b"events._broker.probe",
        b"presence._broker.",
        b"_broker.",
        b"audit.",
        b"$JS.API.",
        b"$JS.ACK.",
        b"$JS.FC.",
        b"$JS.EVENT.",
        b"_INBOX",
    )
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
    """Any user has a room of its own, and its publishes say who it was and their ids, exactly."""
    async with broker.client(user=user) as client:
        assert client.log[1]["payload"]["user"] == user
        answer = await client.subscribe("me.>")
        await client.send("publish", {"channel": "me.a", "event": 1, "id": "é \r\n"})
        got = [await client.receive() for _ in range(2)]
        event = next(each["payload"] for each in got if each["type"] == "event")
        assert event["publisher"] == {"user": user, "id": "é \r\n"}
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
