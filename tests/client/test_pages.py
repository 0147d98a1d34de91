"""Pages of history, in both sessions against a scripted broker, and over cuts and refusals without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker.backoff import Backoff
from broker.client import PastEvent, SessionEnded
from broker.client.engine import Engine
from broker.client.gate import Gate
from broker.client.pages import AT_ONCE, Pages
from broker.errors import BadMessage, Forbidden, InvalidChannel, InvalidPosition
from tests.support.peer import Peer, broker

if TYPE_CHECKING:
    from tests.client.shells import Running

PAGE = {"channel": ["a"], "first": "i-3", "last": "i-9", "more": True, "recovered": True}
EVENT: dict[str, Any] = {
    "channel": "a",
    "position": "i-4",
    "event": None,
    "stored_at": "2026-01-31T12:00:00.000001Z",
}
FILTER = {"/n": {"gt": 0}}
LIMITED = {"code": "rate_limited", "message": "no", "retryable": True, "retry_after_ms": 1500}


def nothing() -> None: ...


def sent(pages: Pages, now: float) -> list[tuple[int, str]]:
    return [(payload["limit"], key) for _, payload, key in pages.take(now)]


def ask(pages: Pages, count: int) -> list[Any]:
    return [pages.ask({"channel": ["a"], "limit": number}, nothing) for number in range(count)]


def test_what_is_lost_is_asked_for_again() -> None:
    """In order, and ahead of what came later; what nobody waits for is not."""
    pages = Pages(Gate())
    promises = ask(pages, AT_ONCE + 1)
    assert [number for number, _ in sent(pages, 0.0)] == [0, 1, 2, 3]
    pages.withdraw(promises[1])
    pages.cut()
    again = sent(pages, 0.0)
    assert [number for number, _ in again] == [0, 2, 3, 4]
    assert pages.answered("history", PAGE, again[0][1], 0.0)
    assert promises[0].result() == PAGE
    assert not pages.answered("history", PAGE, again[0][1], 0.0)


def test_refusals() -> None:
    """What may succeed later is asked for later, without delaying other requests; the rest is final."""
    pages = Pages(Gate())
    one, other = ask(pages, 2)
    (_, first), (_, second) = sent(pages, 0.0)
    assert pages.answered("error", LIMITED, first, 0.0)
    assert pages.answered("error", {"code": "forbidden", "retryable": False}, second, 0.0)
    with pytest.raises(Forbidden):
        other.result()
    assert (sent(pages, 1.4), pages.due(1.4)) == ([], 1.5)
    assert pages.gate.opens("requests", 1.4) == 1.4
    ((number, _),) = sent(pages, 1.5)
    assert (number, one.outcome) == (0, None)


def test_at_the_end() -> None:
    pages = Pages(Gate())
    promises = ask(pages, AT_ONCE + 1)
    sent(pages, 0.0)
    assert pages.awaited
    pages.end(SessionEnded("over"))
    assert not pages.awaited
    for promise in promises:
        with pytest.raises(SessionEnded):
            promise.result()


async def test_pages_over_a_cut(running: Running) -> None:
    """A page and the one before it, which the first connection did not answer."""

    async def first(peer: Peer) -> None:
        await peer.welcome()
        payload, message_id = await peer.hear("history")
        assert payload == {"channel": ["a", "b.>"], "limit": 2, "filter": FILTER}
        event = EVENT | {"position": "i-5", "event": {"n": 1}, "publisher": {"user": "u"}}
        await peer.say("history", PAGE | {"events": [EVENT, event]}, message_id)
        await peer.hear("history")
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.welcome()
        payload, message_id = await peer.hear("history")
        assert payload == {"channel": ["a", "b.>"], "limit": 2, "before": "i-3", "filter": FILTER}
        await peer.say("history", PAGE | {"events": [], "last": "i-2"}, message_id)
        payload, message_id = await peer.hear("history")
        assert payload == {"channel": ["a", "b.>"], "limit": 2, "after": "i-2", "filter": FILTER}
        await peer.say("error", {"code": "forbidden", "message": "no", "retryable": False}, message_id)

    async with broker(first, second) as url, running(url) as session:
        page = await session.history("a", "b.>", limit=2, filter=FILTER)
        assert (page.channels, page.more, page.recovered) == (("a",), True, True)
        stored_at = EVENT["stored_at"]
        assert page.events == (
            PastEvent(channel="a", value=None, position="i-4", stored_at=stored_at, publisher=None),
            PastEvent(
                channel="a", value={"n": 1}, position="i-5", stored_at=stored_at, publisher={"user": "u"}
            ),
        )
        older = await page.older()
        assert older.events == ()
        with pytest.raises(Forbidden):
            await older.newer()


WRONG: dict[str, tuple[list[Any], dict[str, Any], type[Exception]]] = {
    "no channel": ([], {}, TypeError),
    "live": (["a", "live.b"], {}, InvalidChannel),
    "no pattern": (["a..b"], {}, InvalidChannel),
    "two starts": (["a"], {"before": "i-1", "after": "i-1"}, ValueError),
    "no position": (["a"], {"before": ""}, InvalidPosition),
    "no time": (["a"], {"since": "yesterday"}, BadMessage),
    "no number": (["a"], {"limit": "1"}, TypeError),
    "nothing": (["a"], {"limit": 0}, BadMessage),
    "no filter": (["a"], {"filter": {"n": 1}}, BadMessage),
    "no JSON": (["a"], {"filter": b"{"}, BadMessage),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_not_sent(name: str) -> None:
    engine = Engine(url="ws://test/ws", tenant=None, renewable=True, backoff=Backoff())
    channels, options, error = WRONG[name]
    with pytest.raises(error):
        engine.history(tuple(channels), options, nothing)
    assert not engine.awaited
