"""Whether keys have been removed from a stream without a word, as a purge does. No I/O.

Nothing tells of that but the number of messages: a message that replaces another one, or a removal, makes one
less than was stored.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.bus.base import Count

SUBJECTS = 131_072  # of which it is known that they have been: at most 10 MB


class Removals:
    """What the feed says of how many messages have to be there, since the count `base`.

    `seen` are the subjects of the feed, by hash: the next message of each replaces one. Of any other that is
    not known, so a removal may be suspected where there is none, but none is overlooked.
    """

    __slots__ = ("base", "replaced", "seen")

    def __init__(self) -> None:
        self.base: Count | None = None
        self.seen: set[int] = set()
        self.replaced: deque[int] = deque()  # sequences after `base` that have replaced one

    def begin(self, base: Count | None) -> None:
        """Begin with a count up to which no removal is unknown; None: nobody wants to know."""
        self.base = base
        if base is None:
            self.seen.clear()
            self.replaced.clear()
        else:
            self.forget(base.last)

    def forget(self, last: int) -> int:
        """Forget what was replaced up to a sequence, and return how much that is."""
        found = 0
        while self.replaced and self.replaced[0] <= last:
            self.replaced.popleft()
            found += 1
        return found

    def note(self, sequence: int, subject: str) -> None:
        """Note the next record of the feed."""
        if self.base is None:
            return
        known = hash(subject)
        if known in self.seen:
            self.replaced.append(sequence)
        else:
            if len(self.seen) >= SUBJECTS:
                self.seen.clear()
            self.seen.add(known)

    def suspects(self, count: Count) -> bool:
        """Return whether less is there than can be, by a count up to which the feed has come.

        If not, the next is compared with this one.
        """
        base = self.base
        replaced = self.forget(count.last)
        if base is None or base.incarnation != count.incarnation:
            return True
        if (count.last - count.messages) - (base.last - base.messages) > replaced:
            self.seen.clear()  # what was removed is not replaced by the next
            return True
        self.base = count
        return False
