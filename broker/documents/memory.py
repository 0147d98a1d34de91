"""What a document remembers of its changes, so that a repeated one is known wherever it arrives.

Each version of a document has it in a header: the last change of each of the latest 64 sessions, and on what
it was made. The document is then its own witness: no crash can keep the value and lose the memory.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from broker.errors import BadMessage

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SESSIONS = 64
ID = re.compile(r"([A-Za-z0-9_-]{1,62})-([0-9]{1,15})\Z")
MAX_ID = 64
ENTRY = re.compile(r"([A-Za-z0-9_-]{1,62})-([0-9]{1,15}):([0-9]{1,19}):(\S+)\Z")


@attrs.frozen(kw_only=True)
class Entry:
    """The last change `n` of a user's session, which was applied to the version at the sequence `base`."""

    session: str
    n: int
    user: str
    base: int

    @property
    def id(self) -> str:
        return f"{self.session}-{self.n}"

    def __str__(self) -> str:
        """The form in the header."""
        return f"{self.id}:{self.base}:{self.user}"


@attrs.frozen(kw_only=True)
class Memory:
    """The changes that a version knows, oldest first. `user` is an encoded one, without blanks.

    A change that is not there was not applied, if it was made on a version above `floor`.
    """

    floor: int = -1
    entries: tuple[Entry, ...] = ()

    def knows(self, *, session: str, n: int, user: str) -> bool:
        """Return whether this change of a session, or a later one, has been applied."""
        return any(each.session == session and each.user == user and each.n >= n for each in self.entries)

    def with_changes(self, changes: Iterable[Entry]) -> Memory:
        """Return it with further changes, without the oldest of too many sessions."""
        held = {(each.session, each.user): each for each in self.entries}
        for each in changes:
            held.pop((each.session, each.user), None)
            held[each.session, each.user] = each
        entries = tuple(held.values())
        left_out, kept = entries[:-MAX_SESSIONS], entries[-MAX_SESSIONS:]
        # The client made the change that is left out on what it knew then: at most the version that it was
        # applied to.
        return Memory(floor=max([self.floor, *(each.base for each in left_out)]), entries=kept)

    def since(self, base: int) -> tuple[Entry, ...]:
        """Return the changes by which a version came from that at `base`."""
        return tuple(each for each in self.entries if each.base == base)

    def __str__(self) -> str:
        """The value of the header."""
        return " ".join([str(self.floor), *map(str, self.entries)])


def parse(header: str | None, sequence: int) -> Memory:
    """Return the memory of the version at a sequence (0: there is none).

    A version without it, as services write them, knows nothing of what was before.
    """
    floor, *rest = (header or "").split(" ")
    found = [ENTRY.match(each) for each in rest]
    if not re.fullmatch("-1|[0-9]{1,19}", floor) or not all(found):
        return Memory(floor=sequence - 1)
    entries = [
        Entry(session=each[1], n=int(each[2]), base=int(each[3]), user=each[4]) for each in found if each
    ]
    return Memory(floor=int(floor), entries=tuple(entries))


def parse_id(text: str) -> tuple[str, int]:
    """Return session and number of a change's id. Raise `BadMessage`."""
    found = ID.match(text) if len(text) <= MAX_ID else None
    if found is None:
        raise BadMessage(
            f"payload.id: <session>-<n>, 1 to {MAX_ID} of A-Z a-z 0-9 _ -, where n is a rising number"
        )
    return found[1], int(found[2])
