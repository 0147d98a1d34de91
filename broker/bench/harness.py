"""One run: its processes, and the measurement of one phase after the other."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import attrs

from broker.bench import load, publisher
from broker.bench.contenders import BenchError, answer, process
from broker.bench.meter import Meter, cpu_seconds, resident
from broker.bench.results import Result, Sample

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack
    from multiprocessing.connection import Connection
    from pathlib import Path

    from broker.bench.contenders import BrokerProcess, Client, Contender, Nats
    from broker.bench.live import Live
    from broker.bench.results import Histogram

SAMPLE_SECONDS = 0.1
PATIENCE_SECONDS = 30.0  # without any progress
LOOKED_AT = 20  # clients of a fast load of which each event is
SAMPLED = 200  # clients whose latencies are measured, spread over all
GENERATOR_SHARE = 0.9  # of a core: from there on the generator is what is measured
FEW_TICKS = 20
TROUBLE = {"disorder": "events out of order", "gaps": "gaps", "lost": "lost connections"}
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


@attrs.frozen(kw_only=True)
class Plan:
    """What the user asked for."""

    clients: int
    rate: float
    size: int
    seconds: float
    seed: int
    rounds: int
    tenants: int
    brokers: int
    events: int
    against: Sequence[str]


@attrs.define(eq=False)
class Publishing:
    """An order that is being carried out; `counts` says how many events of each subject there were."""

    pipe: Connection
    counts: Counter[str] | None = None

    def done(self) -> bool:
        if self.counts is None and self.pipe.poll(0):
            self.counts = answer(self.pipe, 0)
        return self.counts is not None


@attrs.define(eq=False)
class Crowd:
    """A contender's clients, in a generator of their own."""

    contender: Contender
    count: int
    pid: int
    pipe: Connection
    meter: Meter

    def tell(self, command: object) -> Any:
        """Has the generator do something; what it answers."""
        self.pipe.send(command)
        return answer(self.pipe, PATIENCE_SECONDS)

    def open(self, first: int = 0, end: int | None = None, *, again: bool = False) -> None:
        """Connects clients and waits until they are live."""
        end = self.count if end is None else end
        self.tell(load.Open(first, end, again))

    def cut(self) -> None:
        """Ends all connections."""
        self.tell(load.Cut(0, self.count))

    def until_live(self, count: int) -> None:
        self.until(lambda: self.meter["live"] >= count, "are live", lambda: self.meter["live"])

    def until_delivered(self, wanted: float) -> None:
        self.until(lambda: self.meter["delivered"] >= wanted, "arrived", lambda: self.meter["delivered"])

    def until(self, reached: Callable[[], bool], what: str, progress: Callable[[], int]) -> None:
        """Waits for a condition for as long as there is progress. Raises `BenchError`."""
        seen, deadline = -1, 0.0
        while not reached():
            if (now := progress()) != seen:
                seen, deadline = now, time.monotonic() + PATIENCE_SECONDS
            elif time.monotonic() > deadline:
                raise BenchError(
                    f"{self.contender.name}: {seen} {what}, and then no more, with {self.meter['lost']}"
                    " connections refused or lost; is there a limit, as limits.connections_per_user?"
                )
            time.sleep(0.001)


@attrs.define
class Used:
    """What a stretch of work took: seconds, CPU seconds, deliveries, and how it went."""

    seconds: float
    cpu: float
    generator: float
    delivered: int
    memory: int  # bytes more than before
    samples: list[Sample]
    latency: Histogram
    openings: Histogram


@attrs.define(eq=False)
class Bench:
    """Starts what a scenario asks for, and keeps what it found."""

    plan: Plan
    nats: Nats
    directory: Path
    live: Live
    stack: ExitStack
    given: BrokerProcess | None = None  # the broker at an address, instead of one of ours
    given_nats: str = ""  # and the NATS that it listens to
    results: list[Result] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)
    publishers: dict[str, Connection] = attrs.field(factory=dict)

    def crowd(
        self,
        contender: Contender,
        clients: Sequence[Client],
        *,
        exact: bool = True,
        ordered: bool = False,
        before: int = 0,
    ) -> Crowd:
        """Clients of a contender, none of them connected yet, and whoever publishes for them.

        See `load.Load` for `exact`, `ordered` and `before`.
        """
        meter = Meter()
        told = load.Load(
            host=contender.host,
            port=contender.port,
            clients=[contender.dialect(each) for each in clients],
            exact=exact,
            ordered=ordered or not exact,
            before=before,
            sampled=max(1, len(clients) // (SAMPLED if exact else LOOKED_AT)),
        )
        pid, pipe = self.stack.enter_context(process(load.run, told, meter))
        answer(pipe, PATIENCE_SECONDS)
        url = self.given_nats if contender is self.given else self.nats.url
        self.publish_for(contender.name, meter, url)
        return Crowd(contender, len(clients), pid, pipe, meter)

    def publish_for(self, name: str, meter: Meter, url: str) -> None:
        _, pipe = self.stack.enter_context(process(publisher.run, url, meter))
        answer(pipe, PATIENCE_SECONDS)
        self.publishers[name] = pipe

    def publish(self, name: str, order: publisher.Order) -> Publishing:
        """Begins to publish for a contender."""
        self.publishers[name].send(order)
        return Publishing(self.publishers[name])

    def measure(
        self, phase: str, crowd: Crowd, work: Callable[[], Sequence[Callable[[], bool]]], seconds: float
    ) -> Used:
        """Does some work of a phase, until all the conditions that `work` returns have come true once."""
        meter, pids = crowd.meter, crowd.contender.pids
        meter.clear()
        base, memory = meter["delivered"], resident(*pids)
        cpu, generator = cpu_seconds(*pids), cpu_seconds(crowd.pid)
        self.live.phase(phase, subject=crowd.contender.name, seconds=seconds)
        samples: list[Sample] = []
        began = time.monotonic()
        waiting = list(work())
        due, moved, deadline = began, -1, began + PATIENCE_SECONDS
        while True:
            waiting = [condition for condition in waiting if not condition()]
            now = time.monotonic()
            if not waiting:
                break
            if now >= due:
                if crowd.pipe.poll(0):
                    answer(crowd.pipe, 0)  # nobody asked it anything: it has ended
                due += SAMPLE_SECONDS
                delivered = meter["delivered"] - base
                sample = Sample(now - began, delivered, resident(*pids))
                rate = (delivered - samples[-1].delivered) / (sample.at - samples[-1].at) if samples else 0.0
                samples.append(sample)
                self.live.update(
                    at=sample.at, delivered=delivered, per_second=rate, memory=sample.memory, detail=""
                )
                progress = delivered + meter["live"]
                if progress != moved:
                    moved, deadline = progress, now + PATIENCE_SECONDS + seconds
                elif now > deadline:
                    raise BenchError(
                        f"{crowd.contender.name}, {phase}: stuck at {delivered} deliveries,"
                        f" {meter['live']} live; try fewer --clients or a lower --rate"
                    )
            time.sleep(0.0005)
        used = Used(
            seconds=now - began,
            cpu=cpu_seconds(*pids) - cpu,
            generator=cpu_seconds(crowd.pid) - generator,
            delivered=meter["delivered"] - base,
            memory=resident(*pids) - memory,
            samples=samples,
            latency=meter.latencies.histogram(),
            openings=meter.openings.histogram(),
        )
        self.check(phase, crowd, used)
        return used

    def check(self, phase: str, crowd: Crowd, used: Used) -> None:
        """Notes what makes the figures doubtful."""
        said = [f"{crowd.meter[field]} {what}" for field, what in TROUBLE.items() if crowd.meter[field]]
        if crowd.pid not in crowd.contender.pids and used.generator > GENERATOR_SHARE * used.seconds:
            share = used.generator / used.seconds
            said.append(f"the generator used {share:.0%} of a core, and may be what was measured")
        if 0 < used.cpu < FEW_TICKS * TICK_SECONDS:
            said.append(f"only {used.cpu:.2f} s of CPU, which is counted in steps of {TICK_SECONDS:g} s")
        for each in said:
            self.warn(f"{crowd.contender.name}, {phase}: {each}")

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
