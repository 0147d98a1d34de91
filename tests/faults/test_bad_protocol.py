"""Bad input, protocol: each bad message has its error code, the server's values win.

Nothing evil reaches NATS: a tap hears it, but for the subjects of the world, in whose books it would be.

Left out: `/api/…` of the admin port with and without its token, which does not exist yet.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e.test_input import EVIL, Tap
from tests.faults.support.messages import MESSAGES, message
from tests.faults.support.rude import (
    RUDE,
    Row,
    bad_input,
    listen_on,
    note,
    until,
)
from tests.faults.support.world import PATIENCE_SECONDS, TENANTS
from tests.support.raw import ask, hear, open_raw, say
from tests.web.harness import TEXT, frame, head

if TYPE_CHECKING:
    from tests.faults.conftest import OpenWorld
    from tests.faults.support.report import Report
    from tests.web.harness import Client

BURST, PER_MINUTE = 50, 600
REQUESTS = 5000
LISTS, LISTED, MOST = 100, 100, 128  # 10,000 subscriptions; `subscriptions_per_connection`
TIMES = 1000
MESSAGE_BYTES = 65536

RIGHTS: dict[str, Any] = {
    "subscribe": [">", "live.>"],
    "publish": ["a", "live.a", "denied.>"],
    "deny": ["denied.>"],
}
EVERYTHING: dict[str, Any] = {"subscribe": [">", "live.>"], "publish": [">", "live.>"]}
NOT_CHANNELS = ["*", ">", "a.*", "a.>", "users", "users.bob", "me", "live.me", "live.users.bob"]
FOREIGN = [f"events.{TENANTS[0]}.a", f"{TENANTS[0]}.a", f"live.{TENANTS[0]}.a", "deadletter.acme.a"]
CONTRADICTIONS = {  # good by what is used of them
    "the last of two": (
        '{"metadata":{"tenant_id":"acme","tenant_id":"rude"}}',
        {"metadata": {"tenant_id": RUDE}},
    ),
    "a publisher within": ('{"publisher":{"user":"root"}}', {"publisher": {"user": "root"}}),
    "CR and LF": ('"\\r\\nPUB x 0\\r\\n"', "\r\nPUB x 0\r\n"),
    "the largest integers": ("[18446744073709551615,-9223372036854775808]", [2**64 - 1, -(2**63)]),
}
ADMIN = ("/metrics", "/api/", "/api/connections", "/debug", "/admin", "/..%2fmetrics", "//metrics")


@pytest.mark.fault("protocol")
async def test_bad_protocol(open_world: OpenWorld, report: Report) -> None:
    """Each bad message is told its code and ends nothing but itself; only what is good reaches NATS."""
    limits = {"messages_per_minute": PER_MINUTE, "messages_burst": BURST, "requests_burst": REQUESTS}
    async with (
        open_world(churning=0, limits=limits) as world,
        bad_input(world) as row,
        world.connect() as nats,
    ):
        tap = Tap(nats, await nats.subscribe(">"))
        for name, (text, code) in MESSAGES.items():
            await bad_message(row, name, text, code)
        for channel in EVIL + NOT_CHANNELS:
            await evil_channel(row, channel)
        await persistence(row)
        await admin_from_outside(row)
        await other_tenant(row)
        assert await evil(tap) == set()
        await own_tenant_only(row)
        assert await evil(tap) == {
            *(f"events.{RUDE}.{channel}".encode() for channel in FOREIGN if not channel.startswith("live.")),
            f"live.{RUDE}.{TENANTS[0]}.a".encode(),
        }
        await servers_values(row)
        await same_id(row)
        await forged_positions(row)
        await ten_thousand(row)
        await again_and_again(row)
        await too_fast(row)
    note(report, "protocol", row)


async def evil(tap: Tap) -> set[bytes]:
    """What NATS has seen since the last time that neither the world, the witness nor the broker published."""
    known = tuple(
        f"{kind}.{tenant}.".encode()
        for kind in ("events", "live")
        for tenant in (*TENANTS, "_all", "witness")
    )
    known += (b"_broker.", b"$KV.broker_control.stream.")
    return {subject for subject in await tap.heard() if not subject.startswith(known)}


async def refused(client: Client, code: str, what: object) -> None:
    """The next message is this error, which trying again would not help."""
    answer = await hear(client)
    assert answer["type"] == "error", (what, answer)
    assert (answer["payload"]["code"], answer["payload"]["retryable"]) == (code, False), (what, answer)


async def goes_on(client: Client) -> None:
    await say(client, "ping")
    await until(client, "pong")


async def bad_message(row: Row, name: str, text: str, code: str) -> None:
    async with row.member(f"user{row.items}", **RIGHTS) as client:
        await client.send(frame(TEXT, text.encode()))
        await refused(client, code, name)
        await goes_on(client)
    await row.works(name)


async def evil_channel(row: Row, channel: str) -> None:
    """What is no channel is none to publish into, and what is no pattern none to subscribe to."""
    async with row.member(f"user{row.items}", **EVERYTHING) as client:
        await say(client, "publish", {"channel": channel, "event": 1})
        await refused(client, "invalid_channel", channel)
        if channel in EVIL:
            for start in ({}, {"last": 5}, {"snapshot": True}, {"durable": "d"}):
                await say(client, "subscribe", {"channel": channel, **start})
                await refused(client, "invalid_channel", (channel, start))
            await say(client, "unsubscribe", {"channel": channel})
            await refused(client, "not_subscribed", channel)
        await goes_on(client)
    await row.works(channel[:80])


async def persistence(row: Row) -> None:
    """The tenth bad message within a minute ends the connection, and so does one that is too long."""
    bearer = row.bearer("bad")
    told = await row.told(head(authorization=bearer), *[frame(TEXT, b"{")] * 20)
    assert (told.errors, told.close) == (("bad_message",) * 10, 4510)
    await row.works("ten bad messages")
    told = await row.told(head(authorization=bearer), frame(TEXT, b" " * (MESSAGE_BYTES + 1)))
    assert (told.errors, told.close) == ((), 1009)
    await row.works("a message over the size")


async def admin_from_outside(row: Row) -> None:
    """The public port knows no path of the admin port, which answers to its own names alone."""
    for path in ADMIN:
        assert (await ask(row.url, path)).status == 404, path
    admin = row.world.broker.admin
    assert admin
    for host in ("broker.example", "127.0.0.1.evil.org", "localhost.", "[::2]"):
        assert (await ask(admin, "/metrics", host=host)).status == 421, host
    await row.works("admin paths")


async def other_tenant(row: Row) -> None:
    """A token is for its tenant and its user, whatever is asked for beside it."""
    token = row.world.broker.token(RUDE, "rude")
    told = await row.told(head(f"/ws?tenant={TENANTS[0]}", authorization=row.bearer()))
    assert (told.errors, told.close) == (("forbidden",), 4503)
    async with open_raw(row.url) as client:
        await client.upgrade()
        await say(client, "authenticate", {"token": token, "tenant": TENANTS[0]})
        told = await listen_on(client)
    assert (told.errors, told.close) == (("forbidden",), 4503)
    async with row.member("rude") as client:
        for tenant, user in ((RUDE, "bob"), (TENANTS[0], "rude")):
            await say(client, "authenticate", {"token": row.world.broker.token(tenant, user)})
            await refused(client, "forbidden", user)
        await say(client, "authenticate", {"token": token, "tenant": TENANTS[0]})
        await refused(client, "forbidden", "tenant")
        await goes_on(client)
    await row.works("another tenant")


async def own_tenant_only(row: Row) -> None:
    """A channel that begins with another tenant's prefix is one of the client's own tenant."""
    async with row.member("rude", **EVERYTHING) as client:
        for channel in FOREIGN:
            await say(client, "publish", {"channel": channel, "event": {"n": channel}})
            await until(client, "published")
    await row.works("another tenant's prefix")


async def servers_values(row: Row) -> None:
    """Who published is said by the token, in the event and in the headers; nothing else gets into those."""
    user = "a\r\nNats-Rollup: all"
    async with row.member(user, **EVERYTHING) as client:
        await say(client, "subscribe", {"channel": "odd"})
        await until(client, "subscribed")
        for name, (text, value) in CONTRADICTIONS.items():
            wanted = json.dumps(f"\u00e9 {name}\r\nNats-Rollup: all")
            publish = f'{{"channel":"odd","id":{wanted},"event":{text}}}'
            await client.send(frame(TEXT, f'{{"type":"publish","payload":{publish}}}'.encode()))
            got = {}
            for _ in range(2):
                answer = await hear(client)
                got[answer["type"]] = answer["payload"]
            assert got["published"]["id"] == json.loads(wanted)
            assert got["event"]["event"] == value, name
            assert got["event"]["publisher"] == {"user": user, "id": json.loads(wanted)}
            stored = await row.nats.api("STREAM.MSG.GET.EVENTS", last_by_subj=f"events.{RUDE}.odd")
            lines = base64.b64decode(stored["message"]["hdrs"]).split(b"\r\n")
            names = {line.split(b":")[0] for line in lines if line}
            assert names == {b"NATS/1.0", b"Broker-User", b"Broker-Connection", b"Broker-Id", b"Nats-Msg-Id"}
            await row.works(name)


async def same_id(row: Row) -> None:
    """The same id with another body is the first event once more: a duplicate, and nobody gets it."""
    async with row.member("rude", **EVERYTHING) as client:
        await say(client, "subscribe", {"channel": "b"})
        await until(client, "subscribed")
        await say(client, "publish", {"channel": "a", "event": 1, "id": "same"})
        first = await until(client, "published")
        await say(client, "publish", {"channel": "a", "event": 2, "id": "same"})
        assert await until(client, "published") == first | {"duplicate": True}
        await say(client, "subscribe", {"channel": "a", "last": 10})
        assert (await until(client, "event"))["event"] == 1
        await say(client, "ping")
        assert (await hear(client))["type"] in ("pong", "subscription.live")
    await row.works("the same id")


async def forged_positions(row: Row) -> None:
    """Of another incarnation, or beyond the end: not recovered, a gap says so, and it goes on."""
    async with row.member("rude", **EVERYTHING) as client:
        await say(client, "subscribe", {"channel": "none", "durable": "d"})
        subscribed = await until(client, "subscribed")
        if not subscribed["live"]:
            await until(client, "subscription.live")
        incarnation, _, _ = subscribed["position"].rpartition("-")
        for forged in ("abc-5", f"{incarnation}-{10**15}", f"{incarnation}-{10**20 - 1}"):
            await say(client, "acknowledge", {"durable": "d", "position": forged})
            await refused(client, "invalid_position", forged)
    for forged in ("abc-5", f"{incarnation}-{10**15}", f"{incarnation}-{10**20 - 1}"):
        async with row.member("rude", **EVERYTHING) as client:
            await say(client, "subscribe", {"channel": "forged", "position": forged})
            assert not (await until(client, "subscribed"))["recovered"]
            assert (await until(client, "gap"))["reason"] == "reset"
            await row.nats.store(f"events.{RUDE}.forged", json.dumps(forged).encode())
            while (await until(client, "event"))["event"] != forged:
                pass  # what the stream held of the others
        await row.works(forged)


async def ten_thousand(row: Row) -> None:
    """Of 10,000 subscriptions as many stand as may, the first ones, and they work."""
    async with row.member("rude", **EVERYTHING) as client, trio.open_nursery() as nursery:
        await say(client, "subscribe", {"channel": [f"c{number}" for number in range(LISTS * LISTED // 2)]})
        await refused(client, "limit_subscriptions", "one list")
        lists = [
            {"channel": [f"c{first + number}" for number in range(LISTED)]}
            for first in range(0, LISTS * LISTED, LISTED)
        ]

        async def subscribe() -> None:
            for each in lists:
                await say(client, "subscribe", each)

        nursery.start_soon(subscribe)
        accepted: list[str] = []
        codes = set()
        for _ in lists:
            payload = (await hear(client))["payload"]
            accepted += payload.get("channel", [])
            codes |= {each["code"] for each in payload.get("refused", [payload])}
        assert accepted == [f"c{number}" for number in range(MOST)]
        assert codes == {"limit_subscriptions"}
        await row.nats.store(f"events.{RUDE}.c{MOST}", b"0")
        await row.nats.store(f"events.{RUDE}.c{MOST - 1}", b"1")
        assert (await until(client, "event"))["event"] == 1
    await row.works("10,000 subscriptions")


async def again_and_again(row: Row) -> None:
    """To subscribe and unsubscribe 1,000 times leaves nothing behind: the last state counts."""
    channels = ["again", "live.again", ">"]
    async with row.member("rude", **EVERYTHING) as client, trio.open_nursery() as nursery:

        async def send() -> None:
            for _ in range(TIMES):
                await say(client, "subscribe", {"channel": channels})
                await say(client, "unsubscribe", {"channel": channels})

        nursery.start_soon(send)
        await row.works("1,000 subscribes, while they come")
        for _ in range(TIMES):
            await until(client, "subscribed")
            await until(client, "unsubscribed")
        passed = await row.nats.store(f"events.{RUDE}.again", b"0")
        await say(client, "ping")
        while int((await until(client, "pong"))["position"].rpartition("-")[2]) < passed:
            await say(client, "ping")  # what is published while nothing is subscribed is behind us
        await say(client, "subscribe", {"channel": channels[:2]})
        await until(client, "subscribed")
        await row.nats.store(f"events.{RUDE}.again", b"1")
        await row.nats.publish(f"live.{RUDE}.again", b"2")
        assert {(await until(client, "event"))["event"] for _ in range(2)} == {1, 2}
    await row.works("1,000 subscribes")


async def too_fast(row: Row) -> None:
    """Beyond the rate nothing is published, and who does not stop is closed with 4029."""
    sent = [frame(TEXT, message("publish", channel="fast", event=number).encode()) for number in range(500)]
    with trio.fail_after(PATIENCE_SECONDS):
        told = await row.told(head(authorization=row.bearer("hasty", **EVERYTHING)), *sent)
    assert (set(told.errors), told.close) == ({"rate_limited"}, 4029)
    info = await row.nats.api("STREAM.INFO.EVENTS", subjects_filter=f"events.{RUDE}.fast")
    assert BURST <= info["state"]["subjects"][f"events.{RUDE}.fast"] <= len(sent) - len(told.errors)
    await row.works("over the rate")
