"""A collection: what some patterns of a tenant match, in memory while somebody watches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import attrs
import trio

from broker import subjects
from broker.errors import TooManyDocuments
from broker.keyed.rows import Row, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from broker.bus.base import Record
    from broker.errors import Unavailable
    from broker.keyed.lane import Lane

Key: TypeAlias = "tuple[str, tuple[str, ...], tuple[str, ...]]"  # tenant, patterns, denied patterns


class Listener(Protocol):
    """Hears of all rows, at once."""

    def put(self, row: Row) -> None:
        """Take a row of the feed, of a collection that is loaded."""

    def filled(self) -> None:
        """Take all rows anew: they have been loaded, for the first time or again."""


class Member(Protocol):
    def leave_lane(self) -> None:
        """Get nothing of a lane any more, until it has read the collection."""


W = TypeVar("W", bound=Member)


class Collection(Generic[W]):
    """The rows that match `patterns` and not `deny`, of a tenant.

    Until it is `loaded`, the newest rows of the feed are kept in `pending`. `outcome` is set when an attempt
    to load it has ended, with an `error` if that has failed. `uses` counts watches and those that are about
    to be. `grown`: it has become larger since somebody looked.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        self.tenant, self.patterns, self.deny = key
        self.names = {each: None for each in self.patterns if subjects.is_literal(each)}
        self.wild = tuple(each for each in self.patterns if each not in self.names)
        self.rows = Rows()
        self.pending: dict[str, Row] = {}
        self.loaded = False
        self.loading: object = None  # the newest attempt, None for none
        self.outcome = trio.Event()
        self.error: Unavailable | TooManyDocuments | None = None
        self.uses = 0
        self.grown = False
        self.lanes: dict[float, Lane[W]] = {}
        self.watches: dict[W, None] = {}
        self.listener: Listener | None = None

    @property
    def count(self) -> int:
        """How many keys it counts as: each name and each pattern costs as much as a key that is there."""
        return max(self.rows.count, len(self.patterns))

    def admits(self, channel: str) -> bool:
        admitted = channel in self.names or any(subjects.covers(each, channel) for each in self.wild)
        return admitted and not any(subjects.covers(each, channel) for each in self.deny)

    def reset(self) -> None:
        """Forget all rows: they are loaded again."""
        self.loaded = False
        self.rows, self.pending = Rows(), {}
        for watch in list(self.watches):
            watch.leave_lane()
        self.lanes.clear()

    def fill(self, loaded: Iterable[Row]) -> None:
        """Take what was loaded, and join it with what the feed has brought meanwhile."""
        newest: dict[str, Row] = {}
        for row in (*loaded, *self.pending.values()):
            there = newest.get(row.key)
            if there is None or there.revision < row.revision:
                newest[row.key] = row
        self.pending = {}
        for row in sorted(newest.values(), key=lambda each: each.revision):
            self.rows.put(row)
        self.loaded = self.grown = True
        if self.listener is not None:
            self.listener.filled()
        self.ended(None)

    def ended(self, error: Unavailable | TooManyDocuments | None) -> None:
        """Wake whoever waits for the rows."""
        self.error = error
        outcome, self.outcome = self.outcome, trio.Event()
        outcome.set()

    def put(self, row: Row, now: float) -> bool:
        """Take a row of the feed. Return whether a lane has to give something."""
        if not self.loaded:
            self.pending[row.key] = row
            return False
        there = self.rows.get(row.key)
        if there is not None and there.revision >= row.revision:  # loaded already
            return False
        before = self.rows.count, self.rows.size
        old = self.rows.put(row)
        self.grown = self.grown or self.rows.count > before[0] or self.rows.size > before[1]
        for lane in self.lanes.values():
            lane.note(old, row, now)
        if self.listener is not None:
            self.listener.put(row)
        return bool(self.lanes)

    def missing(self) -> list[str]:
        """Return the channels that it names and that have never been."""
        return [name for name in self.names if self.rows.get(name) is None and self.admits(name)]


@attrs.define(eq=False)
class Loading:
    """An attempt to load a collection. It ends with `TooManyDocuments` where nobody may have that."""

    collection: Collection[Any]
    prefix: str
    excess: Callable[[int, int], str | None]
    rows: list[Row] = attrs.Factory(list)
    count: int = 0
    size: int = 0
    last: int = 0

    @property
    def filters(self) -> list[str]:
        return [self.prefix + each for each in self.collection.patterns]

    def take(self, records: list[Record]) -> None:
        for sequence, subject, body, headers in records:
            row = Row(subject.removeprefix(self.prefix), sequence, body, headers if body else None)
            if self.collection.admits(row.key):
                self.rows.append(row)
                self.count += not row.deleted
                self.size += len(body)
        self.last = max([self.last, *(each[0] for each in records)])
        if fault := self.excess(self.count, self.size):
            raise TooManyDocuments(fault)
