"""Traces for operators: for whom an event was meant, and who received it.

The trace inspects the result of a tick's fan-out once, after the tick. So it costs nothing while nobody
traces, and a delivery does no work for it.
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

FOLLOWERS = 8  # at a time: each inspects every event of its tenant
HELD = 1000  # entries that wait for a follower; any more are only counted
FOLLOWED_PER_TICK = 16  # events and their connections per tick: 10 ms of the event loop
CONNECTIONS_PER_TICK = 10_000
SHOWN_CONNECTIONS = 50  # per event; those that did not receive it come first

Outcome: TypeAlias = Literal["written", "behind", "catching_up", "dropped", "closed", "gone"]
Fate: TypeAlias = "tuple[Outcome, Selection]"  # and the selection that matched


@attrs.frozen(kw_only=True)
class Audience:
    """A pattern that matched, and the number of connections that have it in the live flow.

    `denied`: their token denies the channel within the pattern. `filtered`: the event does not pass their
    filter.
    """

    pattern: str
    connections: int
    denied: bool
    filtered: bool = False


@attrs.frozen(kw_only=True)
class Delivery:
    """The outcome of an event for one connection.

    written: passed to its link. behind: it reads on its own, `events_behind` events back if that is known,
    and will get this one if its `lag` policy lets it. catching_up: a catch-up has not reached it yet.
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
    """An event and its outcomes. `position` is None for a live event; `broadcast`: sent to every tenant.

    Lines of another `kind`: `tracing` (the first), `dead_letter` (with `reason` and `detail`), `missed` (with
    `count`: entries too many to follow) and `end` (with `reason`).
    """

    kind: Literal["event"] = "event"
    time: float
    channel: str
    position: str | None
    bytes: int
    form: events.Form
    broadcast: bool
    audiences: list[Audience]
    outcomes: dict[str, int]  # number of connections by outcome
    connections: list[Delivery]  # at most `SHOWN_CONNECTIONS`


@attrs.frozen(kw_only=True)
class Refused:
    """A message that is not an event, and the reason. `position` is None for a live one."""

    kind: Literal["dead_letter"] = "dead_letter"
    time: float
    channel: str
    position: str | None
    bytes: int
    reason: str
    detail: str


@attrs.frozen(kw_only=True)
class Missed:
    """Entries that came faster than they could be followed."""

    kind: Literal["missed"] = "missed"
    count: int


Entry: TypeAlias = Traced | Refused | Missed


@attrs.define(eq=False)
class Follower:
    """A trace of the channels of a tenant that lie within a pattern."""

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
        """Return the entries there are, once there is one."""
        await self.arrived.wait()
        taken = list(self.waiting)
        self.waiting.clear()
        if self.missed:
            taken.append(Missed(count=self.missed))
            self.missed = 0
        return taken


class Followers(list[Follower]):
    """All running traces. While there are none, no code here runs."""

    @contextmanager
    def follow(self, tenant: str, pattern: str) -> Iterator[Follower]:
        """Begin a trace. Raises `Conflict` while too many are running."""
        if len(self) >= FOLLOWERS:
            raise Conflict(f"{FOLLOWERS} traces are running; end one before the next")
        follower = Follower(tenant, pattern)
        self.append(follower)
        try:
            yield follower
        finally:
            self.remove(follower)

    def need(self, tenant: str, *, live: bool) -> bool:
        """Return whether a trace follows this tenant, or every tenant for broadcasts.

        With `live`, only traces of live channels count.
        """
        return any(
            tenant in (follower.tenant, subjects.BROADCAST)
            and (not live or subjects.is_live(follower.pattern))
            for follower in self
        )

    def crashed(self, error: Exception) -> None:
        """Log that a tick could not be inspected; nobody but the followers is affected."""
        log.error("trace_crashed", exc_info=error)
        for follower in self:
            follower.missed += 1
            follower.arrived.set()

    def refused(self, letter: Letter) -> None:
        """Add a message that is not an event."""
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
        """Inspect a tick that has been sent. For `slow`, more waits than a policy allows: their policy
        applies next.
        """
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


def count(log: EventLog, selection: Selection) -> int:
    """Return how many connections have a selection, at whatever pace."""
    return len(selection.members) + len(log.lanes.members(selection))


def look(
    log: EventLog,
    tick: Tick,
    index: int,
    checked: Checked,
    slow: Collection[Flow],
    catching: Sequence[Flow],
) -> Traced:
    """Return the outcomes of one event of a tick."""
    channel, (sequence, subject, body, headers) = checked
    matched: list[Selection] = [each for each, mask in tick.masks.items() if mask >> index & 1]
    audiences = [
        Audience(pattern=each.pattern, connections=count(log, each), denied=False) for each in matched
    ]
    audiences += [
        Audience(pattern=each.pattern, connections=count(log, each), denied=True)
        for each in log.selections.values()
        if each.deny and not each.allows(channel) and subjects.covers(each.pattern, channel)
    ]
    audiences += [
        Audience(pattern=each.pattern, connections=count(log, each), denied=False, filtered=True)
        for each in log.selections.values()
        if each.filter and each not in matched and each.admits(channel)
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
    # There may be one for each connection, of which few are shown.
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
    """Return the outcome of an event for a connection that has it in its live flow."""
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
    """Return the outcome as it is shown."""
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
