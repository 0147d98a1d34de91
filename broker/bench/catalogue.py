"""The scenarios that there are: their defaults, whom they can be compared with, and the figures to reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from broker.bench import documents, pages, scenarios
from broker.bench.results import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from broker.bench.harness import Bench


@attrs.frozen(kw_only=True)
class Scenario:
    """`defaults` are those of the options; `beside` is whom the broker can be compared with."""

    run: Callable[[Bench], None]
    about: str
    defaults: Mapping[str, Any]
    beside: Sequence[str] = ()
    targets: Sequence[Target] = ()


LOAD = {
    "brokers": 1,
    "events": scenarios.HISTORY_EVENTS,
    "rate": 100.0,
    "size": 128,
    "seconds": 15.0,
    "rounds": 3,
    "tenants": 1,
}
SCENARIOS: dict[str, Scenario] = {
    "fanout": Scenario(
        run=scenarios.fanout,
        about="one channel to all clients, paced and as fast as it goes",
        defaults=LOAD | {"clients": 1000},
        beside=("floor", "nats-ws"),
        targets=(
            Target(phase="paced", figure="cpu_per_delivery", bound=1.25, beside="floor"),
            Target(phase="paced", figure="cpu_per_delivery", bound=0.75, beside="nats-ws"),
            Target(phase="paced", figure="p50", bound=1.0, beside="nats-ws"),
            Target(phase="paced", figure="p99", bound=1.0, beside="nats-ws"),
            Target(phase="paced", figure="p99", bound=1.5, beside="floor"),
            Target(phase="as fast as it goes", figure="deliveries_per_second", bound=10.0, beside="nats-ws"),
        ),
    ),
    "unicast": Scenario(
        run=scenarios.unicast,
        about="a private channel for each client, as fast as it goes",
        defaults=LOAD | {"clients": 1000},
        beside=("nats-py", "nats-ws"),
        targets=(
            Target(phase="as fast as it goes", figure="events_per_second", bound=0.3, beside="nats-py"),
        ),
    ),
    "mixed": Scenario(
        run=scenarios.mixed,
        about="many tenants, patterns, 80 % of the events on 20 % of the channels",
        defaults=LOAD | {"clients": 1000, "tenants": 20, "rate": 1000.0},
        beside=("nats-ws",),
    ),
    "connect": Scenario(
        run=scenarios.connect,
        about="connections, authenticated and subscribed, per second",
        defaults=LOAD | {"clients": 2000},
        beside=("trio-websocket", "nats-ws"),
        targets=(
            Target(phase="connecting", figure="connections_per_second", bound=1.1, beside="trio-websocket"),
        ),
    ),
    "idle": Scenario(
        run=scenarios.idle,
        about="memory and CPU of connections that wait",
        defaults=LOAD | {"clients": 10_000, "seconds": 30.0},
        beside=("nats-ws",),
        targets=(
            Target(phase="idle", figure="memory_per_connection", bound=8.0),
            Target(phase="idle", figure="cpu_share", bound=4.0),
            Target(phase="idle", figure="longest_collection", bound=50.0),
        ),
    ),
    "resume": Scenario(
        run=scenarios.resume,
        about=f"all cut at once, back with positions, {scenarios.MISSED} events missed by each",
        defaults=LOAD | {"clients": 5000},
        targets=(
            Target(
                phase=scenarios.MISSED_PHASE,
                figure="complete",
                bound=1.5,
                beside="connecting alone",
            ),
        ),
    ),
    "jitter": Scenario(
        run=scenarios.jitter,
        about="each client away for 2 s every 15 s while events flow",
        defaults=LOAD | {"clients": 500, "rate": 20.0, "seconds": 45.0},
        targets=(Target(phase="away for 2 s every 15 s", figure="delivered_share", bound=100.0),),
    ),
    "history": Scenario(
        run=scenarios.history,
        about="catching up many stored events, from the broker's memory and from the stream",
        defaults=LOAD | {"clients": 200},
        beside=("nats-py",),
        targets=(
            Target(phase="from the stream", figure="cpu_per_delivery", bound=0.25, beside="nats-py"),
            Target(phase="from the ring", figure="cpu_per_delivery", bound=0.05, beside="nats-py"),
        ),
    ),
    "pages": Scenario(
        run=pages.pages,
        about="pages of history from memory and from the stream, and publishing while many read",
        defaults=LOAD | {"clients": pages.READERS, "events": 200_000, "rate": 200.0},
        beside=("nats-py",),
        targets=(
            Target(phase=pages.MEMORY, figure="p50", bound=1.0),
            Target(phase=pages.DENSE, figure="p50", bound=10.0),
            Target(phase=pages.SPARSE, figure="p50", bound=10.0),
            Target(phase=pages.KNOWN, figure="p50", bound=10.0),
            Target(phase=pages.FAR, figure="p50", bound=100.0),
            Target(phase=pages.RARELY, figure="p50", bound=100.0),
            Target(phase=pages.ACKS, figure="p99", bound=10.0),
        ),
    ),
    "slow": Scenario(
        run=scenarios.slow,
        about="a tenth of the clients does not read",
        defaults=LOAD | {"clients": 1000, "rate": 20.0},
        targets=(Target(phase=scenarios.SLOW_PHASE, figure="p99", bound=1.2, beside="all read"),),
    ),
    "requests": Scenario(
        run=scenarios.requests,
        about="requests to a service, one after the other and many beside a fan-out",
        defaults=LOAD | {"clients": 1000, "rate": 20.0},
        beside=("nats-py",),
        targets=(
            Target(phase=scenarios.ONE_BY_ONE, figure="p50", bound=1.0, beside="nats-py", above=True),
            Target(phase=scenarios.MANY_REQUESTS, figure="requests_per_second", bound=5000),
            Target(phase=scenarios.MEANWHILE, figure="p99", bound=1.2, beside="without requests"),
        ),
    ),
    "documents": Scenario(
        run=documents.documents,
        about="documents: one that many change, many that all watch, a large one, and coming back",
        defaults=LOAD | {"clients": 1000, "brokers": 2},
        targets=(
            Target(phase=documents.EDITING, figure="changes_per_second", bound=1000),
            Target(phase=documents.EDITING, figure="p99", bound=50),
            Target(phase=documents.WATCHING, figure="cpu_per_delivery", bound=1.25, beside=documents.EVENTS),
            Target(phase=documents.FIELD, figure="frame_bytes", bound=300),
            Target(phase=documents.BACK, figure="documents", bound=1.0, beside=documents.CHANGED_MEANWHILE),
        ),
    ),
}
