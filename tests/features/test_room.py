"""What a tenant may store as documents: counted truly, and no more is made than that."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.config import Limits, TenantAllowance
from broker.documents import values
from broker.documents.judging import Change
from broker.errors import BrokerError, Unavailable
from broker.features.state import room
from broker.features.state.wishes import Part
from tests.features.documents import RULES, Asker, Broker, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.usefixtures("quiet_logs")

LONG = "x" * 1000


@asynccontextmanager
async def brokers(count: int = 1, **limits: Any) -> AsyncIterator[tuple[World, list[Broker]]]:
    async with trio.open_nursery() as nursery:
        world = World(random.Random(0), nursery, limits=Limits(**limits))
        found = [Broker(world) for _ in range(count)]
        for each in found:
            await nursery.start(each.run)
        yield world, found
        nursery.cancel_scope.cancel()


class Client:
    """It changes documents as they are, and is told what becomes of that."""

    def __init__(self, world: World) -> None:
        self.world, self.n = world, 0

    async def change(self, broker: Broker, patch: Any, *channels: str) -> str:
        self.n += 1
        changes = {}
        for channel in channels:
            there = self.world.rows.get(f"state.acme.{channel}")
            value: Any = values.parse(there[2]) if there and there[2] else None
            was: Any = value if patch is None or value is None else {"t": value.get("t")}
            changes[channel] = Change(session="s", n=self.n, user="u", patch=patch, was=was)
        try:
            await broker.change(Asker("c", "u"), changes)
        except BrokerError as error:
            return error.code if error.code != "limit_documents" else f"{error.code}: {error.message}"
        return "changed"


def documents(world: World) -> int:
    return sum(bool(each[2]) for each in world.rows.values())


async def test_no_document_is_made_beyond_the_limit(autojump_clock: trio.abc.Clock) -> None:
    """What is there can be changed, deleted, and made again; what services make and delete counts."""
    async with brokers(2, documents=3) as (world, (here, there)):
        client = Client(world)
        for channel, broker in (("a", here), ("b", there), ("c", here)):
            assert await client.change(broker, {"t": 1}, channel) == "changed"
        for broker in (here, there):
            refused = await client.change(broker, {"t": 1}, "d")
            assert refused.startswith(
                "limit_documents: d: tenant acme has 3 documents, and may have 3 (limits"
            )
            assert await client.change(broker, {"t": LONG}, "a") == "changed"
        assert (await client.change(here, {"t": 1}, "d", "e")).startswith("limit_documents")
        assert await client.change(there, None, "b") == "changed"
        assert (await client.change(here, {"t": 1}, "d", "e")).startswith("limit_documents")
        assert await client.change(here, {"t": 1}, "b") == "changed"
        world.store("state.acme.b", b"", None)
        world.store("state.acme.s", b"{}", None)
        world.store("state.globex.s", b"{}", None)
        await trio.sleep(1)
        assert (await client.change(there, {"t": 1}, "d")).startswith("limit_documents")
        assert documents(world) == 4
        assert world.loads == 2  # each broker has counted once


async def test_no_document_grows_beyond_the_limit(autojump_clock: trio.abc.Clock) -> None:
    """Smaller ones are always written; the headers of a document and deletions take room as well."""
    async with brokers(document_bytes=5000) as (world, [broker]):
        client = Client(world)
        for channel in "abcd":
            assert await client.change(broker, {"t": LONG}, channel) == "changed"
        refused = await client.change(broker, {"t": LONG}, "e")
        assert refused.startswith("limit_documents: e: the documents of tenant acme take 4")
        assert (await client.change(broker, {"t": 2 * LONG}, "a")).startswith("limit_documents")
        assert await client.change(broker, {"t": LONG[:-1] + "y"}, "a") == "changed"
        assert await client.change(broker, {"t": LONG[1:]}, "a") == "changed"
        assert await client.change(broker, None, "a") == "changed"
        assert await client.change(broker, {"t": "y" * 900}, "e") == "changed"
        taken = sum(room.size_of(*each[1:]) for each in world.rows.values())
        count = broker.changing.room.holdings["acme"].count
        assert count is not None
        assert (count.taken, count.documents) == (taken, 4)


async def test_nothing_is_refused_by_an_old_count(autojump_clock: trio.abc.Clock) -> None:
    """What is gone without a word is noticed, but the tenant is not counted for each refusal."""
    async with brokers(documents=1) as (world, [broker]):
        client = Client(world)
        assert await client.change(broker, {"t": 1}, "a") == "changed"
        for _ in range(20):
            assert (await client.change(broker, {"t": 1}, "b")).startswith("limit_documents")
        assert world.loads == 1
        del world.rows["state.acme.a"]  # purged by an operator
        await trio.sleep(room.FRESH_SECONDS)
        assert await client.change(broker, {"t": 1}, "b") == "changed"
        assert world.loads == 2
        await trio.sleep(room.IDLE_SECONDS + 1)
        await broker.changing.room.fault("state.globex.a", 0, 0)
        broker.changing.room.tidy()
        assert not broker.changing.room.holdings


async def test_a_tenant_with_limits_of_its_own(autojump_clock: trio.abc.Clock) -> None:
    """They follow a reload, and 0 is no limit."""
    own = (TenantAllowance(name="acme", documents=2, document_bytes=0),)
    async with brokers(documents=1, document_bytes=1, tenants=own) as (world, [broker]):
        client = Client(world)
        assert await client.change(broker, {"t": LONG}, "a", "b") == "changed"
        assert (await client.change(broker, {"t": 1}, "c")).startswith("limit_documents")
        broker.changing.room.set_limits(Limits(documents=3))
        assert await client.change(broker, {"t": 1}, "c") == "changed"


async def test_a_count_that_fails_is_no_refusal(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the change is `unavailable`. What makes nothing larger needs no count."""

    async def load(*_: object, **__: object) -> str:
        await trio.lowlevel.checkpoint()
        raise Unavailable("scripted")

    async with brokers(documents=1) as (world, [broker]):
        client = Client(world)
        world.store("state.acme.a", b'{"t":"xx"}', None)
        with monkeypatch.context() as patch:
            patch.setattr(World, "load", load)
            assert await client.change(broker, {"t": 1}, "b") == "unavailable"
            assert await client.change(broker, {"t": "x"}, "a") == "changed"
        assert (await client.change(broker, {"t": 1}, "b")).startswith("limit_documents")


async def test_nothing_is_refused_by_an_old_version(autojump_clock: trio.abc.Clock) -> None:
    """A repetition of what is stored already is known, also where the feed has not told of it yet."""
    async with brokers(2, documents=2) as (world, (here, there)):
        client = Client(world)
        assert await client.change(here, {"t": 1}, "a") == "changed"
        assert await client.change(here, None, "a") == "changed"
        change = Change(session="x", n=1, user="u", patch={"t": 1}, was=None)
        queue = here.changing.queue(
            "acme", Part(channel="a", rule=RULES.rules[-1], change=change, made_on=None)
        )
        old = await queue.read()
        assert await client.change(here, {"t": 1}, "b") == "changed"
        await there.change(Asker("c", "u"), {"a": change})
        await trio.sleep(1)
        queue.known = old
        assert await here.change(Asker("c", "u"), {"a": change}) == {"a": "inc0-4"}
