"""The keys of a collection, with their newest messages in the order of their revisions."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SPARE_DELETIONS = 1000  # that are kept beside as many as there are other rows
NOT_JUDGED: Any = object()


class Row:
    """The newest message of a key: `revision` is its sequence; without a body the key is deleted.

    `fault` is for whoever judges the body, once.
    """

    __slots__ = ("body", "fault", "headers", "key", "revision")

    def __init__(self, key: str, revision: int, body: bytes, headers: Mapping[str, str] | None) -> None:
        self.key = key
        self.revision = revision
        self.body = body
        self.headers = headers
        self.fault: Any = NOT_JUDGED

    @property
    def deleted(self) -> bool:
        return not self.body


class Rows:
    """Rows by key, and in the order of their revisions.

    `count` and `size` (bytes of the bodies) are of those that are not deleted. Deleted ones are kept, so that
    a watch can learn of them; of too many the oldest are dropped, up to the revision `floor`.
    """

    __slots__ = ("by_key", "count", "floor", "keys", "revisions", "size")

    def __init__(self) -> None:
        self.by_key: dict[str, Row] = {}
        self.revisions: list[int] = []  # ascending; with `keys`, some of which have a newer row
        self.keys: list[str] = []
        self.count = 0
        self.size = 0
        self.floor = 0

    def get(self, key: str) -> Row | None:
        return self.by_key.get(key)

    def put(self, row: Row) -> Row | None:
        """Add a row, which is newer than all others, and return the one that it replaces."""
        old = self.by_key.get(row.key)
        self.by_key[row.key] = row
        self.revisions.append(row.revision)
        self.keys.append(row.key)
        if old is not None and not old.deleted:
            self.count -= 1
            self.size -= len(old.body)
        if not row.deleted:
            self.count += 1
            self.size += len(row.body)
        if len(self.keys) > 2 * (2 * self.count + SPARE_DELETIONS):
            self.compact()
        return old

    def after(self, revision: int) -> Iterator[Row]:
        """Yield the rows with a higher revision, oldest first. Nothing may be put meanwhile."""
        for index in range(bisect_right(self.revisions, revision), len(self.keys)):
            row = self.by_key.get(self.keys[index])
            if row is not None and row.revision == self.revisions[index]:
                yield row

    def compact(self) -> None:
        rows = list(self.after(0))
        surplus = len(rows) - 2 * self.count - SPARE_DELETIONS
        kept = []
        for row in rows:
            if surplus > 0 and row.deleted:
                surplus -= 1
                self.floor = row.revision
                del self.by_key[row.key]
            else:
                kept.append(row)
        self.revisions = [row.revision for row in kept]
        self.keys = [row.key for row in kept]
