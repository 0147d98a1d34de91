"""A document of a client by the simplest code: what has to be shown after each message and each change."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from broker.documents.patches import apply, at, leaves, parse_pointer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from broker.documents.patches import Path


def number(revision: str) -> int:
    return int(revision.rpartition("-")[2])


def tree(path: Path, leaf: Any) -> Any:
    for name in reversed(path):
        leaf = {name: leaf}
    return leaf


class Add(Enum):
    """In place of a patch: one is added to the member `n`. Such a change goes by itself."""

    ONE = 1


@attrs.define(eq=False)
class Twin:
    """`truth` is what was ever stored, by sequence. What is shown: the confirmed value, and over it in turn
    the own changes that are stored at a later sequence, the one under way, and what was typed since.
    """

    truth: Mapping[int, Any]
    sequence: int | None = None  # of what is confirmed; 0 for nothing
    stored: list[tuple[int, Mapping[str, Any]]] = attrs.Factory(list)  # sequence, payload
    flying: Mapping[str, Any] | None = None  # the payload that was sent
    echoed: bool = False  # what is confirmed has the change under way
    typed: list[Any] = attrs.Factory(list)  # patches, and `Add.ONE`
    seen: set[tuple[Path, bytes]] = attrs.Factory(set)  # everything that was ever shown

    @property
    def confirmed(self) -> Any:
        return self.truth[self.sequence] if self.sequence else None

    def base(self) -> Any:
        """What there will be once all that was sent is stored, but for `n`."""
        value = self.confirmed
        for _, payload in self.stored:
            value = over(value, payload)
        return over(value, self.flying) if self.flying and not self.echoed else value

    def shown(self, typed: Iterable[Any] | None = None) -> Any:
        value = self.base()
        for patch in self.typed if typed is None else typed:
            value = value if patch is Add.ONE else apply(value, patch)
        return value

    def holds(self, shown: Any) -> bool:
        """Whether this may be shown. It is not known whether sums under way are in what is confirmed."""
        expected, n = self.shown(), at(self.confirmed, ("n",)) or 0
        sums = [each for _, each in self.stored if "add" in each] + [
            each for each in self.typed if each is Add.ONE
        ]
        most = n + len(sums) + bool(self.flying and "add" in self.flying)
        return without(shown) == without(expected) and n <= (at(shown, ("n",)) or 0) <= most

    @property
    def queue(self) -> list[list[Any]]:
        """What was typed, as it will be sent: all that was not yet, patches together and sums alone."""
        found: list[list[Any]] = [[]]
        for each in self.typed:
            if each is Add.ONE:
                found += [[each], []]
            else:
                found[-1].append(each)
        return [each for each in found if each]

    @property
    def pending(self) -> int:
        return len(self.stored) + bool(self.flying) + len(self.queue)

    def note(self, value: Any) -> None:
        self.seen |= {(path, msgspec.json.encode(leaf)) for path, leaf in leaves(value)}

    def changed(self, patch: Any) -> None:
        self.typed.append(patch)

    def sent(self, payload: Mapping[str, Any]) -> None:
        """What is sent is what was typed first, or again what was under way; it replaces what was shown."""
        if self.flying:
            # A repetition says besides on which revision it was first sent.
            again = {name: part for name, part in payload.items() if name in self.flying}
            assert again == self.flying, f"{payload} is sent again as another one, before {self.flying}"
            return
        first = self.queue[0]
        wanted, base = self.shown(first), self.base()
        assert ("add" in payload) == (first == [Add.ONE]), f"{payload} is sent for {first}"
        made = over(base, payload)
        assert without(made) == without(wanted), f"{payload} makes {made} of {base}, not {wanted}"
        for path, leaf in leaves(payload.get("was")):
            assert leaf in (None, {}) or (path, msgspec.json.encode(leaf)) in self.seen, f"{path} never seen"
        self.flying, self.typed = payload, self.typed[len(first) :]

    def heard(self, payload: Mapping[str, Any]) -> None:
        """Take a `state`, whose value the truth has."""
        now, ids = number(payload["revision"]), [each.get("id") for each in payload.get("by", ())]
        if self.sequence is not None and 0 < now <= self.sequence:
            return
        if "from" in payload:
            assert number(payload["from"]) == self.sequence, f"{payload} is a difference from something else"
        self.confirm(now, ids)

    def confirm(self, now: int, ids: Collection[str | None] = ()) -> None:
        self.sequence = now
        self.echoed |= bool(self.flying and self.flying["id"] in ids)
        self.stored = [each for each in self.stored if each[0] > now and each[1]["id"] not in ids]

    def answered(self, revision: str) -> None:
        """The change under way is stored there, or was before."""
        assert self.flying
        if not self.echoed and not (self.sequence is not None and number(revision) <= self.sequence):
            self.stored.append((number(revision), self.flying))
        self.flying, self.echoed = None, False

    def refused(self, paths: Iterable[str] | None) -> None:
        """Nothing is stored, at these pointers for the reason of a conflict: the rest is to be sent again."""
        assert self.flying
        flying, queue = self.flying, self.queue
        self.flying, self.echoed = None, False
        if "add" in flying:
            return
        broken = [parse_pointer(each) if each else () for each in paths or [""]]
        if () in broken:
            broken = [*(each for each in broken if each), *(path for path, _ in leaves(flying["patch"]))]
        last = queue.pop() if queue and queue[-1] != [Add.ONE] else []
        each_leaf = [leaf for patch in (flying["patch"], *last) for leaf in leaves(patch)]
        kept = [tree(*leaf) for leaf in each_leaf if not any(meet(leaf[0], each) for each in broken)]
        self.typed = [patch for each in queue for patch in each] + kept


def over(value: Any, payload: Mapping[str, Any]) -> Any:
    """What the patch of a change makes of a value."""
    return apply(value, payload["patch"]) if "patch" in payload else value


def without(value: Any) -> Any:
    """A value but for `n`; nothing but that is nothing."""
    return {name: each for name, each in (value or {}).items() if name != "n"}


def meet(one: Path, other: Path) -> bool:
    return one[: len(other)] == other[: len(one)]
