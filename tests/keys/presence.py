"""What becomes of presence under each key."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any

from tests.keys.documents import answer
from tests.keys.sources import of_stream
from tests.keys.world import World, row

if TYPE_CHECKING:
    from tests.support.websocket import Client

MINE: dict[str, Any] = {"permissions.subscribe": []}


async def enter(client: Client, channel: str = "a", session: str = "s") -> str:
    return await answer(client, "presence.enter", {"channel": channel, "session": session})


@row("permissions.presence", ["b"])
@row("presence.enabled", False)
async def entered(world: World) -> object:
    return await enter(await world.client())


@row("permissions.observe", ["a"], beside=MINE)
async def watched(world: World) -> object:
    return await answer(await world.client(), "presence.watch", {"channel": "a"})


@row("limits.presence_entered", 1)
async def enter_two(world: World) -> object:
    client = await world.client()
    return [await enter(client, channel) for channel in ("a", "b")]


@row("limits.presence_members", 1)
async def two_enter(world: World) -> object:
    """The first is seen by the broker when its own watch shows it."""
    client = await world.client()
    found = [await enter(client)]
    await client.send("presence.watch", {"channel": "a"})
    while not (await client.until("presence"))["set"]:
        pass
    return [*found, await enter(await world.client(user="bob"))]


@row("limits.presence_watched", 1)
async def watch_two(world: World) -> object:
    client, found = await world.client(), []
    for channel in ("a", "b"):
        await client.send("presence.watch", {"channel": channel})
        message = await client.receive()
        while message["type"] == "presence":
            message = await client.receive()
        found.append(message["payload"].get("code", message["type"]))
    return found


@row("limits.presence_linger_seconds", 3)
async def lost(world: World) -> object:
    """For how long NATS keeps a member whose connection was lost."""
    client = await world.client()
    await enter(client)
    await client.socket.aclose(4000)
    subject = "presence.acme.1.a.alice.s"
    while True:
        found = await world.publisher.api("STREAM.MSG.GET.PRESENCE", last_by_subj=subject)
        if "error" not in found and b"Nats-TTL" in (head := b64decode(found["message"]["hdrs"])):
            return head.partition(b"Nats-TTL: ")[2].partition(b"\r")[0]


@row("presence.name", "OTHER")
async def named(world: World) -> object:
    found: set[str] = set()
    while not found:
        found = {"PRESENCE", "OTHER"} & set((await world.publisher.api("STREAM.NAMES"))["streams"])
    return found


row("presence.max_bytes", "1MiB")(of_stream("PRESENCE", "max_bytes"))
row("subjects.presence", "other")(of_stream("PRESENCE", "subjects"))
