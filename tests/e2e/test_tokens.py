"""Tokens of living connections: how they are presented, refused, renewed and outlived."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import jwt

from tests.support.broker import Broker, configure, run_broker
from tests.support.raw import ask
from tests.support.websocket import connect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

PROTOCOL = "broker.v1"


def forged(broker: Broker, **changes: Any) -> str:
    """A token with any claims, signed with the broker's key."""
    secret = broker.config.auth.keys[0].secret_file
    assert secret
    claims = {"sub": "alice", "tenant": "acme", "exp": time.time() + 3600, **changes}
    return jwt.encode(claims, secret.read_text().strip(), algorithm="HS256", headers={"kid": "test"})


async def refused(broker: Broker, token: str, *, query: str = "") -> tuple[str, int]:
    """How a connection with a bad token ends: the error's code, and the close code."""
    async with connect(
        f"{broker.running.ws}{query}", token=None, subprotocols=[PROTOCOL, f"bearer.{token}"]
    ) as client:
        await client.expect("connection.established")
        error = await client.expect("error")
        return error["code"], await client.closed()


async def works(broker: Broker) -> None:
    """Another client is served."""
    async with broker.client(user="witness") as witness:
        await witness.subscribe("witness")
        await witness.quiet()


async def test_every_way_to_present_a_token(tmp_path: Path, nats: NatsServer) -> None:
    """Header, subprotocol, first message and, where configured, the address: all authenticate the same."""
    settings = configure(tmp_path / "b", nats.url, server={"query_token": True})
    async with run_broker(tmp_path / "b", settings) as broker:
        token = broker.token()
        async with broker.client(token=token) as client:
            by_header = client.log[1]["payload"]
        async with connect(
            broker.running.ws, token=None, subprotocols=[PROTOCOL, f"bearer.{token}"]
        ) as client:
            await client.greeted()
            assert client.log[1]["payload"] == by_header
            assert client.socket.subprotocol == PROTOCOL
        async with broker.stranger() as client:
            await client.expect("connection.established")
            await client.send("authenticate", {"token": token}, messageId="a")
            assert await client.expect("connection.authenticated") == by_header
            assert client.log[-1]["messageId"] == "a"
        async with connect(f"{broker.running.ws}?access_token={token}", token=None) as client:
            await client.greeted()
            assert client.log[1]["payload"] == by_header
        assert by_header["tenant"] == "acme"
        assert by_header["user"] == "alice"
        assert by_header["private"] == "users.alice"
        assert by_header["permissions"]["subscribe"] == [">", "live.>"]


async def test_token_in_the_address_only_where_configured(broker: Broker) -> None:
    """Without `query_token` a token in the address is refused before the upgrade, with the reason."""
    answer = await ask(broker.running.ws, f"/ws?access_token={broker.token()}")
    assert answer.status == 400
    assert "server.query_token" in answer.problem["detail"]
    await works(broker)


async def test_established_is_the_first_frame(broker: Broker) -> None:
    """Before anything is asked of it a client knows the protocol, the features, heartbeat and limits."""
    async with broker.stranger() as client:
        established = await client.expect("connection.established")
        assert established["protocol"] == PROTOCOL
        assert established["features"] == [
            "traceparent", "filter", "every_ms", "echo", "request", "history", "presence",
        ]  # fmt: skip
        assert established["heartbeat_seconds"] == 25
        limits = broker.config.limits
        assert established["limits"]["message_bytes"] == limits.message_bytes
        assert established["limits"]["duplicate_window_seconds"] == broker.config.stream.duplicate_window
        assert established["limits"]["subscriptions_per_connection"] == limits.subscriptions_per_connection
        assert len(established["connection_id"]) >= 16


async def test_a_stream_that_knows_no_ids(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """One with sources has no duplicate window, unless it was made with one: so nothing may be sent again."""
    stream = {"subjects": ["events.>"], "sources": [{"name": "OTHER"}], "allow_direct": True}
    assert "error" not in await publisher.api("STREAM.CREATE.EVENTS", name="EVENTS", **stream)
    for number in (1, 2):
        ack = await publisher.request("events.acme.a", b"1", header=b"NATS/1.0\r\nNats-Msg-Id: a\r\n\r\n")
        assert json.loads(ack.body)["seq"] == number, "stored once"
    async with (
        run_broker(tmp_path / "broker", configure(tmp_path / "broker", nats.url)) as broker,
        broker.stranger() as client,
    ):
        established = await client.expect("connection.established")
        assert established["limits"]["duplicate_window_seconds"] == 0


async def test_bad_tokens_are_answered_after_the_upgrade(broker: Broker) -> None:
    """A browser cannot see a 401: it gets `error` and a close code that says whether to come back."""
    good = broker.token()
    assert await refused(broker, "x") == ("token_invalid", 4500)
    assert await refused(broker, good[:-2] + ("AA" if good[-2:] != "AA" else "BB")) == ("token_invalid", 4500)
    assert await refused(broker, forged(broker, exp=time.time() - 1)) == ("token_expired", 4002)
    assert await refused(broker, forged(broker, exp=time.time() + 90000)) == ("token_invalid", 4500)
    assert await refused(broker, forged(broker, tenant="_all")) == ("token_invalid", 4500)
    assert await refused(broker, forged(broker, tenant="_broker")) == ("token_invalid", 4500)
    assert await refused(broker, forged(broker, sub="x" * 200)) == ("token_invalid", 4500)
    assert await refused(broker, good, query="?tenant=globex") == ("forbidden", 4503)
    async with broker.stranger() as client:
        await client.expect("connection.established")
        await client.send("authenticate", {"token": "x"}, messageId="m")
        assert (await client.expect("error"))["code"] == "token_invalid"
        assert client.log[-1]["messageId"] == "m"
        assert await client.closed() == 4500
    async with broker.stranger() as client:
        await client.expect("connection.established")
        await client.send("authenticate", {"token": good, "tenant": "globex"})
        assert (await client.expect("error"))["code"] == "forbidden"
        assert await client.closed() == 4503
    await works(broker)


async def test_without_a_token_only_authenticate_and_ping(broker: Broker) -> None:
    """A stranger may ping and authenticate; whatever else it asks is refused and reaches nobody."""
    async with broker.stranger() as client:
        await client.expect("connection.established")
        await client.send("ping", messageId="p")
        assert await client.expect("pong") == {}
        for kind, payload in (
            ("subscribe", {"channel": "a"}),
            ("unsubscribe", {"channel": "a"}),
            ("publish", {"channel": "a", "event": 1}),
            ("acknowledge", {"durable": "d", "position": "a-1"}),
        ):
            await client.send(kind, payload, messageId=kind)
            assert (await client.expect("error"))["code"] == "unauthenticated"
            assert client.log[-1]["messageId"] == kind
        await client.send("authenticate", {"token": broker.token()})
        await client.expect("connection.authenticated")
        assert (await client.subscribe("a"))["live"]
        assert await client.position()


async def test_authentication_deadline(tmp_path: Path, nats: NatsServer) -> None:
    """Who shows no token in time is closed with 4001; who did is not, however little it says."""
    settings = configure(tmp_path / "b", nats.url, limits={"authentication_seconds": 0.5})
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as authenticated:
        async with broker.stranger() as stranger:
            await stranger.expect("connection.established")
            assert (await stranger.expect("error"))["code"] == "unauthenticated"
            assert await stranger.closed() == 4001
        await authenticated.quiet()


# --- monitoring tokens -----------------------------------------------------------------------------


async def test_monitoring_token_chooses_its_tenant(broker: Broker, publisher: RawNats) -> None:
    """By `?tenant=` or with `authenticate`; it sees that tenant, publishes nothing, and no other tenant."""
    token = broker.token("*", "watcher")
    async with (
        connect(f"{broker.running.ws}?tenant=acme", token=token) as by_address,
        broker.stranger() as by_message,
        connect(f"{broker.running.ws}?tenant=acme", token=None) as by_both,
    ):
        await by_message.expect("connection.established")
        await by_message.send("authenticate", {"token": token, "tenant": "acme"})
        await by_message.expect("connection.authenticated")
        await by_both.expect("connection.established")
        await by_both.send("authenticate", {"token": token})
        await by_both.expect("connection.authenticated")
        for client in (by_address, by_message, by_both):
            assert client.log[-1]["payload"]["tenant"] == "acme"
            await client.subscribe(">")
            for channel in ("a", "me.a"):
                await client.send("publish", {"channel": channel, "event": 1})
                assert (await client.expect("error"))["code"] == "forbidden"
        await publisher.store("events.globex.a", b"1")
        await publisher.store("events.acme.a", b"2")
        for client in (by_address, by_message, by_both):
            assert (await client.expect("event"))["event"] == 2
            await client.send("authenticate", {"token": token, "tenant": "globex"})
            assert (await client.expect("error"))["code"] == "forbidden"
            await client.quiet()


async def test_monitoring_token_needs_a_tenant(broker: Broker) -> None:
    """Without one, or with the name of none, it is refused."""
    token = broker.token("*", "watcher")
    assert await refused(broker, token) == ("token_invalid", 4500)
    assert await refused(broker, token, query="?tenant=_all") == ("forbidden", 4503)
    assert await refused(broker, token, query="?tenant=a.b") == ("forbidden", 4503)
    assert await refused(broker, token, query="?tenant=*") == ("forbidden", 4503)
    await works(broker)


async def test_monitoring_token_is_renewed_for_its_tenant(broker: Broker) -> None:
    """The tenant is chosen once for the whole connection: a renewal need not name it again."""
    async with broker.stranger() as client:
        await client.expect("connection.established")
        await client.send("authenticate", {"token": broker.token("*", "watcher"), "tenant": "acme"})
        await client.expect("connection.authenticated")
        await client.send("authenticate", {"token": broker.token("*", "watcher")})
        assert (await client.expect("connection.authenticated"))["tenant"] == "acme"


# --- renewal ---------------------------------------------------------------------------------------


async def test_renewal_for_somebody_else_is_forbidden(broker: Broker, publisher: RawNats) -> None:
    """Another user's or tenant's token is refused, and the connection goes on under the old one."""
    async with broker.client() as client:
        await client.subscribe("a")
        for other in (broker.token(user="bob"), broker.token("globex")):
            await client.send("authenticate", {"token": other}, messageId="r")
            assert (await client.expect("error"))["code"] == "forbidden"
            assert client.log[-1]["messageId"] == "r"
        await publisher.store("events.globex.a", b"1")
        await publisher.store("events.acme.a", b"2")
        assert (await client.expect("event"))["event"] == 2
        await client.send("subscribe", {"channel": "users.bob.>"})
        assert (await client.expect("error"))["code"] == "forbidden"
    await works(broker)


async def test_bad_renewal_ends_nothing(broker: Broker, publisher: RawNats) -> None:
    """A renewal that is no good is an `error`, and nothing else changes."""
    async with broker.client() as client:
        await client.subscribe("a")
        for token, code in (
            ("x", "token_invalid"),
            (forged(broker, exp=time.time() - 5), "token_expired"),
            (forged(broker, sub=True), "token_invalid"),
        ):
            await client.send("authenticate", {"token": token})
            assert (await client.expect("error"))["code"] == code
        await publisher.store("events.acme.a", b"1")
        assert (await client.expect("event"))["event"] == 1
    await works(broker)


async def test_narrower_permissions_end_what_they_no_longer_cover(broker: Broker, publisher: RawNats) -> None:
    """Each subscription outside of them ends as a whole, with its code; the others go on without a break."""
    async with broker.client(subscribe=["orders.>", "stock.>", "live.>"]) as client:
        await client.subscribe(["orders.>", "orders.eu.>", "stock.*", "live.hint", "me.>"])
        narrower = broker.token(subscribe=["orders.eu.>"])
        await client.send("authenticate", {"token": narrower}, messageId="r")
        authenticated = await client.expect("connection.authenticated")
        assert authenticated["permissions"]["subscribe"] == ["orders.eu.>"]
        ended = [await client.expect("unsubscribed") for _ in range(3)]
        assert ended == [
            {"channel": channel, "code": "forbidden"} for channel in ("orders.>", "stock.*", "live.hint")
        ]
        await publisher.store("events.acme.orders.us.1", b"1")
        await publisher.store("events.acme.stock.1", b"2")
        await publisher.publish("live.acme.hint", b"3")
        await publisher.store("events.acme.orders.eu.1", b"4")
        await publisher.store("events.acme.users.alice.1", b"5")
        assert [event["event"] for event in await client.events(2)] == [4, 5]
        await client.quiet()
        await client.send("unsubscribe", {"channel": "orders.>"})
        assert (await client.expect("error"))["code"] == "not_subscribed"
        await client.send("subscribe", {"channel": "orders.>"})
        assert (await client.expect("error"))["code"] == "forbidden"
    await works(broker)


async def test_new_deny_takes_effect_at_once(broker: Broker, publisher: RawNats) -> None:
    """What a renewed token denies is left out of what stands; what it allows again comes back."""
    async with broker.client() as client:
        await client.subscribe([">", "live.>"])

        async def publish(first: int) -> None:
            await publisher.store("events.acme.secret.x", str(first).encode())
            await publisher.store("events.acme.plain", str(first + 1).encode())
            await publisher.publish("live.acme.secret.x", str(first + 2).encode())
            await publisher.publish("live.acme.plain", str(first + 3).encode())
            await publisher.flush()

        await publish(10)
        assert {event["event"] for event in await client.events(4)} == {10, 11, 12, 13}
        denying = broker.token(subscribe=[">", "live.>"], deny=["secret.>", "live.secret.>"])
        await client.send("authenticate", {"token": denying})
        await client.expect("connection.authenticated")
        await publish(20)
        assert {event["event"] for event in await client.events(2)} == {21, 23}
        await client.send("authenticate", {"token": broker.token()})
        await client.expect("connection.authenticated")
        await publish(30)
        assert {event["event"] for event in await client.events(4)} == {30, 31, 32, 33}
        await client.quiet()
    await works(broker)


async def test_new_deny_reaches_a_running_replay(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """What is not sent yet of a start in the past is left out too, and the rest comes whole."""
    settings = configure(tmp_path / "b", nats.url, ring={"events": 1})
    body = b'"' + b"x" * 4000 + b'"'
    async with run_broker(tmp_path / "b", settings) as broker, broker.client() as client:
        position = (await client.subscribe("z"))["position"]
        await client.send("unsubscribe", {"channel": "z"})
        await client.expect("unsubscribed")
        for number in range(2000):
            await publisher.publish(f"events.acme.{'secret' if number % 2 else 'plain'}.{number}", body)
        await publisher.flush()
        await publisher.store("events.acme.plain.end", b"0")
        await client.send("subscribe", {"channel": ">", "position": position})
        await client.until("event")
        await client.send("authenticate", {"token": broker.token(subscribe=[">"], deny=["secret.>"])})
        await client.until("connection.authenticated")
        renewed = len(client.log)
        while (await client.until("event"))["channel"] != "plain.end":
            pass
        seen = [each["payload"]["channel"] for each in client.log if each["type"] == "event"]
        plain = [f"plain.{number}" for number in range(0, 2000, 2)]
        assert [channel for channel in seen if channel.startswith("plain.")] == [*plain, "plain.end"]
        late = [each["payload"]["channel"] for each in client.log[renewed:] if each["type"] == "event"]
        assert late
        assert not [channel for channel in late if channel.startswith("secret.")]


# --- expiry ----------------------------------------------------------------------------------------


async def test_expiry_is_announced_and_ends_delivery(
    tmp_path: Path, nats: NatsServer, publisher: RawNats
) -> None:
    """`connection.expiring` comes ahead, then `error` and 4002; a renewal in between prevents both."""
    settings = configure(tmp_path / "b", nats.url, auth={"expiring_seconds": 60.0})
    async with run_broker(tmp_path / "b", settings) as broker:
        ends = time.time() + 4
        short = forged(broker, exp=ends)
        async with broker.client(token=short) as left, broker.client(token=short) as renewed:
            for client in (left, renewed):
                await client.subscribe("a")
            for client in (left, renewed):
                expiring = await client.until("connection.expiring")
                assert time.time() >= ends - 2.1  # half-way
                assert expiring["expires_at"] == client.log[1]["payload"]["expires_at"]
            await renewed.send("authenticate", {"token": broker.token()})
            await renewed.expect("connection.authenticated")
            assert (await left.expect("error"))["code"] == "token_expired"
            assert time.time() >= ends
            await publisher.store("events.acme.a", b"1")
            assert await left.closed() == 4002
            assert not [each for each in left.log if each["type"] == "event"]
            assert (await renewed.expect("event"))["event"] == 1
            await renewed.quiet()


async def test_expired_clients_do_not_hold_their_place(tmp_path: Path, nats: NatsServer) -> None:
    """A client closed at its expiry may connect again at once, though its user may have one connection."""
    settings = configure(tmp_path / "b", nats.url, limits={"connections_per_user": 1})
    async with run_broker(tmp_path / "b", settings) as broker:
        for _ in range(2):
            async with broker.client(token=forged(broker, exp=time.time() + 2)) as client:
                assert await client.closed() == 4002
        async with broker.client() as client:
            await client.quiet()
