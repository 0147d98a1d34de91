"""Frames that are read without wsproto: the ordinary ones, of which the same is heard as by wsproto."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.actors.transport import Alive, Control, Inbound, Text
from broker.links.websocket import whole
from broker.links.websocket.gate import Gate
from broker.links.websocket.transport import Arrival
from broker.wire import frames
from tests.web.harness import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

LIMIT = 1000
SIZES = [0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 999, 1000, 1001, 65535, 65536]
OPCODES = [TEXT, TEXT, TEXT, PING, PONG, CONTINUATION, BINARY, CLOSE, 3, 11]
PAYLOAD = st.one_of(
    st.sampled_from(SIZES).map(lambda size: b"a" * size),
    st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")),
    st.binary(max_size=130),
)
FRAME = st.builds(
    frame,
    st.sampled_from(OPCODES),
    PAYLOAD,
    first=st.sampled_from([0x80, 0x80, 0x80, 0x00, 0xC0, 0x90]),
    mask=st.one_of(st.binary(min_size=4, max_size=4), st.none()),
)
LONGER_THAN_NEEDED = st.one_of(
    st.builds(lambda size: struct.pack("!BBH4x", 0x81, 0xFE, size) + b"a" * size, st.integers(0, 200)),
    st.builds(lambda size: struct.pack("!BBQ4x", 0x81, 0xFF, size) + b"a" * size, st.integers(0, 200)),
)
ORDINARY = {
    "text": (frame(TEXT, b"hello"), Text(data=b"hello")),
    "empty text": (frame(TEXT), Text(data=b"")),
    "text of other alphabets": (frame(TEXT, "žluťoučký 😀".encode()), Text(data="žluťoučký 😀".encode())),
    "text of 126 bytes": (frame(TEXT, b"a" * 126), Text(data=b"a" * 126)),
    "text at the limit": (frame(TEXT, b"a" * LIMIT), Text(data=b"a" * LIMIT)),
    "ping": (frame(PING, b"\xff\x00"), Control(data=frames.frame(frames.PONG, b"\xff\x00"))),
    "pong": (frame(PONG), Alive()),
}
LEFT = {
    "unmasked": frame(TEXT, b"hello", mask=None),
    "fragment": frame(TEXT, b"hello", first=0),
    "reserved bit": frame(TEXT, b"hello", first=0xC0),
    "continuation": frame(CONTINUATION, b"hello"),
    "binary": frame(BINARY, b"hello"),
    "close": frame(CLOSE, b"\x03\xe8"),
    "unknown opcode": frame(3),
    "no UTF-8": frame(TEXT, b"\xff"),
    "a surrogate": frame(TEXT, b"\xed\xa0\x80"),
    "over the limit": frame(TEXT, b"a" * (LIMIT + 1)),
    "ping of 126 bytes": frame(PING, b"a" * 126),
    "pong of 126 bytes": frame(PONG, b"a" * 126),
    "125 in two bytes": struct.pack("!BBH4x", 0x81, 0xFE, 125) + b"a" * 125,
    "126 in eight bytes": struct.pack("!BBQ4x", 0x81, 0xFF, 126) + b"a" * 126,
    "257 · 2^48 in eight bytes": struct.pack("!BBQ4x", 0x81, 0xFF, 257 << 48) + b"a" * 300,
}


@pytest.mark.parametrize("data", LEFT.values(), ids=LEFT)
def test_left_to_wsproto(data: bytes) -> None:
    """Whatever is at fault or in parts is judged by wsproto, from its first byte on."""
    for sent in (data, data + frame(TEXT, b"after")):
        assert whole.take(sent, LIMIT) == (None, sent)


@pytest.mark.parametrize(("data", "heard"), ORDINARY.values(), ids=ORDINARY)
def test_ordinary_frames(data: bytes, heard: Inbound) -> None:
    """Whole messages and heartbeats need no wsproto, whatever follows them; a part of one is no whole."""
    assert whole.take(data, LIMIT) == (heard, b"")
    assert whole.take(data + data[:1], LIMIT) == (heard, data[:1])
    for size in range(1, len(data)):
        assert whole.take(data[:size], LIMIT) == (None, data[:size])


@given(
    data=st.lists(st.one_of(FRAME, LONGER_THAN_NEEDED, st.binary(min_size=1, max_size=8)), min_size=1).map(
        b"".join
    )
)
def test_agrees_with_wsproto(data: bytes) -> None:
    """Of any stream the same is heard from the beginning, as far as whole frames go."""
    arrival = Arrival(Gate(LIMIT))
    arrival.feed(data, 0.0)
    rest = data
    while rest:
        heard, rest = whole.take(rest, LIMIT)
        if heard is None:
            break
        assert heard == arrival.next()
