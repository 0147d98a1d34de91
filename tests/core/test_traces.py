"""W3C Trace Context: which values can be believed, and what they say."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from broker.wire import frames, traces

HEX = "0123456789abcdef"


@given(
    version=st.text(HEX, min_size=2, max_size=2),
    trace=st.text(HEX, min_size=32, max_size=32) | st.just("0" * 32),
    span=st.text(HEX, min_size=16, max_size=16) | st.just("0" * 16),
    flags=st.integers(0, 255),
)
def test_form(version: str, trace: str, span: str, flags: int) -> None:
    """All of the form but version ff and ids of zeros; the lowest flag is the sampled one."""
    value = f"{version}-{trace}-{span}-{flags:02x}"
    good = version != "ff" and int(trace, 16) != 0 and int(span, 16) != 0
    assert traces.well_formed(value) is good
    for name in ("traceparent", "Traceparent", "TRACEPARENT"):
        parent = traces.parent_of({"a": "b", name: value})
        assert parent == (value if good else None)
        assert traces.sampled(parent) is (good and flags % 2 == 1)


@given(st.text())
def test_anything(value: str) -> None:
    """What is no such value is none."""
    assert not traces.well_formed(value)
    assert traces.parent_of({"traceparent": value}) is None
    assert traces.parent_of(None) is None


@given(size=st.sampled_from([1, 60, 125, 126, 4000, 65400, 65530, 70000]), catch_up=st.integers(1, 9))
def test_frames(size: int, catch_up: int) -> None:
    """The field is added to a frame of any length, also to one that gets the number of a catch-up then."""
    value = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    framed = frames.event(frames.event_head("a", "i"), 1, b'"%b"' % (b"x" * size), None)
    framed = frames.mark(frames.trace(framed, value), catch_up)
    payload = json.loads(framed[{126: 4, 127: 10}.get(framed[1], 2) :])["payload"]
    assert payload["traceparent"] == value
    assert payload["catch_up"] == catch_up
    assert len(payload["event"]) == size
