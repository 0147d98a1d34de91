"""What a connection that is behind is sent next: frames chosen from ticks of the ring or pages of the stream.

Where a subscription's lag policy allows it, events are passed over here, and nowhere else; never is
one sent before another that precedes it in the stream.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, compress
from typing import TYPE_CHECKING

import attrs

from broker.ring import bits, indices
from broker.wire import frames

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from broker.actors.fanout import Fanout
    from broker.ring import Tick
    from broker.routing import Topic
    from broker.wire.frames import Framing

CHUNK_BYTES = 65536  # what a reader renders at a time
# A chunk that passes over something is sent to its end once begun, so that the count in its gap is
# true. A client that is so slow holds no more than this.
THIN_CHUNK_BYTES = 8192
LIVE_QUEUE = 256  # live events that wait for a connection that is behind, by lag policy "drop"


@attrs.frozen(kw_only=True)
class Reading:
    """Topics with their floors, by what a reader that is behind is to be given of them."""

    every: Mapping[Topic, int]
    latest: Mapping[Topic, int]  # of each channel the newest
    few: Mapping[Topic, int]  # the newest `LIVE_QUEUE`


class Chunk:
    """Frames to be sent next, each with the counter and the position after it.

    `cursor` and `position` are where the reader stands after all of it. `passed` has where the events are
    that were left out, as counter and position.
    """

    __slots__ = ("counters", "cursor", "frames", "marked", "passed", "position", "positions", "size")

    def __init__(self, *, cursor: int, position: int) -> None:
        self.frames: list[bytes] = []
        self.counters: list[int] = []
        self.positions: list[int] = []
        self.size = 0
        self.passed: list[tuple[int, int]] = []
        self.cursor = cursor
        self.position = position
        self.marked = False

    def add(self, tick: Tick, mask: int) -> None:
        if mask:
            chosen = bits(mask)
            first = len(self.frames)
            self.frames.extend(compress(tick.frames, chosen))
            self.counters.extend(compress(range(tick.first, tick.last + 1), chosen))
            self.positions.extend(compress(tick.sequences, chosen))
            self.size += sum(map(len, self.frames[first:]))

    def pass_over(self, tick: Tick, mask: int) -> None:
        self.passed += [(tick.first + index, tick.sequences[index]) for index in indices(mask)]

    def full(self) -> bool:
        return self.size >= CHUNK_BYTES

    def merge(self) -> None:
        """Brings stored events of several pages into stream order, each once."""
        merged = dict(sorted(zip(self.positions, self.frames, strict=True)))
        self.positions, self.frames = list(merged), list(merged.values())

    def below_ring(self) -> None:
        """A page of the stream has no counters."""
        self.counters = [-1] * len(self.frames)
        sent = set(self.positions)  # by another page, where filters overlap
        passed = dict.fromkeys(position for _, position in self.passed)
        self.passed = [(-1, position) for position in passed if position not in sent]

    def trim(self) -> None:
        """Keeps what is a chunk's worth, when it is more."""
        ends = list(accumulate(map(len, self.frames)))
        keep = bisect_right(ends, THIN_CHUNK_BYTES if self.passed else CHUNK_BYTES) + 1
        if keep < len(ends):
            del self.frames[keep:], self.positions[keep:], self.counters[keep:]
            self.cursor, self.position = self.counters[-1], self.positions[-1]
            self.passed = [each for each in self.passed if each <= (self.cursor, self.position)]

    def leave_out(self, *, upto: int, but: Container[int]) -> None:
        """Leaves out the events up to a position whose sequences are not in `but`."""
        keep = [position > upto or position in but for position in self.positions]
        self.frames = list(compress(self.frames, keep))
        self.counters = list(compress(self.counters, keep))
        self.positions = list(compress(self.positions, keep))

    def limit(self, position: int) -> None:
        """Leaves out what is above a position."""
        if self.position > position:
            keep = bisect_right(self.positions, position)
            del self.frames[keep:], self.positions[keep:], self.counters[keep:]
            self.position = position

    def mark(self, number: int) -> None:
        self.frames = [frames.mark(frame, number) for frame in self.frames]
        self.marked = True

    def become(self, framing: Framing | None) -> None:
        """Puts the frames as a link takes them: the last step before they are sent."""
        if framing is not None:
            self.frames = [framing(frame, self.marked) for frame in self.frames]

    def cut(self, sent: int) -> memoryview:
        """What is left of the frame that was not sent wholly; the chunk ends with that frame."""
        ends = list(accumulate(map(len, self.frames)))
        index = bisect_right(ends, sent)
        if index == len(ends):
            return memoryview(b"")
        self.cursor, self.position = self.counters[index], self.positions[index]
        del self.frames[index + 1 :], self.counters[index + 1 :], self.positions[index + 1 :]
        return memoryview(self.frames[index])[len(self.frames[index]) - (ends[index] - sent) :]


def from_ring(fanout: Fanout, reading: Reading, *, cursor: int) -> Chunk:
    """The next chunk after a counter that the ring still holds."""
    chunk = Chunk(cursor=fanout.count, position=fanout.position())
    ticks = fanout.ring.after(cursor)
    windows = [-1 << max(0, cursor - tick.first + 1) for tick in ticks]
    for tick, (kept, passed) in zip(ticks, choose(ticks, windows, reading), strict=True):
        chunk.add(tick, kept)
        chunk.pass_over(tick, passed)
        if chunk.full():
            chunk.cursor, chunk.position = tick.last, tick.head
            break
    if chunk.passed:
        chunk.trim()
    return chunk


def from_pages(pages: Sequence[Tick], reading: Reading, *, after: int, upto: int) -> Chunk:
    """The next chunk out of pages of the stream, after a position, which end at `upto`."""
    chunk = Chunk(cursor=-1, position=upto)
    windows = [(-1 << page.before(after)) & (1 << page.before(upto)) - 1 for page in pages]
    for page, (kept, passed) in zip(pages, choose(pages, windows, reading), strict=True):
        chunk.add(page, kept)
        chunk.pass_over(page, passed)
    if len(pages) > 1:
        chunk.merge()
    chunk.below_ring()
    chunk.trim()
    return chunk


def choose(ticks: Sequence[Tick], windows: Sequence[int], reading: Reading) -> Iterable[tuple[int, int]]:
    """For each tick which of the events in its window are sent, and which are passed over."""
    if not (reading.latest or reading.few):
        # One at a time, since a chunk may be full long before the ring ends.
        return ((tick.share(reading.every) & window, 0) for tick, window in zip(ticks, windows, strict=True))
    thinned = [
        (tick.share(reading.latest) & window, tick.share(reading.few) & window)
        for tick, window in zip(ticks, windows, strict=True)
    ]
    chosen = []
    for tick, window, (latest, few), kept in zip(ticks, windows, thinned, keep(ticks, thinned), strict=True):
        sent = tick.share(reading.every) & window | kept
        chosen.append((sent, (latest | few) & ~sent))
    return chosen


def keep(ticks: Sequence[Tick], thinned: Sequence[tuple[int, int]]) -> list[int]:
    """Of the events that may be passed over, those that are not: the newest of each channel, or few."""
    newest: dict[str, tuple[int, int, int]] = {}
    queue: list[tuple[int, int]] = []
    for number, (tick, (latest, few)) in enumerate(zip(ticks, thinned, strict=True)):
        for index in indices(latest):
            # By position: pages of several filters lie side by side, and not one after the other.
            each = (tick.sequences[index], number, index)
            newest[tick.channels[index]] = max(each, newest.get(tick.channels[index], each))
        queue += [(number, index) for index in indices(few)]
    kept = [0] * len(ticks)
    for number, index in (*((n, i) for _, n, i in newest.values()), *queue[-LIVE_QUEUE:]):
        kept[number] |= 1 << index
    return kept
