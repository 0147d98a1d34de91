"""Documents in a world: who changes them, and what has to hold of them in the end."""

from __future__ import annotations

import base64
import json
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from tests.faults.support.books import Tried, judge
from tests.faults.support.editor import CHANNELS, Editor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tests.faults.support.books import Books
    from tests.faults.support.world import World
    from tests.support.rawnats import RawNats

SECTION = {"documents": [{"channel": "board.>"}, {"channel": "owned.>", "owner": "service"}]}
CHANGE = ["board.>", "owned.>"]  # what the editors may
WRITE_SECONDS = 0.4, 1.5  # between two writes of a service
ANSWER_SECONDS = 5.0
RECONNECT_SECONDS = 0.1
PATIENCE_SECONDS = 200.0  # a bound for what must come; nothing is measured by it
POLL_SECONDS = 0.05
REFUSED = 5  # of so many changes the service that decides refuses one
LOST = "document_update_lost"
OVERTAKEN = 10071  # NATS: another sequence than the expected one
NO = {"error": {"code": 7, "message": "no"}}


def editors(world: World) -> list[Editor]:
    return [each for each in world.clients if isinstance(each, Editor)]


def begin(world: World, tenants: Iterable[str]) -> None:
    """Services begin to write documents and to decide on changes, and the editors to change them."""

    def start(work: Callable[[RawNats], Awaitable[None]]) -> None:
        world.nursery.start_soon(keep_connected, world, work)

    start(decide)
    for tenant in tenants:
        start(partial(write, world, tenant, Random(f"{world.seed}.{tenant}.documents")))
    for editor in editors(world):
        world.nursery.start_soon(editor.edit)


async def there(world: World) -> None:
    """Waits until the broker has the stream of the documents, and reads it."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not (await world.with_nats(lambda nats: nats.api("CONSUMER.NAMES.STATE"))).get("consumers"):
            await trio.sleep(POLL_SECONDS)


async def settle(world: World) -> None:
    """Each change has an answer, and each watcher what is stored; else `problems` says what is wrong."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while pending := world.books.under_way:
            await trio.sleep(POLL_SECONDS)
    assert not pending, f"never answered: {pending}"
    with trio.move_on_after(PATIENCE_SECONDS):
        while await problems(world):
            await trio.sleep(POLL_SECONDS)


async def problems(world: World) -> list[str]:
    """What is wrong with the documents, as they are stored and as the editors hold them."""
    changed = any(each.end == "changed" for each in world.books.tried.values())
    found = [] if changed else ["nothing was changed"]
    if not world.trims:
        found += [each for each in world.broker.log.read_text().splitlines() if LOST in each]
    for tenant in {each.tenant for each in editors(world)}:
        values = {
            channel: (await world.with_nats(partial(stored, tenant=tenant, channel=channel)))[0]
            for channel in CHANNELS
        }
        watched = {each.name: each.docs for each in editors(world) if each.tenant == tenant}
        found += judge(world.books, tenant, values, watched)
    return found


async def keep_connected(world: World, work: Callable[[RawNats], Awaitable[None]]) -> None:
    """Has a service work on one connection after the other."""
    while True:
        try:
            with trio.move_on_after(ANSWER_SECONDS) as opening:
                async with world.connect() as client:
                    opening.deadline = float("inf")
                    await work(client)
                    client.stream.socket.close()
        except* (OSError, trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # and again
        await trio.sleep(RECONNECT_SECONDS)


async def decide(client: RawNats) -> None:
    """The service that decides on documents of its own: it says the same of a change each time."""
    async for message in await client.subscribe("changes.*.owned.>"):
        said: list[Any] = [
            {"error": {"code": 7, "message": "no"}}
            if int(each["id"].rpartition("-")[2]) % REFUSED == 0
            else {}
            for each in json.loads(message.body)["changes"]
        ]
        await client.publish(message.reply, json.dumps({"changes": said}).encode())


async def write(world: World, tenant: str, random: Random, client: RawNats) -> None:
    """A service that writes documents itself, beside the clients."""
    while not world.quiet:
        await trio.sleep(random.uniform(*WRITE_SECONDS))
        with trio.move_on_after(ANSWER_SECONDS) as patience:
            await write_once(world.books, tenant, random.choice(CHANNELS), client)
        if patience.cancelled_caught:
            return


async def write_once(books: Books, tenant: str, channel: str, client: RawNats) -> None:
    value, sequence, headers = await stored(client, tenant, channel)
    if value is None:
        return
    tried = Tried(id=f"{tenant}service-{len(books.tried)}", tenant=tenant, channels=(channel,))
    books.begin(tried).ended("unknown")
    value["seen"][tried.id], value["hot"] = value["hot"], tried.id
    header = f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {sequence}\r\n"
    if "Broker-Changes" in headers:
        header += f"Broker-Changes: {headers['Broker-Changes']}\r\n"
    body = json.dumps(value).encode()
    answer = await client.request(f"state.{tenant}.{channel}", body, header=f"{header}\r\n".encode())
    said = json.loads(answer.body or b"{}")
    if said.get("seq"):
        tried.ended("changed")
    elif "error" in said and said["error"].get("err_code") == OVERTAKEN:
        tried.ended("refused")


async def stored(client: RawNats, tenant: str, channel: str) -> tuple[Any, int, dict[str, str]]:
    """Value, sequence and headers of a document; None, 0 and none for what is not there."""
    found = await client.api("STREAM.MSG.GET.STATE", last_by_subj=f"state.{tenant}.{channel}")
    if "message" not in found:
        return None, 0, {}
    message = found["message"]
    lines = base64.b64decode(message.get("hdrs", "")).decode().split("\r\n")
    body = base64.b64decode(message.get("data", ""))
    headers = dict(line.split(": ", 1) for line in lines if ": " in line)
    return json.loads(body) if body else None, message["seq"], headers
