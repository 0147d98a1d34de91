"""What a NATS server says, cut anywhere, and what it may not say.

Source: https://docs.nats.io/reference/reference-protocols/nats-protocol.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.nats import headers, protocol
from broker.nats.protocol import Decoder, Event, Info, ProtocolError, Refusal, Sign

INFO = Info(version=(2, 12, 0), max_payload=1 << 20)
INFO_LINE = b'INFO {"version":"2.12.0","max_payload":1048576}\r\n'

# A publisher may use any byte in a subject but those that separate words.
subjects = st.binary(min_size=1, max_size=20).filter(lambda each: not set(each) & set(b" \r\n"))
bodies = st.binary(max_size=200)
names, values = (st.from_regex(each, fullmatch=True) for each in (r"[A-Za-z-]{1,10}", r"[!-~]{0,10}"))
blocks = st.dictionaries(names, values, min_size=1).map(headers.block)


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, Event]:
    """A message as the server sends it, and as it is understood."""
    number, subject, body = draw(st.integers(0, 2**31)), draw(subjects), draw(bodies)
    reply, block = draw(st.just(b"") | subjects), draw(st.just(b"") | blocks)
    words = [b"HMSG" if block else b"MSG", subject, b"%d" % number, *([reply] if reply else [])]
    words += [b"%d" % len(block), b"%d" % len(block + body)] if block else [b"%d" % len(body)]
    return b" ".join(words) + b"\r\n" + block + body + b"\r\n", (number, subject, reply, block, body)


lines: st.SearchStrategy[tuple[bytes, Event]] = st.sampled_from(
    [
        (b"PING\r\n", Sign.PING),
        (b"PONG\r\n", Sign.PONG),
        (b"pong\r\n", Sign.PONG),
        (b"+OK\r\n", Sign.OK),
        (b"-ERR 'Stale Connection'\r\n", Refusal("Stale Connection")),
        (INFO_LINE, INFO),
    ]
)


@given(st.lists(messages() | lines, max_size=20), st.lists(st.integers(1, 400)))
def test_whatever_is_said_is_understood_however_it_is_cut(
    said: list[tuple[bytes, Event]], cuts: list[int]
) -> None:
    """Each event comes as soon as it is complete, once, in order."""
    data = INFO_LINE + b"".join(text for text, _ in said)
    expected: list[Event] = [INFO, *(event for _, event in said)]
    ends = [len(INFO_LINE)]
    for text, _ in said:
        ends.append(ends[-1] + len(text))
    decoder, found, at = Decoder(), list[Event](), 0
    for size in [*cuts, len(data)]:
        found += decoder.receive(data[at : at + size])
        at = min(at + size, len(data))
        assert len(found) == sum(end <= at for end in ends)
    assert found == expected


PARTS = b"\r\n", b"MSG a 1 3\r\n", b"HMSG a 1 3 9\r\n", b"INFO {", b"PING\r\n"


@given(st.lists(st.binary(max_size=100) | st.sampled_from(PARTS)))
def test_any_other_bytes_are_understood_or_refused(said: list[bytes]) -> None:
    """Nothing but `ProtocolError` comes of them, and no event twice for the way in which they are cut."""

    def understand(parts: list[bytes]) -> tuple[list[Event], bool]:
        decoder, found = Decoder(greeted=True), list[Event]()
        try:
            for each in parts:
                found += decoder.receive(each)
        except ProtocolError:
            return found, True
        return found, False

    found, refused = understand(said)
    whole, refused_whole = understand([b"".join(said)])
    assert refused == refused_whole
    assert refused or found == whole


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a 1",
        b"MSG a 1 x",
        b"MSG a x 1",
        b"MSG a 1 -1",
        b"MSG a -1 1",
        b"MSG a 1 r r 1",
        b"MSG a 1 999999999999",
        b"HMSG a 1 5",
        b"HMSG a 1 6 5",
        b"HMSG a 1 -1 5",
        b"HMSG a 1 r r 1 2",
        b"HTTP/1.1 400 Bad Request",
        b"",
        b"PINGS",
        b"INFO",
        b"INFO []",
        b"INFO {}",
        b'INFO {"version":7,"max_payload":1}',
        b'INFO {"version":"2.12","max_payload":"x"}',
        b'INFO {"version":"2.12","max_payload":1,"connect_urls":7}',
        b"INFO " + b"[" * 100_000,
    ],
)
def test_a_line_that_no_server_says(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder(greeted=True).receive(line + b"\r\n")


def test_a_body_that_is_longer_than_its_head_says() -> None:
    with pytest.raises(ProtocolError, match="does not end where it should"):
        Decoder(greeted=True).receive(b"MSG a 1 3\r\nabcdef\r\n")


def test_a_line_that_does_not_end() -> None:
    """It is not kept for ever; a body of any size is."""
    decoder = Decoder(greeted=True)
    with pytest.raises(ProtocolError, match="does not end"):
        decoder.receive(bytes(protocol.LINE_BYTES + 1))
    decoder = Decoder(greeted=True)
    size = 8 << 20
    decoder.receive(b"MSG a 1 %d\r\n" % size)
    for _ in range(size >> 16):
        assert decoder.receive(bytes(1 << 16)) == []
    assert decoder.receive(b"\r\n") == [(1, b"a", b"", b"", bytes(size))]


def test_a_server_greets_first() -> None:
    """What says anything else is no NATS server; a refusal may take the greeting's place."""
    for said in b"PING\r\n", b"MSG a 1 1\r\nx\r\n":
        with pytest.raises(ProtocolError, match="no INFO"):
            Decoder().receive(said)
    assert Decoder().receive(b"-ERR 'Maximum Connections Exceeded'\r\n")


def test_what_a_server_says_of_itself() -> None:
    said = {
        "version": "2.12.1-RC.2",
        "max_payload": 1024,
        "nonce": "abc",
        "tls_required": True,
        "connect_urls": ["10.0.0.1:4222", "[fd00::1]:4222"],
        "ldm": True,
        "something": "new",
    }
    (found,) = Decoder().receive(b"INFO " + json.dumps(said).encode() + b" \r\n")
    assert found == Info(
        version=(2, 12, 1),
        max_payload=1024,
        nonce="abc",
        tls_required=True,
        servers=("10.0.0.1:4222", "[fd00::1]:4222"),
        lame_duck=True,
    )


@pytest.mark.parametrize(
    ("text", "fatal"),
    [
        ("Unknown Protocol Operation", True),
        ("Attempted To Connect To Route Port", True),
        ("Authorization Violation", True),
        ("Authorization Timeout", True),
        ("Invalid Client Protocol", True),
        ("Maximum Control Line Exceeded", True),
        ("Parser Error", True),
        ("Secure Connection - TLS Required", True),
        ("Stale Connection", True),
        ("Maximum Connections Exceeded", True),
        ("Slow Consumer", True),
        ("Maximum Payload Violation", True),
        ("User Authentication Expired", True),
        ("Invalid Subject", False),
        ("Permissions Violation for Subscription to foo.bar", False),
        ("Permissions Violation for Publish to foo.bar", False),
        ("maximum subscriptions exceeded", False),
    ],
)
def test_which_errors_end_a_connection(text: str, fatal: bool) -> None:
    """As the protocol's document has it, but for the last, which is by the server's source."""
    (found,) = Decoder(greeted=True).receive(f"-ERR '{text}'\r\n".encode())
    assert found == Refusal(text)
    assert isinstance(found, Refusal)
    assert found.fatal == fatal


def test_what_a_login_may_not_do() -> None:
    subscription = Refusal('Permissions Violation for Subscription to "Live.a b" using queue "x"')
    assert (subscription.subscription, subscription.publish) == ("Live.a b", None)
    publish = Refusal('Permissions Violation for Publish to "Events.a"')
    assert (publish.subscription, publish.publish) == (None, "Events.a")


@pytest.mark.parametrize(
    ("quoted", "subject"),
    [
        (r"a.\"\\", 'a."\\'),
        (r"\\u0041", "\\u0041"),
        (r"a.\x7f\u200d\ue000\U000e0001\U0010ffff", "a.\x7f\u200d\ue000\U000e0001\U0010ffff"),
        ("a.\u00e9\U0001f600", "a.\u00e9\U0001f600"),
        (r"a.\a\b\f\n\r\t\v", "a.\a\b\f\n\r\t\v"),
        (r"a.\U00110000\u12", "a.U00110000u12"),
    ],
)
def test_the_subject_of_a_refusal_is_quoted_by_the_server(quoted: str, subject: str) -> None:
    assert Refusal(f'Permissions Violation for Publish to "{quoted}"').publish == subject


def test_commands() -> None:
    assert protocol.subscribe("a.b", 7) == b"SUB a.b 7\r\n"
    assert protocol.unsubscribe(7) == b"UNSUB 7\r\n"
    assert protocol.publish("a", b"xyz") == b"PUB a  3\r\nxyz\r\n"
    assert protocol.publish("a", b"xyz", reply="r") == b"PUB a r 3\r\nxyz\r\n"
    sent = protocol.publish("a", b"xyz", reply="r", fields={"N": "1"})
    assert sent == b"HPUB a r 18 21\r\nNATS/1.0\r\nN: 1\r\n\r\nxyz\r\n"
    assert protocol.publish("a\udcff", b"") == b"PUB a\\xff  0\r\n\r\n"
    head, _, said = protocol.connect({"name": "x"}).partition(b" ")
    assert head == b"CONNECT"
    assert json.loads(said).items() >= {"name": "x", "verbose": False, "headers": True}.items()
