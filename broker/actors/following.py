"""Following events through the broker while somebody looks: who they were meant for, and who got them.

It looks at what the fan-out of a tick has left behind, once, after the tick; so there is nothing to pay
while nobody traces, and nothing that a delivery does for it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs
import structlog

from broker import subjects
from broker.errors import Conflict
from broker.signals import Signal
from broker.wire import events

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from broker.eventlog.history import Checked
    from broker.eventlog.log import EventLog
    from broker.eventlog.selection import Selection
    from broker.eventlog.tick import Tick
    from broker.features.port import Letter
    from broker.flow.flow import Flow

log = structlog.get_logger()

FOLLOWERS = 8  # at a time: each looks at every event of its tenant
HELD = 1000  # entries that wait for whoever follows; what comes beyond them is counted
FOLLOWED_PER_TICK = 16  # events, and so many connections of them: a hundredth of a second of this loop
CONNECTIONS_PER_TICK = 10_000
SHOWN_CONNECTIONS = 50  # of one event, those that did not get it first

Outcome: TypeAlias = Literal["written", "behind", "catching_up", "dropped", "closed", "gone"]
Fate: TypeAlias = "tuple[Outcome, Selection]"  # and by which selection it was meant for it


@attrs.frozen(kw_only=True)
class Audience:
    """A pattern that matched, and how many connections of the live flow have it.

    `denied`: the channel is left out of it by the token of those who have it.
    """

    pattern: str
    connections: int
    denied: bool


@attrs.frozen(kw_only=True)
class Delivery:
    """What became of an event at one connection.

    written: given to its link. behind: it reads on by itself, `events_behind` events back where that is
    known, and will get this one if its policy `lag` lets it. catching_up: it is still in the past.
    dropped: left out by its policy. closed: too slow, by its policy. gone: the link was lost.
    """

    connection: str
    user: str | None
    outcome: Outcome
    pattern: str
    lag: str
    events_behind: int | None = None


@attrs.frozen(kw_only=True)
class Traced:
    """An event, and what became of it. `position` is None for a live one; `broadcast`: for every tenant.

    Lines of another `kind`: `tracing` (the first), `dead_letter` (with `reason` and `detail`), `missed` (with
    `count`: more than could be followed) and `end` (with `reason`).
    """

    kind: Literal["event"] = "event"
    time: float
    channel: str
    position: str | None
    bytes: int
    form: events.Form
    broadcast: bool
    audiences: list[Audience]
    outcomes: dict[str, int]  # connections by what became of it there
    connections: list[Delivery]  # at most `SHOWN_CONNECTIONS`


@attrs.frozen(kw_only=True)
class Refused:
    """A message that is no event, and why. `position` is None for a live one."""

    kind: Literal["dead_letter"] = "dead_letter"
    time: float
    channel: str
    position: str | None
    bytes: int
    reason: str
    detail: str


@attrs.frozen(kw_only=True)
class Missed:
    """So many entries came faster than they could be followed."""

    kind: Literal["missed"] = "missed"
    count: int


Entry: TypeAlias = Traced | Refused | Missed


@attrs.define(eq=False)
class Follower:
    """Somebody who follows the channels of a tenant that lie within a pattern."""

    tenant: str
    pattern: str
    waiting: deque[Entry] = attrs.Factory(deque)
    missed: int = 0
    arrived: Signal = attrs.Factory(Signal)

    def wants(self, tenant: str, channel: str) -> bool:
        return tenant in (self.tenant, subjects.BROADCAST) and subjects.covers(self.pattern, channel)

    def put(self, entry: Entry) -> None:
        if len(self.waiting) >= HELD:
            self.missed += 1
        else:
            self.waiting.append(entry)
        self.arrived.set()

    async def take(self) -> list[Entry]:
        """What there is, at least one entry."""
        await self.arrived.wait()
        taken = list(self.waiting)
        self.waiting.clear()
        if self.missed:
            taken.append(Missed(count=self.missed))
            self.missed = 0
        return taken


class Followers(list[Follower]):
    """All who follow something. Empty, nothing of this file runs."""

    @contextmanager
    def follow(self, tenant: str, pattern: str) -> Iterator[Follower]:
        """Raises `Conflict` while there are too many."""
        if len(self) >= FOLLOWERS:
            raise Conflict(f"{FOLLOWERS} traces are running; end one before the next")
        follower = Follower(tenant, pattern)
        self.append(follower)
        try:
            yield follower
        finally:
            self.remove(follower)

    def need(self, tenant: str, *, live: bool) -> bool:
        """Whether somebody follows the tenant (every tenant's: broadcasts), in its live room if so said."""
        return any(
            tenant in (follower.tenant, subjects.BROADCAST)
            and (not live or subjects.is_live(follower.pattern))
            for follower in self
        )

    def crashed(self, error: Exception) -> None:
        """To look at a tick has failed; nobody but those who follow is concerned."""
        log.error("trace_crashed", exc_info=error)
        for follower in self:
            follower.missed += 1
            follower.arrived.set()

    def refused(self, letter: Letter) -> None:
        """A message has turned out to be no event."""
        sequence, _, body, _ = letter.record
        entry = Refused(
            time=time.time(),
            channel=letter.channel,
            position=f"{letter.incarnation}-{sequence}" if sequence else None,
            bytes=len(body),
            reason=letter.reason,
            detail=letter.detail,
        )
        for follower in self:
            if follower.wants(letter.tenant, letter.channel):
                follower.put(entry)

    def sent(
        self,
        tenant: str,
        log: EventLog,
        flows: Collection[Flow],
        batch: Sequence[Checked],
        tick: Tick,
        slow: Collection[Flow],
    ) -> None:
        """A tick of the tenant is out. For `slow` more waits than a policy allows: they are told next."""
        looked = connections = 0
        catching = [flow for flow in flows if flow.beside]
        slow = frozenset(slow)  # each connection is looked up there
        for index, checked in enumerate(batch):
            wanted = [follower for follower in self if follower.wants(tenant, checked[0])]
            if wanted and looked < FOLLOWED_PER_TICK and connections < CONNECTIONS_PER_TICK:
                looked += 1
                entry = look(log, tick, index, checked, slow, catching)
                connections += len(entry.audiences) + sum(entry.outcomes.values())
                for follower in wanted:
                    follower.put(entry)
            else:
                for follower in wanted:
                    follower.missed += 1
                    follower.arrived.set()


def look(
    log: EventLog,
    tick: Tick,
    index: int,
    checked: Checked,
    slow: Collection[Flow],
    catching: Sequence[Flow],
) -> Traced:
    """Return what became of one event of a tick."""
    channel, (sequence, subject, body, headers) = checked
    matched: list[Selection] = [each for each, mask in tick.masks.items() if mask >> index & 1]
    audiences = [
        Audience(pattern=each.pattern, connections=len(each.members), denied=False) for each in matched
    ]
    audiences += [
        Audience(pattern=each.pattern, connections=len(each.members), denied=True)
        for each in log.selections.values()
        if each.deny and not each.allows(channel) and subjects.covers(each.pattern, channel)
    ]
    fates: dict[Flow, Fate] = {}
    for selection in matched:
        for flow in selection.members:
            if flow not in fates:
                fates[flow] = fate(flow, selection, tick.places[index], slow)
    for flow in catching:
        for reader in flow.beside:
            for selection in matched:
                if selection in reader.selections and flow not in fates:
                    fates[flow] = "catching_up", selection
    # There may be as many as connections, of which few are shown.
    first = (each for each in fates.items() if each[1][0] != "written")
    rest = (each for each in fates.items() if each[1][0] == "written")
    return Traced(
        time=time.time(),
        channel=channel,
        position=log.text(sequence) if sequence else None,
        bytes=len(body),
        form=events.form(body, headers),
        broadcast=subject.split(".", 2)[1] == subjects.BROADCAST,
        audiences=audiences,
        outcomes=Counter(outcome for outcome, _ in fates.values()),
        connections=[
            delivery(log, flow, outcome, selection)
            for flow, (outcome, selection) in islice(chain(first, rest), SHOWN_CONNECTIONS)
        ],
    )


def fate(flow: Flow, selection: Selection, place: int, slow: Collection[Flow]) -> Fate:
    """Return what became of an event at a connection in whose flow it is."""
    main = flow.main
    if flow.client.lost:
        return "gone", selection
    if main is None:
        return "written", selection
    if flow in slow and flow.options is not None and "close" in flow.options.policies.values():
        return "closed", selection
    if place <= (main.unstored if selection.unstored else main.place):
        return "written", selection
    if flow in slow and not selection.unstored and flow.policy(selection) == "drop":
        return "dropped", selection
    return "behind", selection


def delivery(log: EventLog, flow: Flow, outcome: Outcome, selection: Selection) -> Delivery:
    """Return a connection as it is shown."""
    who, main, behind = flow.client.who(), flow.main, None
    if outcome == "behind" and main is not None:
        behind = log.events_after(main.unstored if selection.unstored else main.place)
    return Delivery(
        connection=who["connection"],
        user=who["user"],
        outcome=outcome,
        pattern=selection.pattern,
        lag=flow.policy(selection),
        events_behind=behind,
    )
