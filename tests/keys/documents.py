"""What becomes of documents under each key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from tests.keys.sources import of_stream, streams
from tests.keys.world import World, row

if TYPE_CHECKING:
    from tests.support.websocket import Client

DOCUMENTS: dict[str, Any] = {"state.documents": [{"channel": "a.*"}]}
CHANGED = DOCUMENTS | {"permissions.change": [">"]}
ONE_TENANT = {"limits.tenants.0.name": "acme"}


def change(n: int = 1, **patch: Any) -> dict[str, Any]:
    """A change that makes a document of its own."""
    return {"id": f"s-{n}", "channel": f"a.{n}", "patch": patch or {"n": 5}, "was": None}


async def answer(client: Client, kind: str, payload: dict[str, Any]) -> str:
    """The type of the answer, or the code of an error, once the stream of the documents has been reached."""
    while True:
        await client.send(kind, payload)
        message = await client.receive()
        code = message["payload"].get("code", message["type"])
        if code != "unavailable":
            return str(code)
        await trio.sleep(0.02)


@row("permissions.change", [">"], beside=DOCUMENTS)
@row("limits.change_bytes", 20, beside=CHANGED)
@row("state.documents.0.channel", "b.*", basis="a.*", beside=CHANGED)
@row("state.documents.0.schema", "FILES/schema.json", beside=CHANGED)
async def changed(world: World) -> object:
    return await answer(await world.client(), "state.change", change())


@row("state.enabled", False, beside=DOCUMENTS)
async def opened(world: World) -> object:
    return await answer(await world.client(), "state.open", {"channel": "a.1"})


@row("limits.documents_per_connection", 1, beside=DOCUMENTS)
@row("limits.document_set_bytes", 10, beside=CHANGED)
async def open_two(world: World) -> object:
    """What comes of two documents, up to the end of that."""
    client, came = await world.client(), [""]
    for n in (1, 2):
        await world.publisher.store(f"state.acme.a.{n}", b'{"text": "twenty characters"}')
    came.append(await answer(client, "state.open", {"channel": ["a.1", "a.2"]}))
    while came[-1] not in ("state.ready", "state.closed", "limit_documents"):
        message = await client.receive()
        came.append(message["payload"].get("code", message["type"]))
    return came


@row("limits.documents", 1, beside=CHANGED)
@row("limits.document_bytes", 100, beside=CHANGED)
@row("limits.tenants.0.documents", 1, beside=CHANGED | ONE_TENANT)
@row("limits.tenants.0.document_bytes", 100, beside=CHANGED | ONE_TENANT)
async def make_two(world: World) -> object:
    client = await world.client()
    return [await answer(client, "state.change", change(n)) for n in (1, 2)]


@row("limits.changes_burst", 1, beside=CHANGED | {"limits.changes_per_second": 1})
async def change_often(world: World) -> object:
    client = await world.client()
    await answer(await world.client(user="bob"), "state.change", change(99))
    for n in range(10):
        await client.send("state.change", change(n))
    found = [await client.receive() for _ in range(10)]
    return {each["payload"].get("code", each["type"]) for each in found}


@row("limits.changes_per_second", 1, basis=1000, beside=CHANGED | {"limits.changes_burst": 1})
async def change_soon(world: World) -> object:
    """Whether the time to wait is above a part of a second."""
    client = await world.client()
    for n in range(20):
        await client.send("state.change", change(n))
    found = [(await client.receive())["payload"] for _ in range(20)]
    waits = [each["retry_after_ms"] % 1000 for each in found if each.get("code") == "rate_limited"]
    return max(waits, default=0) > 650


@row("subjects.changes", "other", beside=CHANGED | {"state.documents.0.owner": "service"})
@row("state.documents.0.owner", "service", beside=CHANGED)
async def asked(world: World) -> object:
    """The subject on which a change reaches whoever decides."""
    received = await world.publisher.subscribe(">")
    await world.publisher.flush()
    await answer(await world.client(user="bob"), "state.open", {"channel": "a.1"})
    client = await world.client()
    await client.send("state.change", change())
    while not (message := await received.receive()).subject.endswith(b".acme.a.1"):
        pass
    return message.subject


row("subjects.state", "other", beside=DOCUMENTS)(of_stream("STATE", "subjects"))
row("state.max_bytes", "1MiB", beside=DOCUMENTS)(of_stream("STATE", "max_bytes"))


@row("state.name", "OTHER", beside=DOCUMENTS)
async def named(world: World) -> object:
    async def made() -> bool:
        return bool({"STATE", "OTHER"} & await streams(world))

    await world.until(made)
    return await streams(world)


@row("state.replicas", 3, beside=DOCUMENTS)
async def replicas(world: World) -> object:
    """A single server has no room for more than one."""

    async def made() -> bool:
        return "STATE" in await streams(world)

    return await world.until(made)
