"""A document of a client by the simplest code: what has to be shown after each message and each change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from broker.documents.patches import apply, leaves, parse_pointer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from broker.documents.patches import Path


def number(revision: str) -> int:
    return int(revision.rpartition("-")[2])


def tree(path: Path, leaf: Any) -> Any:
    for name in reversed(path):
        leaf = {name: leaf}
    return leaf


@attrs.define(eq=False)
class Twin:
    """`truth` is what was ever stored, by sequence. What is shown: the confirmed value, and over it in turn
    the own changes that are stored at a later sequence, the one under way, and what was typed since.
    """

    truth: Mapping[int, Any]
    sequence: int | None = None  # of what is confirmed; 0 for nothing
    stored: list[tuple[int, str, Any]] = attrs.Factory(list)  # sequence, id, patch
    flying: Mapping[str, Any] | None = None  # the payload that was sent
    echoed: bool = False  # what is confirmed has the change under way
    typed: list[Any] = attrs.Factory(list)
    seen: set[tuple[Path, bytes]] = attrs.Factory(set)  # everything that was ever shown

    @property
    def confirmed(self) -> Any:
        return self.truth[self.sequence] if self.sequence else None

    def base(self) -> Any:
        """What there will be once all that was sent is stored."""
        value = self.confirmed
        for _, _, patch in self.stored:
            value = apply(value, patch)
        return apply(value, self.flying["patch"]) if self.flying and not self.echoed else value

    def shown(self) -> Any:
        value = self.base()
        for patch in self.typed:
            value = apply(value, patch)
        return value

    def note(self, value: Any) -> None:
        self.seen |= {(path, msgspec.json.encode(leaf)) for path, leaf in leaves(value)}

    def changed(self, patch: Any) -> None:
        self.typed.append(patch)

    def sent(self, payload: Mapping[str, Any]) -> None:
        """What is sent is what was typed, or what was under way, as it was; it replaces what was shown."""
        if self.flying:
            # A repetition says besides on which revision it was first sent.
            again = {name: part for name, part in payload.items() if name != "revision"}
            assert again == self.flying, f"{payload} is sent again as another one, before {self.flying}"
            return
        wanted, base = self.shown(), self.base()
        assert apply(base, payload["patch"]) == wanted, f"{payload} does not make {wanted} of {base}"
        for path, leaf in leaves(payload["was"]):
            assert leaf in (None, {}) or (path, msgspec.json.encode(leaf)) in self.seen, f"{path} never seen"
        self.flying, self.typed = payload, []

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
        self.stored = [each for each in self.stored if each[0] > now and each[1] not in ids]

    def answered(self, revision: str) -> None:
        """The change under way is stored there, or was before."""
        assert self.flying
        if not self.echoed and not (self.sequence is not None and number(revision) <= self.sequence):
            self.stored.append((number(revision), self.flying["id"], self.flying["patch"]))
        self.flying, self.echoed = None, False

    def refused(self, paths: Iterable[str] | None) -> None:
        """Nothing is stored, at these pointers for the reason of a conflict: the rest is to be sent again."""
        assert self.flying
        flying, typed = self.flying["patch"], self.typed
        broken = [parse_pointer(each) if each else () for each in paths or [""]]
        if () in broken:
            broken = [*(each for each in broken if each), *(path for path, _ in leaves(flying))]
        each_leaf = [leaf for patch in (flying, *typed) for leaf in leaves(patch)]
        self.typed = [tree(*leaf) for leaf in each_leaf if not any(meet(leaf[0], each) for each in broken)]
        self.flying, self.echoed = None, False


def meet(one: Path, other: Path) -> bool:
    return one[: len(other)] == other[: len(one)]
