"""The figures that a scrape reads: what the broker holds and has done so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.metrics.meters import Meters, Traffic


@attrs.frozen(kw_only=True)
class StreamUsage:
    """What the stream holds; `max_bytes` is None where only the disk limits it.

    `lag` is the number of sequences that this broker had not read then.
    """

    messages: int
    bytes: int
    first: int
    last: int
    max_bytes: int | None
    lag: int


@attrs.frozen(kw_only=True)
class Snapshots:
    """Bytes held for clients that read snapshots, and counts of snapshots by source."""

    bytes: int
    limit: int
    by: Mapping[str, int]


@attrs.frozen(kw_only=True)
class Documents:
    """Documents in memory for those who follow them: how many, their bytes, and the opens of connections.

    Of what is followed by several patterns each counts.
    """

    held: int = 0
    bytes: int = 0
    opens: int = 0


@attrs.frozen(kw_only=True)
class Presence:
    """Members whose connections this broker has, those who watch, and what is known of other brokers."""

    members: int = 0
    watchers: int = 0
    brokers: int = 0
    judged: int = 0


@attrs.frozen(kw_only=True)
class Tasks:
    """Figures of the event loop, see `trio.lowlevel.current_statistics`."""

    living: int
    runnable: int


@attrs.frozen(kw_only=True)
class KeySet:
    """The state of one key set: why its last fetch failed, and the age of its keys in seconds.

    `unknown` counts tokens that named a key that it does not have.
    """

    keys: int
    fault: str | None
    age: float | None
    unknown: int


@attrs.frozen(kw_only=True)
class Statistics:
    """All figures. Mappings by tenant have a bounded set of names, see `tenants`."""

    meters: Meters
    ready: bool
    connected: bool
    draining: bool
    connections: Mapping[tuple[str, str], int]  # by tenant and transport
    connections_limit: int
    traffic: Mapping[str, Traffic]
    behind: Mapping[str, int]
    lag_sum: Mapping[str, int]
    lag_max: Mapping[str, int]
    tenants: int
    tenant_restarts: int
    filters: int
    paced: int
    documents: Documents
    presence: Presence
    ring_events: int
    ring_bytes: int
    reads_waiting: int
    snapshots: Snapshots
    limits: Mapping[tuple[str, str], int]  # by scope and resource
    dead_letters: Mapping[str, int]
    audit_dropped: int
    bans: int
    canary_age: float | None  # seconds
    stream: StreamUsage | None  # None: not known at present
    shares: Mapping[str, int]  # messages in the stream, by tenant
    tasks: Tasks
