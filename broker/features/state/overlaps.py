"""Which of a connection's watches may bring the same documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from broker import subjects
from broker.eventlog.routing import Router
from broker.eventlog.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

W = TypeVar("W")


class Overlaps(Generic[W]):
    """The watches, each with those that it overlaps.

    A pattern is open once in a connection, so two watches have no name in common: names only meet patterns
    with wildcards. All names are looked up at once; only of patterns with wildcards each pair is compared.
    """

    def __init__(self) -> None:
        self.of: dict[W, set[W]] = {}

    def add(self, new: W, patterns: Mapping[W, Iterable[str]]) -> set[W]:
        """Add a watch, and return those that it overlaps. `patterns` are those of all watches."""
        found = self.of[new] = overlapping(new, patterns, patterns)
        for each in found:
            self.of[each].add(new)
        return found

    def remove(self, gone: W) -> None:
        for each in self.of.pop(gone):
            self.of[each].discard(gone)

    def narrow(self, watch: W, patterns: Mapping[W, Iterable[str]]) -> None:
        """Note that a watch has a part of its patterns left."""
        left = overlapping(watch, patterns, self.of[watch])
        for each in self.of[watch] - left:
            self.of[each].discard(watch)
        self.of[watch] = left


def overlapping(new: W, patterns: Mapping[W, Iterable[str]], among: Iterable[W]) -> set[W]:
    """Return the watches among some that may bring a document which another one brings too."""
    names: dict[str, W] = {}
    wild: dict[str, W] = {}
    for each in among:
        if each is not new:
            for pattern in patterns[each]:
                (names if subjects.is_literal(pattern) else wild)[pattern] = each
    own = [each for each in patterns[new] if not subjects.is_literal(each)]
    mine, theirs = router(own), router(wild)
    found = {watch for name, watch in names.items() if mine.match(name)}
    for name in patterns[new]:
        if subjects.is_literal(name):
            found.update(wild[each] for each in theirs.match(name))
    found.update(
        watch for pattern, watch in wild.items() if any(subjects.overlaps(each, pattern) for each in own)
    )
    return found


def router(patterns: Iterable[str]) -> Router[tuple[str, ...]]:
    """Return what finds the patterns that match a name."""
    made = Router(lambda _, found: tuple(each.pattern for each in found))
    for each in patterns:
        made.add(Selection(each, (), 0))
    return made
