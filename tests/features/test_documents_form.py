"""What clients are told of documents: whole values, differences, and why something is no document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.documents import patches, values
from broker.features.state import store
from broker.features.state.form import DocumentForm
from broker.features.state.queue import Queue
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


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is parsed with care, which takes milliseconds for a large document."""
    found: list[bytes] = []
    parse = values.parse

    def noted(body: bytes) -> Any:
        found.append(body)
        return parse(body)

    monkeypatch.setattr(values, "parse", noted)
    return found


def test_what_is_stored_is_judged_once(parsed: list[bytes]) -> None:
    """However many clients are told of it; and what is decoded for differences is not kept."""
    old, new = row({"a": LARGE, "b": 1}), row({"a": LARGE, "b": 2}, 8)
    for _ in range(3):
        assert "patch" in payload(FORM.step(old, new, "inc", 9))
        assert payload(FORM.whole(new, "inc", 9))["value"]["b"] == 2
    assert parsed == [old.body, new.body]
    for each in (old, new):
        held = [getattr(each, name) for name in Row.__slots__]
        assert not any(isinstance(one, dict | list) for one in held)


@pytest.mark.parametrize(("body", "careful"), [(b'{"a":1}', False), (b'{"a":1', True), (b"[1]", True)])
def test_what_brokers_have_written_is_known_to_be_sound(
    parsed: list[bytes], body: bytes, careful: bool
) -> None:
    """Where it is not, as somebody else has said so of his own, it is noticed all the same."""
    written = Row("a", 7, body, {store.BASE: "6"})
    assert ("invalid" in payload(FORM.whole(written, "inc", 9))) is careful
    version = store.read((7, "state.acme.a", body, {store.BASE: "6"}))
    assert (version.invalid is not None) is careful
    assert bool(parsed) is careful


def test_large_documents_of_services_are_read_when_needed(parsed: list[bytes]) -> None:
    """Not where the feed tells of them: it tells of hundreds in one turn."""
    nothing: Any = None
    queue = Queue(sources=nothing, channel="a", subject="state.acme.a", question="", rule=nothing)
    large = b'{"a":"%b"}' % (b"x" * 5000)
    for sequence in range(1, 100):
        queue.heard((sequence, "state.acme.a", large, None))
        assert queue.known is None
    assert not parsed
    queue.heard((100, "state.acme.a", b'{"a":1}', None))
    assert queue.known is not None
    queue.heard((99, "state.acme.a", large, None))  # older than what is known
    assert queue.known.value == {"a": 1}
    queue.heard((101, "state.acme.a", large, {store.BASE: "100"}))
    assert queue.known.sequence == 101
    assert parsed == [b'{"a":1}']
