"""What is asked for and let go: in few messages, until it holds, and within what the broker allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.client import Event, Message, Reconnecting
from broker.errors import TooLarge
from tests.client.shells import events, until
from tests.support.peer import Peer, broker

if TYPE_CHECKING:
    from tests.client.shells import Running

LIMITED = {"code": "rate_limited", "message": "slower", "retryable": True, "retry_after_ms": 1}
GONE = {"code": "not_subscribed", "message": "there is no such subscription", "retryable": False}


async def test_asked_for_in_one_turn(running: Running) -> None:
    """What begins alike goes in one message with one reply; what does not goes for itself."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        assert await peer.accept() == {"channel": ["a", "b", "c"]}
        assert await peer.accept() == {"channel": ["d", "e"], "snapshot": True}
        assert await peer.accept() == {"channel": ["f"], "last": 1}
        assert await peer.accept() == {"channel": ["g"], "last": 1}

    async with broker(script) as url, running(url, token=wait_for_it) as session:
        one = [await session.subscribe(*names) for names in ("a", "bc")]
        two = [await session.subscribe(name, snapshot=True) for name in "de"]
        three = [await session.subscribe(name, last=1) for name in "fg"]
        wait_for_it.open()
        assert len(set(one)) == len(set(two)) == 1
        assert len(set(three)) == 2
        heard = [(await until(session, "subscribed")).message_id for _ in range(4)]
        assert heard == [one[0], two[0], *three]


class Gate:
    """A token function that keeps a session from connecting until it has been asked for everything."""

    is_open = False

    def open(self) -> None:
        self.is_open = True

    async def __call__(self) -> str:
        if not self.is_open:
            raise OSError("not yet")
        return "to.k.en"


@pytest.fixture(autouse=True)
def closed() -> None:
    wait_for_it.is_open = False


wait_for_it = Gate()


async def test_let_go_until_it_is_confirmed(running: Running) -> None:
    """An `unsubscribe` that is refused for its rate is said again; what comes meanwhile is for nobody."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        for _ in range(3):
            payload, message_id = await peer.hear("unsubscribe")
            assert payload == {"channel": ["a", "b"]}
            await peer.event(2, "a")
            await peer.event(3, "c")
            await peer.say("error", LIMITED, message_id)
        payload, message_id = await peer.hear("unsubscribe")
        await peer.say("unsubscribed", payload, message_id)

    async with broker(script) as url, running(url) as session:
        await session.subscribe("a", "b", "c")
        await until(session, "subscribed")
        await session.unsubscribe("a", "b")
        got = []
        async for item in session:
            assert not isinstance(item, Reconnecting)
            if isinstance(item, Event):
                got.append(item.channel)
            elif isinstance(item, Message) and item.type == "unsubscribed":
                break
        assert got == ["c"] * 3


async def test_events_that_were_read_ahead(running: Running) -> None:
    """What had arrived before it was let go, and was not taken yet, is not handed over any more."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        _, message_id = await peer.hear("publish")
        for sequence in range(2, 10):
            await peer.event(sequence, "ab"[sequence % 2])
        await peer.say("published", {"position": "a-10"}, message_id)
        payload, message_id = await peer.hear("unsubscribe")
        await peer.say("unsubscribed", payload, message_id)

    async with broker(script) as url, running(url) as session:
        await session.subscribe("a", "b")
        await until(session, "subscribed")
        await session.publish("c", 1)
        await session.unsubscribe("a")
        assert await events(session, 4) == [3, 5, 7, 9]


async def test_one_of_a_list_had_ended(running: Running) -> None:
    """A list of which one is gone is refused as a whole: they are let go one by one, all of them."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        payload, message_id = await peer.hear("unsubscribe")
        assert payload == {"channel": ["a", "b", "c"]}
        await peer.say("error", GONE, message_id)
        for name in "abc":
            payload, message_id = await peer.hear("unsubscribe")
            assert payload == {"channel": [name]}
            if name == "b":
                await peer.say("error", GONE, message_id)
            else:
                await peer.say("unsubscribed", payload, message_id)
        assert await peer.accept() == {"channel": ["d"]}

    async with broker(script) as url, running(url) as session:
        await session.subscribe("a", "b", "c")
        await until(session, "subscribed")
        await session.unsubscribe("a", "b", "c")
        await session.subscribe("d")
        assert (await until(session, "subscribed")).payload["channel"] == ["d"]


async def test_back_before_it_was_gone(running: Running) -> None:
    """Let go and asked for again at once: it is held, whatever became of the `unsubscribe`."""
    heard, again = trio.Event(), trio.Event()

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        _, message_id = await peer.hear("unsubscribe")
        heard.set()
        await again.wait()
        await peer.say("error", LIMITED, message_id)
        assert await peer.accept() == {"channel": ["a"]}
        await peer.event(2, "a")

    async with broker(script) as url, running(url) as session:
        await session.subscribe("a")
        await until(session, "subscribed")
        await session.unsubscribe("a")
        await heard.wait()
        await session.subscribe("a")
        again.set()
        assert await events(session, 1) == [2]


@pytest.mark.parametrize("limit", ["message_bytes", "subscriptions_per_connection"])
async def test_lists_are_cut_by_what_the_broker_said(limit: str, running: Running) -> None:
    """So that no list is over a limit: those of `subscribe`, of `unsubscribe`, and after a cut."""
    limits = {limit: {"message_bytes": 612, "subscriptions_per_connection": 10}[limit]}
    names = [f"channel{number}" for number in range(25)]

    async def script(peer: Peer) -> None:
        await peer.welcome(limits=limits)
        heard: list[str] = []
        while len(heard) < 25:
            part = (await peer.accept())["channel"]
            assert len(part) <= 10
            heard += part
        assert heard == names

    async with broker(leaving(script), script) as url, running(url) as session:
        await session.subscribe(*names)
        for _ in range(2):
            await until(session, "connection.authenticated")
            for _ in range(3):
                await until(session, "subscribed")


def leaving(script: Any) -> Any:
    async def run(peer: Peer) -> None:
        await script(peer)
        await peer.link.aclose(1012)

    return run


async def test_a_list_that_somebody_on_the_way_does_not_take(running: Running) -> None:
    """Closed with 1009 for it, though no limit says so: the next ones are shorter, until they pass."""
    names = [f"{'x' * 40}{number}" for number in range(100)]

    async def refuse(peer: Peer) -> None:
        await peer.welcome()
        await peer.hear("subscribe")
        await peer.link.aclose(1009)

    async def take(peer: Peer) -> None:
        await peer.welcome()
        heard = 0
        while heard < 100:
            heard += len((await peer.accept())["channel"])

    async with broker(refuse, refuse, take) as url, running(url) as session:
        await session.subscribe(*names)
        for _ in range(4):
            await until(session, "subscribed")


async def test_a_durable_list_that_is_too_long(running: Running) -> None:
    """A durable name goes with one message: what cannot be one is refused, if need be by a close."""
    names = [f"{'x' * 40}{number}" for number in range(100)]

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.hear("subscribe")
        await peer.link.aclose(1009)

    async with broker(script, Peer.welcome) as url, running(url) as session:
        with pytest.raises(TooLarge, match="do not fit into one message"):
            await session.subscribe(*(f"{'x' * 240}{number}" for number in range(300)), durable="d")
        asked = await session.subscribe(*names, durable="d")
        refused = await until(session, "error")
        assert (refused.message_id, refused.payload["code"]) == (asked, "too_large")
        await until(session, "connection.authenticated")


async def test_each_call_fails_for_itself(running: Running) -> None:
    """Of snapshots that went together only the one that is too large is refused."""
    large = {"code": "limit_snapshot", "message": "too many", "retryable": False}

    async def script(peer: Peer) -> None:
        await peer.welcome()
        taken: list[str] = []
        alone = False
        while len(taken) < 3 or not alone:
            payload, message_id = await peer.hear("subscribe")
            if "b" in payload["channel"]:
                alone = payload["channel"] == ["b"]
                await peer.say("error", large, message_id)
            else:
                taken += payload["channel"]
                answer = {"channel": payload["channel"], "refused": [], "position": "a-1", "live": True}
                await peer.say("subscribed", answer, message_id)
        await peer.say("rumour")

    async with broker(script) as url, running(url, token=wait_for_it) as session:
        for name in "abcd":
            await session.subscribe(name, snapshot=True)
        wait_for_it.open()
        kinds = []
        async for item in session:
            if isinstance(item, Message):
                kinds.append(item.type)
                if item.type == "rumour":
                    break
        assert kinds.count("error") == 1
