"""A scripted stream that tells times, and what a naive reader finds in it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from broker import config, subjects
from broker.eventlog.gate import FairGate
from broker.eventlog.history import History
from broker.eventlog.log import EventLog
from broker.eventlog.places import sequence_of
from broker.subjects import BROADCAST, Names
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from broker.bus.base import Page, Record
    from broker.eventlog.history import Checked

NAMES = Names()
REMEMBERED = 30  # records
BAD = b"bad"  # the body of a dead letter
Patterns: TypeAlias = "Mapping[str, tuple[str, ...]]"


@attrs.define(eq=False, kw_only=True)
class Stream(ScriptedBus):
    """`asked` has the filter of each read, `most` how many reads there were at once.

    Its replicas have not got up to `missing` of the newest records.
    """

    random: random.Random = attrs.Factory(lambda: random.Random(1))
    missing: int = 0
    times: list[tuple[datetime, int]] = attrs.Factory(list)
    asked: list[str] = attrs.Factory(list)
    reading: int = 0
    most: int = 0

    def fill(self, channels: Sequence[str], *, tenant: str = "acme", body: bytes = b"1") -> None:
        for channel in channels:
            self.put(f"events.{tenant}.{channel}", body)

    def trim(self, first: int) -> None:
        """Cuts off what is below the sequence `first`."""
        self.first = first
        self.records = [record for record in self.records if record[0] >= first]

    def remembered(self, tenant: str, after: int, upto: int) -> list[Checked]:
        """What the intake would remember: the newest, more than what a replica may not have got yet."""
        found = []
        for record in self.records[-REMEMBERED:]:
            event = check(record)
            if after < record[0] <= upto and event and NAMES.split(record[1])[0] in (tenant, BROADCAST):
                found.append(event)
        return found

    def replica(self) -> list[Record]:
        return self.records[: max(0, len(self.records) - self.random.randint(0, self.missing))]

    async def read(self, subject: str, *, after: int, limit: int) -> Page:
        self.asked.append(subject)
        self.reading += 1
        self.most = max(self.most, self.reading)
        try:
            return await super().read(subject, after=after, limit=limit)
        finally:
            self.reading -= 1

    async def last(self, subjects: Sequence[str], *, up_to: int) -> list[Record]:
        self.asked += subjects
        return await super().last(subjects, up_to=up_to)

    async def sequence_at(self, time: datetime) -> int | None:
        await trio.lowlevel.checkpoint()
        return min((sequence for at, sequence in self.times if at >= time), default=None)


def check(record: Record) -> Checked | None:
    """A dead letter is one with such a body, or a private channel for everybody."""
    tenant, channel = NAMES.split(record[1])
    dead = record[2] == BAD or (tenant == BROADCAST and channel.startswith("users."))
    return None if dead else (channel, record)


@attrs.define(eq=False)
class Feed:
    """A feed that brings nothing but what a test appends; `quiet` is how far it has come besides."""

    quiet: int | None = None

    def quiet_at(self) -> int | None:
        return self.quiet

    def deleted(self, after: int, upto: int, admits: Callable[[str], bool]) -> bool:
        raise AssertionError("nobody reads for a client here")


def make_log(
    bus: Stream,
    *,
    bounds: config.Ring | None = None,
    feed: Feed | None = None,
    at_once: int = 8,
    remembered: Callable[[int, int], Iterable[Checked]] = lambda *_: (),
    memory: Callable[[], int | None] = lambda: None,
) -> EventLog:
    """A tenant's log from the beginning of the stream on, whose history is read from the scripted one."""
    log = EventLog(
        bounds=bounds or config.Ring(),
        incarnation="inc0",
        position=0,
        clock=trio.current_time,
        feed=feed or Feed(),
    )
    log.history = History(
        tenant="acme",
        bus=bus,
        names=NAMES,
        incarnation="inc0",
        gate=FairGate(at_once),
        look=bus.state,
        check=lambda record: None if record[0] in bus.deleted else check(record),
        remembered=lambda after, upto: [
            each for each in remembered(after, upto) if each[1][0] not in bus.deleted
        ],
        encode=lambda checked: log.encode(checked, base=0),
        clock=trio.current_time,
        memory=memory,
        below=lambda: sequence_of(log.ring.floor),
    )
    return log


def matching(bus: ScriptedBus, patterns: Patterns, *, tenant: str = "acme") -> list[int]:
    """The sequences of all events that the patterns match, less what is denied, one by one."""
    found = []
    for record in bus.records:
        event = check(record)
        if event and NAMES.split(record[1])[0] in (tenant, BROADCAST):
            for pattern, deny in patterns.items():
                if subjects.covers(pattern, event[0]) and not any(subjects.covers(d, event[0]) for d in deny):
                    found.append(record[0])
                    break
    return found
