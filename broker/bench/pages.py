"""The scenario `pages`: what it takes to read back, for the reader and for everybody who publishes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.bench import paging
from broker.bench.contenders import MANY, Bare, Client
from broker.bench.phases import broker, drive, joined, keep, of_requests, worker
from broker.bench.publisher import Order

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bench.contenders import BrokerProcess
    from broker.bench.harness import Bench, Crowd, Used

CHANNELS = 100  # of which all but the rare events are, in equal shares
RARE = 10_000  # events to one on `refunds.x`
READERS = 16  # by default
PAGES = 100  # one after the other
RING_EVENTS = 8192  # a little more than the broker's ring holds
WITHIN = 100_000  # the newest events
MEMORY = "50 from memory"
DENSE = "all, among the newest 100,000"
SPARSE = "1 of 100, among the newest 100,000"
KNOWN = "1 of 100, one channel, among the newest 100,000"
FAR = "1 of 100, far back"
RARELY = "1 of 10,000, far back"
ACKS = "publishing while 16 read"


def pages(bench: Bench) -> None:
    """One who reads back, in several places; and many, while events are published and acknowledged."""
    plan = bench.plan
    contender = broker(bench, limits={"history_per_minute": MANY})
    url = bench.given_nats or bench.nats.url
    store(bench, contender)
    clients = [contender.dialect(Client(user=f"u{number}")) for number in range(plan.clients)]
    one = worker(bench, contender, 1, paging.run, clients[:1])
    newest, oldest = max(plan.events - RING_EVENTS, 1), max(plan.events - WITHIN, 0)
    for phase, channel, upto, floor in (
        (MEMORY, ">", 0, plan.events - paging.EVENTS),
        (DENSE, ">", newest, oldest),
        (SPARSE, "*.7", newest, oldest),
        (KNOWN, "orders.7", newest, oldest),
        (FAR, "*.7", plan.events // 2, 0),
        (RARELY, "*.x", plan.events // 2, 0),
    ):
        walk = paging.Walk(channels=[channel], count=PAGES, upto=upto, floor=floor)
        crowds = [one]
        if "nats-py" in plan.against:
            subject = contender.subject("bench", channel)
            beside = Bare(name="nats-py", pids=(), port=0)
            crowds.append(worker(bench, beside, 1, paging.consume, url, "EVENTS", subject))
        for crowd in crowds:
            keep(bench, phase, crowd.contender.name, [follow(bench, phase, crowd, walk, PAGES)], of_requests)

    many = worker(bench, contender, plan.clients, paging.run, clients)
    publisher = worker(bench, contender, 1, paging.publish, url, contender.subject("bench", "orders.1"))
    seconds = plan.seconds / plan.rounds
    order = paging.Publish(count=max(1, int(plan.rate * seconds)), rate=plan.rate, size=plan.size)
    far = paging.Walk(channels=[">", "*.7", "orders.7", "*.x"], seconds=seconds, upto=plan.events // 2)
    alone, beside_many = [], []
    for _ in range(plan.rounds):
        alone.append(follow(bench, "publishing alone", publisher, order, order.count))
        many.tell(far)
        beside_many.append(follow(bench, ACKS, publisher, order, order.count))
    keep(bench, ACKS, "broker", beside_many, of_requests)
    keep(bench, ACKS, "alone", alone, of_requests)


def store(bench: Bench, contender: BrokerProcess) -> None:
    """Store the events, while the broker reads them."""
    plan = bench.plan
    shares = {contender.subject("bench", f"orders.{each}"): RARE / CHANNELS for each in range(CHANNELS)}
    shares[contender.subject("bench", "refunds.x")] = 1
    order = Order(
        copies=dict.fromkeys(shares, 1),
        weights=[*shares.values()],
        count=plan.events,
        size=plan.size,
        seed=plan.seed,
        window=20_000,
    )
    witness = joined(bench.crowd(contender, [Client(channels=[">"])]))
    drive(bench, "storing", witness, order)
    witness.cut()


def follow(bench: Bench, phase: str, crowd: Crowd, command: paging.Walk | paging.Publish, count: int) -> Used:
    """Have a process do something, until it has counted so much."""
    base = crowd.meter["delivered"]

    def work() -> list[Callable[[], bool]]:
        crowd.tell(command)
        return [lambda: crowd.meter["delivered"] - base >= count]

    return bench.measure(phase, crowd, work, bench.plan.seconds)
