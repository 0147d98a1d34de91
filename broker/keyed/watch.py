"""A watch: one connection's place in a collection, and what it gets from there on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from broker.keyed.lane import Lane
from broker.wire import frames

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.errors import BrokerError
    from broker.flow.flow import Flow
    from broker.keyed.collection import Collection
    from broker.keyed.lane import Step
    from broker.keyed.rows import Row

PAGE_BYTES = 65_536


class Form(Protocol):
    """What clients are told of rows, as JSON. Their position is the sequence `upto` in the `stream`."""

    def whole(self, row: Row, stream: str, upto: int) -> bytes:
        """Return the message with the whole of a row."""

    def step(self, old: Row, new: Row, stream: str, upto: int) -> bytes | None:
        """Return the message with the difference of two rows; None if the whole is to be sent."""

    def absent(self, key: str, stream: str, upto: int) -> bytes:
        """Return the message that a key has never been."""


class Holder(Protocol):
    """Who has a watch. Called in the middle of other work: no method may block or raise."""

    def begun(self, watch: Watch, *, recovered: bool) -> None:
        """Tell the client that the watch begins anew, at its place."""

    def ready(self, watch: Watch) -> None:
        """Tell the client that it has the whole of the collection."""

    def grew(self, watch: Watch) -> None:
        """Note that the collection has become larger."""

    def failed(self, watch: Watch, error: BrokerError) -> None:
        """Close the watch: its collection cannot be loaded again."""

    def owes(self) -> None:
        """Have `step` called from now on, as often as the link has accepted everything."""


class Watch:
    """A connection's place in a collection: everything up to the sequence `place` has been written to it.

    It is a member of a `lane`, or reads the collection. `ahead` has the revisions that it holds of keys that
    the other members of its lane do not hold yet; `read` those above its place that its lane has given it,
    while it reads. With `plain` it gets no differences: another watch of its
    connection brings some of the keys too. It began with the whole set at the sequence `since`, so that it
    needs not know what was deleted before; -1 if it continues an earlier watch, which knows. `unready`: the
    client has not been told yet that it has everything.
    """

    __slots__ = (
        "ahead", "collection", "flow", "form", "holder", "lane", "place", "plain", "read", "seconds", "since",
        "stream", "unready",
    )  # fmt: skip

    def __init__(
        self,
        collection: Collection[Watch],
        *,
        flow: Flow,
        holder: Holder,
        form: Form,
        stream: str,
        seconds: float,
        place: int,
        since: int,
    ) -> None:
        self.collection = collection
        self.flow = flow
        self.holder = holder
        self.form = form
        self.stream = stream
        self.seconds = seconds
        self.place = place
        self.since = since
        self.plain = False
        self.lane: Lane[Watch] | None = None
        self.ahead: dict[str, int] = {}
        self.read: dict[str, int] = {}
        self.unready = True
        collection.watches[self] = None

    @property
    def reads(self) -> bool:
        """Whether something can be written to it that no lane brings."""
        return self.lane is None and self.collection.loaded and self in self.collection.watches

    def begin(self, stream: str, place: int, since: int, *, recovered: bool) -> None:
        """Begin anew."""
        self.leave_lane()
        self.stream, self.place, self.since, self.unready = stream, place, since, True
        self.holder.begun(self, recovered=recovered)
        self.holder.owes()

    def move(self, collection: Collection[Watch]) -> None:
        """Move to another collection, which holds a part of what the present one holds."""
        self.end()
        self.collection = collection
        collection.watches[self] = None

    def end(self) -> None:
        self.leave_lane()
        self.collection.watches.pop(self, None)

    def leave_lane(self) -> None:
        lane, self.lane = self.lane, None
        self.ahead, self.read = {}, {}
        if lane is not None:
            lane.members.pop(self, None)
            if not lane.members and self.collection.lanes.get(lane.seconds) is lane:
                del self.collection.lanes[lane.seconds]

    def alone(self) -> None:
        """Get differences again: no other watch of the connection brings the same keys any more.

        Of what the lane holds back, the client may have any revision.
        """
        self.plain = False
        if self.lane is not None:
            self.ahead = dict.fromkeys(self.lane.changed, 0)

    # --- reading -----------------------------------------------------------------------------------

    def step(self, head: int) -> None:
        """Write the next rows after the place; at the end, up to the feed's `head`, join the lane."""
        rows = self.collection.rows
        if max(self.place, self.since) < rows.floor:  # deletions that it has not heard of are forgotten
            self.begin(self.stream, 0, head, recovered=False)
        written: list[bytes] = []
        size = 0
        for row in rows.after(self.place):
            self.place = row.revision
            if row.revision == self.read.get(row.key):
                continue
            if row.deleted and row.revision <= self.since and row.key not in self.collection.names:
                continue
            written.append(self.form.whole(row, self.stream, self.place))
            size += len(written[-1])
            if size >= PAGE_BYTES:
                break
        else:
            self.place = max(self.place, head)
            if self.unready and self.since >= 0:
                written += [
                    self.form.absent(each, self.stream, self.place) for each in self.collection.missing()
                ]
            self.join()
        if written:
            self.flow.push(b"".join(framed(each, self.flow) for each in written))
        if self.lane is not None and self.unready:
            self.unready = False
            self.holder.ready(self)

    def join(self) -> None:
        """Become a member of the lane."""
        lane = self.collection.lanes.get(self.seconds)
        if lane is None:
            lane = self.collection.lanes[self.seconds] = Lane(self.seconds)
        self.ahead = {key: newest.revision for key, (_, _, newest) in lane.changed.items()}
        self.read = {}
        self.lane = lane
        lane.members[self] = None

    # --- with the lane -----------------------------------------------------------------------------

    def give(self, shared: Shared) -> None:
        """Write what a lane gives its members; a connection that is behind reads it later."""
        if self.flow.rest is not None:
            read = self.given(shared.steps)
            self.leave_lane()
            self.read = read
            self.holder.owes()
            return
        data = self.own(shared) if self.plain or self.ahead else shared.framed(self.flow)
        self.place = max(self.place, shared.upto)
        if data:
            self.flow.push(data)

    def given(self, steps: Iterable[Step]) -> dict[str, int]:
        """Return the revisions above the place that it has: all but what its lane holds back, and `steps`.

        A key that changes often holds the place back.
        """
        changed = self.lane.changed if self.lane else {}
        missing = changed.keys() | {step.new.key for step in steps}
        return {
            row.key: row.revision
            for row in self.collection.rows.after(self.place)
            if row.key not in missing or self.ahead.get(row.key, 0) >= row.revision
        }

    def own(self, shared: Shared) -> bytes:
        """Return what this one gets of the steps: nothing that it has, and differences from what it has."""
        found = []
        for index, step in enumerate(shared.steps):
            held = self.ahead.pop(step.new.key, None)
            if held is not None and held >= step.new.revision:
                continue
            whole = self.plain or held is not None
            found.append(framed(shared.whole(index) if whole else shared.change(index), self.flow))
        return b"".join(found)


class Shared:
    """Steps of a lane, each encoded once for all members that need it in the same form."""

    __slots__ = ("changes", "for_framing", "form", "steps", "stream", "wholes")

    def __init__(self, steps: list[Step], form: Form, stream: str) -> None:
        self.steps = steps
        self.form = form
        self.stream = stream
        self.changes: dict[int, bytes] = {}
        self.wholes: dict[int, bytes] = {}
        self.for_framing: dict[object, bytes] = {}

    @property
    def upto(self) -> int:
        return self.steps[-1].upto

    def whole(self, index: int) -> bytes:
        if index not in self.wholes:
            step = self.steps[index]
            self.wholes[index] = self.form.whole(step.new, self.stream, step.upto)
        return self.wholes[index]

    def change(self, index: int) -> bytes:
        if index not in self.changes:
            step = self.steps[index]
            found = None if step.old is None else self.form.step(step.old, step.new, self.stream, step.upto)
            self.changes[index] = self.whole(index) if found is None else found
        return self.changes[index]

    def framed(self, flow: Flow) -> bytes:
        """Return all steps as bytes of the link of a flow."""
        framing = flow.framing
        if framing not in self.for_framing:
            each = range(len(self.steps))
            self.for_framing[framing] = b"".join(framed(self.change(index), flow) for index in each)
        return self.for_framing[framing]


def framed(message: bytes, flow: Flow) -> bytes:
    """Return a message as bytes of the link of a flow."""
    data = frames.text(message)
    return data if flow.framing is None else flow.framing(data, False)
