"""What reads the log for a connection that is not up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.metrics.meters import RING, STREAM

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.eventlog.selection import Selection
    from broker.eventlog.snapshots import Newer, Snapshot


class Group:
    """Subscriptions that were asked for together, and are announced as live together."""

    __slots__ = ("listed", "selections")

    def __init__(self, selections: Iterable[Selection], *, listed: bool) -> None:
        self.selections = list(selections)
        self.listed = listed

    def channel(self) -> str | list[str]:
        return [each.pattern for each in self.selections] if self.listed else self.selections[0].pattern


class Reader:
    """A way through the log: the flow that is behind, or a catch-up beside it, which has a `number`.

    Everything up to `place` has been written. The flow itself reads its own selections, and `unstored` is
    its place among unstored events, which a long way back through the stream does not hold up. A catch-up
    has `selections` of its own; what it reads first may be a `snapshot`, and then of what follows only what
    is `newer`; the client has been `told` of this place as P since it began. `groups` are announced at its
    end. `resuming` until a start has been caught up with. Up to the position `warned` the client knows that
    something was deleted. It `began` then, by the loop's clock, and `source` is where it was read so far.
    """

    __slots__ = (
        "began", "groups", "newer", "number", "place", "resuming", "selections", "snapshot", "source",
        "told", "unstored", "warned",
    )  # fmt: skip

    def __init__(
        self,
        place: int,
        *,
        began: float = 0.0,
        unstored: int = 0,
        told: int = 0,
        number: int | None = None,
        selections: tuple[Selection, ...] = (),
        snapshot: Snapshot | None = None,
        warned: int = 0,
    ) -> None:
        self.place = place
        self.unstored = unstored
        self.told = told
        self.number = number
        self.selections = selections
        self.snapshot = snapshot
        self.newer: Newer | None = snapshot.newer if snapshot else None
        self.warned = warned
        self.began = began
        self.source = RING if snapshot is None else STREAM
        self.resuming = False
        self.groups: list[Group] = []

    def note_source(self, source: str) -> None:
        """Note where a page came from: once the stream was read, that is what it was read from."""
        if source == STREAM:
            self.source = source

    def swap(self, old: Selection, new: Selection | None) -> None:
        """Put one selection in the place of another, or none."""
        self.selections = swapped(self.selections, old, new)
        for group in self.groups:
            group.selections = list(swapped(tuple(group.selections), old, new))
        self.groups = [group for group in self.groups if group.selections]


def swapped(
    selections: tuple[Selection, ...], old: Selection, new: Selection | None
) -> tuple[Selection, ...]:
    """Return the selections with one of them replaced, or left out."""
    if old not in selections:
        return selections
    return tuple(new if each is old else each for each in selections if new is not None or each is not old)  # type: ignore[misc]
