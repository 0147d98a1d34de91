"""The counters that actors add to as they work: plain numbers, read at a scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

import attrs

from broker.errors import CloseCode, by_code

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeVar

    Key = TypeVar("Key")

# Upper bounds in seconds: from one write to what no client should ever see.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REPLAY_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
EVENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
GAP_REASONS = ("trimmed", "reset", "limit", "lag", "source")
LETTER_REASONS = ("invalid_channel", "not_json", "too_large", "tenant_mismatch", "not_kept")
TRANSPORTS = ("websocket", "sse", "poll")
CLOSE_CODES = (
    *(("broker", code) for code in CloseCode),
    *(("client", code) for code in (1000, 1001, 1005)),
    ("link", 1006),
)
ERROR_CODES = set(by_code())
CHANGE_OUTCOMES = (
    "changed", "unchanged", "conflict", "rejected", "too_large", "limit_documents", "unavailable",
    "unknown_outcome", "bad_answer", "internal",
)  # fmt: skip
RING, STREAM = "ring", "stream"


def zeros(keys: Iterable[Key]) -> Counter[Key]:
    """Return counters that start at 0: Prometheus sees no increase when a series begins with 1."""
    return Counter(dict.fromkeys(keys, 0))


class Histogram:
    """Counts by upper bound. `counts` has one more for samples above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Traffic:
    """Events that were handed to connections, and their bytes as sent."""

    __slots__ = ("bytes", "deliveries")

    def __init__(self) -> None:
        self.deliveries = 0
        self.bytes = 0

    def add(self, deliveries: int, size: int) -> None:
        self.deliveries += deliveries
        self.bytes += size


@attrs.define(eq=False)
class Changes:
    """What has become of changes of documents, how long they took, and what the stream tells of them.

    `lost` were confirmed, and another write has taken their place all the same. `foreign` are writes that do
    not say what they replace, as those of services.
    """

    outcomes: Counter[str] = attrs.Factory(lambda: zeros(CHANGE_OUTCOMES))
    seconds: Histogram = attrs.Factory(lambda: Histogram(SECONDS))
    lost: int = 0
    foreign: int = 0


@attrs.define(eq=False)
class Meters:
    """The counters of the process. `collector` documents each."""

    fan_out: Histogram = attrs.Factory(lambda: Histogram(SECONDS))
    batch: Histogram = attrs.Factory(lambda: Histogram(EVENTS))
    latency: Histogram = attrs.Factory(lambda: Histogram(SECONDS))
    canary: Histogram = attrs.Factory(lambda: Histogram(SECONDS))
    round_trip: Histogram = attrs.Factory(lambda: Histogram(SECONDS))
    calls: Histogram = attrs.Factory(lambda: Histogram(REPLAY_SECONDS))
    pages: dict[str, Histogram] = attrs.Factory(
        lambda: {source: Histogram(REPLAY_SECONDS) for source in (RING, STREAM)}
    )
    loop_lag: Histogram = attrs.Factory(lambda: Histogram(SECONDS))
    replays: dict[str, Histogram] = attrs.Factory(
        lambda: {source: Histogram(REPLAY_SECONDS) for source in (RING, STREAM)}
    )
    opened: Counter[str] = attrs.Factory(lambda: zeros(TRANSPORTS))
    closed: Counter[tuple[str, str]] = attrs.Factory(  # by who ended it, and code
        lambda: zeros((by, str(int(code))) for by, code in CLOSE_CODES)
    )
    gaps: Counter[str] = attrs.Factory(lambda: zeros(GAP_REASONS))
    errors: Counter[str] = attrs.Factory(lambda: zeros(ERROR_CODES))
    received: Counter[str] = attrs.Factory(lambda: zeros(("stored", "live")))
    changes: Changes = attrs.Factory(Changes)
    interruptions: int = 0
    live_losses: int = 0
