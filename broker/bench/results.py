"""What a run found out: figures by subject and phase, latencies, and how things went over time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OCTAVES = 40  # from 1 ns up: 18 minutes at the top
STEPS = 16  # of an octave: a bucket is 4 to 6 % wide
BUCKETS = OCTAVES * STEPS


@attrs.frozen
class Unit:
    """How a figure is read. `better` is the direction that is: "lower", "higher", or "" when neither is."""

    title: str
    name: str
    better: str = ""


# The figures that there are, in the order in which a table shows them.
UNITS: dict[str, Unit] = {
    "deliveries_per_second": Unit("deliveries", "/s", "higher"),
    "events_per_second": Unit("events", "/s", "higher"),
    "requests_per_second": Unit("requests", "/s", "higher"),
    "changes_per_second": Unit("changes", "/s", "higher"),
    "connections_per_second": Unit("connections", "/s", "higher"),
    "cpu_per_delivery": Unit("CPU per delivery", "µs", "lower"),
    "cpu_per_event": Unit("CPU per event", "µs", "lower"),
    "cpu_per_request": Unit("CPU per request", "µs", "lower"),
    "cpu_per_change": Unit("CPU per change", "µs", "lower"),
    "cpu_per_connection": Unit("CPU per connection", "µs", "lower"),
    "cpu_share": Unit("CPU", "% of a core", "lower"),
    "p50": Unit("p50", "ms", "lower"),
    "p99": Unit("p99", "ms", "lower"),
    "longest": Unit("longest", "ms", "lower"),
    "complete": Unit("until the last is complete", "s", "lower"),
    "delivered_share": Unit("delivered", "%", "higher"),
    "frame_bytes": Unit("on the wire", "B", "lower"),
    "documents": Unit("documents", "sent", "lower"),
    "memory_per_connection": Unit("memory per connection", "KB", "lower"),
    "longest_collection": Unit("longest collector pause", "ms", "lower"),
    "generator_share": Unit("CPU of the generator", "% of a core", ""),
}


@attrs.frozen
class Histogram:
    """Durations in nanoseconds, counted in buckets of `STEPS` to the octave."""

    counts: tuple[int, ...]
    longest: int  # exactly

    def quantile(self, part: float) -> float:
        """The duration in seconds that a share `part` of all does not exceed (upper end of its bucket)."""
        wanted, seen = math.ceil(part * sum(self.counts)), 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return min(upper(bucket), self.longest) / 1e9
        return 0.0

    def __add__(self, other: Histogram) -> Histogram:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(counts, max(self.longest, other.longest))


def bucket(duration: int) -> int:
    """The bucket of a duration in nanoseconds."""
    octave = duration.bit_length() - 1
    if octave < 0:
        return 0
    step = ((duration << 4) >> octave) & 15  # `STEPS` is 2 ** 4
    return min(octave * STEPS + step, BUCKETS - 1)


def upper(bucket: int) -> int:
    """Where a bucket ends, in nanoseconds."""
    octave, step = divmod(bucket, STEPS)
    return math.ceil((1 << octave) * (STEPS + step + 1) / STEPS)


@attrs.frozen
class Sample:
    """One look at a run under way: seconds since its beginning, and what there was then."""

    at: float
    delivered: int  # since the beginning
    memory: int  # bytes resident of the subject


@attrs.frozen(kw_only=True)
class Result:
    """What one subject ("broker", "floor", "nats-ws", …) did in one phase of the scenario.

    `figures` are by the names of `UNITS`; `rounds` has the same of each round by itself.
    """

    subject: str
    phase: str
    figures: Mapping[str, float]
    rounds: Sequence[Mapping[str, float]] = ()
    latency: Histogram | None = None
    samples: Sequence[Sample] = ()


@attrs.frozen(kw_only=True)
class Target:
    """A figure to reach: of the broker in a phase, in relation to what `beside` did there.

    The relation is a ratio, or with `above` a difference.
    """

    phase: str
    figure: str
    bound: float
    beside: str | None = None
    above: bool = False

    def measured(self, results: Iterable[Result]) -> tuple[float, float | None] | None:
        """The broker's figure, and that of `beside` where there is one; None when one was not measured."""
        found = {(each.subject, each.phase): each.figures for each in results}
        ours = found.get(("broker", self.phase), {}).get(self.figure)
        theirs = found.get((self.beside or "", self.phase), {}).get(self.figure)
        return None if ours is None or (self.beside and not theirs) else (ours, theirs)

    def reached(self, results: Iterable[Result]) -> tuple[float, bool] | None:
        """What was seen and whether it is enough; None when it was not measured."""
        if (figures := self.measured(results)) is None:
            return None
        ours, theirs = figures
        seen = ours if not theirs else ours - theirs if self.above else ours / theirs
        return seen, seen >= self.bound if UNITS[self.figure].better == "higher" else seen <= self.bound


@attrs.frozen(kw_only=True)
class Report:
    """A whole run. `warnings` say what makes its figures doubtful."""

    scenario: str
    parameters: Mapping[str, object]
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    began: str  # RFC 3339
    results: Sequence[Result]
    targets: Sequence[Target] = ()
    warnings: Sequence[str] = ()
