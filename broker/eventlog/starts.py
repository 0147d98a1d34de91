"""Starts: where a subscription begins, resolved against what the stream has now."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from itertools import combinations
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

import attrs

from broker import subjects
from broker.config.sections import SNAPSHOT_BYTES
from broker.errors import SnapshotTooLarge, Unavailable
from broker.eventlog.history import filters, narrowed
from broker.parts import Part
from broker.wire import events, starts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from broker.bus.base import Bus, Record, StreamState
    from broker.config import Config, Limits
    from broker.eventlog.history import Checked
    from broker.eventlog.index import Index
    from broker.filters import Filter
    from broker.wire.positions import Position

LISTED_CHANNELS = 100_000  # what `STREAM.INFO` returns at once
LOOKED_AT = 100  # sequences, for the time of the newest one that is still there
LATE_MS = 500  # by which an event that is held may be later than others
SNAPSHOT_SUBJECTS = 250  # read at a time, so that excess is noticed before everything has been read


@attrs.frozen(kw_only=True)
class Lost:
    """A range of history that is not available: after `start` (None: in another incarnation) up to `end`.

    Without `end`, some of what follows `start` is gone.
    """

    reason: Literal["trimmed", "reset", "limit"]
    start: int | None
    end: int | None
    count: int | None = None


@attrs.frozen(kw_only=True)
class Beginning:
    """Events follow after the sequence `after`. Deletions up to `warned` have been reported."""

    after: int
    lost: tuple[Lost, ...] = ()
    warned: int = 0

    @property
    def recovered(self) -> bool:
        return not self.lost


@attrs.frozen(kw_only=True)
class Scope:
    """The patterns of a subscribe, each with the patterns denied within it, and the state of the tenant.

    `filter` is what events have to pass, too.
    `head` is the newest position, `floor` that of the ring, `held` the sequences of matching events in the
    ring, ascending.
    """

    tenant: str
    incarnation: str
    patterns: Mapping[str, tuple[str, ...]]
    head: int
    floor: int
    held: list[int]
    filter: Filter | None = None

    def admits(self, channel: str) -> bool:
        return any(
            subjects.covers(pattern, channel) and not any(subjects.covers(each, channel) for each in deny)
            for pattern, deny in self.patterns.items()
        )

    def passes(self, channel: str, record: Record) -> bool:
        """Return whether an event is in the scope."""
        return self.admits(channel) and (
            self.filter is None or self.filter.passes(events.value(record[2], record[3]))
        )

    def plain(self) -> bool:
        """Return whether every event that matches a pattern is in the scope, and matches no other pattern."""
        apart = not any(subjects.overlaps(*pair) for pair in combinations(narrowed(self.patterns), 2))
        return apart and not any(self.patterns.values()) and self.filter is None


@attrs.define(eq=False)
class Starts(Part):
    """Resolves starts. `index` returns when the newest events were stored.

    `check` returns a record as an event, or None (a dead letter). `remembered` returns a tenant's newest
    events from the feed, after one position up to another, which a lagging replica does not have yet. `look`
    returns the stream's state; `gone` says whether anything was deleted that a tenant would have received,
    after one position up to another, in channels that a function admits.
    """

    bus: Bus
    names: subjects.Names
    limits: Limits
    check: Callable[[Record], Checked | None]
    remembered: Callable[[str, int, int], Iterable[Checked]]
    look: Callable[[], Awaitable[StreamState]]
    gone: Callable[[str, int, int, Callable[[str], bool]], bool]
    index: Callable[[], Index]

    def settings_changed(self, config: Config) -> None:
        self.limits = config.limits

    async def resolve(self, start: starts.After | starts.Since | starts.Last, scope: Scope) -> Beginning:
        """Return where to begin. Raises `Unavailable`."""
        match start:
            case starts.After(position):
                beginning = await self.after(position, scope)
            case starts.Since():
                beginning = await self.since(start, scope)
            case starts.Last(count):
                return attrs.evolve(await self.last(count, scope), warned=scope.head)
        return await self.limited(self.whole(beginning, scope), scope)

    async def lead(self, position: Position, beginning: Beginning, every_ms: int) -> int | None:
        """Return the position after which events may have been held by a pace when `position` was told: those
        stored since `every_ms` before.

        None if the beginning is not at the position. Raise `Unavailable`.
        """
        after = position.sequence
        if beginning.after != after or any(each.reason == "reset" for each in beginning.lost):
            return None
        lowest, index = max(0, after - self.limits.replay_events), self.index()
        time = index.newest_time(after)
        if time is None:
            page = await self.bus.get(range(max(1, after - LOOKED_AT), after + 1))
            if not page.times:
                return lowest
            time = page.times[-1]
        time -= (every_ms + LATE_MS) * 1_000_000
        before = index.before(time)
        if before is None:
            sequence = await self.bus.sequence_at(datetime.fromtimestamp(time / 1e9, UTC))
            before = after if sequence is None else sequence - 1
        return max(lowest, min(before, after))

    def whole(self, beginning: Beginning, scope: Scope) -> Beginning:
        """Add a loss if any of the events that follow has been deleted."""
        after = beginning.after
        if not self.gone(scope.tenant, after, scope.head, scope.admits):
            return beginning
        hole = Lost(reason="trimmed", start=after, end=None)
        return attrs.evolve(beginning, lost=(*beginning.lost, hole), warned=scope.head)

    async def after(self, position: Position, scope: Scope) -> Beginning:
        known = position.incarnation == scope.incarnation
        if known and scope.floor <= position.sequence <= scope.head:
            return Beginning(after=position.sequence)
        state = await self.look()
        if not known and position.incarnation == state.incarnation:  # which this broker has yet to read
            raise Unavailable("the stream has just been recreated", retry_after=1.0)
        if position.incarnation != state.incarnation or position.sequence > max(state.last, scope.head):
            oldest = state.first - 1
            return Beginning(after=oldest, lost=(Lost(reason="reset", start=None, end=oldest),))
        return self.from_stream(position.sequence, state, scope)

    def from_stream(self, after: int, state: StreamState, scope: Scope) -> Beginning:
        """Return a start below the ring, with what the stream has trimmed, or may have."""
        oldest = min(state.first - 1, scope.head)
        if after < oldest:
            return Beginning(after=oldest, lost=(Lost(reason="trimmed", start=after, end=oldest),))
        if state.per_subject and after < scope.floor:
            # Any subject may have lost older messages within the range, which no request reveals.
            return Beginning(after=after, lost=(Lost(reason="trimmed", start=after, end=after),))
        return Beginning(after=after)

    async def since(self, start: starts.Since, scope: Scope) -> Beginning:
        sequence = await self.bus.sequence_at(start.time)
        if sequence is None:
            return Beginning(after=scope.head)
        state = await self.look()
        if sequence <= state.first and state.first > 1:
            # The oldest remaining message is at or after the time, and there were older ones.
            sequence = state.first - 1
        return self.from_stream(sequence - 1, state, scope)

    async def limited(self, beginning: Beginning, scope: Scope) -> Beginning:
        """Leave out the oldest events if there are more than `replay_events`."""
        most = self.limits.replay_events
        if scope.head - beginning.after <= most:
            return beginning
        wanted = self.weights(scope)
        count = await self.count(wanted, beginning.after)
        if count <= most:
            return beginning
        cut = await self.newest(wanted, most, low=beginning.after, high=scope.head)
        rest = await self.count(wanted, cut)
        known = scope.plain() and count == await self.count(wanted, beginning.after)  # nothing arrived
        skipped = Lost(reason="limit", start=beginning.after, end=cut, count=count - rest if known else None)
        return attrs.evolve(beginning, after=cut, lost=(*beginning.lost, skipped))

    async def last(self, count: int, scope: Scope) -> Beginning:
        if len(scope.held) >= count:
            return Beginning(after=scope.held[-count] - 1)
        missing = guess = count - len(scope.held)
        wanted = self.weights(scope)
        above = await self.count(wanted, scope.floor)
        oldest = min((await self.look()).first - 1, scope.floor)
        while True:
            # The filters may match more than the patterns: denied channels, several filters at once,
            # dead letters; and there may be a filter. So their count is only a guess, and the events
            # themselves decide.
            cut = await self.newest(wanted, above + guess, low=oldest, high=scope.floor)
            found = await self.sequences(wanted, scope, after=cut)
            if len(found) >= missing:
                return Beginning(after=found[-missing] - 1)
            if cut <= oldest:
                return Beginning(after=oldest)
            if guess >= self.limits.replay_events:
                return Beginning(after=cut, lost=(Lost(reason="limit", start=oldest, end=cut),))
            guess = min(4 * guess, self.limits.replay_events)

    async def sequences(self, wanted: Counter[str], scope: Scope, *, after: int) -> list[int]:
        """Return the sequences of the events in `scope` after a position, up to the ring."""
        found = {
            record[0]
            for channel, record in self.remembered(scope.tenant, after, scope.floor)
            if scope.passes(channel, record)
        }
        for each, weight in wanted.items():
            at, pending = after, 1
            while weight > 0 and pending and at < scope.floor:
                page = await self.bus.read(each, after=at, limit=256)
                pending = page.pending
                for record in page.records:
                    at = record[0]
                    event = self.check(record)
                    if at <= scope.floor and event and scope.passes(event[0], record):
                        found.add(at)
        return sorted(found)

    def weights(self, scope: Scope) -> Counter[str]:
        """Return the subject filters that match every event in `scope`, with the weight of each one's count.

        Each pattern has its own filter, since among all messages of a busy tenant those of a few quiet
        channels would be lost. In NATS a wildcard also matches private channels, so these are subtracted.
        """
        patterns = narrowed(scope.patterns)
        wanted = Counter(filters(self.names, scope.tenant, patterns, most=len(patterns)))
        for pattern in patterns:
            first, _, rest = pattern.partition(".")
            if first == ">" or (first == "*" and rest):
                wanted[self.names.subject(scope.tenant, f"{subjects.USERS}.{rest or '>'}")] -= 1
        return wanted

    async def count(self, wanted: Counter[str], after: int) -> int:
        total = 0
        for each, weight in wanted.items():
            page = await self.bus.read(each, after=after, limit=1)
            total += weight * (len(page.records) + page.pending)
        return total

    async def newest(self, wanted: Counter[str], count: int, *, low: int, high: int) -> int:
        """Return the newest position with at least `count` matching messages after it; `low` if there is
        none.

        By bisection on `Nats-Num-Pending`: 20 requests per filter for a million messages.
        """
        if await self.count(wanted, low) < count:
            return low
        while high - low > 1:
            middle = (low + high) // 2
            if await self.count(wanted, middle) >= count:
                low = middle
            else:
                high = middle
        return low

    async def snapshot(self, scope: Scope) -> dict[str, Record]:
        """Return the newest record of each matching channel below the ring, by channel.

        Raises `SnapshotTooLarge`.
        """
        most = self.limits.snapshot_channels
        wanted: set[str] = set()
        for pattern in narrowed(scope.patterns):
            for each in filters(self.names, scope.tenant, [pattern]):
                # More than a snapshot may have, since they include other users' private channels.
                literal = subjects.is_literal(pattern)
                found = [each] if literal else await self.bus.subjects(each, limit=LISTED_CHANNELS)
                if found is None:
                    raise SnapshotTooLarge(f"{pattern}: more than {LISTED_CHANNELS} channels; request fewer")
                wanted.update(found)
        channels = {each: self.names.split(each)[1] for each in wanted}
        entitled = [each for each, channel in channels.items() if scope.admits(channel)]
        if len({channels[each] for each in entitled}) > most:
            raise SnapshotTooLarge(f"more than {most} channels; request fewer")
        records = await self.newest_events(entitled, up_to=scope.floor)
        records += [record for _, record in self.remembered(scope.tenant, 0, scope.floor)]
        newest = {channels.get(record[1]): record for record in sorted(records, key=itemgetter(0))}
        return {channel: record for channel, record in newest.items() if channel and scope.admits(channel)}

    async def newest_events(self, wanted: list[str], *, up_to: int) -> list[Record]:
        """Return the newest event of each subject, skipping any dead letters after it."""
        found: list[Record] = []
        size = 0
        for start in range(0, len(wanted), SNAPSHOT_SUBJECTS):
            for newest in await self.bus.last(wanted[start : start + SNAPSHOT_SUBJECTS], up_to=up_to):
                records = [newest]
                while records and not self.check(records[0]):
                    records = await self.bus.last([newest[1]], up_to=records[0][0] - 1)
                found += records
                size += sum(len(record[2]) for record in records)
            if size > SNAPSHOT_BYTES:
                raise SnapshotTooLarge(f"more than {SNAPSHOT_BYTES} bytes; request fewer channels")
        return found
