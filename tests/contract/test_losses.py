"""What the port says of deletions and of a lost end: over a real nats-server, and the scripted bus alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.ranges import Ranges

if TYPE_CHECKING:
    from tests.contract.streams import Stream


async def put(stream: Stream, count: int) -> None:
    for _ in range(count):
        await stream.put()


async def delete(stream: Stream, *sequences: int) -> None:
    for sequence in sequences:
        assert await stream.bus.archive("EVENTS").delete(sequence)


async def test_what_was_deleted_is_named(stream: Stream) -> None:
    """By its sequence within the stream, by `first` at its beginning; in the same incarnation."""
    await put(stream, 10)
    before = await stream.bus.state()
    assert (before.deleted, before.unnamed, before.per_subject) == (Ranges(), 0, 0)
    await delete(stream, 4, 5, 8)
    state = await stream.bus.state()
    assert state.deleted == Ranges.of([4, 5, 8])
    await delete(stream, 1, 2, 3, 10)
    state = await stream.bus.state()
    assert (state.first, state.last, state.incarnation) == (6, 10, before.incarnation)
    assert state.deleted == Ranges.of([8, 10])
    page = await stream.bus.read("events.>", after=0, limit=20)
    assert [record[0] for record in page.records] == [6, 7, 9][: len(page.records)]


async def test_what_was_lost_begins_a_new_incarnation(stream: Stream) -> None:
    """The sink is told, with what is left, and the feed starts over there; the sequences are used again."""
    await put(stream, 10)
    await stream.sink.until(lambda: stream.sink.heads[-1:] == [10])
    await stream.lose_end(4)
    sink = stream.sink
    await sink.until(lambda: sink.up and sink.states[-1].incarnation != sink.states[0].incarnation)
    assert (sink.states[-1].first, sink.states[-1].last) == (1, 6)
    await put(stream, 1)
    await sink.until(lambda: sink.sequences == [1, 2, 3, 4, 5, 6, 7])
    assert (await stream.bus.state()).incarnation == sink.states[-1].incarnation
