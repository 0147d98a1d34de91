"""Who must not see or do something does not: tenants, private rooms, denied channels, forged publishes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.broker import Broker, configure, run_broker
from tests.support.metrics import scrape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats
    from tests.support.websocket import Client

LONG_AGO = "2000-01-01T00:00:00Z"


@pytest.fixture
async def forgetful(tmp_path: Path, nats: NatsServer) -> AsyncIterator[Broker]:
    """A broker that keeps four events in memory: whatever is older it reads from the stream."""
    settings = configure(tmp_path / "broker", nats.url, ring={"events": 4})
    async with run_broker(tmp_path / "broker", settings) as running:
        yield running


async def past(client: Client, channel: str | list[str], **start: Any) -> list[str]:
    """The events that a subscription with a start brings until it is live, then it is ended."""
    answer = await client.subscribe(channel, **start)
    seen = len(client.log)
    if not answer["live"]:
        await client.until("subscription.live")
    found = [each["payload"]["event"] for each in client.log[seen:] if each["type"] == "event"]
    await client.send("unsubscribe", {"channel": answer["channel"]})
    await client.until("unsubscribed")
    return found


async def store(publisher: RawNats, subjects: Iterable[str]) -> None:
    """One event for each subject: its subject."""
    for subject in subjects:
        await publisher.store(subject, f'"{subject}"'.encode())


def flat(lists: dict[str, list[str]]) -> set[str]:
    return {each for found in lists.values() for each in found}


async def test_no_way_to_the_past_of_another_tenant(forgetful: Broker, publisher: RawNats) -> None:
    """Position, time, count and snapshot, from memory and stream: a tenant's own events and broadcasts."""
    async with forgetful.client("acme") as acme, forgetful.client("acme-2", "alice") as other:
        began = await acme.position()
        subjects = [
            f"events.{tenant}.{channel}"
            for channel in ("a.1", "a.2", "a.3", "b")
            for tenant in ("acme", "acme-2", "_all", "ACME")
        ]
        await store(publisher, subjects)
        await forgetful.caught_up()
        for client, tenant in ((acme, "acme"), (other, "acme-2")):
            mine = [each for each in subjects if each.startswith((f"events.{tenant}.", "events._all."))]
            for start in ({"position": began}, {"since": LONG_AGO}, {"last": 100}):
                assert await past(client, ">", **start) == mine, start
            # Of two that are newest under one name, the tenant's and the broadcast's, the newer one counts.
            newest = [each for each in mine if each.startswith("events._all.")]
            assert await past(client, ">", snapshot=True) == newest
            beside = await client.subscribe("live.>")  # so that what follows is no resume
            assert beside["live"]
            await client.subscribe("nothing")
            assert await past(client, ["a.*", "b"], position=began) == mine


async def test_private_rooms_have_no_window(forgetful: Broker, publisher: RawNats) -> None:
    """No wildcard and no start reaches into another user's room, however wide it is."""
    async with forgetful.client(user="alice") as alice, forgetful.client(user="bob") as bob:
        began = await bob.position()
        filler = [f"events.acme.filler.{number}" for number in range(8)]
        await store(publisher, [f"events.acme.{each}.in" for each in ("users.alice", "users.bob", "x.bob")])
        await store(publisher, filler)
        await forgetful.caught_up()
        for start in ({"position": began}, {"since": LONG_AGO}, {"last": 100}, {"snapshot": True}):
            wide = flat({each: await past(bob, each, **start) for each in (">", "*.*.in", "*.>", "*.bob.>")})
            assert "events.acme.x.bob.in" in wide
            assert not {each for each in wide if ".users." in each}, start
            assert await past(bob, "me.>", **start) == ["events.acme.users.bob.in"]
        assert await past(alice, ["me.>", ">"], snapshot=True) == [
            "events.acme.users.alice.in",
            "events.acme.x.bob.in",
            *filler,
        ]
        for refused in ("users.>", "users.*.in", "users.alice.in", "live.users.>", "live.users.*.in"):
            await bob.send("subscribe", {"channel": refused, "last": 1})
            assert (await bob.expect("error"))["code"] == "forbidden", refused


async def test_shared_history_keeps_rights_apart(forgetful: Broker, publisher: RawNats) -> None:
    """Clients of one tenant that read the same time together, by shared reads, each get what is theirs."""
    subjects = [f"events.acme.{room}.{number}" for number in range(40) for room in ("a", "b", "c")]
    rights: dict[str, dict[str, Any]] = {
        "abc": {},
        "ab": {"subscribe": [">"], "deny": ["c.>"]},
        "a": {"subscribe": [">"], "deny": ["*.1", "b.>", "c.*"]},
        "": {"subscribe": [">"], "deny": ["*.>"]},
    }
    found: dict[str, list[str]] = {}
    newest: dict[str, list[str]] = {}

    async def read(name: str) -> None:
        async with forgetful.client(user=f"user-{name}", **rights[name]) as client:
            patterns = [">", "*.*", "*.1"] if name else ["me.>"]
            found[name] = await past(client, patterns, position=began)
            newest[name] = await past(client, patterns, snapshot=True)
            assert await past(client, patterns, last=20) == found[name][-20:]

    async with forgetful.client() as first:
        began = await first.position()
        await store(publisher, subjects)
        await forgetful.caught_up()
    async with trio.open_nursery() as nursery:
        for name in rights:
            nursery.start_soon(read, name)
    assert newest == found  # each channel has one event
    assert found["abc"] == subjects
    assert found["ab"] == [each for each in subjects if ".c." not in each]
    assert found["a"] == [each for each in subjects if ".a." in each and not each.endswith(".1")]
    assert found[""] == []


async def test_renewal_takes_rights_away_at_once(broker: Broker, publisher: RawNats) -> None:
    """What a renewed token no longer allows ends or is left out, over all subscriptions that overlap."""
    rights: dict[str, Any] = {"subscribe": [">", "live.>"]}
    async with broker.client(**rights) as client:
        await client.subscribe([">", "*.*", "a.secret", "a.*", "live.a.>"])
        narrow = broker.token(subscribe=["*.*", "a.>"], deny=["*.secret"])
        await client.send("authenticate", {"token": narrow})
        await client.expect("connection.authenticated")
        ended = [await client.expect("unsubscribed") for _ in range(3)]
        assert {each["channel"] for each in ended} == {">", "a.secret", "live.a.>"}
        assert {each["code"] for each in ended} == {"forbidden"}
        await publisher.publish("live.acme.a.b", b'"live"')
        await store(publisher, [f"events.acme.{each}" for each in ("a.secret", "b.secret", "a.b", "a")])
        assert (await client.expect("event"))["event"] == "events.acme.a.b"
        await client.quiet()
        assert await past(client, "b.*", last=10) == []
        for refused in (">", "a.secret", "*.secret", "live.a.b"):
            await client.send("subscribe", {"channel": refused})
            assert (await client.expect("error"))["code"] == "forbidden", refused


async def test_client_publishes_only_as_itself(broker: Broker, publisher: RawNats) -> None:
    """No channel, id or name of a user leaves the client's tenant, forges its publisher or adds a header."""
    stored = await publisher.subscribe("events.>")
    user = 'x"\r\nBroker-User: root\r\nNats-Rollup: all\r\n* > . %'
    async with broker.client(user=user) as client:
        for channel in (
            "_all.a", "_broker.canary", "$JS.API.STREAM.PURGE.EVENTS", "@x", "a.*", ">", "a..b", ".a",
            "a.", "a b", "a\r\nPUB events.globex.a 1", "live", "users.bob.in", "live.users.bob.in",
            "users.bob", "me",
        ):  # fmt: skip
            await client.send("publish", {"channel": channel, "event": 1})
            assert (await client.expect("error"))["code"] in ("invalid_channel", "forbidden"), channel
        await client.send("publish", {"channel": "a", "event": {"metadata": {"tenant_id": "globex"}}})
        assert (await client.expect("error"))["code"] == "forbidden"
        await client.send("publish", {"channel": "a", "event": 1, "tenant": "globex"})
        assert (await client.expect("error"))["code"] == "bad_message"
        await client.subscribe(["a", "me.>"])
        event = {"publisher": {"user": "root"}, "channel": "b"}
        event_id = "1\r\nBroker-User: root"
        for channel in ("a", "me.a"):
            await client.send("publish", {"channel": channel, "event": event, "id": event_id})
            said = [await client.receive(), await client.receive()]  # in either order
            got = next(each["payload"] for each in said if each["type"] == "event")
            assert {each["type"] for each in said} == {"event", "published"}
            assert got["publisher"] == {"user": user, "id": event_id}
            assert got["event"] == event
        await client.quiet()
    await publisher.flush()
    seen = [stored.receive_nowait() for _ in range(stored.statistics().current_buffer_used)]
    ours = [each for each in seen if not each.subject.startswith(b"events._broker.probe")]
    assert [each.subject.split(b".")[1:3] for each in ours] == [[b"acme", b"a"], [b"acme", b"users"]]
    for each in ours:
        names = [line.partition(b":")[0] for line in each.header.split(b"\r\n")[1:-2]]
        assert sorted(names) == [b"Broker-Connection", b"Broker-Id", b"Broker-User", b"Nats-Msg-Id"]


async def test_monitoring_token_looks_at_one_tenant_and_touches_nothing(
    broker: Broker, publisher: RawNats
) -> None:
    """It sees the tenant that it chose, cannot publish, and cannot be renewed into another tenant."""
    token = broker.token("*", "ops")
    async with broker.stranger() as client:
        await client.expect("connection.established")
        await client.send("authenticate", {"token": token, "tenant": "acme"})
        assert (await client.expect("connection.authenticated"))["tenant"] == "acme"
        await client.subscribe(">")
        for channel in ("a", "me.a", "live.a"):
            await client.send("publish", {"channel": channel, "event": 1})
            assert (await client.expect("error"))["code"] == "forbidden"
        await client.send("authenticate", {"token": token, "tenant": "globex"})
        assert (await client.expect("error"))["code"] == "forbidden"
        await client.send("authenticate", {"token": token})
        assert (await client.expect("connection.authenticated"))["tenant"] == "acme"
        await store(publisher, ["events.globex.a", "events.acme.a"])
        assert (await client.expect("event"))["event"] == "events.acme.a"
        await client.quiet()


async def test_broadcast_stays_out_of_rooms(broker: Broker, publisher: RawNats) -> None:
    """Neither a broadcast nor a stored subject can stand in for a private or a live channel."""
    async with broker.client() as client:
        await client.subscribe([">", "live.>", "me.>", "live.me.>"])
        await store(publisher, ["events._all.users.alice.in", "events.acme.live.x", "events._all.live.x"])
        await publisher.publish("live._all.users.alice.in", b"1")
        await publisher.publish("live._x.a", b"1")
        await store(publisher, ["events._all.last"])
        assert (await client.expect("event"))["event"] == "events._all.last"
        await client.quiet()


FIELDS = (
    b"Broker-User: \xff\xfe",
    b"Broker-User: %ff%zz%",
    b"Broker-User: a\nBroker-User: b",
    b'ce-specversion: 1.0\r\nce-id: a"b\\c\r\nce-"\xff: \xff',
    b"ce-specversion: 1.0\r\nContent-Type: \xff\r\nce-data: x",
    b"no colon\r\n: no name",
)


async def test_odd_headers_harm_nobody(forgetful: Broker, publisher: RawNats) -> None:
    """Messages with headers of every kind, or a status line, are events: now, replayed, in a snapshot."""
    heads = [b"NATS/1.0\r\n" + each + b"\r\n\r\n" for each in FIELDS]
    heads += [b"NATS/1.0 %b\r\n\r\n" % status for status in (b"204 EOB", b"503", b"100 FlowControl Request")]
    async with forgetful.client() as client:
        began = await client.position()
        await client.subscribe("odd.>")
        for number, head in enumerate(heads):
            await publisher.store(f"events.acme.odd.{number}", b"[]", header=head)
        channels = [each["channel"] for each in await client.events(len(heads))]
        assert channels == [f"odd.{number}" for number in range(len(heads))]
        async with forgetful.client() as later:
            assert len(await past(later, "odd.>", position=began)) == len(heads)
            assert len(await past(later, "odd.>", snapshot=True)) == len(heads)
            assert len(await past(later, "odd.>", last=100)) == len(heads)
        await client.quiet()
    assert (await scrape(forgetful.running.admin)).total("broker_tenant_restarts_total") == 0
