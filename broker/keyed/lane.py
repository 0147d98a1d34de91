"""A lane: the members of a collection that get its changes together, each key at most once in a while.

No I/O, and the time is an argument.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

if TYPE_CHECKING:
    from broker.keyed.rows import Row

M = TypeVar("M")

SECONDS = (0.1, 1.0, 5.0)  # the lanes that there are


@attrs.frozen
class Step:
    """The next that members get of a key: from the row `old`, which they have, to `new`.

    `first` is the revision of the first change since `old`. `upto`: with this step all revisions up to that
    have been given.
    """

    old: Row | None
    new: Row
    first: int
    upto: int = 0


class Lane(Generic[M]):
    """Holds the changes of keys back until `seconds` after the last one that was given.

    `changed` has each key with a change that was not given: the row that members have, the revision of the
    first change after it, and the newest row; in the order of the first changes. `ready` are those of them
    that may be given now; `recent` has when each key that was given lately may be given again.
    """

    __slots__ = ("changed", "members", "queue", "ready", "recent", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.members: dict[M, None] = {}
        self.changed: dict[str, tuple[Row | None, int, Row]] = {}
        self.ready: dict[str, None] = {}
        self.recent: dict[str, float] = {}
        self.queue: deque[tuple[float, list[str]]] = deque()

    def note(self, old: Row | None, row: Row, now: float) -> None:
        """Take a change of a key."""
        self.expire(now)
        base, first, _ = self.changed.get(row.key, (old, row.revision, row))
        self.changed[row.key] = base, first, row
        if row.key not in self.recent:
            self.ready[row.key] = None

    def expire(self, now: float) -> None:
        while self.queue and self.queue[0][0] <= now:
            for key in self.queue.popleft()[1]:
                del self.recent[key]
                if key in self.changed:
                    self.ready[key] = None

    def due(self, now: float) -> float | None:
        """Return when something can be given next; None if nothing waits."""
        if self.ready:
            return now
        return self.queue[0][0] if self.changed else None

    def take(self, now: float, head: int) -> list[Step]:
        """Return what is to be given now, in the order of the first changes.

        `head` is the sequence up to which changes have been noted.
        """
        self.expire(now)
        if not self.ready:
            return []
        keys = [key for key in self.changed if key in self.ready]
        taken = [self.changed.pop(key) for key in keys]
        self.ready.clear()
        self.recent.update(dict.fromkeys(keys, now + self.seconds))
        self.queue.append((now + self.seconds, keys))
        upto = min([head, *(first - 1 for _, first, _ in list(self.changed.values())[:1])])
        steps: list[Step] = []
        for old, first, new in reversed(taken):
            steps.append(Step(old, new, first, upto))
            upto = min(upto, first - 1)
        return steps[::-1]


def rounded(milliseconds: int) -> float:
    """Return the seconds of the lane for an interval."""
    return next((each for each in SECONDS if milliseconds <= each * 1000), SECONDS[-1])
