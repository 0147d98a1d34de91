"""Frames as Server-Sent Events: the same message, with an id where a client may resume."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire import frames, sse
from tests.support.sse import Parser

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
channels = st.text(min_size=1, max_size=20).map(lambda text: re.sub(r"[\ud800-\udfff]", "", text) or "a")


def framed(channel: str, sequence: int, body: bytes, publisher: str | None) -> bytes:
    return frames.event(frames.event_head(channel, "inc"), sequence, body, publisher)


@given(
    channels,
    st.integers(1, 2**40),
    json_values,
    st.none() | st.text(),
    st.sampled_from([None, 1, "\r", "\n", "\r\n  "]),
    st.booleans(),
)
def test_the_message_is_the_same(
    channel: str, sequence: int, event: object, publisher: str | None, indent: int | str | None, mark: bool
) -> None:
    """One block of one line each, whatever is in the body; its id is the position unless it is marked."""
    body = json.dumps(event, indent=None if indent is None else 1).encode()
    body = body.replace(b"\n", str(indent).encode() if isinstance(indent, str) else b"\n")
    frame = framed(channel, sequence, body, publisher)
    frame = frames.mark(frame, 3) if mark else frame
    parser = Parser()
    [(data, place)] = parser.feed(sse.event(frame, mark))
    assert json.loads(data) == json.loads(frames.payload(frame))
    assert place == ("" if mark else f"inc-{sequence}")
    assert "\n" not in data


@given(channels, json_values)
def test_a_live_event_has_no_id(rest: str, event: object) -> None:
    """Whatever its name and its body look like."""
    frame = framed(
        f"live.{rest}", 0, json.dumps({"position": "inc-9", "event": event}).encode(), '","position":"'
    )
    [(_, place)] = Parser().feed(sse.event(frame, False))
    assert place == ""


@pytest.mark.parametrize("name", ['","position":"inc-7', '\\","position":"inc-7', "a\\"])
def test_a_name_is_no_position(name: str) -> None:
    """Quotes in a channel's name are escaped, so that it cannot pass for what follows it."""
    [(_, place)] = Parser().feed(sse.event(framed(f"live.{name}", 0, b"1", None), False))
    assert place == ""
    [(_, place)] = Parser().feed(sse.event(framed(name, 5, b"1", None), False))
    assert place == "inc-5"


def follow(place: sse.Place, kind: str, **payload: object) -> str | None:
    return place.follow(sse.decoder.decode(json.dumps({"type": kind, "payload": payload})))


def test_the_place_is_withheld_while_a_catch_up_is_under_way() -> None:
    """A client that came back with it would never get the rest; after the end it is P."""
    place = sse.Place()
    assert follow(place, "subscribed", position="i-5", live=False, catch_up=1) is None
    assert follow(place, "event", position="i-2", catch_up=1) is None
    assert follow(place, "gap", to="i-3", catch_up=1) is None
    assert follow(place, "pong", position="i-6") is None
    assert place.position is None
    assert follow(place, "subscription.live", position="i-7", catch_up=1) == "i-7"
    assert follow(place, "pong", position="i-8") == "i-8"


def test_what_moves_the_place() -> None:
    """Events, pongs, gaps that end somewhere, and what else carries P; nothing else."""
    place = sse.Place()
    assert follow(place, "subscribed", position="i-1", live=True) == "i-1"
    assert follow(place, "event", position="i-2", event={}) == "i-2"
    assert follow(place, "event", event={}) is None
    assert follow(place, "gap", **{"from": "i-2", "to": "i-4"}) == "i-4"
    assert follow(place, "gap", **{"from": "i-4"}) is None
    assert follow(place, "published", position="i-9") is None
    assert follow(place, "connection.draining", position="i-5", reconnect_after_ms=1) == "i-5"
    assert place.position == "i-5"


def test_frames_are_taken_off_whole() -> None:
    """Of every length form, however they are cut up."""
    texts = [b'"' + b"x" * size + b'"' for size in (0, 10, 123, 124, 65533, 65534, 70000)]
    stream, buffer = b"".join(map(frames.text, texts)), bytearray()
    found: list[bytes] = []
    for start in range(0, len(stream), 997):
        buffer += stream[start : start + 997]
        found += frames.take(buffer)
    assert found == texts
    assert not buffer
