"""What is counted while a load runs: by the generators in shared memory, of processes by the kernel."""

from __future__ import annotations

import os
import time
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from broker.bench.results import BUCKETS, Histogram, bucket

if TYPE_CHECKING:
    from ctypes import Array, c_uint64

SPAWN = get_context("spawn")  # a child that begins with our threads and sockets would measure those too
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

# What a generator counts.
FIELDS = ("delivered", "live", "lost", "disorder", "gaps", "complete")


@attrs.define(eq=False)
class Durations:
    """Counts durations; one process adds, another one looks."""

    counts: Array[c_uint64] = attrs.field(factory=lambda: SPAWN.RawArray("Q", BUCKETS + 1))

    def add(self, duration: int) -> None:
        """One more, in nanoseconds."""
        self.counts[bucket(duration)] += 1
        if duration > self.counts[BUCKETS]:
            self.counts[BUCKETS] = duration

    def clear(self) -> None:
        self.counts[:] = [0] * (BUCKETS + 1)

    def histogram(self) -> Histogram:
        *counts, longest = (int(each) for each in self.counts)
        return Histogram(tuple(counts), longest)


@attrs.define(eq=False)
class Meter:
    """Of one generator. `latencies` are from publish to receipt, `openings` from connect to live."""

    numbers: Array[c_uint64] = attrs.field(factory=lambda: SPAWN.RawArray("Q", len(FIELDS)))
    latencies: Durations = attrs.field(factory=Durations)
    openings: Durations = attrs.field(factory=Durations)

    def __getitem__(self, field: str) -> int:
        return int(self.numbers[FIELDS.index(field)])

    def clear(self) -> None:
        self.latencies.clear()
        self.openings.clear()


def cpu_seconds(*pids: int) -> float:
    """User and system time of all threads of the processes, in steps of 10 ms (proc(5), `utime`, `stime`)."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def resident(*pids: int) -> int:
    """Bytes of the processes that are in memory."""
    return PAGE * sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)


def now() -> int:
    """Nanoseconds of the clock that all processes of a machine share."""
    return time.monotonic_ns()
