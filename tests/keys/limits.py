"""What a limit refuses, ends or delays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from wsproto.events import CloseConnection, Ping

from broker.actors import supervisor
from broker.bus.nats import NatsBus
from broker.config import checks
from broker.limits import FLOWING
from tests.e2e.test_lag import SMALL, flood
from tests.keys.clients import let_in
from tests.keys.world import World, row
from tests.support import websocket
from tests.support.http import opened, request
from tests.support.metrics import scrape
from tests.support.raw import open_raw
from tests.web.harness import head

if TYPE_CHECKING:
    from tests.support.websocket import Client

SCOPES = ("connection", "user", "tenant", "address", "process", "tenants.0")
LITTLE = {"delivered_bytes_per_second": 3000, "bytes_per_second": 10}
ONE_TENANT = {"limits.tenants.0.name": "acme"}


def beside(scope: str) -> dict[str, Any]:
    return ONE_TENANT if scope == "tenants.0" else {}


async def answer(client: Client, kind: str, payload: dict[str, Any] | None = None) -> str:
    """The type of the answer to a message, or the code of an error."""
    await client.send(kind, payload)
    message = await client.receive()
    return str(message["payload"].get("code", message["type"]))


async def ask_twice(client: Client, kind: str, payload: dict[str, Any] | None = None) -> list[str]:
    return [await answer(client, kind, payload) for _ in range(2)]


# --- of each scope ---------------------------------------------------------------------------------


async def publish_twice(world: World) -> object:
    return await ask_twice(await world.client(), "publish", {"channel": "a", "event": 1})


async def subscribe_two(world: World) -> object:
    client = await world.client()
    await client.send("subscribe", {"channel": ["a", "b"]})
    return (await client.receive())["payload"].get("channel")


async def filter_two(world: World) -> object:
    client = await world.client()
    for number, channel in enumerate(("a", "b")):
        await client.send("subscribe", {"channel": channel, "filter": {"/n": number}})
    return [(await client.receive())["payload"].get("code") for _ in range(2)]


async def pace_two(world: World) -> object:
    """Whether the second channel of a subscription has a pace."""
    client = await world.client()
    await client.subscribe("p.*", every_ms=60_000)
    await client.subscribe("end")

    async def until(channel: str) -> list[str]:
        await world.publisher.store(f"events.acme.{channel}", b"1")
        found = [(await client.until("event"))["channel"]]
        while found[-1] != channel:
            found.append((await client.until("event"))["channel"])
        return found

    before = [await until(channel) for channel in ("p.a", "p.b")]
    await world.publisher.store("events.acme.p.b", b"2")
    return [*before, await until("end"), await until("end")]


async def come_twice(world: World) -> object:
    await world.client()
    if (status := await world.opening()) != 101:
        return status
    return await let_in(world, world.broker.token())


async def paced(world: World) -> object:
    """Whether anything is delayed of what is sent to a client."""
    client = await world.client()
    await client.subscribe("a")
    for _ in range(10):
        await world.publisher.store("events.acme.a", b'"%b"' % (b"x" * 1000))

    async def delayed() -> bool:
        found = (await scrape(world.running.admin)).samples.get("broker_limits_hit_total", [])
        return any(labels["resource"] == "delivered_bytes_per_second" and value for labels, value in found)

    return await world.until(delayed)


for scope in SCOPES:
    for rate in FLOWING:
        if (scope, rate) not in checks.ELSEWHERE:
            little = LITTLE.get(rate, 0.02)
            see = {"connects_per_second": come_twice, "delivered_bytes_per_second": paced}
            row(f"limits.{scope}.{rate}", little, beside=beside(scope))(see.get(rate, publish_twice))
    if (scope, "subscriptions") not in checks.ELSEWHERE:
        row(f"limits.{scope}.subscriptions", 1, beside=beside(scope))(subscribe_two)
    if (scope, "connections") not in checks.ELSEWHERE:
        row(f"limits.{scope}.connections", 1, beside=beside(scope))(come_twice)

row("limits.tenants.0.name", "globex", basis="acme", beside={"limits.tenants.0.publishes_per_second": 0.02})(
    publish_twice
)


@row("limits.tenants.0.suspended", True, beside=ONE_TENANT)
async def suspended(world: World) -> object:
    return await let_in(world, world.broker.token())


# --- how many and how often ------------------------------------------------------------------------

row("limits.connections", 1, beside={"limits.connections_per_user": 1})(come_twice)
row("limits.connections_per_user", 1)(come_twice)
row("limits.subscriptions_per_connection", 1)(subscribe_two)
row("limits.filters_per_connection", 1)(filter_two)
row("limits.filters_per_tenant", 1)(filter_two)
row("limits.paced_channels", 1)(pace_two)
row("limits.messages_burst", 1, beside={"limits.messages_per_minute": 1})(publish_twice)


@row("limits.requests_burst", 1, beside={"limits.requests_per_second": 1})
async def ask_often(world: World) -> object:
    client = await world.client()
    for _ in range(10):
        await client.send("ping")
    return {(await client.receive())["type"] for _ in range(10)}


@row("limits.messages_per_minute", 1, beside={"limits.messages_burst": 1})
@row("limits.requests_per_second", 1, basis=1000, beside={"limits.requests_burst": 1})
async def wait(world: World) -> object:
    """Whether the longest time to wait is above a part of a second."""
    client = await world.client()
    waits = [0]
    for kind, payload in (("ping", {}), ("publish", {"channel": "a", "event": 1})):
        for _ in range(20):
            await client.send(kind, payload)
        waits += [(await client.receive())["payload"].get("retry_after_ms", 0) for _ in range(20)]
    return max(waits) > 650


@row("limits.calls_burst", 1, beside={"limits.calls_per_second": 1, "permissions.request": [">"]})
async def call_often(world: World) -> object:
    client = await world.client()
    return {await answer(client, "request", {"method": "a"}) for _ in range(10)}


@row("limits.calls_per_second", 1, basis=1000, beside={"limits.calls_burst": 1, "permissions.request": [">"]})
async def call_soon(world: World) -> object:
    """Whether the time to wait is above a part of a second."""
    client = await world.client()
    waits = [0]
    for _ in range(20):
        await client.send("request", {"method": "a"})
    waits += [(await client.receive())["payload"]["retry_after_ms"] % 1000 for _ in range(20)]
    return max(waits) > 650


@row("limits.requests_in_flight", 1, beside={"permissions.request": [">"]})
async def call_at_once(world: World) -> object:
    """The answer to the second of two requests that nobody answers."""
    await world.publisher.subscribe("rpc.>")
    await world.publisher.flush()
    client = await world.client()
    for _ in range(2):
        await client.send("request", {"method": "a", "timeout_ms": 100})
    return {(await client.expect("error"))["code"] for _ in range(2)}


async def past(world: World, channel: str | list[str], **more: Any) -> dict[str, Any]:
    """A page of a stream with ten events, the first of them in a channel of its own."""
    client = await world.client()
    for number in range(10):
        last = await world.publisher.store("events.acme.b" if number else "events.acme.a.b", b"1")
        await client.passed(last)  # one at a time: the ring drops whole ticks
    await client.send("history", {"channel": channel, **more})
    found: dict[str, Any] = (await client.receive())["payload"]
    return found


@row("limits.history_per_minute", 1, beside={"ring.events": 1})
async def page_often(world: World) -> object:
    await past(world, "b")
    client = await world.client()
    return await answer(client, "history", {"channel": "b"})


@row("limits.history_channels", 1)
async def page_of_two(world: World) -> object:
    return (await past(world, ["a", "b"])).get("code")


@row("limits.history_bytes", 1)
async def large_page(world: World) -> object:
    return len((await past(world, "b"))["events"])


@row("limits.history_reads", 1)
async def far_page(world: World) -> object:
    """To evaluate a filter on 256 KiB is as much work as a read."""
    client = await world.client()
    for body in (b"1", *[b'"%b"' % (b"x" * 60_000)] * 6):
        last = await world.publisher.store("events.acme.b", body)
    await client.passed(last)
    await client.send("history", {"channel": "b", "filter": {"": 1}})
    return (await client.receive())["payload"]["more"]


# --- how large -------------------------------------------------------------------------------------


@row("limits.message_bytes", 300, beside={"limits.publish_bytes": 100})
async def long_message(world: World) -> object:
    client = await world.client()
    await client.send("ping", messageId="x", padding="x" * 500)
    return await world.within(lambda: client.until("pong")) if world.patience < 1 else await client.closed()


@row("limits.publish_bytes", 100)
async def long_publish(world: World) -> object:
    return await answer(await world.client(), "publish", {"channel": "a", "event": "x" * 200})


@row("limits.event_bytes", 100, beside={"limits.publish_bytes": 50})
async def long_event(world: World) -> object:
    client = await world.client()
    await client.subscribe("a")
    for event in (b'"%b"' % (b"x" * 200), b"1"):
        await world.publisher.store("events.acme.a", event)
    return (await client.events(1))[0]["event"]


@row("limits.token_bytes", 100)
async def long_token(world: World) -> object:
    return await let_in(world, world.broker.token())


@row("limits.token_max_seconds", 600)
async def long_life(world: World) -> object:
    return await let_in(world, world.broker.token(ttl=3600))


@row("limits.head_bytes", 600, beside={"limits.token_bytes": 500})
async def long_head(world: World) -> object:
    return await world.opening(x_padding="x" * 1000)


@row("limits.outbound_bytes", 1000, basis="64MiB")
async def behind(world: World) -> object:
    """Whether a client that does not read is closed, which wants that."""
    client = await slow(world)
    await client.subscribe("q.*", lag="close")
    await flood(world.publisher, 10)
    return await world.until(lambda: ended(world, "4008"))


async def slow(world: World) -> Client:
    """A client for which little may be on its way."""
    token = world.broker.token()
    return await world.stack.enter_async_context(
        websocket.connect(world.running.ws, token=token, receive_buffer=SMALL)
    )


async def ended(world: World, code: str) -> bool:
    found = (await scrape(world.running.admin)).samples.get("broker_connections_closed_total", [])
    return any(labels["code"] == code and value for labels, value in found)


# --- how long --------------------------------------------------------------------------------------


@row("limits.authentication_seconds", 0.1)
async def without_a_token(world: World) -> object:
    client = await world.stack.enter_async_context(world.broker.stranger())
    return await world.within(client.closed)


async def heard(world: World, data: bytes) -> object:
    """The first bytes of the answer to a part of a request."""
    async with opened(world.running.http, data) as stream:
        return await world.within(lambda: stream.receive_some(12))


@row("limits.head_seconds", 0.1)
async def half_a_head(world: World) -> object:
    return await heard(world, b"GET /ws HTTP/1.1\r\n")


@row("limits.body_seconds", 0.1)
async def half_a_body(world: World) -> object:
    whole = request(world.running.http, "POST", "/publish", token=world.broker.token(), body=b"{}")
    return await heard(world, whole[:-1])


@row("limits.heartbeat_seconds", 0.1)
async def pinged(world: World) -> object:
    client = await world.stack.enter_async_context(open_raw(world.running.ws))
    await client.upgrade(head(authorization=f"Bearer {world.broker.token()}"))

    async def ping() -> bool:
        while not isinstance(await client.event(), Ping):
            pass
        return True

    return await world.within(ping)


@row("limits.heartbeat_timeout_seconds", 0.1, beside={"limits.heartbeat_seconds": 0.1})
async def unanswered(world: World) -> object:
    client = await world.stack.enter_async_context(open_raw(world.running.ws))
    await client.upgrade(head(authorization=f"Bearer {world.broker.token()}"))

    async def close() -> int:
        while not isinstance(event := await client.event(), CloseConnection):
            pass
        return event.code

    return await world.within(close)


@row("limits.stall_seconds", 0.2)
async def stalled(world: World) -> object:
    client = await slow(world)
    await client.subscribe("q.*")
    await flood(world.publisher, 10)
    return await world.until(lambda: ended(world, "4009"))


# --- history ---------------------------------------------------------------------------------------


@row("limits.snapshot_channels", 1)
async def snapshot(world: World) -> object:
    for channel in ("a.1", "a.2"):
        await world.publisher.store(f"events.acme.{channel}", b"1")
    return await answer(await world.client(), "subscribe", {"channel": "a.*", "snapshot": True})


@row("limits.snapshot_memory_bytes", "32MiB")
async def memory_of_snapshots(world: World) -> object:
    return (await scrape(world.running.admin)).total("broker_snapshot_bytes_limit")


@row("limits.last_events", 1)
async def last(world: World) -> object:
    return await answer(await world.client(), "subscribe", {"channel": "a", "last": 5})


@row("limits.replay_events", 1)
async def replayed(world: World) -> object:
    """What comes after a time from which there are three events."""
    for _ in range(3):
        await world.publisher.store("events.acme.a", b"1")
    client = await world.client()
    await client.subscribe("a", since="2020-01-01T00:00:00Z")
    await client.events(1)
    return [message["type"] for message in client.log]


@row("limits.catch_ups_per_connection", 1)
async def taking_turns(world: World) -> object:
    """Whether the events of two catch-ups of a client come one after the other, or by turns."""
    client = await slow(world)
    began = (await client.subscribe("c"))["position"]
    for _ in range(60):
        for channel in ("a", "b"):
            await world.publisher.publish(f"events.acme.{channel}", b'"%b"' % (b"x" * 30_000))
    await world.publisher.store("events.acme.c", b"1")
    await client.events(1)
    for channel in ("a", "b"):
        await client.send("subscribe", {"channel": channel, "position": began})
    numbers = [each["catch_up"] for each in await client.events(120)]
    return numbers == sorted(numbers)


@row("limits.catch_ups", 2, basis=1, beside={"ring.events": 1})
async def catching_up(world: World) -> object:
    """How many of two catch-ups read the stream at the same time, if its answers do not come."""
    clients = [await world.client(), await world.client()]
    world.patch.setattr(supervisor, "KEPT_SECONDS", 0.0)  # beside the ring nothing is remembered
    began = await clients[0].position()
    for channel in ("a", "b"):
        await clients[0].subscribe(channel)
        for _ in range(5):
            await world.publisher.store(f"events.acme.{channel}", b"1")
        await clients[0].events(5)
    asked = []

    async def read(_: NatsBus, subject: str, **options: Any) -> Any:
        asked.append(subject)
        await trio.sleep_forever()

    world.patch.setattr(NatsBus, "read", read)
    for client, channel in zip(clients, ("a", "b"), strict=True):
        await client.subscribe(channel, position=began)

    async def both() -> bool:
        return len(asked) == 2

    await world.until(both)
    return len(asked)


@row("limits.durables_per_user", 1)
async def durable(world: World) -> object:
    client = await world.client()
    await client.subscribe("a", durable="a")
    return await answer(client, "subscribe", {"channel": "b", "durable": "b"})
