"""The way from NATS to the tenants: address, check, and a memory of the newest events.

With this memory a new tenant can serve a client that was away for a moment without reading the stream, and
can rely on the stream for anything older: a replica can lag behind the feed by some seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import attrs

from broker import subjects
from broker.errors import InvalidChannel
from broker.eventlog.gone import Gone
from broker.eventlog.index import Index
from broker.features.port import Letter
from broker.parts import Part
from broker.wire import events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from broker.bus.base import Record
    from broker.config import Config
    from broker.eventlog.history import Checked
    from broker.ranges import Ranges

KEPT_SECONDS = 10.0
KEPT_BYTES = 32 * 1024 * 1024
OVERHEAD = 300  # bytes of a remembered record besides its body
KEPT_ADDRESSES = 65536


@attrs.frozen
class Address:
    """The tenant and channel of a subject; `fault` if clients cannot see it."""

    tenant: str
    channel: str
    fault: str | None = None


@attrs.define(eq=False)
class Intake(Part):
    """Checks records and remembers the newest events of all tenants."""

    names: subjects.Names
    event_bytes: int
    rejected: Callable[[Letter], None]  # is called with each message that is not an event
    incarnation: str = ""
    gone: Gone = attrs.Factory(Gone)
    addresses: dict[str, Address] = attrs.Factory(dict)
    recent: list[tuple[float, str, Checked]] = attrs.Factory(list)
    sequences: list[int] = attrs.Factory(list)  # of the events in `recent`
    start: int = 0  # entries before it, in both lists, are forgotten
    recent_bytes: int = 0
    index: Index = attrs.Factory(Index)  # of the same events, and of many before them
    floor: int = 0  # the position before `recent`
    head: int = 0  # how far the stream has been read

    def settings_changed(self, config: Config) -> None:
        self.event_bytes = config.limits.event_bytes

    def address(self, subject: str) -> Address:
        found = self.addresses.get(subject)
        if found is None:
            found = parse(self.names, subject)
            if found.fault is None:
                if len(self.addresses) >= KEPT_ADDRESSES:
                    self.addresses.clear()
                self.addresses[subject] = found
        return found

    def check(self, record: Record) -> Checked | None:
        """Return a record as an event of its channel; None for a dead letter or a deleted message."""
        if self.gone.has(record[0]):
            return None  # a lagging replica still has it
        address = self.address(record[1])
        return (address.channel, record) if self.admit(address, record) else None

    def admit(self, address: Address, record: Record) -> bool:
        if address.fault:
            reason, detail = "invalid_channel", address.fault
        elif fault := events.fault(address.tenant, record[2], self.event_bytes):
            reason, detail = fault.reason, fault.detail
        else:
            return True
        self.rejected(
            Letter(
                record=record,
                tenant=address.tenant,
                channel=address.channel,
                incarnation=self.incarnation,
                reason=reason,
                detail=detail,
            )
        )
        return False

    def remember(self, now: float, tenant: str, checked: Checked, stored_at: int) -> None:
        """Take the next event, which NATS stored at `stored_at` (ns since 1970)."""
        self.index.add(checked[1][0], checked[1][1], stored_at)
        self.recent.append((now, tenant, checked))
        self.sequences.append(checked[1][0])
        self.recent_bytes += OVERHEAD + len(checked[1][2])

    def forget(self, *, before: float) -> None:
        """Drop events that arrived before a time, and the oldest while there are too many."""
        recent = self.recent
        while self.start < len(recent):
            at, _, (_, record) = recent[self.start]
            if at >= before and self.recent_bytes <= KEPT_BYTES:
                break
            self.start += 1
            self.recent_bytes -= OVERHEAD + len(record[2])
            self.floor = record[0]
        if self.start > len(recent) // 2:
            del recent[: self.start], self.sequences[: self.start]
            self.start = 0

    def drop(self, deleted: Ranges) -> None:
        """Drop events that were deleted."""
        if not deleted.meets(self.floor, self.head):
            return
        kept = [each for each in self.recent[self.start :] if each[2][1][0] not in deleted]
        self.recent[:], self.start = kept, 0
        self.sequences[:] = [each[2][1][0] for each in kept]
        self.recent_bytes = sum(OVERHEAD + len(each[2][1][2]) for each in kept)

    def begin(self, incarnation: str, floor: int) -> None:
        """Forget everything: the feed continues after `floor`, perhaps in another stream."""
        if incarnation != self.incarnation:
            self.gone = Gone(incarnation=incarnation)
        self.incarnation = incarnation
        self.recent.clear()
        self.sequences.clear()
        self.start = self.recent_bytes = 0
        self.head = floor
        self.begin_at(floor)

    def begin_at(self, floor: int) -> None:
        """Note that the feed, of which nothing has been remembered yet, continues after `floor`."""
        self.floor, self.index = floor, Index(floor)

    def recent_of(self, tenant: str) -> tuple[int, Iterable[Checked]]:
        """Return the position before the memory, and the tenant's events in it, including broadcasts."""
        audience = (tenant, subjects.BROADCAST)
        return self.floor, [checked for _, of, checked in self.recent[self.start :] if of in audience]

    def between(self, tenant: str, after: int, upto: int) -> list[Checked]:
        """Return the remembered events that the tenant may see after one position up to another."""
        if upto <= self.floor:
            return []
        audience = (tenant, subjects.BROADCAST)
        first = bisect_right(self.sequences, after, self.start)
        end = bisect_right(self.sequences, upto, first)
        return [checked for _, of, checked in self.recent[first:end] if of in audience]


def parse(names: subjects.Names, subject: str) -> Address:
    tenant = channel = ""
    try:
        tenant, channel = names.split(subject)
        if tenant != subjects.BROADCAST and not subjects.is_tenant(tenant):
            raise InvalidChannel(f"{subjects.shown(tenant)}: not a tenant name")
        subjects.parse_channel(channel)
        if subjects.is_live(channel) != subject.startswith(names.live + "."):
            raise InvalidChannel(f"{channel}: live channels are published under {names.live}.<tenant>.")
        if tenant == subjects.BROADCAST and f".{channel}".startswith((".users.", ".live.users.")):
            raise InvalidChannel(f"{channel}: private channels are never broadcast")
    except InvalidChannel as error:
        return Address(tenant, channel, error.message)
    return Address(tenant, channel)
