"""What is asked for: a pattern, and what is left out of it."""

from __future__ import annotations

from typing import Any

from broker import subjects


class Selection:
    """One distinct pattern with what is denied within it, and the members that share it.

    One evaluation for each event serves all that ask for the same. `room` is where its channels lie (None:
    anywhere). `serial` grows with each selection made: a tick made earlier holds no mask of it. `uses` counts
    holders, whether they are members yet or not. `unstored`: its channels are never stored.
    """

    __slots__ = ("deny", "literal", "members", "pattern", "room", "serial", "unstored", "uses")

    def __init__(self, pattern: str, deny: tuple[str, ...], serial: int) -> None:
        self.pattern = pattern
        self.deny = deny
        self.literal = subjects.is_literal(pattern)
        self.unstored = subjects.is_live(pattern)
        self.room = subjects.room(pattern)
        self.serial = serial
        self.uses = 0
        self.members: dict[Any, None] = {}  # in order of arrival; a set would vary from run to run

    def admits(self, channel: str) -> bool:
        """Whether the channel matches; what the trie answers for many patterns, for this one."""
        return subjects.covers(self.pattern, channel) and self.allows(channel)

    def allows(self, channel: str) -> bool:
        return not any(subjects.covers(pattern, channel) for pattern in self.deny)
