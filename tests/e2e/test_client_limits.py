"""Both sessions at a real broker of defaults: whatever an application does stays within its limits."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.client import Event, Message, Reconnecting
from broker.errors import BadMessage, BrokerError
from tests.client.shells import SHELLS, Running

if TYPE_CHECKING:
    from tests.client.shells import Shell
    from tests.support.broker import Broker
    from tests.support.rawnats import RawNats

PATIENCE_SECONDS = 60


@pytest.fixture(params=SHELLS)
def running(request: pytest.FixtureRequest) -> Running:
    """Runs a session at an address for the length of a block: on Trio, and on asyncio."""
    return SHELLS[request.param]


def subscribed(item: Any, channel: str) -> bool:
    return isinstance(item, Message) and channel in item.payload.get("channel", ())


async def until_heard(session: Shell, mark: int) -> list[Any]:
    """What comes up to the event that is `mark`; nothing of it is a cut or a refusal for rate."""
    heard: list[Any] = []
    with trio.fail_after(PATIENCE_SECONDS):
        async for item in session:
            assert not isinstance(item, Reconnecting), item
            if isinstance(item, Message):
                assert item.payload.get("code") != "rate_limited"
            heard.append(item)
            if isinstance(item, Event) and item.value == mark:
                return heard
    raise AssertionError("it ended")


async def test_three_hundred_in_a_turn(broker: Broker, publisher: RawNats, running: Running) -> None:
    """As many as there is room for are held, the others refused for want of room; all are let go at once."""
    names = [f"room.{number}" for number in range(300)]
    async with running(broker.running.ws, broker.token()) as session:
        for name in names:
            await session.subscribe(name)
        refused, held = 0, set[str]()
        with trio.fail_after(PATIENCE_SECONDS):
            while len(held) < 128 or not refused:
                item = await anext(session)
                assert not isinstance(item, Reconnecting)
                if isinstance(item, Message) and item.type == "subscribed":
                    held.update(item.payload["channel"])
                    refused += len(item.payload["refused"])
                elif isinstance(item, Message) and item.type == "error":
                    assert item.payload["code"] == "limit_subscriptions"
                    refused += 1
        assert len(held) == 128
        await session.unsubscribe(*held)
        await session.subscribe("mark")
        with trio.fail_after(PATIENCE_SECONDS):
            while not subscribed(item := await anext(session), "mark"):
                assert not isinstance(item, Reconnecting)
        for name in held:
            await publisher.store(f"events.acme.{name}", b"1")
        await publisher.store("events.acme.mark", b"2")
        assert [each.channel for each in await until_heard(session, 2) if isinstance(each, Event)] == ["mark"]


async def test_a_list_that_is_scrolled(broker: Broker, publisher: RawNats, running: Running) -> None:
    """A window of 100 channels over 1,500, a few at a time: the last are held, and no place is lost."""
    names = [f"row.{number}" for number in range(1500)]
    async with running(broker.running.ws, broker.token()) as session:
        await session.subscribe(*names[:100])
        for at in range(100, 1500, 5):
            await session.unsubscribe(*names[at - 100 : at - 95])
            await session.subscribe(*names[at : at + 5])
        await session.subscribe("mark")
        with trio.fail_after(PATIENCE_SECONDS):
            while not subscribed(item := await anext(session), "mark"):
                assert not isinstance(item, Reconnecting)
                assert not (isinstance(item, Message) and item.type == "error")
        for name in names[1300:]:
            await publisher.store(f"events.acme.{name}", b"1")
        await publisher.store("events.acme.mark", b"2")
        heard = [each.channel for each in await until_heard(session, 2) if isinstance(each, Event)]
        assert heard == [*names[1400:], "mark"]


async def test_bad_requests_end_nothing(broker: Broker, publisher: RawNats, running: Running) -> None:
    """Twenty of each kind that cannot be: each is refused by itself, and the connection is as it was."""
    async with running(broker.running.ws, broker.token()) as session:
        for _ in range(20):  # before it is connected, and knows the limit
            with suppress(BadMessage):
                await session.subscribe("a", last=5000)
        await session.subscribe("mark")
        for _ in range(20):
            for event in ({"text": "\ud83d"}, float("nan"), {1, 2}, None, b"{", 2**70):
                with pytest.raises((TypeError, ValueError, BadMessage)):
                    await session.publish("a", event)
            for options in ({"durable": "two words"}, {"last": 0}, {"since": "then"}, {"lag": "no"}):
                with pytest.raises((ValueError, BrokerError)):
                    await session.subscribe("a", **options)
            with pytest.raises(ValueError, match="surrogate"):
                await session.publish("a", 1, event_id="\ud83d")
        assert (await session.publish("mark", 2)).position
        await until_heard(session, 2)
