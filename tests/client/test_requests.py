"""`request` of both sessions, against a broker that plays a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from broker.client import Event, Reconnecting, SessionEnded
from broker.errors import BadMessage, InvalidChannel, Rejected, Timeout, Unavailable
from tests.support.peer import Peer, broker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.client.shells import Running, Shell


async def test_answers_come_in_any_order(running: Running) -> None:
    """Each caller gets its own, beside the events."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        asked = dict([await peer.hear_request() for _ in range(2)])
        assert asked.keys() == {"one", "other"}
        await peer.event(2)
        await peer.say("reply", {"data": {"n": 1}}, asked["other"])
        refused = {"code": "rejected", "message": "no", "retryable": False, "status": 409}
        await peer.say("error", refused, asked["one"])

    async with broker(script) as url, running(url) as session:
        await session.subscribe("orders.>")

        async def one() -> None:
            with pytest.raises(Rejected, match="no") as refused:
                await session.request("one")
            assert refused.value.status == 409

        async def other() -> None:
            assert await session.request("other", {"a": None}, timeout=30, id="x-1") == {"n": 1}

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(other)
            while not isinstance(await anext(session), Event):
                pass


async def test_the_task_that_iterates_may_ask(running: Running) -> None:
    """The answer arrives behind more events than are read ahead of a session that nobody reads."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        await peer.event(2)
        _, message_id = await peer.hear_request()
        for sequence in range(3, 300):
            await peer.event(sequence)
        await peer.say("reply", {"data": None}, message_id)

    async with broker(script) as url, running(url) as session:
        await session.subscribe("orders.>")
        while not isinstance(await anext(session), Event):
            pass
        assert await session.request("a") is None


async def test_a_cut_after_it_was_sent(running: Running) -> None:
    """The outcome is unknown, and the next connection hears nothing of it."""

    async def first(peer: Peer) -> None:
        await peer.welcome()
        assert (await peer.hear_request())[0] == "pay"
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.welcome()
        method, message_id = await peer.hear_request()
        assert method == "show"
        await peer.say("reply", {"data": 1}, message_id)

    async with broker(first, second) as url, running(url) as session:
        with pytest.raises(Timeout, match="pay: the connection was lost before the answer"):
            await session.request("pay")
        assert await session.request("show") == 1


async def test_it_waits_for_a_connection(running: Running) -> None:
    """Asked while there is none, it is sent on the next, with what is left of its time."""
    back = trio.Event()

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.cut()

    async def second(peer: Peer) -> None:
        await back.wait()
        await peer.welcome()
        payload, message_id = await peer.hear("request")
        assert 1 <= payload["timeout_ms"] < 20_000
        await peer.say("reply", {"data": 1}, message_id)

    async with broker(first, second) as url, running(url) as session:
        while not isinstance(await anext(session), Reconnecting):
            pass
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                assert await session.request("a", timeout=20) == 1

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            back.set()


async def test_no_connection_in_time(running: Running) -> None:
    """Nothing was sent: no service has it, and the connection that comes later hears nothing of it."""
    asked = trio.Event()

    async def script(peer: Peer) -> None:
        await asked.wait()
        await peer.welcome()
        method, message_id = await peer.hear_request()
        await peer.say("reply", {"data": method}, message_id)

    async with broker(script) as url, running(url) as session:
        with pytest.raises(Unavailable, match="first: not sent in time"):
            await session.request("first", timeout=0.01)
        asked.set()
        assert await session.request("second") == "second"


async def test_no_answer_in_time(running: Running) -> None:
    """Its caller does not wait for the broker to say so; the answer that comes late is nobody's."""
    late = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.welcome()
        _, first = await peer.hear_request()
        await late.wait()
        await peer.say("error", {"code": "timeout", "message": "late", "retryable": False}, first)
        _, second = await peer.hear_request()
        await peer.say("reply", {"data": 2}, second)

    async with broker(script) as url, running(url) as session:
        with pytest.raises(Timeout, match="a: no answer in time"):
            await session.request("a", timeout=0.05)
        late.set()
        assert await session.request("b") == 2


async def test_a_session_that_ends(running: Running) -> None:
    """Refused for good, it refuses what waits with the reason."""

    async def script(peer: Peer) -> None:
        await peer.link.aclose(4501, "revoked")

    async with broker(script, script) as url, running(url) as session:
        with pytest.raises(SessionEnded, match="4501"):
            await session.request("a", timeout=30)


WRONG: list[tuple[Callable[[Shell], Awaitable[Any]], type[Exception], str]] = [
    (lambda session: session.request("a.*"), InvalidChannel, r"a\.\*"),
    (lambda session: session.request("me.a"), InvalidChannel, "does not begin with me"),
    (lambda session: session.request(b"a"), TypeError, "method: a string is wanted"),  # type: ignore[arg-type]
    (lambda session: session.request("a", {"b": {1}}), TypeError, r"data\['b'\]: set"),
    (lambda session: session.request("a", float("nan")), ValueError, "data: nan"),
    (lambda session: session.request("a", b"{"), BadMessage, "data: not JSON"),
    (lambda session: session.request("a", id="é"), BadMessage, "id: .*visible characters of ASCII"),
    (lambda session: session.request("a", id=""), BadMessage, "id: "),
    (lambda session: session.request("a", timeout=0), ValueError, "timeout: 0 s"),
    (lambda session: session.request("a", timeout=31), ValueError, "at most 30 s"),
    (lambda session: session.request("a", timeout=float("nan")), ValueError, "timeout: nan s"),
    (lambda session: session.request("a", timeout="5"), TypeError, "timeout: seconds are wanted"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("number", range(len(WRONG)))
async def test_what_is_no_request(number: int, running: Running) -> None:
    """It is refused where it is made; nothing of it is sent."""
    ask, kind, words = WRONG[number]

    async def script(peer: Peer) -> None:
        await peer.welcome()
        method, message_id = await peer.hear_request()
        assert method == "right"
        await peer.say("reply", {"data": ""}, message_id)

    async with broker(script) as url, running(url) as session:
        with pytest.raises(kind, match=words):
            await ask(session)
        assert await session.request("right", b' {"a": 1}') == ""
