"""The statistics of a scrape, collected from the actors, by tenant up to a limit."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import trio

from broker import subjects
from broker.metrics.meters import TRANSPORTS
from broker.metrics.statistics import Documents, Presence, Statistics, Tasks
from broker.metrics.tenants import NONE, OTHER, fold, largest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from broker.actors.budgets import Budgets
    from broker.actors.connection import Connection
    from broker.actors.supervisor import Supervisor

OURS = (subjects.BROKER, subjects.BROADCAST)  # in the stream, but not tenants


def statistics(supervisor: Supervisor) -> Statistics:
    """Return the current statistics, and settle what tenants have added to their traffic."""
    tenants, services, observer = supervisor.tenants, supervisor.services, supervisor.observer
    most = supervisor.config.metrics.tenants
    taken = {name: tenant.statistics() for name, tenant in tenants.running.items()}
    named = largest({name: each.connections for name, each in taken.items()}, most)
    loop = trio.lowlevel.current_statistics()
    return Statistics(
        meters=supervisor.meters,
        ready=supervisor.not_ready() is None,
        connected=supervisor.connected,
        draining=supervisor.draining,
        connections=by_tenant(supervisor.connections, named),
        connections_limit=supervisor.config.limits.connections,
        traffic=tenants.ledger.settle({name: each.traffic for name, each in tenants.running.items()}, named),
        behind=fold({name: each.behind for name, each in taken.items()}, named),
        lag_sum=fold({name: each.lag_sum for name, each in taken.items()}, named),
        lag_max={
            OTHER: max((each.lag_max for name, each in taken.items() if name not in named), default=0),
            **{name: taken[name].lag_max for name in named},
        },
        tenants=len(taken),
        tenant_restarts=tenants.restarts + sum(each.restarts for each in taken.values()),
        filters=sum(each.filters for each in taken.values()),
        paced=sum(each.held for each in taken.values()),
        documents=documents(supervisor),
        presence=supervisor.presence.statistics() if supervisor.presence is not None else Presence(),
        ring_events=sum(each.ring_events for each in taken.values()),
        ring_bytes=sum(each.ring_bytes for each in taken.values()),
        reads_waiting=tenants.gate.waits(),
        snapshots=tenants.holdings.statistics(),
        limits=limits_hit(services.budgets),
        dead_letters=dict(supervisor.letters.counts),
        audit_dropped=supervisor.audit.dropped,
        bans=len(supervisor.control.bans),
        canary_age=supervisor.canary.age(),
        stream=observer.stream,
        shares=shares(observer.shares, most),
        tasks=Tasks(living=loop.tasks_living, runnable=loop.tasks_runnable),
    )


def documents(supervisor: Supervisor) -> Documents:
    """Return what is held of documents."""
    held = () if supervisor.reading is None else tuple(supervisor.reading.view.held())
    return Documents(
        held=sum(each.rows.count for each in held),
        bytes=sum(each.rows.size for each in held),
        opens=sum(len(each.watches) for each in held),
    )


def limits_hit(budgets: Budgets) -> Mapping[tuple[str, str], int]:
    """Return the hits by scope and resource; a configured limit without hits is listed with 0."""
    configured = {
        (scope, resource): 0
        for scope, bounds in budgets.bounds.items()
        for resource in (*bounds.held, *bounds.rates)
    }
    return configured | budgets.hits


def by_tenant(connections: Collection[Connection], named: Collection[str]) -> Mapping[tuple[str, str], int]:
    """Return the number of connections by tenant and transport."""
    counts: Counter[tuple[str, str]] = Counter()
    for connection in connections:
        principal = connection.session.principal
        tenant = principal.tenant if principal else NONE
        label = tenant if tenant in named or tenant == NONE else OTHER
        counts[label, connection.transport.name] += 1
    for transport in TRANSPORTS:
        counts.setdefault((OTHER, transport), 0)
    return counts


def shares(found: Mapping[str, int], most: int) -> Mapping[str, int]:
    """Return the messages of the largest tenants.

    Publishers can make up names, so invalid ones are not shown.
    """
    real = {name: count for name, count in found.items() if subjects.is_tenant(name) or name in OURS}
    return fold(found, largest(real, most))
