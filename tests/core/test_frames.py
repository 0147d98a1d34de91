"""Server frames, read by wsproto as a client."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

from broker.wire import frames


@given(text=st.text(max_size=200), repeat=st.sampled_from([1, 126, 700]))
@example(text="a" * 125, repeat=1)
@example(text="a" * 126, repeat=1)
@example(text="a" * 65_535, repeat=1)
@example(text="a" * 65_536, repeat=1)
def test_text(text: str, repeat: int) -> None:
    """A frame of any length is read back as it was; its head is as short as RFC 6455 section 5.2 asks."""
    payload = (text * repeat).encode()
    connection = Connection(ConnectionType.CLIENT)
    connection.receive_data(frames.frame(frames.TEXT, payload))
    assert list(connection.events()) == [TextMessage(data=text * repeat)]
    assert frames.frame(frames.TEXT, payload) == frames.head(frames.TEXT, len(payload)) + payload


def test_control() -> None:
    """Ping and pong carry what they are given."""
    connection = Connection(ConnectionType.CLIENT)
    connection.receive_data(frames.frame(frames.PING, b"a") + frames.frame(frames.PONG, b""))
    assert list(connection.events()) == [Ping(payload=b"a"), Pong(payload=b"")]


@given(code=st.sampled_from([1000, 1001, 1009, 1012, 4001, 4510]), reason=st.text(max_size=200))
@example(code=1000, reason="€" * 60)
def test_close(code: int, reason: str) -> None:
    """A reason of any length fits: it is cut, and never within a character."""
    connection = Connection(ConnectionType.CLIENT)
    connection.receive_data(frames.close(code, reason))
    [event] = connection.events()
    assert isinstance(event, CloseConnection)
    assert event.code == code
    assert event.reason is not None
    assert reason.startswith(event.reason)
    assert len(event.reason.encode()) > 119 or event.reason == reason
