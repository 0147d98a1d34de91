"""Bodies: what is an event and what is not, against `json` and a naive reader of nesting."""

from __future__ import annotations

import json
import random
from math import isfinite
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from broker.wire import events
from broker.wire.events import MAX_DEPTH

LIMIT = 65536
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.text('\\"[]{}n/', max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def reason(body: bytes, *, tenant: str = "acme", limit: int = LIMIT) -> str | None:
    found = events.fault(tenant, body, limit)
    assert found is None or found.detail
    return found.reason if found else None


def is_json(body: bytes) -> bool:
    """The naive twin: `json`, with finite numbers only."""

    def finite(text: str) -> float:
        if not isfinite(number := float(text)):
            raise ValueError(text)
        return number

    try:
        json.loads(body.decode(), parse_constant=finite, parse_float=finite)
    except ValueError:
        return False
    return True


def nesting(body: bytes) -> int:
    """The naive twin: character by character."""
    level = deepest = 0
    inside = escaped = False
    for char in body.decode():
        if inside:
            inside = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            inside = True
        elif char in "[{":
            level += 1
            deepest = max(deepest, level)
        elif char in "]}":
            level -= 1
    return deepest


@settings(deadline=None)
@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_any_json_is_an_event(value: Any, ascii_only: bool, indent: int | None) -> None:
    """Every JSON value passes, however it is written, and passes on byte for byte."""
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    claims = isinstance(value, dict) and "metadata" in value
    assume(not claims)
    assert reason(body) is None
    assert events.to_event(body, None) is body
    assert events.to_event(body, {"Nats-Msg-Id": "1"}) is body


@settings(deadline=None, max_examples=500)
@given(value=VALUES, seed=st.integers(0, 2**32))
def test_mutants_are_json_or_not_as_json_says(value: Any, seed: int) -> None:
    """A few bytes changed, cut out or doubled: still the same verdict as the standard library's."""
    rng = random.Random(seed)
    body = bytearray(json.dumps(value, ensure_ascii=rng.random() < 0.5).encode())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(3):
            case 0:
                body[at:at] = rng.choice(
                    [b'"', b"\\", b",", b"0", b"-", b".", b"e", b"\x00", b"\xff", b"]", b"{"]
                )
            case 1:
                del body[at : at + rng.randint(1, 4)]
            case _:
                body[at:at] = body[at : at + rng.randint(1, 6)]
    data = bytes(body)
    assume(data)
    assume(b"\\ud" not in data.lower())  # grammatical, but no text: refused on purpose
    assume(b'"metadata"' not in data)
    assert (reason(data) is None) == is_json(data), data


@pytest.mark.parametrize(
    "body",
    [
        b" ", b"nul", b"NaN", b"[Infinity]", b"-Infinity", b"{'a':1}", b'{"a":1,}', b"[1,]", b"01", b"1.",
        b".5", b"+1", b"0x1", b"1 2", b"[1] x", b'{"a" 1}', b'"a', b"[", b"}", b'"\t"', b'"\\x"',
        b'"\\ud800"', b'"\\udc00\\ud800"', b'{"a":"\\ud800"}', b'"\xff"', b'{"\xc3":1}', b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf1", b"\x00", b"// a\n1", b'\xff\xfe"\x00a\x00"\x00',
    ],
)  # fmt: skip
def test_not_json(body: bytes) -> None:
    """Nothing that some parser of a client would stumble over."""
    assert reason(body) == "not_json"


def test_tombstone() -> None:
    """An empty body is an event, `null`, with headers or without."""
    assert reason(b"") is None
    assert events.to_event(b"", None) == b"null"
    assert events.to_event(b"", {"ce-specversion": "1.0"}) == b"null"


def test_size() -> None:
    """The limit is of bytes, and itself allowed."""
    body = '"ää"'.encode()
    assert reason(body, limit=len(body)) is None
    assert reason(body, limit=len(body) - 1) == "too_large"


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_limit(opening: bytes, closing: bytes) -> None:
    """Exactly so deep and no deeper, as array and as object, and no deeper than the stack allows either."""
    deep = opening * (MAX_DEPTH - 1) + b"[]" + closing * (MAX_DEPTH - 1)
    assert reason(deep) is None
    assert reason(b"[[]," + deep[len(opening) : -len(closing)] + b"]") is None
    assert reason(b"[" + deep + b"]") == "not_json"
    assert reason(opening * 10000 + b"1" + closing * 10000, limit=10**6) == "not_json"
    assert reason(b"[" * 10000) == "not_json"


def test_brackets_in_strings_do_not_count() -> None:
    """A text full of brackets, quotes and backslashes is not deep."""
    text = json.dumps(['"[{' * 2000, '\\"[' * 2000, "\\"])
    assert reason(text.encode(), limit=10**6) is None


def test_brackets_after_a_backslash_count() -> None:
    """A string that ends in a backslash does not hide what follows it."""
    body = b'["\\\\",' + b"[" * MAX_DEPTH + b'"' + b"]" * (MAX_DEPTH + 1)
    assert reason(body.replace(b'"]', b'""]', 1)) == "not_json"
    assert events.depth(b'["\\\\",[["\\\\"]]]') == 3


@pytest.mark.parametrize("tail", [b"", b"\\"])
def test_text_without_an_end(tail: bytes) -> None:
    """A megabyte of quotes is read once, not once for each of them: that would be hours."""
    assert reason(b"[" * (MAX_DEPTH + 1) + b'"' + b'\\"' * 500_000 + tail, limit=10**7) == "not_json"


@settings(deadline=None, max_examples=300)
@given(value=VALUES)
@example(value=["\\", [["\\"]]])
@example(value=['\\"', {"[": ["]"]}])
def test_depth_as_a_naive_reader_counts(value: Any) -> None:
    """Strings with quotes, backslashes and brackets do not change it."""
    body = json.dumps(value).encode()
    assert events.depth(body) == nesting(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"metadata":{"tenant_id":"acme"}}', None),
        (b'{"metadata":{"tenant_id":"other"}}', "tenant_mismatch"),
        (b'{"metadata":{"tenant_id":""}}', "tenant_mismatch"),
        (b'{"metadata":{"tenant_id":5}}', "tenant_mismatch"),
        (b'{"metadata":{"tenant_id":["acme"]}}', "tenant_mismatch"),
        (b'{"meta\\u0064ata":{"tenant\\u005fid":"other"}}', "tenant_mismatch"),
        (b'{"metadata":{"tenant_id":"acme"},"metadata":{"tenant_id":"other"}}', "tenant_mismatch"),
        (b'{"metadata":{"tenant_id":null}}', None),
        (b'{"metadata":{}}', None),
        (b'{"metadata":null}', None),
        (b'{"metadata":"other"}', None),
        (b'{"payload":{"metadata":{"tenant_id":"other"}}}', None),
        (b'[{"metadata":{"tenant_id":"other"}}]', None),
        (b'{"metadata":{"tenant_id":"acme"}', "not_json"),
        (b'{"metadata":"other"', "not_json"),
    ],
)
def test_tenant(body: bytes, expected: str | None) -> None:
    """Only a `metadata.tenant_id` that says something else contradicts; `null` says nothing."""
    assert reason(body) == expected


def test_cloud_event() -> None:
    """Binary mode becomes structured, around the untouched body."""
    headers = {
        "Ce-SpecVersion": "1.0",
        "ce-type": "order.made",
        "CE-Source": "/caf%C3%A9%22",
        "content-type": "application/json",
        "Broker-User": "x",
    }
    body = b'{"n": 1.50}'
    event = events.to_event(body, headers)
    assert json.loads(event) == {
        "specversion": "1.0",
        "type": "order.made",
        "source": '/café"',
        "datacontenttype": "application/json",
        "data": {"n": 1.5},
    }
    assert event.endswith(b'"data":' + body + b"}")
    assert events.to_event(body, {"ce-type": "x"}) is body, "without a specversion it is no CloudEvent"


@pytest.mark.parametrize(
    "headers",
    [
        {"ce-source": "\udcff"},
        {"ce-source": "%FF%"},
        {"ce-\udcff": "a"},
        {"content-type": "\udcff/json"},
        {"ce-": "x", "ce-a b": "y", "ce-data": "z", "ce-\u00e9": "u"},
    ],
)
def test_cloud_event_with_odd_headers(headers: dict[str, str]) -> None:
    """Header bytes that are no text, and names that no attribute has, never stop an event."""
    event = events.to_event(b"1", {"ce-specversion": "1.0", **headers})
    decoded = msgspec.json.decode(event)
    assert decoded.pop("data") == 1
    assert event.count(b'"data":') == 1
    assert decoded.pop("specversion") == "1.0"
    assert all(name.isascii() and name.isalnum() for name in decoded)
    assert all("\ufffd" in value for value in decoded.values())
