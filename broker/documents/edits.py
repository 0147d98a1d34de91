"""Merge patches of somebody who edits: joined to one, with what they replace, and taken apart again.

As everywhere in patches, an absent member and one that is `null` are the same. Nothing is modified; results
share parts with what they are made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker.documents.patches import apply

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.documents.patches import Path


def joined(first: Any, second: Any, value: Any) -> Any:
    """Return one patch that does to `value` what two do, one after the other."""
    if not isinstance(second, dict):
        return second
    if not isinstance(first, dict):
        wanted = apply(None, second)  # of what the first one removes, or makes something else of
        return turned(value, wanted) if isinstance(value, dict) else wanted
    patch = dict(first)
    for name, each in second.items():
        patch[name] = joined(first[name], each, member(value, name)) if name in first else each
    return patch


def turned(old: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the patch that makes one object another, which has no `null` but in lists."""
    patch: dict[str, Any] = {name: None for name in old if name not in wanted}
    for name, each in wanted.items():
        before = old.get(name)
        within = isinstance(each, dict) and isinstance(before, dict)
        patch[name] = turned(before, each) if within else each  # type: ignore[arg-type]
    return patch


def replaced(patch: Any, value: Any) -> Any:
    """Return what a patch replaces in a value: the `was` of a change."""
    if not isinstance(patch, dict) or not isinstance(value, dict) or not patch:
        return value
    return {name: replaced(each, value.get(name)) for name, each in patch.items()}


def seen(first: Any, rest: Any) -> Any:
    """Return what was seen first, with what was seen of the rest."""
    if not isinstance(first, dict) or not isinstance(rest, dict):
        return first
    both = dict(rest)
    for name, each in first.items():
        both[name] = seen(each, rest[name]) if name in rest else each
    return both


def complete(was: Any, patch: Any) -> Any:
    """Return what was seen, with nothing where the patch writes and nothing was: it names all leaves."""
    if not isinstance(was, dict) or not isinstance(patch, dict):
        return was
    return was | {name: complete(was.get(name), each) for name, each in patch.items()}


def part(some: Iterable[tuple[Path, Any]], was: Any) -> tuple[Any, Any] | None:
    """Return what of a patch lies at some of its leaves, and what of `was`; None for no leaves."""
    patch: Any = None
    before: Any = None
    found = False
    for path, value in some:
        known, depth = was, 0
        while depth < len(path) and isinstance(known, dict):
            known = known.get(path[depth])
            depth += 1
        patch, before = put(patch, path, value), put(before, path[:depth], known)
        found = True
    return (patch, before) if found else None


def put(into: Any, path: Path, value: Any) -> Any:
    """Return a value with another one at a path, in objects that are made where there are none."""
    if not path:
        return value
    name, *rest = path
    objects = into if isinstance(into, dict) else {}
    return {**objects, name: put(objects.get(name), tuple(rest), value)}


def member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None
