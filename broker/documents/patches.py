"""Merge patches (RFC 7396): applied to a value, made of two values, and taken apart into their leaves.

An absent member and one that is `null` are the same here, as a patch cannot tell them apart; but not within
lists, which patches replace as a whole. A *path* is the names of members from the top; in messages it is a
JSON Pointer (RFC 6901).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

from broker.errors import BadMessage
from broker.filters import same

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Path: TypeAlias = "tuple[str, ...]"

BAD_ESCAPE = re.compile(r"~(?![01])")


def apply(value: Any, patch: Any) -> Any:
    """Return `value` changed by a merge patch; None, as a value or a patch, is no document.

    Neither is modified; the result shares parts with both.
    """
    if not isinstance(patch, dict):
        return patch
    merged = dict(value) if isinstance(value, dict) else {}
    for name, each in patch.items():
        if each is None:
            merged.pop(name, None)
        else:
            merged[name] = apply(merged.get(name), each)
    return merged


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | None:
    """Return the merge patch from one value to another; None where no patch can express it.

    That is where `new` has a `null` that `old` has not.
    """
    patch: dict[str, Any] = {name: None for name in old if name not in new}
    for name, each in new.items():
        before = old.get(name)
        if name in old and same(each, before):
            continue
        if isinstance(each, dict):
            # What becomes an object of something else becomes it member by member, from the empty one.
            within = diff(before if isinstance(before, dict) else {}, each)
            if within is None:
                return None
            patch[name] = within
        elif each is None:
            return None
        else:
            patch[name] = each
    return patch


def equal(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal: numbers as doubles, whatever the order of members."""
    return same(one, other)


def matches(one: Any, other: Any) -> bool:
    """Return whether two values are equal when a member that is `null` is an absent one."""
    return same(without_nulls(one), without_nulls(other))


def without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: without_nulls(each) for name, each in value.items() if each is not None}


def leaves(patch: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield what a patch sets and removes: paths, with values that are no objects, or an empty one."""
    if isinstance(patch, dict) and patch:
        for name, each in patch.items():
            yield from leaves(each, (*path, name))
    else:
        yield path, patch


def is_done(patch: Any, value: Any) -> bool:
    """Return whether a value is already as a patch would have it."""
    if isinstance(patch, dict):
        return isinstance(value, dict) and all(is_done(each, value.get(name)) for name, each in patch.items())
    return matches(patch, value)


def at(value: Any, path: Path) -> Any:
    """Return what a value has at a path; None for nothing."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


class Paths:
    """A set of paths that can be asked for others above and below."""

    __slots__ = ("above", "paths")

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self.paths: set[Path] = set()
        self.above: set[Path] = set()
        self.update(paths)

    def update(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.paths.add(path)
            self.above.update(path[:end] for end in range(len(path)))

    def covers(self, path: Path) -> bool:
        """Return whether this path, or one above it, is in the set."""
        return any(path[:end] in self.paths for end in range(len(path) + 1))

    def meets(self, path: Path) -> bool:
        """Return whether this path, one above or one below it is in the set."""
        return path in self.above or self.covers(path)


def pointer(path: Path) -> str:
    return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in path)


def parse_pointer(text: str) -> Path:
    """Return the path to a member. Raise `BadMessage`."""
    if not text.startswith("/"):
        raise BadMessage(f"{text[:40]!a}: a JSON Pointer to a member begins with /")
    if BAD_ESCAPE.search(text):
        raise BadMessage(f"{text[:40]!a}: in a JSON Pointer ~ is written ~0, and / in a name ~1")
    return tuple(name.replace("~1", "/").replace("~0", "~") for name in text[1:].split("/"))
