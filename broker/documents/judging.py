"""What becomes of a change, judged against the version that is stored.

A change says what it replaces: `was` has the values that its author saw, or `revision` the version. So edits
of different members merge in any order, and no member is overwritten by somebody who has not seen it.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from broker.documents import patches, values
from broker.documents.memory import Entry, Memory
from broker.documents.patches import at, is_done, leaves, matches, pointer
from broker.errors import BadMessage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from broker.documents.patches import Path
    from broker.documents.values import Value

MAX_LEAVES = 1000
MAX_POINTERS = 65_536  # characters of JSON Pointers in an answer
LARGEST = 2**53  # of what `add` makes: up to here a double counts by ones


class Left(Enum):
    """Left out of a message: no patch, or no condition."""

    OUT = "left out"


OUT = Left.OUT
NONE: Mapping[Any, Any] = MappingProxyType({})


@attrs.frozen(kw_only=True)
class Change:
    """A change `n` of a user's session. `patch` None deletes; `was` None: there is no document yet.

    `revision` is the sequence on which it was made, -1 for one of another stream. Without `was` it is the
    condition of the patch; beside `was`, and of `add`, it only tells whether it may have been applied and
    forgotten.
    """

    session: str
    n: int
    user: str
    patch: Value | Left | None = OUT
    was: Value | Left | None = OUT
    revision: int | None = None
    add: Mapping[Path, float] = NONE

    @property
    def id(self) -> str:
        return f"{self.session}-{self.n}"

    @property
    def patched(self) -> tuple[Path, ...]:
        """Return the leaves of its patch."""
        return () if self.patch is OUT else tuple(path for path, _ in leaves(self.patch))

    @property
    def touched(self) -> tuple[Path, ...]:
        """Return the paths that it writes to."""
        return (*self.patched, *self.add)

    @property
    def conditions(self) -> tuple[Path, ...]:
        """Return the paths at which it says what there has to be."""
        if self.was is not OUT:
            return tuple(path for path, _ in leaves(self.was))
        return () if self.patch is OUT else ((),)

    def entry(self, base: int) -> Entry:
        return Entry(session=self.session, n=self.n, user=self.user, base=base)


@attrs.frozen(kw_only=True)
class Version:
    """What is stored under a channel at a sequence; `value` None: no document. Sequence 0: nothing at all.

    `invalid` says why what is stored is no document, and takes no changes.
    """

    value: Value | None = None
    sequence: int = 0
    memory: Memory = attrs.Factory(Memory)
    invalid: str | None = None

    def knows(self, change: Change) -> bool:
        """Return whether this change, or a later one of its session, has been applied."""
        return self.memory.knows(session=change.session, n=change.n, user=change.user)

    def covers(self, revision: int) -> bool:
        """Return whether it knows every change that was made on this sequence and applied."""
        return revision == 0 if self.sequence == 0 else revision > self.memory.floor


class Group:
    """Changes that one write can carry: none touches what another does, but that both add to it, nor what
    a later one has as its condition.

    So every value that a client is told was stored at some time, and none only in between; and each change
    would be accepted as well after those before it.
    """

    __slots__ = ("added", "patched", "sessions")

    def __init__(self) -> None:
        self.patched = patches.Paths()
        self.added = patches.Paths()
        self.sessions: set[tuple[str, str]] = set()

    def take(self, change: Change) -> bool:
        """Add a change, if it can be with the others."""
        paths = change.patched
        if (
            (change.session, change.user) in self.sessions
            or any(
                self.patched.meets(path) or self.added.meets(path) for path in (*paths, *change.conditions)
            )
            or any(
                self.patched.meets(path) or path in self.added.above or self.added.covers(path[:-1])
                for path in change.add
            )
        ):
            return False
        self.patched.update(paths)
        self.added.update(change.add)
        self.sessions.add((change.session, change.user))
        return True

    def meets(self, path: Path) -> bool:
        return self.patched.meets(path) or self.added.meets(path)


@attrs.frozen
class Accepted:
    """The change leads to this value; None deletes. `body` is it as JSON."""

    value: Value | None
    body: bytes


@attrs.frozen
class Standing:
    """There is nothing to write: the change has been applied before, or is what is stored already."""


@attrs.frozen
class Conflicting:
    """Others have changed this meanwhile: the values at these pointers, null for nothing."""

    paths: Mapping[str, Any]


@attrs.frozen
class Refused:
    """The change cannot be: a sentence, and for each pointer what is wrong there."""

    reason: str
    paths: Mapping[str, str] = NONE
    too_large: bool = False


@attrs.frozen
class Unknowable:
    """Whether the change has been applied before can no longer be known, and twice it may not be."""


Verdict: TypeAlias = Accepted | Standing | Conflicting | Refused | Unknowable


def check(change: Change) -> None:
    """Raise `BadMessage` for a change that does not say all that it has to."""
    patch, was = change.patch, change.was
    if patch is OUT and not change.add:
        raise BadMessage("payload.patch: is required, or add")
    for name, part in (("patch", patch), ("was", was)):
        if part is not OUT and (reason := values.fault(part)):
            raise BadMessage(f"payload.{name}: {reason}")
    count = len(change.touched)
    if count > MAX_LEAVES:
        raise BadMessage(f"payload.patch: {count} leaves; the limit is {MAX_LEAVES}")
    if patch is not OUT:
        if was is OUT and change.revision is None:
            raise BadMessage("payload.was: say what the patch replaces, by was or revision")
        if was is not OUT and (missing := next(unnamed(patch, was), None)) is not None:
            raise BadMessage(f"payload.was: the patch writes {pointer(missing)}, of which was says nothing")
    if change.add:
        check_additions(change)


def check_additions(change: Change) -> None:
    if change.revision is None:
        raise BadMessage("payload.add: needs the revision that it was made on")
    patched, added = patches.Paths(change.patched), patches.Paths(change.add)
    for path in change.add:
        name = f"payload.add[{pointer(path)[:40]!a}]"
        if len(path) > values.MAX_DEPTH:
            raise BadMessage(f"{name}: deeper than {values.MAX_DEPTH}")
        if values.PROTO in path:
            raise BadMessage(f"{name}: a member named {values.PROTO}")
        if patched.meets(path) or path in added.above:
            raise BadMessage(f"{name}: the change writes there twice")


def additions(add: Mapping[str, Any]) -> Mapping[Path, float]:
    """Return what `add` of a message adds where. Raise `BadMessage`."""
    found: dict[Path, float] = {}
    for text, amount in add.items():
        try:
            path = patches.parse_pointer(text)
        except BadMessage as error:
            raise BadMessage(f"payload.add: {error.message}") from None
        if not isinstance(amount, int | float) or isinstance(amount, bool) or values.fault(amount):
            raise BadMessage(f"payload.add[{text[:40]!a}]: a number")
        found[path] = amount
    return found


def unnamed(patch: Any, was: Any, path: Path = ()) -> Iterator[Path]:
    """Yield where `was` does not say what the patch replaces."""
    if isinstance(patch, dict) and patch and isinstance(was, dict):
        for name, each in patch.items():
            if name in was:
                yield from unnamed(each, was[name], (*path, name))
            else:
                yield (*path, name)


def judge(change: Change, version: Version) -> Verdict:
    """Return what becomes of a change, which `check` has passed."""
    if version.knows(change):
        return Standing()
    # What is not covered may be a repetition, of which others have changed what it made.
    covered = change.revision is None or version.covers(change.revision)
    if change.add and not covered:
        return Unknowable()
    if change.patch is not OUT:
        done = not change.add and version.invalid is None and is_done(change.patch, version.value)
        if done and (change.was is not OUT or not covered):
            return Standing()
        if change.was is not OUT and not covered:
            return Unknowable()
    if version.invalid is not None:
        return Refused(f"what is stored there is no document: {version.invalid}")
    if change.patch is not OUT and (paths := conflicts(change, version)):
        return conflicting({pointer(path): each for path, each in paths.items()}, version.value)
    return applied(change, version.value)


def applied(change: Change, value: Value | None) -> Verdict:
    """Return what a change makes of a value, whatever it says that it replaces."""
    if change.patch is not OUT:
        value = patches.apply(value, change.patch)
    return added(change, value) if change.add else outcome(value)


def conflicts(change: Change, version: Version) -> dict[Path, Any]:
    """Return where the version is not what the patch replaces, with what is there."""
    value, found = version.value, dict[Any, Any]()
    if change.was is not OUT:
        compare(change.was, value, change.patch, (), found)
    elif change.revision != version.sequence and not (value is None and change.revision == 0):
        found = {path: at(value, path) for path, _ in leaves(change.patch)}
    return found


def conflicting(paths: Mapping[str, Any], value: Value | None) -> Conflicting:
    """Return a conflict at these pointers. Long ones would make much of little: then all of it is told."""
    return Conflicting(paths if sum(map(len, paths)) <= MAX_POINTERS else {"": value})


def compare(was: Any, value: Any, patch: Any, path: Path, found: dict[Path, Any]) -> None:
    """Add to `found` where the value is not what `was` says. `patch` is what the change does there.

    An object in `was` says that there is an object, and what of it. But where a patch replaces all of it,
    it is all that the author has seen.
    """
    inner = patch is OUT or (isinstance(patch, dict) and patch)
    if isinstance(was, dict) and isinstance(value, dict) and inner:
        for name, each in was.items():
            within = OUT if patch is OUT else patch.get(name, OUT)
            compare(each, value.get(name), within, (*path, name), found)
    elif not matches(was, value) and not (patch is not OUT and is_done(patch, value)):
        found[path] = value


def added(change: Change, value: Value | None) -> Verdict:
    """Return the outcome of what a change adds to numbers. An absent one is 0."""
    whole: Any = value
    paths: dict[str, Any] = {}
    excess: dict[str, str] = {}
    for path, amount in change.add.items():
        for end in range(len(path)):
            if not isinstance(above := at(value, path[:end]), dict | None):
                paths[pointer(path[:end])] = above
        present = at(value, path)
        if not isinstance(present, int | float | None) or isinstance(present, bool):
            paths[pointer(path)] = present
            continue
        total = (present or 0) + amount
        if not -LARGEST <= total <= LARGEST:
            excess[pointer(path)] = f"{total} is beyond what can be counted"
            continue
        branch: Any = total
        for name in reversed(path):
            branch = {name: branch}
        whole = patches.apply(whole, branch)
    if paths:
        return conflicting(paths, value)
    if excess:
        where, what = next(iter(excess.items()))
        return Refused(f"{where}: {what}", excess)
    return outcome(whole)


def outcome(value: Value | None) -> Verdict:
    if value is None:
        return Accepted(None, b"")
    body = values.encode(value)
    if len(body) > values.MAX_BYTES:
        return Refused(f"{len(body)} bytes; a document has at most {values.MAX_BYTES}", too_large=True)
    return Accepted(value, body)
