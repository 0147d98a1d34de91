"""One document as its user sees it: what the broker has confirmed, and over it the user's own changes.

They stay there until a revision that has them is here. One change is under way at a time; what is changed
meanwhile is one change more, which replaces what the one under way will have made. No I/O.

The browser client does the same (`client/draft.js`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from broker.client.resume import not_after, same_stream
from broker.documents.edits import complete, joined, part, replaced, seen
from broker.documents.patches import Paths, apply, leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from broker.client.items import Payload
    from broker.documents.patches import Path

NEVER = "-0"  # the end of a revision that says that nothing has ever been there, see `never`
ALL: Path = ()


@attrs.frozen
class Change:
    """A patch, and what it replaces.

    Both are of an object that has the document as its member `d`, so that no document is an absent member.
    """

    patch: Any
    was: Any


@attrs.frozen
class Sent(Change):
    """A change under way, first sent on this revision. `doubtful`: the broker may have it already."""

    id: str
    revision: str | None = None
    doubtful: bool = False

    @property
    def payload(self) -> Payload:
        """What is sent. A repetition says from where on the document has to remember it."""
        repeated = {"revision": self.revision} if self.doubtful and self.revision else {}
        return {"id": self.id, "patch": self.patch["d"], "was": self.was.get("d"), **repeated}


@attrs.frozen
class Stored:
    """A change that is stored at a revision, which has not come yet."""

    id: str
    patch: Any
    revision: str


@attrs.define(eq=False)
class Draft:
    """`confirmed` is the newest value that the broker has said, None for no document.

    `flying` has been sent and has no answer, `typed` is what has been changed since. Of the patches in
    `early` nothing was known when they were made: what they replace is what is first there.
    """

    confirmed: Any = None
    revision: str | None = None
    flying: Sent | None = None
    typed: Change | None = None
    stored_ones: list[Stored] = attrs.field(factory=list)
    early: list[Any] = attrs.field(factory=list)
    echoed: bool = False  # what is confirmed has the change under way

    @property
    def value(self) -> Any:
        """The document with all of the user's own changes."""
        value = self.base()
        if self.typed:
            value = apply(value, self.typed.patch)
        for patch in self.early:
            value = apply(value, patch)
        return value.get("d")

    @property
    def pending(self) -> int:
        """How many changes have not been confirmed by a revision that has them."""
        return len(self.stored_ones) + bool(self.flying) + bool(self.typed or self.early)

    @property
    def unsaved(self) -> bool:
        """Whether there are changes that the broker has not answered."""
        return bool(self.flying or self.typed or self.early)

    def base(self) -> Any:
        """Return what there will be once all that was sent is stored."""
        value: Any = {"d": self.confirmed}
        for each in self.stored_ones:
            value = apply(value, each.patch)
        return apply(value, self.flying.patch) if self.flying and not self.echoed else value

    def change(self, patch: Any) -> None:
        """Change what is shown by a merge patch; None deletes."""
        if self.revision is None and not self.typed:
            self.early.append({"d": patch})
        else:
            self.type({"d": patch}, {}, self.base())

    def type(self, patch: Any, was: Any, base: Any) -> None:
        """Add a patch to what has been changed; `was` is what of it was seen before it saw `base`."""
        whole = joined(self.typed.patch, patch, base) if self.typed else patch
        before = seen(was, replaced(whole, base))
        self.typed = Change(whole, complete(seen(self.typed.was, before) if self.typed else before, whole))

    def next(self, make_id: Callable[[], str]) -> Sent | None:
        """Return the next change to send; None if there is none, or one is under way."""
        if self.flying or not self.typed:
            return None
        self.flying = Sent(self.typed.patch, self.typed.was, make_id(), self.revision)
        self.typed = None
        return self.flying

    def doubt(self) -> None:
        """Note that the change under way may be stored, and that nobody has said so."""
        if self.flying:
            self.flying = attrs.evolve(self.flying, doubtful=True)

    def heard(self, revision: str, value: Any, ids: Collection[str] = ()) -> None:
        """Take the broker's word on the document; `ids` are the changes that made this revision."""
        if superseded(revision, self.revision):
            return
        self.confirmed, self.revision = value, revision
        if self.flying and self.flying.id in ids:
            self.echoed = True
        self.stored_ones = [
            each
            for each in self.stored_ones
            if same_stream(each.revision, revision)
            and not not_after(each.revision, revision)
            and each.id not in ids
        ]
        early, self.early = self.early, []
        for patch in early:
            self.type(patch, {}, self.base())

    def stored(self, revision: str) -> None:
        """Record that the change under way is stored, at this revision or an earlier one."""
        if self.flying and not self.echoed and not not_after(revision, self.revision):
            self.stored_ones.append(Stored(self.flying.id, self.flying.patch, revision))
        self.land()

    def land(self) -> None:
        self.flying, self.echoed = None, False

    def refused(self, paths: Iterable[Path] = (ALL,)) -> Any:
        """Take back what the change under way does at these paths, and what was changed there since.

        Nothing of it is stored: the rest waits to be sent. Return the patch that came to nothing.
        """
        flying, typed = self.flying, self.typed
        if flying is None:
            return None
        self.land()
        self.typed = None
        base = self.base()
        patch = joined(flying.patch, typed.patch, base) if typed else flying.patch
        was = seen(flying.was, typed.was) if typed else flying.was
        broken = Paths()
        for path in paths:
            broken.update([("d", *path)] if path else [path for path, _ in leaves(flying.patch)])
        each_leaf = list(leaves(patch))
        if kept := part([leaf for leaf in each_leaf if not broken.meets(leaf[0])], was):
            self.type(*kept, base)
        gone = part([leaf for leaf in each_leaf if broken.meets(leaf[0])], was)
        return gone and gone[0]["d"]


def never(position: str) -> str:
    """Return the revision of what is not there, in the stream of a position."""
    return position.rpartition("-")[0] + NEVER


def superseded(revision: str, held: str | None) -> bool:
    """Return whether a revision is no newer than the one that is held.

    That of what has never been there says nothing of time.
    """
    return not revision.endswith(NEVER) and not_after(revision, held)
