"""Rude clients in a world that goes on: what they send, what they are told, and that nobody else notices."""

from __future__ import annotations

import contextlib
import json
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio
from wsproto.events import CloseConnection, TextMessage

from tests.faults.support.held import BASE_SECONDS
from tests.faults.support.world import PATIENCE_SECONDS
from tests.support.raw import hear, open_raw, say
from tests.web.harness import head, parsed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.faults.support.process import Held
    from tests.faults.support.report import Report
    from tests.faults.support.world import World
    from tests.support.rawnats import RawNats
    from tests.web.harness import Client

RUDE, WITNESS = "rude", "witness"  # tenants: of the rude clients, and of the one that must not notice
MEMORY = 32 * 1024 * 1024  # what the world itself may take meanwhile: rings and the intake's newest events
JUNK = 200 * 1000 * 1000
TOO_LATE = 408, 0  # told to who says too late what it wants, on a busy machine: a timeout, or a cut
HELD_OF_IT = 64 * 1024 * 1024  # what of that may be in memory at a time, the world's own included


@attrs.frozen(kw_only=True)
class Told:
    """All that the broker said: status of HTTP, codes of its `error`s, code and reason of its Close.

    Without a status, or with neither a further one nor a Close, the link was cut off.
    """

    status: int = 0
    headers: dict[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    errors: tuple[str, ...] = ()
    close: int | None = None
    reason: str = ""


@attrs.define(eq=False, kw_only=True)
class Row:
    """One row of bad input. After each item a client that comes just then must be served."""

    world: World
    nats: RawNats
    base: Held
    items: int = 0

    @property
    def url(self) -> str:
        assert self.world.broker.ws
        return self.world.broker.ws

    def bearer(self, user: str = "rude", tenant: str = RUDE, **permissions: Any) -> str:
        """What stands in `Authorization` for a user."""
        return f"Bearer {self.world.broker.token(tenant, user, **permissions)}"

    @asynccontextmanager
    async def member(self, user: str, tenant: str = RUDE, **permissions: Any) -> AsyncIterator[Client]:
        """A client that the broker knows."""
        async with open_raw(self.url) as client:
            await client.upgrade(head(authorization=self.bearer(user, tenant, **permissions)))
            await until(client, "connection.authenticated")
            yield client

    async def told(self, *data: bytes, stay: bool = True) -> Told:
        """What the broker says to somebody who sends this; unless it is to `stay`, it goes once it is in."""
        async with open_raw(self.url) as client, trio.open_nursery() as nursery:
            nursery.start_soon(pour, client, *data)
            answer = await listen(client, stay=stay)
            nursery.cancel_scope.cancel()
        return answer

    async def works(self, item: str) -> None:
        """A second client comes, and gets an event that is published just now."""
        self.items = number = self.items + 1
        channel = f"sign.{number}"
        try:
            async with self.member(f"witness{number}", WITNESS, subscribe=["sign.*"]) as witness:
                await say(witness, "subscribe", {"channel": channel})
                await until(witness, "subscribed")
                await self.nats.store(f"events.{WITNESS}.{channel}", b'"now"')
                event = await until(witness, "event")
        except (AssertionError, trio.TooSlowError, trio.BrokenResourceError) as error:
            error.add_note(f"the witness after: {item}")
            raise
        assert (event["channel"], event["event"]) == (channel, "now"), item

    async def alone(self) -> None:
        """Waits until nobody is left but the clients of the world."""
        with trio.fail_after(PATIENCE_SECONDS):
            while (await self.world.broker.metrics())["broker_connections"] > len(self.world.clients):
                await trio.sleep(0.05)

    async def ended(self, *words: str) -> None:
        """Waits until the broker says that a connection has ended, with these words."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not self.logged("connection_ended", *words):
                await trio.sleep(0.1)

    def logged(self, *words: str) -> int:
        """How many lines of the broker's log have all these words."""
        lines = self.world.broker.log.read_text().splitlines()
        return sum(all(word in line for word in words) for line in lines)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Within it the broker never has much more in memory than it ever had before."""
        before = self.peak()
        yield
        more = self.peak() - before
        assert more < HELD_OF_IT, f"{more >> 20} MiB more were held at a time"

    def peak(self) -> int:
        """The most that the broker has ever had in memory, in bytes."""
        status = Path(f"/proc/{self.world.broker.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    async def back_at_base(self) -> list[str]:
        """What is still above its base after a while."""
        deadline = trio.current_time() + BASE_SECONDS
        while above := (await self.world.broker.held()).above(self.base, MEMORY):
            if trio.current_time() > deadline:
                break
            await trio.sleep(0.25)
        return above


@asynccontextmanager
async def bad_input(world: World) -> AsyncIterator[Row]:
    """A row in a world without churn, to the end of which nothing is left, and nobody has lost a link."""
    async with world.connect() as nats:
        row = Row(world=world, nats=nats, base=await world.broker.held())
        yield row
        assert row.items
        above = await row.back_at_base()
        assert not above, above
        assert {each.name for each in world.clients if each.connection != 1} == set()
        for tenant in (RUDE, WITNESS):  # these are in nobody's books
            purged = await nats.api("STREAM.PURGE.EVENTS", filter=f"events.{tenant}.>")
            assert purged["success"], purged


def note(report: Report, kind: str, row: Row, **measured: str) -> None:
    report.add(f"bad input: {kind}", row.world, items=str(row.items), **measured)


async def pour(client: Client, *data: bytes) -> int:
    """Sends all of it, or as much as the broker takes before it closes; how many bytes that were."""
    sent = 0
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for piece in data:
            await client.send(piece)
            sent += len(piece)
    return sent


async def listen(client: Client, *, stay: bool = True) -> Told:
    """Everything that the broker says until it has ended the link, or let us in when we do not `stay`."""
    received = b""
    with trio.fail_after(PATIENCE_SECONDS), contextlib.suppress(trio.BrokenResourceError):
        while b"\r\n\r\n" not in received:
            data = await client.stream.receive_some()
            if not data:
                break
            received += data
    if not received:
        return Told()
    start, _, rest = received.partition(b"\r\n\r\n")
    line, *lines = start.decode("ascii").split("\r\n")
    status, headers = int(line.split(" ")[1]), parsed(lines)
    if status != 101:
        return Told(status=status, headers=headers, body=rest + await client.rest())
    if not stay:
        return Told(status=status, headers=headers)
    client.frames.receive_data(rest)
    return await listen_on(client)


async def listen_on(client: Client) -> Told:
    """The same for a WebSocket that is open."""
    errors: list[str] = []
    text = ""
    with trio.fail_after(PATIENCE_SECONDS):
        while event := await client.event():
            if isinstance(event, CloseConnection):
                await client.rest()
                return Told(status=101, errors=tuple(errors), close=event.code, reason=event.reason or "")
            if isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    message, text = json.loads(text), ""
                    errors += [message["payload"]["code"]] if message["type"] == "error" else []
    return Told(status=101, errors=tuple(errors))


async def until(client: Client, kind: str) -> dict[str, Any]:
    """The payload of the next message of this type; any `error` before it fails."""
    while True:
        message = await hear(client)
        if message["type"] == kind:
            payload: dict[str, Any] = message["payload"]
            return payload
        assert message["type"] != "error", message
