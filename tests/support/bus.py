"""A `NatsBus` that runs, and a sink that keeps what it is given."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker import config
from broker.bus import streams
from broker.bus.nats import NatsBus
from broker.errors import Unavailable
from broker.subjects import Names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from broker.bus.base import Keyed, Record, StreamState

PATIENCE_SECONDS = 45


@attrs.define(eq=False)
class Recorder:
    """A sink that checks the port's promises as it goes, and waits for what a test expects."""

    states: list[StreamState] = attrs.field(factory=list)
    records: list[Record] = attrs.field(factory=list)  # of the present incarnation
    heads: list[int] = attrs.field(factory=list)
    times: list[int] = attrs.field(factory=list)  # of `records`
    messages: list[Record] = attrs.field(factory=list)
    skips: list[StreamState] = attrs.field(factory=list)
    known: StreamState | None = None  # as the sink was told last
    lost: int = 0
    interruptions: int = 0
    reaches: int = 0  # calls of `reached`
    refusals: int = 0  # further ones that fail
    up: bool = False
    changed: trio.Event = attrs.field(factory=trio.Event)

    async def reached(self) -> None:
        assert not self.up, "reached twice without an interruption"
        self.reaches += 1
        await trio.lowlevel.checkpoint()
        if self.refusals:
            self.refusals -= 1
            raise Unavailable("the sink cannot read what it needs")

    def restored(self, state: StreamState) -> None:
        assert not self.up, "restored twice without an interruption"
        if self.states and state.incarnation != self.states[-1].incarnation:
            self.records, self.times, self.heads = [], [], []
        self.up, self.known = True, state
        self.states.append(state)
        self.change()

    def stored(self, records: list[Record], head: int, times: Sequence[int]) -> None:
        assert self.up, "records while interrupted"
        assert len(records) <= 512
        sequences = [record[0] for record in records]
        assert sequences == sorted(set(sequences))
        assert not sequences or head >= sequences[-1]
        assert not self.heads or (sequences[0] if sequences else head) > self.heads[-1]
        assert len(times) == len(records)
        assert self.explained(sequences, head), "records are missing, and nobody said so"
        self.records += records
        self.times += times
        self.heads.append(head)
        self.change()

    def skipped(self, state: StreamState) -> None:
        assert self.up, "skipped while interrupted"
        self.skips.append(state)
        self.known = state
        self.change()

    def explained(self, sequences: list[int], head: int) -> bool:
        """Whether all that is left out up to `head` is known to be deleted."""
        known = self.known
        if known is None or not self.heads or known.per_subject or known.unnamed:
            return True
        start = max(self.heads[-1] + 1, known.first)
        return len(sequences) >= head - start + 1 or all(
            sequence in known.deleted for sequence in {*range(start, head + 1)}.difference(sequences)
        )

    def live(self, records: list[Record]) -> None:
        self.messages += records
        self.change()

    def live_lost(self) -> None:
        self.lost += 1
        self.change()

    def interrupted(self) -> None:
        assert self.up, "interrupted twice"
        self.up = False
        self.interruptions += 1
        self.change()

    def change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while not condition():
                await self.changed.wait()

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, _, body, _ in self.records]

    @property
    def sequences(self) -> list[int]:
        return [sequence for sequence, *_ in self.records]


@asynccontextmanager
async def running_bus(
    url: str, *, stream: config.Stream | None = None, nats: config.Nats | None = None, **bounds: Any
) -> AsyncIterator[tuple[NatsBus, Recorder]]:
    """A bus at `url` and its sink. It may not have reached NATS yet."""
    section = attrs.evolve(nats or config.Nats(request_seconds=3.0), urls=(url,))
    bus = NatsBus(
        nats=section,
        stream=stream or config.Stream(),
        names=Names(),
        audit=config.Audit(),
        **{"kept_by_key": [streams.state(config.State(), Names(), 1)], **bounds},
    )
    sink = Recorder()
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run, sink)
        yield bus, sink
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def ready_bus(url: str, **options: Any) -> AsyncIterator[tuple[NatsBus, Recorder]]:
    """A bus that has reached NATS."""
    async with running_bus(url, **options) as (bus, sink):
        await sink.until(lambda: sink.up)
        yield bus, sink


@attrs.frozen
class Loaded:
    """What a keyed stream held of some subjects, in the order of the stream."""

    incarnation: str
    records: list[Record]


async def loaded(keyed: Keyed, filters: Sequence[str], *, at_least: int) -> Loaded:
    records: list[Record] = []
    incarnation = await keyed.load(filters, at_least=at_least, take=records.extend)
    return Loaded(incarnation, sorted(records, key=lambda each: each[0]))


async def until_trouble(bus: NatsBus, text: str) -> None:
    """Waits until NATS is out of reach for a reason with `text` in it."""
    with trio.fail_after(PATIENCE_SECONDS):
        while text.lower() not in bus.jetstream.trouble.lower():
            await trio.sleep(0.01)
