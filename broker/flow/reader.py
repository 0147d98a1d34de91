"""The reader of the log for a connection that is not up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.metrics.meters import RING, STREAM

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.eventlog.lanes import Held
    from broker.eventlog.selection import Selection
    from broker.eventlog.snapshots import Newer, Snapshot


class Group:
    """Subscriptions that were requested together, and are announced as live together."""

    __slots__ = ("listed", "selections")

    def __init__(self, selections: Iterable[Selection], *, listed: bool) -> None:
        self.selections = list(selections)
        self.listed = listed

    def channel(self) -> str | list[str]:
        return [each.pattern for each in self.selections] if self.listed else self.selections[0].pattern


class Reader:
    """A way through the log: of the flow while it is behind, or of a catch-up beside it, which has a
    `number`.

    Everything up to `place` has been written. The flow's reader reads the flow's own selections; `unstored`
    is its place among unstored events, so that these do not wait for a long way through the stream. A
    catch-up has `selections` of its own. It may begin with a `snapshot`, and then reads of what follows only
    what is `newer`; `told` is its place that the client has been sent as P since it began. `groups` are
    announced at the end. `resuming` lasts until a start has been caught up with. The client has been told of
    deletions up to the position `warned`. Of paced selections the flow's reader first reads what comes after
    `lead` (None: nothing does) up to its place; `held` has by channel what lanes had for it. `began` is by
    the event loop's clock; `source` is where events were read so far.
    """

    __slots__ = (
        "began", "groups", "held", "lead", "newer", "number", "place", "resuming", "selections", "snapshot",
        "source", "told", "unstored", "warned",
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
        self.lead: int | None = None
        self.held: dict[str, Held] = {}
        self.began = began
        self.source = RING if snapshot is None else STREAM
        self.resuming = False
        self.groups: list[Group] = []

    def note_source(self, source: str) -> None:
        """Note where a page came from; once the stream was read, that is the source."""
        if source == STREAM:
            self.source = source

    def swap(self, old: Selection, new: Selection | None) -> None:
        """Replace one selection by another, or remove it."""
        self.selections = swapped(self.selections, old, new)
        for group in self.groups:
            group.selections = list(swapped(tuple(group.selections), old, new))
        self.groups = [group for group in self.groups if group.selections]


def swapped(
    selections: tuple[Selection, ...], old: Selection, new: Selection | None
) -> tuple[Selection, ...]:
    """Return the selections with one of them replaced or removed."""
    if old not in selections:
        return selections
    return tuple(new if each is old else each for each in selections if new is not None or each is not old)  # type: ignore[misc]
