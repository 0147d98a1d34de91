"""What clients are told of documents: whole values, differences, and why something is no document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.documents import patches
from broker.features.state.form import DocumentForm
from broker.keyed.rows import Row

FORM = DocumentForm()
LARGE = "x" * 200
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


def row(value: Any, revision: int = 7, key: str = "a") -> Row:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Row(key, revision, body, None)


def payload(message: bytes | None) -> dict[str, Any]:
    assert message is not None
    document = json.loads(message)
    assert document["type"] == "state"
    found: dict[str, Any] = document["payload"]
    return found


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a": 1}', {"value": {"a": 1}}),
        (b"", {"value": None}),
        (b"[1]", {"invalid": "not an object"}),
    ],
)
def test_whole(body: bytes, expected: dict[str, Any]) -> None:
    found = payload(FORM.whole(row(body, key='q"x'), "inc", 9))
    assert found == {"channel": 'q"x', "revision": "inc-7", "position": "inc-9", **expected}


def test_none() -> None:
    found = payload(FORM.absent("a", "inc", 9))
    assert found == {"channel": "a", "revision": "inc-0", "position": "inc-9", "value": None}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": LARGE}, {"a": "y" * 200}),  # not smaller than half
        ({"a": LARGE, "b": 1}, {"a": LARGE, "b": None}),  # a null cannot be said
        ({"a": LARGE, "b": None}, {"a": LARGE, "b": None, "c": 1}),
        ([1], {"a": LARGE}),
        ({"a": LARGE}, [1]),
        (b"", {"a": LARGE}),
        ({"a": LARGE}, b""),
    ],
)
def test_where_no_difference_is_sent(old: Any, new: Any) -> None:
    assert FORM.step(row(old, 1), row(new, 2), "inc", 2) is None


@given(
    old=st.dictionaries(st.text(max_size=3), VALUES, max_size=4),
    new=st.dictionaries(st.text(max_size=3), VALUES, max_size=4),
)
def test_differences(old: dict[str, Any], new: dict[str, Any]) -> None:
    """What is sent makes the new value of the old one, and is small."""
    old, new = old | {"text": LARGE}, new | {"text": LARGE}
    message = FORM.step(row(old, 1), row(new, 2), "inc", 5)
    if message is not None:
        found = payload(message)
        assert found.keys() == {"channel", "revision", "position", "from", "patch"}
        assert (found["from"], found["revision"], found["position"]) == ("inc-1", "inc-2", "inc-5")
        assert patches.apply(old, found["patch"]) == new
        assert 2 * len(json.dumps(found["patch"])) < 2 * len(json.dumps(new))
