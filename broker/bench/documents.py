"""The scenario `documents`: many change one, many watch, little changes of a large one, and coming back."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from broker import config
from broker.bench import editing
from broker.bench.contenders import MANY, Client
from broker.bench.editing import Peer
from broker.bench.phases import CHANNEL, broker, drive, joined, keep, of_deliveries, of_flow, worker
from broker.bench.publisher import Order, connect
from broker.bench.results import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from socket import socket

    from broker.bench.contenders import BrokerProcess
    from broker.bench.harness import Bench, Used

EDITORS = 20
WATCHED = 200  # documents in turn, so that no change waits for another one of the same
LARGE, FIELDS = 50_000, 100  # bytes of a document, and its members
SMALL_CHANGES = 10
MEMBERS, CHANGED, CHANGES = 900, 20, 100  # documents, of which some change so often each
EDITING = f"{EDITORS} change one document"
WATCHING = "changes watched by all"
EVENTS = "the same bytes as events"
FIELD = f"a field of {LARGE // 1000} KB"
BACK = "back after an hour"
CHANGED_MEANWHILE = "changed meanwhile"


def documents(bench: Bench) -> None:
    """Documents changed by clients and by services, and what it takes to follow them."""
    limits = {"changes_per_second": MANY, "changes_burst": MANY, "document_set_bytes": "1GiB"}
    state = {"documents": [{"channel": ">"}], "max_bytes": "1GiB"}
    contender = broker(bench, limits=limits, state=state)
    edit(bench, contender)
    watch(bench, contender)
    with connect(bench.given_nats or bench.nats.url) as nats:
        change_a_field(bench, contender, nats)
        come_back(bench, contender, nats)


def peer(bench: Bench, contender: BrokerProcess) -> Peer:
    made = Peer.connect(contender.dialect(Client()))
    bench.stack.callback(made.link.close)
    return made


def subject(channel: str) -> str:
    return f"{config.Subjects().state}.bench.{channel}"


def write(nats: socket, channel: str, value: Mapping[str, Any]) -> None:
    """Write a document as a service does."""
    body = msgspec.json.encode(value)
    nats.sendall(b"PUB %b %d\r\n%b\r\n" % (subject(channel).encode(), len(body), body))


def edit(bench: Bench, contender: BrokerProcess) -> None:
    clients = [contender.dialect(Client(user=f"u{number}")) for number in range(EDITORS)]
    first = peer(bench, contender)
    first.open("bench.edited")
    first.say("state.change", {"id": "first-1", "channel": "bench.edited", "patch": {"n": 0}, "was": None})
    first.until("state.changed")
    crowd = worker(bench, contender, EDITORS, editing.run, clients, "bench.edited")
    seconds = bench.plan.seconds / bench.plan.rounds

    def go() -> Used:
        def work() -> list[Callable[[], bool]]:
            crowd.tell(editing.Edit("bench.edited", seconds))
            return [lambda: crowd.meter.openings.histogram().longest > 0]

        return bench.measure(EDITING, crowd, work, seconds)

    def figures(used: Used) -> dict[str, float]:
        return of_flow(used, rate="changes_per_second", cost="cpu_per_change")

    keep(bench, EDITING, "broker", [go() for _ in range(bench.plan.rounds)], figures)


def watch(bench: Bench, contender: BrokerProcess) -> None:
    """The same clients' number, pace and bytes: once as documents, once as events."""
    plan = bench.plan
    watchers = bench.crowd(contender, [Client(channels=["watched.*"], documents=True)] * plan.clients)
    followers = bench.crowd(contender, [Client(channels=["orders.>"])] * plan.clients)
    count = max(1, int(plan.rate * plan.seconds / plan.rounds))
    named = {subject(f"watched.{number}"): plan.clients for number in range(WATCHED)}
    changes = Order(copies=named, count=count, size=plan.size, rate=plan.rate)
    copies = {contender.subject("bench", CHANNEL): plan.clients}
    more = difference(bench, contender, changes)
    events = attrs.evolve(changes, copies=copies, size=plan.size + more)
    joined(watchers)
    joined(followers)
    watched, followed = [], []
    for _ in range(plan.rounds):
        watched.append(drive(bench, WATCHING, watchers, changes))
        followed.append(drive(bench, EVENTS, followers, events))
    keep(bench, WATCHING, "broker", watched, of_deliveries)
    keep(bench, WATCHING, EVENTS, followed, of_deliveries)
    watchers.cut()
    followers.cut()


def difference(bench: Bench, contender: BrokerProcess, changes: Order) -> int:
    """Return how many bytes more the frame of a document has than that of an event of the same size."""
    one = peer(bench, contender)
    one.open("watched.*")
    one.say("subscribe", {"channel": CHANNEL})
    one.until("subscribed")
    sizes = []
    for kind, to in (("state", changes.subjects[0]), ("event", contender.subject("bench", CHANNEL))):
        published = bench.publish(contender.name, Order(copies={to: 1}, count=1, size=changes.size))
        sizes.append(one.until(kind)[-1][0])
        while not published.done():
            time.sleep(0.001)
    return sizes[0] - sizes[1]


def change_a_field(bench: Bench, contender: BrokerProcess, nats: socket) -> None:
    """What a change of one member of a large document is on the wire."""
    value = {f"field{number}": "x" * (LARGE // FIELDS - 12) for number in range(FIELDS)}
    one = peer(bench, contender)
    write(nats, "bench.large", value)
    one.open("bench.large")
    write(nats, "bench.large", value := value | {"field0": "first"})
    one.until("state")
    sizes = []
    for number in range(SMALL_CHANGES):
        write(nats, "bench.large", value := value | {f"field{number}": f"changed {number}"})
        sizes.append(one.until("state")[-1][0])
    bench.results.append(Result(subject="broker", phase=FIELD, figures={"frame_bytes": max(sizes)}))


def come_back(bench: Bench, contender: BrokerProcess, nats: socket) -> None:
    """Of many documents a few have changed often while a client was away."""
    rng = random.Random(bench.plan.seed)  # noqa: S311  a load that can be repeated
    value = {"text": "x" * bench.plan.size}
    for number in range(MEMBERS):
        write(nats, f"board.{number}", value)
    one = up_to_date(bench, contender, nats, "made")
    everything = one.open("board.*")
    position = one.position
    changed = rng.sample(range(MEMBERS), CHANGED)
    again = [number for number in changed for _ in range(CHANGES)]
    rng.shuffle(again)
    for at, number in enumerate(again):
        write(nats, f"board.{number}", value | {"n": at})
    came = up_to_date(bench, contender, nats, "changed").open("board.*", position)
    for name, found in (("broker", came), ("all of them", everything)):
        figures = {"documents": len(found), "frame_bytes": sum(size for size, _ in found)}
        bench.results.append(Result(subject=name, phase=BACK, figures=figures))
    bench.results.append(Result(subject=CHANGED_MEANWHILE, phase=BACK, figures={"documents": CHANGED}))


def up_to_date(bench: Bench, contender: BrokerProcess, nats: socket, mark: str) -> Peer:
    """Return a client of a broker that has read all that was written before."""
    write(nats, "bench.mark", {"mark": mark})
    one = peer(bench, contender)
    found = one.open("bench.mark")
    while mark.encode() not in msgspec.json.encode([each for _, each in found]):
        found = one.until("state")
    return one
