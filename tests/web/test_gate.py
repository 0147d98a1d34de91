"""The gate against wsproto: it cuts at heads, and never sees another stream than wsproto does."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection

from broker.links.websocket.gate import Gate
from tests.web.harness import CONTINUATION, PING, PONG, TEXT, frame

FRAME = st.one_of(
    st.builds(
        frame,
        st.sampled_from([TEXT, CONTINUATION, PING, PONG, 2, 3, 8]),
        st.sampled_from([b"", b"a", b"a" * 125, b"a" * 126, b"a" * 70_000]),
        first=st.sampled_from([0x80, 0x80, 0x00, 0xC0]),
        mask=st.sampled_from([b"abcd", b"abcd", b"abcd", None]),
    ),
    st.binary(max_size=20),
    st.builds(lambda size: struct.pack("!BBQ4x", 0x81, 0xFF, size), st.integers(0, 2**64 - 1)),
)


@given(
    sent=st.lists(FRAME, max_size=8).map(b"".join),
    cuts=st.lists(st.integers(1, 3000), max_size=30),
    limit=st.just(100_000),
)
def test_cuts_make_no_difference(sent: bytes, cuts: list[int], limit: int) -> None:
    """Bytes passed and fault are the same however the stream arrives."""
    whole, pieces = Gate(limit), Gate(limit)
    passed = whole.admit(sent)
    together, rest = b"", sent
    for cut in cuts:
        if pieces.fault is None:
            together += pieces.admit(rest[:cut])
            rest = rest[cut:]
    if pieces.fault is None:
        together += pieces.admit(rest)
    assert together == passed
    assert pieces.fault == whole.fault
    assert sent.startswith(passed)
    assert pieces.at_rest == whole.at_rest


@given(frames=st.lists(FRAME, max_size=8))
def test_agrees_with_wsproto(frames: list[bytes]) -> None:
    """Where wsproto finds a head at fault the gate has found it before, or let it see the whole of it."""
    sent = b"".join(frames)
    gate = Gate(1 << 64)
    passed = gate.admit(sent)
    connection = Connection(ConnectionType.SERVER)
    connection.receive_data(passed)
    ended = any(isinstance(event, CloseConnection) for event in connection.events())
    alone = Connection(ConnectionType.SERVER)
    # The gate needs not see the whole of a head to know that it is at fault; wsproto waits for its end.
    alone.receive_data(sent + bytes(14) if gate.fault else sent)
    ended_alone = any(isinstance(event, CloseConnection) for event in alone.events())
    assert (ended or gate.fault is not None) == ended_alone
