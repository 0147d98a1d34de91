"""One document as its user sees it: what the broker has confirmed, and over it the user's own changes.

They stay there until a revision that has them is here. One change is under way at a time; what is changed
meanwhile is one change more, which replaces what the one under way will have made. But sums, and changes of
several documents, go by themselves. No I/O.

The browser client does the same (`client/draft.js`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from broker.client.resume import not_after, same_stream
from broker.documents.edits import complete, joined, part, put, replaced, seen
from broker.documents.judging import NONE, OUT
from broker.documents.patches import Paths, apply, at, leaves, pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from broker.client.items import Payload
    from broker.documents.patches import Path
    from broker.errors import BrokerError

NEVER = "-0"  # the end of a revision that says that nothing has ever been there, see `never`
ALL: Path = ()
MEMBER = "d"  # of the objects that patches are of, see `Wish`


@attrs.define(eq=False)
class Joint:
    """A change of several documents, so many. It has its `id` once it is sent.

    `settle` is called with the revisions that have it, or why none has.
    """

    count: int
    settle: Callable[[dict[str, str] | BrokerError], None]
    id: str = ""


@attrs.frozen(kw_only=True)
class Wish:
    """What is wanted: a patch, and what is added to numbers. Of a joint change it is a part.

    Patches are of an object that has the document as its member `d`, so that no document is an absent member.
    """

    patch: Any = OUT
    add: Mapping[Path, float] = NONE
    joint: Joint | None = None

    def over(self, value: Any) -> Any:
        """Return what it makes of a value. What is no number stays."""
        if self.patch is not OUT:
            value = apply(value, self.patch)
        for path, amount in self.add.items():
            there = at(value, (MEMBER, *path))
            if there is None or (isinstance(there, int | float) and not isinstance(there, bool)):
                value = put(value, (MEMBER, *path), (there or 0) + amount)
        return value


@attrs.frozen(kw_only=True)
class Change(Wish):
    """A change, and what its patch replaces."""

    was: Any = OUT


@attrs.frozen(kw_only=True)
class Sent(Change):
    """A change under way, first sent on this revision. `doubtful`: the broker may have it already.

    `sums` is what it makes of numbers. Of a joint change the `id` is given when it is sent.
    """

    id: str = ""
    revision: str | None = None
    doubtful: bool = False
    sums: Mapping[Path, Any] = NONE

    @property
    def payload(self) -> Payload:
        """What is sent. A repetition says from where on the document has to remember it."""
        found: Payload = {"id": self.id}
        if self.patch is not OUT:
            found |= {"patch": self.patch[MEMBER], "was": self.was.get(MEMBER)}
        if self.add:
            found["add"] = {pointer(path): amount for path, amount in self.add.items()}
        if (self.doubtful or self.add) and self.revision:
            found["revision"] = self.revision
        return found


@attrs.frozen
class Stored:
    """A change that is stored at a revision, which has not come yet."""

    change: Sent
    revision: str


@attrs.define(eq=False)
class Draft:
    """`confirmed` is the newest value that the broker has said, None for no document.

    `flying` has been sent and has no answer. `queue` are changes that go by themselves, before what has been
    `typed` since: sums, joint changes. Of the wishes in `early` nothing was known when they were made: what
    they replace is what is first there.
    """

    confirmed: Any = None
    revision: str | None = None
    invalid: str | None = None  # why what is stored is no document
    flying: Sent | None = None
    queue: list[Change] = attrs.field(factory=list)
    typed: Change | None = None
    stored_ones: list[Stored] = attrs.field(factory=list)
    early: list[Wish] = attrs.field(factory=list)
    echoed: bool = False  # what is confirmed has the change under way

    @property
    def value(self) -> Any:
        """The document with all of the user's own changes."""
        value = self.base()
        if self.typed:
            value = self.typed.over(value)
        for wish in self.early:
            value = wish.over(value)
        return value.get(MEMBER)

    @property
    def pending(self) -> int:
        """How many changes have not been confirmed by a revision that has them."""
        typed = bool(self.typed or self.early)
        return len(self.stored_ones) + len(self.queue) + bool(self.flying) + typed

    @property
    def head(self) -> Change | None:
        """The change that is under way, or is next."""
        return self.flying or (self.queue[0] if self.queue else self.typed)

    @property
    def unsaved(self) -> bool:
        """Whether there are changes that the broker has not answered."""
        return bool(self.head or self.early)

    @property
    def landed(self) -> bool:
        """Whether what is confirmed has the change under way.

        Not each revision says whose it is: of sums there is what they make.
        """
        sums = self.flying.sums if self.flying else NONE
        there = {path: at(self.confirmed, path) for path in sums}
        return self.echoed or (bool(sums) and there == dict(sums))

    def base(self) -> Any:
        """Return what there will be once all that was sent is stored."""
        value = self.sent_over()
        if self.flying and not self.landed:
            value = self.flying.over(value)
        for change in self.queue:
            value = change.over(value)
        return value

    def sent_over(self) -> Any:
        value: Any = {MEMBER: self.confirmed}
        for each in self.stored_ones:
            value = each.change.over(value)
        return value

    def change(self, patch: Any = OUT, add: Mapping[Path, float] = NONE, joint: Joint | None = None) -> None:
        """Change what is shown by a merge patch, of which None deletes, and by sums."""
        self.wish(Wish(patch=patch if patch is OUT else {MEMBER: patch}, add=add, joint=joint))

    def wish(self, wish: Wish) -> None:
        alone = bool(wish.add or wish.joint)
        if self.revision is None and (alone or not self.typed):
            self.early.append(wish)
        elif not alone:
            self.type(wish.patch, {}, self.base())
        else:
            if self.typed:
                self.queue.append(self.typed)
                self.typed = None
            patch = wish.patch
            was = OUT if patch is OUT else complete(replaced(patch, self.base()), patch)
            self.queue.append(Change(patch=patch, was=was, add=wish.add, joint=wish.joint))

    def drop(self, joint: Joint) -> None:
        """Give up a part of a joint change that has not been sent."""
        self.queue = [each for each in self.queue if each.joint is not joint]
        self.early = [each for each in self.early if each.joint is not joint]

    def type(self, patch: Any, was: Any, base: Any) -> None:
        """Add a patch to what has been changed; `was` is what of it was seen before it saw `base`."""
        whole = joined(self.typed.patch, patch, base) if self.typed else patch
        before = seen(was, replaced(whole, base))
        before = seen(self.typed.was, before) if self.typed else before
        self.typed = Change(patch=whole, was=complete(before, whole))

    def next(self, id: str) -> Sent | None:  # noqa: A002  the name in the protocol
        """Have the next change be under way under this id; None if there is none, or one is."""
        change = self.head
        if self.flying or change is None:
            return None
        if self.queue:
            del self.queue[0]
        else:
            self.typed = None
        made = change.over(self.sent_over())
        self.flying = Sent(
            patch=change.patch,
            was=change.was,
            add=change.add,
            joint=change.joint,
            id=id,
            revision=self.revision,
            sums={path: at(made, (MEMBER, *path)) for path in change.add},
        )
        return self.flying

    def doubt(self) -> None:
        """Note that the change under way may be stored, and that nobody has said so."""
        if self.flying:
            self.flying = attrs.evolve(self.flying, doubtful=True)

    def heard(self, revision: str, value: Any, ids: Collection[str] = (), invalid: str | None = None) -> None:
        """Take the broker's word on the document; `ids` are the changes that made this revision."""
        if superseded(revision, self.revision):
            return
        self.confirmed, self.revision, self.invalid = value, revision, invalid
        if self.flying and self.flying.id in ids:
            self.echoed = True
        self.stored_ones = [
            each
            for each in self.stored_ones
            if same_stream(each.revision, revision)
            and not not_after(each.revision, revision)
            and each.change.id not in ids
        ]
        early, self.early = self.early, []
        for wish in early:
            self.wish(wish)

    def stored(self, revision: str) -> None:
        """Record that the change under way is stored, at this revision or an earlier one."""
        if self.flying and not self.echoed and not not_after(revision, self.revision):
            self.stored_ones.append(Stored(self.flying, revision))
        self.land()

    def land(self) -> None:
        self.flying, self.echoed = None, False

    def refused(self, paths: Iterable[Path] = (ALL,)) -> Wish:
        """Take back what the change under way does at these paths, and what was changed there since.

        Nothing of it is stored: the rest waits to be sent, but of sums and joint changes, which are one.
        Return what came to nothing, whose patch is one of the document.
        """
        flying, typed = self.flying, self.typed
        if flying is None:
            return Wish()
        self.land()
        if flying.add or flying.joint:
            return Wish(patch=flying.patch if flying.patch is OUT else flying.patch[MEMBER], add=flying.add)
        self.typed = None
        base = self.base()
        patch = joined(flying.patch, typed.patch, base) if typed else flying.patch
        was = seen(flying.was, typed.was) if typed else flying.was
        broken = Paths()
        for path in paths:
            broken.update([(MEMBER, *path)] if path else [path for path, _ in leaves(flying.patch)])
        each_leaf = list(leaves(patch))
        if kept := part([leaf for leaf in each_leaf if not broken.meets(leaf[0])], was):
            self.type(*kept, base)
        gone = part([leaf for leaf in each_leaf if broken.meets(leaf[0])], was)
        return Wish(patch=gone[0][MEMBER]) if gone else Wish()


def never(position: str) -> str:
    """Return the revision of what is not there, in the stream of a position."""
    return position.rpartition("-")[0] + NEVER


def superseded(revision: str, held: str | None) -> bool:
    """Return whether a revision is no newer than the one that is held.

    That of what has never been there says nothing of time.
    """
    return not revision.endswith(NEVER) and not_after(revision, held)
