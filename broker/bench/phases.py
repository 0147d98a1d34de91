"""What scenarios are made of: who takes part, one phase of a load, and the figures of it."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from broker.bench import contenders
from broker.bench.contenders import NatsWebSocket
from broker.bench.harness import Crowd
from broker.bench.meter import Meter
from broker.bench.publisher import Order
from broker.bench.results import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from broker.bench.contenders import BrokerProcess, Contender
    from broker.bench.harness import Bench, Plan, Publishing, Used

CHANNEL = "orders.7"


def broker(bench: Bench, **sections: Mapping[str, Any]) -> BrokerProcess:
    """The broker under test: that of an address, or one of ours with these sections of a configuration."""
    if bench.given:
        return bench.given
    made = contenders.run_brokers(bench.directory / "broker", bench.nats, bench.plan.brokers, **sections)
    return bench.stack.enter_context(made)


def everybody(bench: Bench, **sections: Mapping[str, Any]) -> list[Contender]:
    """The broker, and whoever serves WebSockets beside it."""
    return [broker(bench, **sections), *beside(bench)]


def beside(bench: Bench) -> list[Contender]:
    """Whoever serves WebSockets beside the broker."""
    found: list[Contender] = []
    for name in bench.plan.against:
        if name == "nats-ws":
            found.append(NatsWebSocket(pids=(bench.nats.pid,), port=bench.nats.websocket_port))
        elif name == "floor":
            found.append(bench.stack.enter_context(contenders.run_floor(bench.nats, CHANNEL)))
        elif name == "trio-websocket":
            found.append(bench.stack.enter_context(contenders.run_trio_websocket()))
        elif name.startswith("ws://"):
            found.append(contenders.at_address(name))
    return found


def joined(crowd: Crowd) -> Crowd:
    """All of them connected and live."""
    crowd.open()
    crowd.until_live(crowd.count)
    return crowd


def worker(bench: Bench, who: Contender, count: int, target: Callable[..., None], *args: object) -> Crowd:
    """Return the crowd of a process that has `target(*args, meter, pipe)` to do, and is ready."""
    meter = Meter()
    pid, pipe = bench.stack.enter_context(contenders.process(target, *args, meter))
    contenders.answer(pipe, contenders.START_SECONDS)
    return Crowd(who, count, pid, pipe, meter)


def after(seconds: float) -> list[Callable[[], bool]]:
    """Nothing to do but to wait."""
    until = time.monotonic() + seconds
    return [lambda: time.monotonic() > until]


def drive(bench: Bench, phase: str, crowd: Crowd, order: Order) -> Used:
    """Publishes, and waits until every copy has arrived."""
    meter = crowd.meter
    base = meter["delivered"]
    published: Publishing

    def work() -> list[Callable[[], bool]]:
        nonlocal published
        published = bench.publish(crowd.contender.name, order)
        return [arrived]

    def arrived() -> bool:
        if not published.done() or published.counts is None:
            return False
        wanted = sum(count * order.copies[each] for each, count in published.counts.items())
        return meter["delivered"] - base >= wanted

    expected = min(order.seconds, order.count / order.rate if order.rate else order.seconds)
    return bench.measure(phase, crowd, work, expected)


def at_a_pace(plan: Plan, contender: Contender) -> Order:
    """Events on the one channel, for one round."""
    count = max(1, int(plan.rate * plan.seconds / plan.rounds))
    copies = {contender.subject("bench", CHANNEL): plan.clients}
    return Order(copies=copies, count=count, size=plan.size, rate=plan.rate)


def keep(
    bench: Bench, phase: str, name: str, rounds: Sequence[Used], figures: Callable[[Used], dict[str, float]]
) -> None:
    """Puts the rounds of one contender together: the median of each figure, all latencies."""
    each = [figures(used) for used in rounds]
    together = {key: statistics.median(found[key] for found in each) for key in each[0]}
    latency = rounds[0].latency
    for used in rounds[1:]:
        latency += used.latency
    samples = max(rounds, key=lambda used: len(used.samples)).samples
    if sum(latency.counts):
        together |= {"p50": latency.quantile(0.5) * 1e3, "p99": latency.quantile(0.99) * 1e3}
        together["longest"] = latency.longest / 1e6
    bench.results.append(
        Result(
            subject=name,
            phase=phase,
            figures=together,
            rounds=each,
            latency=latency if sum(latency.counts) else None,
            samples=samples,
        )
    )


def of_flow(used: Used, *, rate: str, cost: str) -> dict[str, float]:
    """How much came through, and what each of it took."""
    found = {rate: used.delivered / used.seconds}
    if used.cpu:
        found[cost] = used.cpu / used.delivered * 1e6
        found["cpu_share"] = used.cpu / used.seconds * 100
    return found | {"generator_share": used.generator / used.seconds * 100}


of_deliveries = partial(of_flow, rate="deliveries_per_second", cost="cpu_per_delivery")
of_events = partial(of_flow, rate="events_per_second", cost="cpu_per_event")
of_requests = partial(of_flow, rate="requests_per_second", cost="cpu_per_request")


def of_openings(count: int, used: Used) -> dict[str, float]:
    found = {
        "connections_per_second": count / used.seconds,
        "p50": used.openings.quantile(0.5) * 1e3,
        "p99": used.openings.quantile(0.99) * 1e3,
        "longest": used.openings.longest / 1e6,
    }
    if used.cpu:
        found["cpu_per_connection"] = used.cpu / count * 1e6
    return found | {"generator_share": used.generator / used.seconds * 100}


def in_turn(
    bench: Bench,
    phase: str,
    crowds: Sequence[Crowd],
    go: Callable[[Crowd], Used],
    figures: Callable[[Used], dict[str, float]],
) -> None:
    """Each crowd in each round."""
    rounds: dict[str, list[Used]] = {crowd.contender.name: [] for crowd in crowds}
    for _ in range(bench.plan.rounds):
        for crowd in crowds:
            rounds[crowd.contender.name].append(go(crowd))
    for name, found in rounds.items():
        keep(bench, phase, name, found, figures)
