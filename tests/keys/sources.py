"""What NATS has of each key, and what is kept of it in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from broker.actors import supervisor
from tests.keys.files import OPERATOR, USER
from tests.keys.surfaces import started
from tests.keys.world import World, row
from tests.support.http import ask
from tests.support.metrics import scrape

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# --- nats ------------------------------------------------------------------------------------------

LOGIN = {"authorization": {"users": [{"user": "u", "password": "good"}]}}
TLS = {"tls": {"cert_file": "FILES/a.pem", "key_file": "FILES/a.key"}}
MUTUAL = {"tls": TLS["tls"] | {"ca_file": "FILES/b.ca", "verify": True}}
CA = {"nats.tls_ca": "FILES/a.ca"}


@row("nats.user", "u", basis="v", beside={"nats.password_file": "FILES/password"}, nats=LOGIN, how="starting")
@row(
    "nats.password_file", "FILES/password", basis="FILES/wrong-password",
    beside={"nats.user": "u"}, nats=LOGIN, how="starting",
)  # fmt: skip
@row(
    "nats.credentials_file", "FILES/user.creds", basis="FILES/other.creds",
    nats=OPERATOR.options(), how="starting",
)  # fmt: skip
@row(
    "nats.nkey_file", "FILES/user.nk", basis="FILES/other.nk",
    nats={"authorization": {"users": [{"nkey": USER.public}]}}, how="starting",
)  # fmt: skip
@row("nats.tls_ca", "FILES/a.ca", basis="FILES/b.ca", nats=TLS, how="starting")
@row(
    "nats.tls_certificate", "FILES/b.pem", basis="FILES/a.pem",
    beside=CA | {"nats.tls_key": "FILES/b.key"}, nats=MUTUAL, how="starting",
)  # fmt: skip
@row(
    "nats.tls_key", "FILES/b.key", basis="FILES/a.key",
    beside=CA | {"nats.tls_certificate": "FILES/b.pem"}, nats=MUTUAL, how="starting",
)  # fmt: skip
@row("nats.tls_first", True, beside=CA, nats={"tls": TLS["tls"] | {"handshake_first": True}}, how="starting")
@row("nats.jetstream_domain", "hub", basis="leaf", nats={"jetstream": {"domain": "hub"}}, how="starting")
async def logged_in(world: World) -> object:
    return await started(world)


@row("nats.urls", [])
async def where(world: World) -> object:
    return world.running.nats == world.nats.url


@row("nats.request_seconds", 0.2)
async def unanswered(world: World) -> object:
    """The answer to a publish that NATS does not acknowledge."""
    client = await world.client()
    world.nats.stop()
    await client.send("publish", {"channel": "a", "event": 1})
    try:
        return await world.within(lambda: client.until("error"))
    finally:
        world.nats.cont()


# --- subjects --------------------------------------------------------------------------------------


@row("subjects.events", "other")
@row("subjects.live", "other")
async def subjects(world: World) -> object:
    """Which two of the events arrive that are published under three prefixes."""
    client = await world.client()
    await client.subscribe(["a", "live.a"])
    for prefix in ("events", "live", "other"):
        await world.publisher.publish(f"{prefix}.acme.a", f'"{prefix}"'.encode())
    return {each["event"] for each in await client.events(2)}


def of_stream(name: str, *path: str) -> Callable[[World], Awaitable[object]]:
    """Return how to see one setting of a stream."""

    async def see(world: World) -> object:
        found: Any = {"error": None}
        while "error" in found:  # some are made while the broker serves already
            found = await world.publisher.api(f"STREAM.INFO.{name}")
        for step in ("config", *path):
            found = found[step]
        return found

    return see


async def streams(world: World) -> set[str]:
    """All but those of the audit trail and of presence, which are made in the background."""
    return set((await world.publisher.api("STREAM.NAMES"))["streams"]) - {"AUDIT", "PRESENCE"}


row("subjects.own", "_own")(of_stream("BROKER", "subjects"))


@row("subjects.rpc", "other", beside={"permissions.request": [">"]})
async def asked(world: World) -> object:
    """The subject on which a client's request reaches services."""
    received = await world.publisher.subscribe(">")
    await world.publisher.flush()
    client = await world.client()
    await client.send("request", {"method": "a.b"})
    while not (message := await received.receive()).subject.endswith(b".a.b"):
        pass
    return message.subject


row("subjects.deadletter", "other")(of_stream("DEADLETTER", "subjects"))

# --- stream and audit ------------------------------------------------------------------------------

for key in ("name", "deadletter_name", "own_name", "cursor_bucket", "control_bucket"):
    row(f"stream.{key}", "OTHER")(streams)
row("stream.max_age", "1d")(of_stream("EVENTS", "max_age"))
row("stream.max_bytes", "32MiB")(of_stream("EVENTS", "max_bytes"))
row("stream.max_msgs_per_subject", 5)(of_stream("EVENTS", "max_msgs_per_subject"))
row("stream.duplicate_window", "1m")(of_stream("EVENTS", "duplicate_window"))
row("stream.deadletter_max_age", "1d")(of_stream("DEADLETTER", "max_age"))
row("stream.deadletter_max_bytes", "1MiB")(of_stream("DEADLETTER", "max_bytes"))
row("stream.cursor_max_age", "1d")(of_stream("KV_broker_cursors", "max_age"))


@row("stream.replicas", 1, basis=3, how="starting")
async def replicas(world: World) -> object:
    """A single server has no room for more than one."""
    return await started(world)


@row("stream.adopt", True, how="starting")
async def adopted(world: World) -> object:
    """Someone else has made the stream, with other settings."""
    made = await world.publisher.api(
        "STREAM.CREATE.EVENTS", name="EVENTS", subjects=["events.>"], max_age=10**12
    )
    assert "error" not in made
    return await started(world) and await of_stream("EVENTS", "max_age")(world)


async def trail(world: World) -> object:
    """The subjects of the audit records of a client that has come."""
    await world.client()

    async def kept() -> bool:
        for name in (await world.publisher.api("STREAM.NAMES"))["streams"]:
            if name not in ("EVENTS", "DEADLETTER", "BROKER", "PRESENCE") and not name.startswith("KV_"):
                info = await world.publisher.api(f"STREAM.INFO.{name}", subjects_filter=">")
                found.update(dict.fromkeys(info["state"].get("subjects") or (), name))
        return bool(found)

    found: dict[str, str] = {}
    await world.until(kept)
    return found


row("audit.enabled", True, basis=False)(trail)
row("audit.name", "OTHER")(trail)
row("audit.prefix", "other")(of_stream("AUDIT", "subjects"))
row("audit.max_age", "1d")(of_stream("AUDIT", "max_age"))
row("audit.max_bytes", "1MiB")(of_stream("AUDIT", "max_bytes"))


@row("audit.closes", 1)
async def closes(world: World) -> object:
    token = (world.directory / "state" / "admin.token").read_text().strip()
    for user in ("u", "v"):
        async with world.broker.client(user=user) as client:
            await client.socket.aclose()

    async def noted() -> bool:
        found = await scrape(world.running.admin)
        return found.total("broker_connections_closed_total") == 2

    assert await world.until(noted)
    answer = await ask(world.running.admin, "GET", "/api/v1/closes", token=token)
    return len(answer.json["closes"])


# --- ring ------------------------------------------------------------------------------------------


async def published(world: World, *events: str) -> None:
    """Publish an event in each of these tenants' channels, and see it arrive."""
    for tenant in events:
        client = await world.client(tenant)
        await client.subscribe("a")
        await world.publisher.store(f"events.{tenant}.a", b'"%b"' % (b"x" * 500))
        await client.events(1)


@row("ring.events", 2)
@row("ring.bytes", 1000)
async def remembered(world: World) -> object:
    await published(world, *["acme"] * 5)
    return (await scrape(world.running.admin)).total("broker_ring_events")


@row("ring.seconds", 0.05)
async def expired(world: World) -> object:
    await published(world, "acme")
    await trio.sleep(0.1)
    await published(world, "acme")
    return (await scrape(world.running.admin)).total("broker_ring_events")


@row("ring.total_bytes", 1000, beside={"ring.bytes": 1000})
async def in_all(world: World) -> object:
    world.patch.setattr(supervisor, "TIDY_SECONDS", 0.05)
    await published(world, "acme", "globex", "initech")

    async def few() -> bool:
        return (await scrape(world.running.admin)).total("broker_ring_bytes") <= 1000

    return await world.until(few)
