"""The asyncio publisher against a real nats-server. Its loop runs in a thread: these tests are Trio's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.client import Publisher, Stored, UnknownOutcome
from broker.client import publisher as publisher_module
from broker.errors import BadMessage, InvalidChannel, TooLarge, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.nats import NatsServer


async def on_asyncio(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scenario(), 60)

    await trio.to_thread.run_sync(lambda: asyncio.run(main()))


async def make_stream(publisher: Publisher) -> Any:
    stream = publisher.client.jetstream()
    await stream.add_stream(name="EVENTS", subjects=["events.>"])
    return stream


async def test_an_event_counts_once_it_is_stored(nats: NatsServer) -> None:
    """The acknowledgement names the place; the body is what was given, in bytes or as a JSON value."""

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            stream = await make_stream(publisher)
            assert await publisher.publish("acme", "orders.7", b'{"n" : 1.0e2}') == Stored(
                sequence=1, duplicate=False
            )
            assert await publisher.publish("acme", "orders.7", {"state": "neu ü"}) == Stored(
                sequence=2, duplicate=False
            )
            assert await publisher.publish("_all", "orders.7", b"") == Stored(sequence=3, duplicate=False)
            first, second, third = [await stream.get_msg("EVENTS", seq) for seq in (1, 2, 3)]
            assert (first.subject, first.data) == ("events.acme.orders.7", b'{"n" : 1.0e2}')
            assert second.data == '{"state":"neu ü"}'.encode()
            assert (third.subject, third.data) == ("events._all.orders.7", None)

    await on_asyncio(scenario)


async def test_a_retry_stores_nothing_twice(nats: NatsServer) -> None:
    """The same id within a tenant is the first event again; another tenant's id is another event."""

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            stream = await make_stream(publisher)
            for duplicate in (False, True):
                stored = await publisher.publish("acme", "orders.7", {}, event_id="42")
                assert stored == Stored(sequence=1, duplicate=duplicate)
            assert await publisher.publish("other", "orders.7", {}, event_id="42") == Stored(
                sequence=2, duplicate=False
            )
            assert (await stream.get_msg("EVENTS", 1)).headers == {"Nats-Msg-Id": "acme:42"}

    await on_asyncio(scenario)


async def test_many_at_a_time_are_stored_in_order(nats: NatsServer) -> None:
    """Tasks that publish at once over a small bound all get through, in the order in which they began."""

    async def scenario() -> None:
        async with await Publisher.connect(nats.url, in_flight=8) as publisher:
            await make_stream(publisher)
            tasks = [publisher.publish("acme", f"orders.{number}", number) for number in range(200)]
            stored = await asyncio.gather(*tasks)
            assert [each.sequence for each in stored if each is not None] == list(range(1, 201))

    await on_asyncio(scenario)


async def test_a_live_event_reaches_who_listens_and_is_not_stored(nats: NatsServer) -> None:
    """A live channel is plain NATS: handed to the server, with nothing to acknowledge."""

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            heard = await publisher.client.subscribe("live.acme.cursor")
            await publisher.client.flush()
            assert await publisher.publish("acme", "live.cursor", {"x": 1}) is None
            assert (await heard.next_msg(timeout=45)).data == b'{"x":1}'

    await on_asyncio(scenario)


@pytest.mark.parametrize(
    ("tenant", "channel", "event", "error"),
    [
        ("_broker", "a", {}, InvalidChannel),
        ("a.b", "a", {}, InvalidChannel),
        ("acme", "orders.*", {}, InvalidChannel),
        ("acme", "a\r\nPUB b 0", {}, InvalidChannel),
        ("acme", "a", b"{", BadMessage),
        ("acme", "a", b'"\xff"', BadMessage),
        ("acme", "a", {"metadata": {"tenant_id": "other"}}, BadMessage),
        ("acme", "a", "x" * 65536, TooLarge),
    ],
)
async def test_what_would_be_a_dead_letter_is_refused_first(
    nats: NatsServer, tenant: str, channel: str, event: Any, error: type[Exception]
) -> None:
    """Names that are none, what is no JSON, contradicts its tenant or is too large never reaches NATS."""

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            stream = await make_stream(publisher)
            with pytest.raises(error):
                await publisher.publish(tenant, channel, event)
            assert (await stream.stream_info("EVENTS")).state.messages == 0

    await on_asyncio(scenario)


@pytest.mark.parametrize("event_id", ["a\r\nNats-Rollup: all", " a", "x" * 129, "ü" * 65])
async def test_ids_that_could_be_more_than_an_id(nats: NatsServer, event_id: str) -> None:
    """An id goes into a NATS header, so it holds nothing that could end it."""

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            await make_stream(publisher)
            with pytest.raises(BadMessage):
                await publisher.publish("acme", "a", {}, event_id=event_id)

    await on_asyncio(scenario)


async def test_without_a_stream_it_fails_loudly(nats: NatsServer) -> None:
    """An event that nothing stores is an error, though NATS itself would take it."""

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            with pytest.raises(Unavailable, match=r"no stream takes events\.acme\.a"):
                await publisher.publish("acme", "a", {})

    await on_asyncio(scenario)


async def test_a_full_stream_is_an_error(nats: NatsServer) -> None:
    """What the stream refuses is told with its reason."""

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            stream = publisher.client.jetstream()
            await stream.add_stream(name="EVENTS", subjects=["events.>"], max_msgs=1, discard="new")
            await publisher.publish("acme", "a", {})
            with pytest.raises(Unavailable, match="maximum messages exceeded"):
                await publisher.publish("acme", "a", {})

    await on_asyncio(scenario)


async def stop(nats: NatsServer) -> None:
    """Stops the server, and returns when it stands still."""
    nats.stop()
    states = Path(f"/proc/{nats.process.pid}/task")
    while any((each / "stat").read_text().rpartition(")")[2].split()[0] != "T" for each in states.iterdir()):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("channel", "event", "event_id", "error"),
    [
        ("a", None, None, TypeError),
        ("a", {"n": [1, float("nan")]}, None, ValueError),
        ("a", {"t": "half an emoji \ud83d"}, None, ValueError),
        ("a", {1: 2}, None, TypeError),
        ("a", {1, 2}, None, TypeError),
        ("a.\ud83d", 1, None, InvalidChannel),
        (7, 1, None, TypeError),
        ("a", 1, "\ud83d", BadMessage),
        ("a", 1, "", BadMessage),
        ("a", 1, 7, TypeError),
    ],
)
async def test_mistakes_are_told_where_they_are_made(
    nats: NatsServer, channel: Any, event: Any, event_id: Any, error: type[Exception]
) -> None:
    """What JSON or a subject cannot carry goes nowhere, in particular not as something else."""

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            stream = await make_stream(publisher)
            with pytest.raises(error):
                await publisher.publish("acme", channel, event, event_id=event_id)
            assert (await stream.stream_info("EVENTS")).state.messages == 0

    await on_asyncio(scenario)


async def test_an_answer_that_is_lost(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows whether it was stored; its id is told, under which a retry finds it there once."""
    monkeypatch.setattr(publisher_module, "ACK_SECONDS", 0.2)

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            stream = await make_stream(publisher)
            await stop(nats)
            with pytest.raises(UnknownOutcome, match="perhaps it was sent") as unknown:
                await publisher.publish("acme", "a", {})
            with pytest.raises(UnknownOutcome):
                await publisher.publish("acme", "live.a", {})
            nats.cont()
            monkeypatch.undo()
            again = await publisher.publish("acme", "a", {}, event_id=unknown.value.event_id)
            assert again == Stored(sequence=1, duplicate=True)
            assert (await stream.stream_info("EVENTS")).state.messages == 1

    await on_asyncio(scenario)


@pytest.mark.parametrize("clock", ["time", "monotonic"])
async def test_no_attempt_after_a_sleep(
    nats: NatsServer, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where either clock says that more time has passed than streams compare ids for, none is made."""
    monkeypatch.setattr(publisher_module, "ACK_SECONDS", 0.2)
    began = publisher_module.clocks()
    slept = {"time": (0.0, 600.0), "monotonic": (600.0, 0.0)}[clock]
    readings = iter([began, (began[0] + slept[0], began[1] + slept[1])])
    monkeypatch.setattr(publisher_module, "clocks", lambda: next(readings))

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            await make_stream(publisher)
            await stop(nats)
            with pytest.raises(UnknownOutcome):
                await publisher.publish("acme", "a", {})
            nats.cont()

    await on_asyncio(scenario)
    assert next(readings, None) is None


async def test_nothing_is_kept_for_later(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused for want of a connection is not sent when there is one again."""
    monkeypatch.setattr(publisher_module, "ACK_SECONDS", 0.2)
    gone, told, back = trio.Event(), trio.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    token = trio.lowlevel.current_trio_token()

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            stream = await make_stream(publisher)
            loops.append(asyncio.get_running_loop())
            token.run_sync_soon(gone.set)
            while publisher.client.is_connected:
                await asyncio.sleep(0.01)
            for channel in ("a", "live.a"):
                with pytest.raises(Unavailable, match="was not sent"):
                    await publisher.publish("acme", channel, {})
            token.run_sync_soon(told.set)
            await back.wait()
            monkeypatch.undo()
            assert await publisher.publish("acme", "a", {}) == Stored(sequence=1, duplicate=False)
            assert (await stream.stream_info("EVENTS")).state.messages == 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(on_asyncio, scenario)
        await gone.wait()
        await nats.kill9()
        await told.wait()
        await nats.start()
        loops[0].call_soon_threadsafe(back.set)


async def test_nobody_there() -> None:
    """Where no NATS listens, connecting fails at once."""

    async def scenario() -> None:
        with pytest.raises(Unavailable, match="NATS cannot be reached"):
            await Publisher.connect("nats://127.0.0.1:1")

    await on_asyncio(scenario)


async def test_it_outlives_a_restart_of_nats(nats: NatsServer) -> None:
    """A publication begun while NATS is away is stored once it is back."""
    connected, restarted = trio.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    token = trio.lowlevel.current_trio_token()

    async def scenario() -> None:
        async with await Publisher.connect(nats.url) as publisher:
            await make_stream(publisher)
            loops.append(asyncio.get_running_loop())
            token.run_sync_soon(connected.set)
            await restarted.wait()
            stored = await publisher.publish("acme", "a", {})
            assert stored is not None
            assert stored.sequence == 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(on_asyncio, scenario)
        await connected.wait()
        await nats.restart()
        loops[0].call_soon_threadsafe(restarted.set)
