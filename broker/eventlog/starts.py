"""Where a subscription begins: a client's wish, resolved against what the stream holds now."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

import attrs

from broker import subjects
from broker.config.sections import SNAPSHOT_BYTES
from broker.errors import SnapshotTooLarge
from broker.eventlog.history import filters, narrowed
from broker.parts import Part
from broker.wire import starts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from broker.bus.base import Bus, Record, StreamState
    from broker.config import Config, Limits
    from broker.eventlog.history import Checked
    from broker.wire.positions import Position

LISTED_CHANNELS = 100_000  # what `STREAM.INFO` answers at once
SNAPSHOT_SUBJECTS = 250  # read at once, so that too much is noticed before all of it is there


@attrs.frozen(kw_only=True)
class Lost:
    """A stretch of history that cannot be had: after `start` (None: of another incarnation) up to `end`.

    Without an `end` some of what follows `start` is gone.
    """

    reason: Literal["trimmed", "reset", "limit"]
    start: int | None
    end: int | None
    count: int | None = None


@attrs.frozen(kw_only=True)
class Beginning:
    """Events follow after the sequence `after`. Of what is gone up to `warned` nothing more need be said."""

    after: int
    lost: tuple[Lost, ...] = ()
    warned: int = 0

    @property
    def recovered(self) -> bool:
        return not self.lost


@attrs.frozen(kw_only=True)
class Scope:
    """What is asked for: patterns, each with what is denied in it, and how the tenant stands.

    `head` is the newest position, `floor` that of the ring, `held` the sequences of what the ring holds for
    the patterns, ascending.
    """

    tenant: str
    incarnation: str
    patterns: Mapping[str, tuple[str, ...]]
    head: int
    floor: int
    held: list[int]

    def admits(self, channel: str) -> bool:
        return any(
            subjects.covers(pattern, channel) and not any(subjects.covers(each, channel) for each in deny)
            for pattern, deny in self.patterns.items()
        )

    def plain(self) -> bool:
        """Whether each event that a pattern matches is meant, and matched by no other pattern."""
        apart = not any(subjects.overlaps(*pair) for pair in combinations(narrowed(self.patterns), 2))
        return apart and not any(self.patterns.values())


@attrs.define(eq=False)
class Starts(Part):
    """Resolves starts.

    `check` makes an event of a record or answers None (a dead letter). `remembered` has a tenant's newest
    events from the feed, after one position up to another, which a replica that is late has not got yet.
    `look` has the stream's state; `gone` says whether anything was deleted that a tenant would have got
    after one position up to another, in channels that a function admits.
    """

    bus: Bus
    names: subjects.Names
    limits: Limits
    check: Callable[[Record], Checked | None]
    remembered: Callable[[str, int, int], Iterable[Checked]]
    look: Callable[[], Awaitable[StreamState]]
    gone: Callable[[str, int, int, Callable[[str], bool]], bool]

    def settings_changed(self, config: Config) -> None:
        self.limits = config.limits

    async def resolve(self, start: starts.After | starts.Since | starts.Last, scope: Scope) -> Beginning:
        """Where to begin. Raises `Unavailable`."""
        match start:
            case starts.After(position):
                beginning = await self.after(position, scope)
            case starts.Since():
                beginning = await self.since(start, scope)
            case starts.Last(count):
                return attrs.evolve(await self.last(count, scope), warned=scope.head)
        return await self.limited(self.whole(beginning, scope), scope)

    def whole(self, beginning: Beginning, scope: Scope) -> Beginning:
        """Says so when something was deleted of what follows."""
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
        if position.incarnation != state.incarnation or position.sequence > max(state.last, scope.head):
            oldest = state.first - 1
            return Beginning(after=oldest, lost=(Lost(reason="reset", start=None, end=oldest),))
        return self.from_stream(position.sequence, state, scope)

    def from_stream(self, after: int, state: StreamState, scope: Scope) -> Beginning:
        """A start below the ring, told truly: what the stream has cut off, or may have."""
        oldest = min(state.first - 1, scope.head)
        if after < oldest:
            return Beginning(after=oldest, lost=(Lost(reason="trimmed", start=after, end=oldest),))
        if state.per_subject and after < scope.floor:
            # Any subject may have lost its older messages within the range, and no request would say so.
            return Beginning(after=after, lost=(Lost(reason="trimmed", start=after, end=after),))
        return Beginning(after=after)

    async def since(self, start: starts.Since, scope: Scope) -> Beginning:
        sequence = await self.bus.sequence_at(start.time)
        if sequence is None:
            return Beginning(after=scope.head)
        state = await self.look()
        if sequence <= state.first and state.first > 1:
            # The oldest message that is left is within the wish, and there have been older ones.
            sequence = state.first - 1
        return self.from_stream(sequence - 1, state, scope)

    async def limited(self, beginning: Beginning, scope: Scope) -> Beginning:
        """Leaves out the oldest of more than `replay_events`."""
        most = self.limits.replay_events
        if scope.head - beginning.after <= most:
            return beginning
        wanted = self.weights(scope)
        count = await self.count(wanted, beginning.after)
        if count <= most:
            return beginning
        cut = await self.newest(wanted, most, low=beginning.after, high=scope.head)
        rest = await self.count(wanted, cut)
        known = scope.plain() and count == await self.count(wanted, beginning.after)  # no event came between
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
            # dead letters. So what they count is only a guess, and what is there decides.
            cut = await self.newest(wanted, above + guess, low=oldest, high=scope.floor)
            found = await self.sequences(wanted, scope, after=cut)
            if len(found) >= missing:
                return Beginning(after=found[-missing] - 1)
            if cut <= oldest:
                return Beginning(after=oldest)
            if guess >= self.limits.replay_events:
                return Beginning(after=cut, lost=(Lost(reason="limit", start=oldest, end=cut),))
            guess *= 4

    async def sequences(self, wanted: Counter[str], scope: Scope, *, after: int) -> list[int]:
        """The sequences of the events for `scope` after a position, up to the ring."""
        found = {
            record[0]
            for channel, record in self.remembered(scope.tenant, after, scope.floor)
            if scope.admits(channel)
        }
        for each, weight in wanted.items():
            at, pending = after, 1
            while weight > 0 and pending and at < scope.floor:
                page = await self.bus.read(each, after=at, limit=256)
                pending = page.pending
                for record in page.records:
                    at = record[0]
                    event = self.check(record)
                    if at <= scope.floor and event and scope.admits(event[0]):
                        found.add(at)
        return sorted(found)

    def weights(self, scope: Scope) -> Counter[str]:
        """The subject filters that hold every event for `scope`, and how each of their counts adds to it.

        Each pattern by itself, since in all of a busy tenant's messages those of a few quiet channels would
        be lost. In NATS a wildcard reaches into the private rooms, so what is in there is subtracted.
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
        """The newest position with at least `count` matching messages after it; `low` when there is none.

        By bisection on `Nats-Num-Pending`: 20 requests a filter for a million messages.
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
        """The newest record of each matching channel below the ring, by channel.

        Raises `SnapshotTooLarge`.
        """
        most = self.limits.snapshot_channels
        wanted: set[str] = set()
        for pattern in narrowed(scope.patterns):
            for each in filters(self.names, scope.tenant, [pattern]):
                # More than a snapshot's worth, since among them are others' private channels.
                literal = subjects.is_literal(pattern)
                found = [each] if literal else await self.bus.subjects(each, limit=LISTED_CHANNELS)
                if found is None:
                    raise SnapshotTooLarge(f"{pattern}: more than {LISTED_CHANNELS} channels; ask for fewer")
                wanted.update(found)
        channels = {each: self.names.split(each)[1] for each in wanted}
        entitled = [each for each, channel in channels.items() if scope.admits(channel)]
        if len({channels[each] for each in entitled}) > most:
            raise SnapshotTooLarge(f"more than {most} channels; ask for fewer")
        records = await self.newest_events(entitled, up_to=scope.floor)
        records += [record for _, record in self.remembered(scope.tenant, 0, scope.floor)]
        newest = {channels.get(record[1]): record for record in sorted(records, key=itemgetter(0))}
        return {channel: record for channel, record in newest.items() if channel and scope.admits(channel)}

    async def newest_events(self, wanted: list[str], *, up_to: int) -> list[Record]:
        """The newest event of each subject; dead letters on top of it are passed over."""
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
                raise SnapshotTooLarge(f"more than {SNAPSHOT_BYTES} bytes; ask for fewer channels")
        return found
