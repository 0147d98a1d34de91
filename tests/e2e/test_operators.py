"""What operators see: metrics, dead letters, and that neither is a way to stop the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.support.raw import ask

if TYPE_CHECKING:
    from tests.support.broker import Broker
    from tests.support.rawnats import RawNats


async def test_metrics(broker: Broker, publisher: RawNats) -> None:
    """Prometheus text that counts what happened; on the admin port alone, and by its own names only."""
    async with broker.client() as client:
        await client.subscribe(["a", "live.a"])
        for body in (b"1", b"{", b'{"metadata":{"tenant_id":"globex"}}', b"2"):
            await publisher.store("events.acme.a", body)
        await publisher.publish("live.acme.a", b"no json")
        await publisher.publish("live.acme.a", b"3")
        await publisher.flush()
        await client.events(3)
        async with broker.stranger() as bad:
            await bad.send("authenticate", {"token": "x"})
            assert await bad.closed() == 4500
        text = await scraped(broker, 'broker_connections_closed_total{by="broker",code="4500"} 1.0')
    for line in (
        'broker_connections{tenant="acme",transport="websocket"} 1.0',
        "broker_tenants 1.0",
        'broker_connections_behind{tenant="acme"} 0.0',
        'broker_events_received_total{kind="live"} 2.0',
        'broker_dead_letters_total{reason="not_json"} 2.0',
        'broker_dead_letters_total{reason="tenant_mismatch"} 1.0',
        "broker_tenant_restarts_total 0.0",
        "broker_ready 1.0",
        "# TYPE broker_connections gauge",
        "# TYPE broker_dead_letters_total counter",
    ):
        assert line in text
    assert (await ask(broker.running.ws, "/metrics")).status == 404
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "admin"):
        answer = await ask(broker.running.admin, "/metrics", host=host)
        assert answer.status == 421
        assert b"broker_connections" not in answer.body
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8081"):
        assert (await ask(broker.running.admin, "/metrics", host=host)).status == 200


async def scraped(broker: Broker, line: str) -> str:
    """The metrics, once they say this."""
    with trio.fail_after(45):
        while line not in (text := (await ask(broker.running.admin, "/metrics")).body.decode()):
            pass
    return text


async def test_odd_subjects_are_dead_letters_and_nothing_more(broker: Broker, publisher: RawNats) -> None:
    """Whatever subject a service invents: the broker counts it, keeps it where it can, and goes on."""
    subjects = [
        b"events.acme.a\x0bb", b"events.acme.a\x7fb", b"events.acme.\xff\xfe", b"events.acme.a\x01",
        "events.acme.a\u00a0b".encode(), "events.acme.\u2028".encode(), b"events.acme.a\x0cb",
        b"events.acme.\x00",
        b"events.acme." + b"x" * 300, b"events.acme." + b".".join([b"t"] * 17),
        b"events.acme", b"events._x.a", b"events.acme.live.a", b"events.acme.$x", b"events.acme.@x",
        b"events.acme._x", b"events._all.users.bob.x", b"events.\xc3\xa4.x", b"events." + b"t" * 65 + b".x",
        b"events.acme.users", b"events.acme.users.bob", b"events.acme.a\rb", b"events.acme..x",
        b"events.acme.a.", b"events.acme.a.*", b"events.acme.>", b"events.acme.a*b",
    ]  # fmt: skip
    async with broker.client(subscribe=[">", "live.>"]) as client:
        await client.subscribe([">", "live.>"])
        for subject in subjects:
            await publisher.publish(subject, b"1")
            await publisher.publish(subject, b"no json")
            await publisher.publish(subject.replace(b"events", b"live", 1), b"1")
        await publisher.store("events.acme.end", b"2")
        while (await client.until("event"))["channel"] != "end":
            pass
        channels = [each["payload"]["channel"] for each in client.log if each["type"] == "event"]
        assert [channel for channel in channels if not channel.startswith("live.")] == ["end"]
        letters = await publisher.subscribe("deadletter.acme.last")
        await publisher.store("events.acme.last", b"no json")
        with trio.fail_after(45):
            await letters.receive()  # the letters before it did not stop the postman
        await client.quiet()
