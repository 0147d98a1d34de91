"""The scenarios: what load is put on whom, and which figures come out.

Each measures its contenders in turn, a few rounds each, within one run.
"""

from __future__ import annotations

import itertools
import random
import time
from functools import partial
from typing import TYPE_CHECKING

import attrs

from broker import config, subjects
from broker.bench import asking, contenders, floor
from broker.bench.contenders import Bare, Client, answer, process
from broker.bench.harness import Crowd
from broker.bench.load import Cut, Goal, Mute, Where
from broker.bench.meter import Meter, cpu_seconds
from broker.bench.payload import numbered
from broker.bench.phases import (
    CHANNEL,
    after,
    at_a_pace,
    broker,
    drive,
    everybody,
    in_turn,
    joined,
    keep,
    of_deliveries,
    of_events,
    of_openings,
    of_requests,
    worker,
)
from broker.bench.publisher import Order
from broker.bench.results import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bench.contenders import Contender
    from broker.bench.harness import Bench, Used

WARM = 200  # connections that are not counted: the first ones fill caches
AREAS, PLACES = 10, 10  # channels of a tenant in `mixed`
CUT_EVERY_SECONDS, AWAY_SECONDS = 15.0, 2.0
SLOTS = 50  # groups of clients that are cut together
MISSED = 100  # events of each client that comes back
MISSED_PER_SECOND = 50.0
HISTORY_EVENTS = 1_000_000
RING_EVENTS = 8000  # a little less than the broker's ring holds
CONSUMER_EVENTS = 50_000  # of each nats-py consumer: the cost of an event is the same for more
READ_CLIENTS = 25  # that read all of the history
SLOW_SHARE = 0.1
SLOW_PHASE = f"{SLOW_SHARE:.0%} do not read"
REQUESTS_PER_SECOND = 5100.0  # a little more than what is to be held
SINGLE_PER_SECOND = 500  # about; so many are asked one after the other
ASKERS = 64  # connections
ONE_BY_ONE = "one after the other"
MANY_REQUESTS = "requests beside a fan-out"
MEANWHILE = "the fan-out meanwhile"
MISSED_PHASE = f"{MISSED} events missed by each"


def fanout(bench: Bench) -> None:
    """One channel, and everybody on it."""
    plan = bench.plan
    clients = [Client(channels=["orders.>"])] * plan.clients
    who = everybody(bench)

    def paced(crowd: Crowd) -> Used:
        return drive(bench, "paced", crowd, at_a_pace(plan, crowd.contender))

    crowds = [joined(bench.crowd(each, clients, ordered=True)) for each in who]
    in_turn(bench, "paced", crowds, paced, of_deliveries)
    for crowd in crowds:
        crowd.cut()

    def flat_out(crowd: Crowd) -> Used:
        copies = {crowd.contender.subject("bench", CHANNEL): plan.clients}
        order = Order(copies=copies, seconds=plan.seconds / plan.rounds, size=plan.size)
        return drive(bench, "as fast as it goes", crowd, order)

    # What the floor does is to send each event by itself: it says nothing of how fast one can be.
    fast = [each for each in who if each.name != "floor"]
    crowds = [joined(bench.crowd(each, clients, exact=False)) for each in fast]
    in_turn(bench, "as fast as it goes", crowds, flat_out, of_deliveries)


def unicast(bench: Bench) -> None:
    """A private channel each."""
    plan = bench.plan
    users = [f"u{number}" for number in range(plan.clients)]

    def go(crowd: Crowd) -> Used:
        named = {crowd.contender.subject("bench", f"users.{user}.bench"): 1 for user in users}
        order = Order(copies=named, seconds=plan.seconds / plan.rounds, size=plan.size)
        return drive(bench, "as fast as it goes", crowd, order)

    crowds = []
    for each in everybody(bench):
        clients = [Client(user=user, channels=[f"users.{user}.bench"]) for user in users]
        crowds.append(joined(bench.crowd(each, clients, exact=False)))
    if "nats-py" in plan.against:
        crowds.append(callback(bench))
    in_turn(bench, "as fast as it goes", crowds, go, of_events)


def callback(bench: Bench) -> Crowd:
    """nats-py by itself: one subscription, which counts."""
    meter = Meter()
    work = process(floor.receive_by_callback, bench.nats.url, "floor.bench.>", meter)
    pid, pipe = bench.stack.enter_context(work)
    answer(pipe, contenders.START_SECONDS)
    bench.publish_for("nats-py", meter, bench.nats.url)
    return Crowd(Bare(name="nats-py", pids=(pid,), port=0), 1, pid, pipe, meter)


def mixed(bench: Bench) -> None:
    """Many tenants, patterns, and a fifth of the channels with four fifths of the events."""
    plan = bench.plan
    rng = random.Random(plan.seed)  # noqa: S311  a load that can be repeated
    clients = []
    wanted: dict[str, list[str]] = {}
    for number in range(plan.clients):
        tenant = f"t{number % plan.tenants}"
        area, other = rng.sample(range(AREAS), 2)
        channels = [f"area{area}.>", f"area{other}.place{rng.randrange(PLACES)}"]
        clients.append(Client(tenant=tenant, user=f"u{number}", channels=channels))
        wanted.setdefault(tenant, []).extend(channels)
    channels = [f"area{area}.place{place}" for area in range(AREAS) for place in range(PLACES)]
    rng.shuffle(channels)
    popular = len(channels) // 5
    weights = [
        4.0 / popular if at < popular else 1.0 / (len(channels) - popular) for at in range(len(channels))
    ]

    def order_of(contender: Contender) -> Order:
        return Order(
            copies={
                contender.subject(tenant, channel): sum(subjects.covers(each, channel) for each in patterns)
                for tenant, patterns in wanted.items()
                for channel in channels
            },
            weights=weights * len(wanted),
            size=plan.size,
            seed=plan.seed,
        )

    def paced(crowd: Crowd) -> Used:
        count = max(1, int(plan.rate * plan.seconds / plan.rounds))
        order = attrs.evolve(order_of(crowd.contender), rate=plan.rate, count=count)
        return drive(bench, "paced", crowd, order)

    def flat_out(crowd: Crowd) -> Used:
        order = attrs.evolve(order_of(crowd.contender), seconds=plan.seconds / plan.rounds)
        return drive(bench, "as fast as it goes", crowd, order)

    who = everybody(bench)
    crowds = [joined(bench.crowd(each, clients)) for each in who]
    in_turn(bench, "paced", crowds, paced, of_deliveries)
    in_turn(bench, "as fast as it goes", crowds, flat_out, of_deliveries)


def connect(bench: Bench) -> None:
    """Handshake, authentication and one subscription; of others the handshake alone."""
    count = bench.plan.clients
    clients = [Client(user=f"u{number}", channels=["orders.>"]) for number in range(count)]

    def go(crowd: Crowd) -> Used:
        def work() -> list[Callable[[], bool]]:
            crowd.open()
            return [lambda: crowd.meter["live"] >= count]

        used = bench.measure("connecting", crowd, work, count / 1000)
        crowd.cut()
        return used

    crowds = [bench.crowd(each, clients) for each in everybody(bench)]
    in_turn(bench, "connecting", crowds, go, partial(of_openings, count))


def idle(bench: Bench) -> None:
    """Connections that wait: memory, heartbeats, the collector."""
    plan = bench.plan
    clients = [Client(channels=["orders.>", "me.>"])] * (plan.clients + WARM)
    heartbeat = config.Limits().heartbeat_seconds
    for each in everybody(bench, limits={"heartbeat_seconds": heartbeat}):
        crowd = bench.crowd(each, clients)
        crowd.open(0, WARM)
        crowd.until_live(WARM)
        before = contenders.memory(each)

        def work(crowd: Crowd = crowd) -> list[Callable[[], bool]]:
            crowd.open(WARM)
            return [lambda: crowd.meter["live"] >= crowd.count]

        opened = bench.measure("idle", crowd, work, plan.clients / 1000)
        time.sleep(1.0)  # what is only on its way is not held
        memory = contenders.memory(each) - before
        waited = bench.measure("idle", crowd, partial(after, plan.seconds), plan.seconds)
        figures = {
            "memory_per_connection": memory / plan.clients / 1000,
            "cpu_share": waited.cpu / waited.seconds * 100,
        }
        if pause := contenders.longest_collection(each):
            figures["longest_collection"] = pause * 1e3
        bench.results.append(
            Result(
                subject=each.name, phase="idle", figures=figures, samples=[*opened.samples, *waited.samples]
            )
        )
        crowd.cut()


def resume(bench: Bench) -> None:
    """All are cut at once, miss some events, and come back with their positions."""
    plan = bench.plan
    clients = [Client(channels=["orders.>"])] * plan.clients
    contender = broker(bench)
    crowd = bench.crowd(contender, clients, ordered=True)
    alone, back = [], []
    number = 0
    everybody = plan.clients
    for _ in range(plan.rounds):
        crowd.cut()

        def fresh() -> list[Callable[[], bool]]:
            crowd.open()
            return [lambda: crowd.meter["live"] >= everybody]

        alone.append(bench.measure("connecting alone", crowd, fresh, everybody / 1000))
        copies = {contender.subject("bench", CHANNEL): plan.clients}
        order = Order(copies=copies, count=MISSED, size=plan.size, rate=MISSED_PER_SECOND)
        drive(bench, "before the cut", crowd, order)
        crowd.cut()
        published = bench.publish(contender.name, order)
        while not published.done():
            time.sleep(0.001)
        number += 2 * MISSED
        crowd.tell(Goal(number))

        def again() -> list[Callable[[], bool]]:
            crowd.open(again=True)
            return [lambda: crowd.meter["complete"] >= everybody and crowd.meter["live"] >= everybody]

        back.append(bench.measure("back with positions", crowd, again, everybody / 500))

    def figures(used: Used) -> dict[str, float]:
        return {"complete": used.seconds} | of_openings(everybody, used)

    keep(bench, MISSED_PHASE, "broker", [attrs.evolve(used, latency=used.openings) for used in back], figures)
    keep(
        bench,
        MISSED_PHASE,
        "connecting alone",
        [attrs.evolve(used, latency=used.openings) for used in alone],
        figures,
    )


def jitter(bench: Bench) -> None:
    """Each client is away for 2 s every 15 s, while events flow."""
    plan = bench.plan
    contender = broker(bench)
    crowd = joined(bench.crowd(contender, [Client(channels=["orders.>"])] * plan.clients, ordered=True))
    count = max(1, int(plan.rate * plan.seconds))
    copies = {contender.subject("bench", CHANNEL): plan.clients}
    order = Order(copies=copies, count=count, size=plan.size, rate=plan.rate)
    bounds = [plan.clients * slot // SLOTS for slot in range(SLOTS + 1)]
    groups = [pair for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
    crowd.tell(Goal(count))

    def work() -> list[Callable[[], bool]]:
        began = time.monotonic()
        cuts: list[tuple[float, int, int]] = []  # when, and whom
        for slot, (first, end) in enumerate(groups):
            at = began + CUT_EVERY_SECONDS * slot / len(groups)
            while at < began + plan.seconds:
                cuts.append((at, first, end))
                at += CUT_EVERY_SECONDS
        cuts.sort()
        away: list[tuple[float, int, int]] = []
        published = bench.publish(contender.name, order)

        def cut() -> bool:
            now = time.monotonic()
            while cuts and cuts[0][0] <= now:
                at, first, end = cuts.pop(0)
                crowd.tell(Cut(first, end))
                away.append((at + AWAY_SECONDS, first, end))
            while away and away[0][0] <= now:
                _, first, end = away.pop(0)
                crowd.open(first, end, again=True)
            return not cuts and not away

        return [cut, published.done, lambda: crowd.meter["complete"] >= crowd.count]

    used = bench.measure("away for 2 s every 15 s", crowd, work, plan.seconds)

    def figures(used: Used) -> dict[str, float]:
        return {"delivered_share": used.delivered / (count * plan.clients) * 100} | of_openings(
            int(sum(used.openings.counts)), used
        )

    keep(bench, "away for 2 s every 15 s", "broker", [attrs.evolve(used, latency=used.openings)], figures)


def history(bench: Bench) -> None:
    """What it costs to catch up, from the broker's memory and from the stream."""
    plan = bench.plan
    contender = broker(bench)
    subject = contender.subject("bench", CHANNEL)
    total = plan.events
    recent = min(RING_EVENTS, total // 2)
    witness = joined(bench.crowd(contender, [Client(channels=["orders.>"])]))
    beginning = witness.tell(Where(0))
    for count in (total - recent, recent):
        middle = witness.tell(Where(0))
        order = Order(copies={subject: 1}, count=count, size=plan.size, window=20_000)
        drive(bench, "storing", witness, order)

    def caught_up(phase: str, clients: int, start: str, events: int) -> None:
        readers = [Client(channels=["orders.>"], start=start)] * clients
        crowd = bench.crowd(contender, readers, exact=False, before=total - events)

        def work() -> list[Callable[[], bool]]:
            crowd.open()
            return [lambda: crowd.meter["delivered"] >= events * clients]

        used = bench.measure(phase, crowd, work, events * clients / 1e6)
        keep(bench, phase, "broker", [used], of_deliveries)
        crowd.cut()

    caught_up("from the ring", plan.clients, middle, recent)
    caught_up("from the stream", min(READ_CLIENTS, plan.clients), beginning, total)
    if "nats-py" in plan.against:
        consumers, each = min(READ_CLIENTS, plan.clients), min(CONSUMER_EVENTS, total)
        work = process(
            floor.read_in_order, bench.nats.url, "EVENTS", subject, consumers, each, numbered(total)
        )
        pid, pipe = bench.stack.enter_context(work)
        answer(pipe, contenders.START_SECONDS)
        bench.live.phase("ordered consumers", subject="nats-py", seconds=consumers * each / 20_000)
        began, cpu = time.monotonic(), cpu_seconds(pid)
        pipe.send("go")
        seen = answer(pipe, 600.0)
        cpu, seconds = cpu_seconds(pid) - cpu, time.monotonic() - began
        figures = {"deliveries_per_second": seen / seconds, "cpu_per_delivery": cpu / seen * 1e6}
        for phase in ("from the ring", "from the stream"):
            bench.results.append(Result(subject="nats-py", phase=phase, figures=figures))


def slow(bench: Bench) -> None:
    """A tenth of the clients reads nothing: what do the others notice?"""
    plan = bench.plan
    contender = broker(bench)
    crowd = joined(bench.crowd(contender, [Client(channels=["orders.>"])] * plan.clients, ordered=True))
    deaf = max(1, int(plan.clients * SLOW_SHARE))
    order = at_a_pace(plan, contender)
    heard = attrs.evolve(order, copies=dict.fromkeys(order.copies, plan.clients - deaf))
    calm, stalled = [], []
    for _ in range(plan.rounds):
        calm.append(drive(bench, "all read", crowd, order))
        crowd.tell(Mute(0, deaf, True))
        base = crowd.meter["delivered"]
        stalled.append(drive(bench, SLOW_PHASE, crowd, heard))
        crowd.tell(Mute(0, deaf, False))
        crowd.until_delivered(base + order.count * plan.clients)
    keep(bench, SLOW_PHASE, "broker", stalled, of_deliveries)
    keep(bench, SLOW_PHASE, "all read", calm, of_deliveries)


def requests(bench: Bench) -> None:
    """Requests to a service of a tenant: beside nats-py, and beside a fan-out."""
    plan = bench.plan
    contender = broker(bench)
    url = bench.given_nats or bench.nats.url
    subject = f"{config.Subjects().rpc}.bench.{asking.METHOD}"
    _, pipe = bench.stack.enter_context(process(asking.echo, url, subject))
    answer(pipe, contenders.START_SECONDS)
    seconds = plan.seconds / plan.rounds

    clients = [contender.dialect(Client(user=f"u{number}")) for number in range(ASKERS)]
    asker = worker(bench, contender, ASKERS, asking.run, clients)
    crowds = [asker]
    if "nats-py" in plan.against:
        beside = Bare(name="nats-py", pids=(), port=0)
        crowds.append(worker(bench, beside, 1, asking.ask_by_nats, url, subject))

    def ask(crowd: Crowd) -> Used:
        questions = asking.Questions(count=max(1, int(SINGLE_PER_SECOND * seconds)), size=plan.size)
        base = crowd.meter["delivered"]

        def work() -> list[Callable[[], bool]]:
            crowd.tell(questions)
            return [lambda: crowd.meter["delivered"] - base >= questions.count]

        return bench.measure(ONE_BY_ONE, crowd, work, seconds)

    in_turn(bench, ONE_BY_ONE, crowds, ask, of_requests)

    crowd = joined(bench.crowd(contender, [Client(channels=["orders.>"])] * plan.clients, ordered=True))
    order = at_a_pace(plan, contender)
    many = asking.Questions(
        count=max(1, int(REQUESTS_PER_SECOND * seconds)), size=plan.size, rate=REQUESTS_PER_SECOND
    )
    calm, loaded, asked = [], [], []
    for _ in range(plan.rounds):
        calm.append(drive(bench, "the fan-out alone", crowd, order))
        asker.meter.clear()
        generator = cpu_seconds(asker.pid)
        goal = asker.meter["delivered"] + many.count
        asker.tell(many)
        used = drive(bench, MANY_REQUESTS, crowd, order)
        asker.until_delivered(goal)
        while not (took := asker.meter.openings.histogram().longest):
            time.sleep(0.001)  # the last answer is counted before the time
        loaded.append(used)
        asked.append(
            attrs.evolve(
                used,
                seconds=took / 1e9,
                cpu=0.0,  # that of the fan-out is in it
                generator=cpu_seconds(asker.pid) - generator,
                delivered=many.count,
                latency=asker.meter.latencies.histogram(),
            )
        )
    keep(bench, MANY_REQUESTS, "broker", asked, of_requests)
    keep(bench, MEANWHILE, "broker", loaded, of_deliveries)
    keep(bench, MEANWHILE, "without requests", calm, of_deliveries)
