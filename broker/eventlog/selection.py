"""Selections: what members have subscribed to, a pattern without its denied channels, perhaps filtered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from broker import subjects

if TYPE_CHECKING:
    from broker.filters import Filter

Key: TypeAlias = "tuple[str, tuple[str, ...], Filter | None]"


class Selection:
    """One distinct pattern with the patterns denied within it and a filter, and the members that share it.

    One evaluation of an event serves all members with the same selection. `filter` is what else an event has
    to pass (None: everything does). `room` is the subtree of its
    channels (None: any). `serial` grows with each new selection: a tick made earlier has no mask for it.
    `uses` counts holders, members or not yet. `unstored`: its channels are never stored.
    """

    __slots__ = ("deny", "filter", "literal", "members", "pattern", "room", "serial", "unstored", "uses")

    def __init__(
        self, pattern: str, deny: tuple[str, ...], serial: int, filter_: Filter | None = None
    ) -> None:
        self.pattern = pattern
        self.deny = deny
        self.filter = filter_
        self.literal = subjects.is_literal(pattern)
        self.unstored = subjects.is_live(pattern)
        self.room = subjects.room(pattern)
        self.serial = serial
        self.uses = 0
        self.members: dict[Any, None] = {}  # in order of arrival; a set would vary from run to run

    @property
    def key(self) -> Key:
        """Return what no other selection of a log has."""
        return self.pattern, self.deny, self.filter

    def admits(self, channel: str) -> bool:
        """Return whether the channel matches: the trie's answer, for this selection alone."""
        return subjects.covers(self.pattern, channel) and self.allows(channel)

    def allows(self, channel: str) -> bool:
        return not any(subjects.covers(pattern, channel) for pattern in self.deny)
