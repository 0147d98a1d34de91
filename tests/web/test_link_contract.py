"""What `actors.transport.Transport` promises, over every kind of link and the scripted ones alike."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from itertools import count, pairwise
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from broker.actors.transport import Alive, Closed, LinkLost, LinkState, Resting, Text
from broker.links.poll import session
from broker.links.tls import ssl_context
from tests.web.harness import offer, send
from tests.web.links import KINDS, SECONDS

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from broker.actors.transport import Transport
    from tests.web.links import Opened

PERSISTENT = 3  # times that a fault is met: one that goes away by itself would not be one
ENDINGS = ["leave", "reset", "half_close"]
SPEAKING = [name for name in KINDS if name.startswith(("websocket", "scripted"))]


@pytest.fixture(params=KINDS)
async def fresh(
    request: pytest.FixtureRequest, files: tuple[Path, Path], trusting: ssl.SSLContext
) -> AsyncIterator[Opened]:
    """A link on which nothing has been said yet."""
    async with KINDS[request.param]((ssl_context(*files), trusting)) as opened:
        yield opened


@pytest.fixture
async def link(fresh: Opened) -> Opened:
    """A link whose client has subscribed."""
    if fresh.peer.speaks:
        await fresh.peer.say({"type": "subscribe", "payload": {"channel": "a"}})
    await fresh.subscribed()
    return fresh


async def is_lost(transport: Transport) -> None:
    """That nothing can be sent any more, however often it is tried."""
    for _ in range(PERSISTENT):
        with trio.fail_after(SECONDS):
            if transport.partial_sends:
                with pytest.raises(OSError) as lost:  # noqa: PT011 - the socket's own, of whatever kind
                    transport.send_nowait(b"x")
                assert not isinstance(lost.value, BlockingIOError)
            with pytest.raises(LinkLost):
                await transport.send_some(b"x")


async def last(transport: Transport) -> Closed:
    """The last thing from the client; what else comes before is of no matter here."""
    with trio.fail_after(SECONDS):
        while not isinstance(inbound := await transport.receive(), Closed):
            pass
    return inbound


def fill(link: Opened) -> tuple[int, memoryview]:
    """Sends events until the link takes no more; how many were sent whole, and the rest of the next one."""
    for number in count():
        data = memoryview(link.event(number, 1000))
        while data:
            if not (sent := offer(link.transport, data)):
                return number, data
            assert 0 < sent <= len(data)
            data = data[sent:]
    raise AssertionError


async def filled(link: Opened, until: trio.Event) -> None:
    """Sends for ever, and says when the link is gone."""
    with suppress(LinkLost):
        for number in count():
            await send(link.transport, link.event(number, 1000))
    until.set()


async def standing_still(link: Opened) -> None:
    """Until nothing moves any more, as the client takes nothing."""
    if link.transport.comes_and_goes:
        await link.peer.leave()
    await trio.testing.wait_all_tasks_blocked(0.05)


# --- what comes from the client


@pytest.mark.parametrize("fresh", SPEAKING, indirect=True)
async def test_messages_arrive_whole_and_in_order(link: Opened) -> None:
    """Small ones, and one that is larger than what is read at once."""
    sizes = [0, 1, 200, 60_000, 0]

    async def say() -> None:
        for size in sizes:
            await link.peer.say({"type": "ping", "payload": {"pad": "x" * size}})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        for size in sizes:
            with trio.fail_after(SECONDS):
                inbound = await link.transport.receive()
            assert isinstance(inbound, Text)
            assert len(json.loads(inbound.data)["payload"]["pad"]) == size


@pytest.mark.parametrize("ending", ENDINGS)
async def test_the_end_of_the_client_is_the_last_thing(
    link: Opened, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However TCP says it: `Closed`, by the link. Sessions of polls rest first; nobody comes again."""
    comes_and_goes = link.transport.comes_and_goes
    monkeypatch.setattr(session, "SESSION_SECONDS", 0.1)  # until nobody is expected any more
    await getattr(link.peer, ending)()
    if comes_and_goes:
        with trio.fail_after(SECONDS):
            assert await link.transport.receive() == Resting()
    closed = await last(link.transport)
    assert closed.by == ("broker" if comes_and_goes else "link")
    assert (await last(link.transport)).code == closed.code
    if ending == "half_close" and not comes_and_goes:
        link.transport.abort()
    with trio.fail_after(SECONDS):  # the kernel may take something before it hears of the end
        with suppress(LinkLost):
            while True:
                await link.transport.send_some(b"x")
    await is_lost(link.transport)


@pytest.mark.parametrize("fresh", SPEAKING, indirect=True)
async def test_messages_before_the_end_come_before_it(link: Opened) -> None:
    """A client that says something and goes has said it."""
    await link.peer.say({"type": "ping", "payload": {}})
    await link.peer.leave()
    with trio.fail_after(SECONDS):
        assert isinstance(await link.transport.receive(), Text)
    await last(link.transport)


async def test_a_client_that_comes_and_goes_rests(link: Opened) -> None:
    """`Resting` is said once for each time that nobody is there; a `Text` ends it."""
    for _ in range(PERSISTENT if link.transport.comes_and_goes else 0):
        await standing_still(link)
        with trio.fail_after(SECONDS):
            assert await link.transport.receive() == Resting()
        link.peer.begin()  # type: ignore[attr-defined]
        await link.answer()
    assert link.transport.comes_and_goes == (link.transport.name == "poll")


async def test_a_client_that_answers_is_alive(link: Opened) -> None:
    """A heartbeat, and a question that is asked at once, come back as `Alive` where clients answer."""
    transport = link.transport
    for question in (transport.ping(None), transport.ping("inc-7"), transport.ask()):
        await send(transport, question)
        if transport.answers:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.peer.read_on)
                with trio.fail_after(SECONDS):
                    assert await transport.receive() == Alive()
                nursery.cancel_scope.cancel()


# --- what goes to the client


async def test_frames_arrive_whole_and_in_order(link: Opened) -> None:
    """However the writes are cut, and whichever of the two ways each piece goes."""
    rng, events = random.Random(1), 300
    sizes = [rng.choice((0, 100, 120, 130, 1000, 70_000)) if n % 50 == 0 else n for n in range(events)]
    frames = [link.event(number, size) for number, size in enumerate(sizes)]
    if not link.transport.comes_and_goes:  # which takes whole frames only
        stream, ends = b"".join(frames), [0]
        while ends[-1] < len(stream):
            ends.append(ends[-1] + rng.choice((1, 10, 5000, 50_000)))
        frames = [stream[start:end] for start, end in pairwise(ends)]

    async def write() -> None:
        for piece in frames:
            rest = memoryview(piece)
            async with link.sending:
                while rest:
                    sent = offer(link.transport, rest) if rng.random() < 0.7 else 0
                    rest = rest[sent or await link.transport.send_some(rest) :]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(link.answer_on)
        with trio.fail_after(SECONDS):
            while len(link.numbers) < events:
                assert await link.peer.read()
        nursery.cancel_scope.cancel()
    assert link.numbers == list(range(events))


async def test_messages_are_framed(link: Opened) -> None:
    """What is told beside events is read by the client as it was, in its place among them."""
    if link.transport.comes_and_goes:
        return  # a client that polls is told events, and of others what they come to
    await send(link.transport, link.transport.frame(b'{"type":"pong","payload":{"position":"inc-3"}}'))
    await send(link.transport, link.event(4))
    with trio.fail_after(SECONDS):
        while len(link.peer.messages) < 3:
            assert await link.peer.read()
    assert [each["type"] for each in link.peer.messages] == ["subscribed", "pong", "event"]


async def test_a_full_link_takes_nothing_until_the_client_reads(link: Opened) -> None:
    """0 again and again, and no loss of what was taken; then whoever waited goes on, by at least a byte."""
    transport = link.transport
    whole, rest = fill(link)
    for _ in range(PERSISTENT):
        assert offer(transport, rest) == 0
    assert transport.partial_sends or not whole
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.peer.read_on)
        nursery.start_soon(link.answer_on)
        with trio.fail_after(SECONDS):
            while rest:
                async with link.sending:
                    sent = await transport.send_some(rest)
                assert 0 < sent <= len(rest)
                rest = rest[sent:]
            while len(link.numbers) <= whole:
                await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    assert link.numbers == list(range(whole + 1))


# --- the end from the broker's side


async def test_a_link_that_was_cut_stays_cut(link: Opened) -> None:
    """After `abort`, once and again, nothing is sent, and nothing is awaited from the client."""
    for _ in range(PERSISTENT):
        link.transport.abort()
    await is_lost(link.transport)
    assert (await last(link.transport)).by == "link"
    link.transport.abort()


async def test_abort_in_the_middle_of_everything(link: Opened) -> None:
    """Tasks that send and that receive are done with it at once."""
    lost, closed = trio.Event(), trio.Event()

    async def receive() -> None:
        await last(link.transport)
        closed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(filled, link, lost)
        nursery.start_soon(receive)
        await standing_still(link)
        assert not lost.is_set()
        for _ in range(PERSISTENT):
            link.transport.abort()
        with trio.fail_after(SECONDS):
            await lost.wait()
            await closed.wait()
    await is_lost(link.transport)


async def test_the_client_goes_in_the_middle_of_a_send(link: Opened) -> None:
    """Whoever waits for it to take something is told that the link is lost, and so is everybody later."""
    lost = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(filled, link, lost)
        await standing_still(link)
        if link.transport.comes_and_goes:  # it may come again, until its session is over
            link.transport.abort()
        else:
            await link.peer.reset()
        with trio.fail_after(SECONDS):
            await lost.wait()
    await is_lost(link.transport)


@pytest.mark.parametrize("gone", [False, True])
async def test_lingering_ends(link: Opened, gone: bool) -> None:
    """Also where the client never closes; and once more, and after the end."""
    transport = link.transport
    await send(transport, transport.close(1000, "done"))
    if gone:
        await link.peer.leave()
    with trio.fail_after(SECONDS):
        await transport.linger()
    transport.abort()
    with trio.fail_after(SECONDS):
        await transport.linger()


def answers(link: Opened) -> None:
    """That everything that must not block answers."""
    transport = link.transport
    for begins in (True, False):
        transport.behind(begins=begins)
    transport.limit_messages(70_000)
    assert isinstance(transport.state(), LinkState)
    for data in (
        transport.frame(b'{"type":"pong","payload":{}}'),
        transport.ping(None),
        transport.ping("inc-1"),
        transport.ask(),
        transport.close(1000, "ü" * 300),
        transport.close(1000, ""),
    ):
        assert isinstance(data, bytes)
    assert link.event(1)
    assert link.event(1, marked=True)
    assert transport.name
    assert isinstance(transport.answers, bool)


async def test_a_fresh_link_answers(fresh: Opened) -> None:
    """Before anything was said on it."""
    answers(fresh)


@pytest.mark.parametrize("ending", ["full", "left", "cut"])
async def test_everything_answers_in_any_state(link: Opened, ending: str) -> None:
    """On a link that is full, whose client has gone, and that was cut."""
    states: dict[str, Callable[[], object]] = {"full": lambda: fill(link), "cut": link.transport.abort}
    if ending == "left":
        await link.peer.reset()
    else:
        states[ending]()
    for _ in range(PERSISTENT):
        answers(link)
    link.transport.abort()
    answers(link)
