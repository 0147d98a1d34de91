"""The books of documents find what they are there to find: each test plants one fault."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.faults.support.books import Books, Tried, judge

GOOD: dict[str, Any] = {"hot": "b-1", "sum": 1, "seen": {"a-1": "", "a-2": True, "b-1": "a-1"}}
ENDS = {"a-1": "changed", "a-2": "changed", "b-1": "changed", "b-2": "refused", "b-3": "unknown"}


def books(**ends: str) -> Books:
    made = Books()
    for name, end in (ENDS | {name.replace("_", "-"): end for name, end in ends.items()}).items():
        tried = Tried(id=name, tenant="acme", channels=("d", "e"), adds=name == "a-2", began=0.0, end=end)
        tried.revisions = {"d": "s-9", "e": "s-9"} if end == "changed" else {}
        made.begin(tried)
    return made


def wrong(made: Books, stored: Any, watched: Any = None, other: Any = None, revision: str = "s-10") -> str:
    """What is wrong with two documents, of which a watcher holds what is stored if nothing else is said."""
    values = {"d": stored, "e": stored if other is None else other}
    held = {"d": (revision, watched or stored), "e": (revision, values["e"])}
    return "\n".join(judge(made, "acme", values, {"watcher": held}))


def test_nothing_is_wrong() -> None:
    """Also if what was not known was applied, and of what was answered in an earlier stream."""
    assert not wrong(books(), GOOD)
    assert not wrong(books(), GOOD | {"seen": GOOD["seen"] | {"b-3": True}})
    assert not wrong(books(a_2="unknown"), {"hot": "", "sum": 0, "seen": {}}, revision="t-1")
    assert not judge(books(), "globex", {"d": None, "e": None}, {})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"sum": 0, "seen": {"a-1": "", "b-1": "a-1"}}, "id='a-2', .* is lost"),
        ({"seen": GOOD["seen"] | {"b-2": True}}, "id='b-2', .* is there all the same"),
        ({"seen": GOOD["seen"] | {"c-1": True}}, "c-1 was never sent"),
        ({"sum": 2}, "the sum is 2, of 1 changes"),
        ({"hot": "a-1"}, "of one member {'b-1'} were overwritten unseen"),
        ({"hot": "b-1", "seen": GOOD["seen"] | {"b-1": "b-1"}}, "were overwritten unseen"),
    ],
    ids=["lost", "refused", "foreign", "added twice", "overwritten", "applied twice"],
)
def test_what_is_stored_is_wrong(changed: dict[str, Any], expected: str) -> None:
    assert re.search(expected, wrong(books(), GOOD | changed))


def test_others_see_something_else() -> None:
    """A watcher at the end, one of two documents, and one of two watchers of the same revision."""
    assert "watcher holds" in wrong(books(), GOOD, watched=GOOD | {"sum": 3})
    less = {"hot": "b-1", "sum": 0, "seen": {"a-1": "", "b-1": "a-1"}}
    assert "in one document" in wrong(books(a_2="unknown"), GOOD, other=less)
    made = books()
    made.saw("one", "acme", "d", "s-1", GOOD)
    made.saw("two", "acme", "d", "s-1", dict(GOOD))
    assert not made.problems
    made.saw("three", "acme", "d", "s-1", less)
    assert len(made.problems) == 1
