"""The NATS client protocol without I/O: bytes of the server to events, and commands to bytes.

Source: https://docs.nats.io/reference/reference-protocols/nats-protocol. Subjects, headers and bodies stay
bytes: the server passes on what any publisher has written, UTF-8 or not.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from broker.nats import headers

if TYPE_CHECKING:
    from collections.abc import Mapping

CRLF = b"\r\n"
LINE_BYTES = 1 << 20  # of a control line; an INFO names all servers of a cluster
MESSAGE_BYTES = 128 << 20  # a server takes 64 MiB at most, and adds headers of its own
NO_SUBJECT = re.compile(r"[ \t\r\n]|\A\Z")
REFUSAL = re.compile(
    r'permissions violation for (publish|subscription) to "(.*?)"(?: using queue .*)?$',
    re.IGNORECASE | re.DOTALL,
)
# In a quoted subject (Go's %q), whatever is not printed as it is. https://pkg.go.dev/strconv#Quote
ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4})|(.))")
CONTROLS = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
# What the server says and goes on, by the beginning of the text; after all else it closes the connection.
REMARKS = (
    "permissions violation",
    "invalid subject",
    "invalid publish subject",
    "maximum subscriptions exceeded",
)
HINTS = {
    "authorization violation": "check the credentials in [nats]",
    "authorization timeout": "the server took too long to check the credentials",
    "user authentication expired": "the credentials in [nats] have expired: put new ones into the same file",
    "user authentication revoked": "the credentials in [nats] were revoked: put new ones into the same file",
    "account authentication expired": "the account's JWT has expired: its operator must renew it",
    "maximum connections exceeded": "raise max_connections of the server",
    "maximum account active connections exceeded": "raise the account's limit on connections",
    "secure connection - tls required": "use a tls:// address",
    "attempted to connect to route port": "use the port for clients",
    "slow consumer": "the server has dropped what the broker was too slow to read",
}


class ProtocolError(Exception):
    """The peer says what a NATS server does not say."""


class Sign(Enum):
    """What a server says in one word."""

    PING = auto()
    PONG = auto()
    OK = auto()


@attrs.frozen(kw_only=True)
class Info:
    """What the server says of itself, at first and whenever that changes.

    `servers` are the addresses of its cluster for clients ("host:port"); `lame_duck`: it will close all
    connections soon.
    """

    version: tuple[int, ...]
    max_payload: int
    nonce: str | None = None
    tls_required: bool = False
    tls_available: bool = False
    servers: tuple[str, ...] = ()
    lame_duck: bool = False


@attrs.frozen
class Refusal:
    """An error that the server reports, in its own words."""

    text: str

    @property
    def fatal(self) -> bool:
        """Whether the server closes the connection after it."""
        return not self.text.lower().startswith(REMARKS)

    @property
    def publish(self) -> str | None:
        """The subject that must not be published to, where it is that."""
        return self._subject("publish")

    @property
    def subscription(self) -> str | None:
        """The subject that must not be subscribed to, where it is that."""
        return self._subject("subscription")

    def _subject(self, action: str) -> str | None:
        found = REFUSAL.match(self.text)
        return ESCAPE.sub(unescaped, found[2]) if found and found[1].lower() == action else None

    def __str__(self) -> str:
        """The server's words, and the next step where it is known."""
        hint = HINTS.get(self.text.lower())
        return f"{self.text} ({hint})" if hint else self.text


def unescaped(escape: re.Match[str]) -> str:
    if code := escape[1] or escape[2] or escape[3]:
        return chr(int(code, 16))
    return CONTROLS.get(escape[4], escape[4])


# Number of the subscription, subject, reply subject (empty: none), header block (likewise) and body. A tuple,
# since one is made for each message.
Message: TypeAlias = tuple[int, bytes, bytes, bytes, bytes]
Event: TypeAlias = Message | Info | Refusal | Sign


@attrs.define(eq=False)
class Decoder:
    """Decoder of what one server sends, cut anywhere."""

    rest: bytearray = attrs.field(factory=bytearray)  # the beginning of what is not complete yet
    wanted: int = 0  # bytes of `rest` before which looking at it again is in vain
    greeted: bool = False

    def receive(self, data: bytes) -> list[Event]:
        """Return what is complete with `data`, in order. Raises `ProtocolError`; nothing follows that."""
        if self.rest:
            self.rest += data
            if len(self.rest) < self.wanted:
                return []
            data = bytes(self.rest)
        events: list[Event] = []
        start, self.wanted = 0, 0
        while (end := data.find(CRLF, start)) >= 0:
            words = data[start:end].split(b" ")
            if words[0] == b"MSG" or words[0] == b"HMSG":
                head, stop = sizes(words)
                body = end + 2
                stop += body
                if len(data) < stop + 2:
                    self.wanted = stop + 2 - start
                    break
                if data[stop : stop + 2] != CRLF:
                    raise ProtocolError("a message does not end where it should")
                reply = words[3] if len(words) == (6 if head else 5) else b""
                body += head
                events.append((int(words[2]), words[1], reply, data[end + 2 : body], data[body:stop]))
                start = stop + 2
            else:
                events.append(self.line(data[start:end]))
                start = end + 2
        self.rest = bytearray(data[start:])
        if not self.wanted and len(self.rest) > LINE_BYTES:
            raise ProtocolError("a line that does not end")
        if events and not self.greeted:
            if not isinstance(events[0], Info | Refusal):
                raise ProtocolError("the first line is no INFO: this is no NATS server")
            self.greeted = True
        return events

    def line(self, line: bytes) -> Event:
        """Return what a line without a body says."""
        verb, _, rest = line.partition(b" ")
        match verb.upper():
            case b"PING":
                return Sign.PING
            case b"PONG":
                return Sign.PONG
            case b"+OK":
                return Sign.OK
            case b"-ERR":
                return Refusal(rest.decode(errors="replace").strip(" '"))
            case b"INFO":
                return info(rest)
        raise ProtocolError(f"no command of a NATS server: {line[:40]!r}")


def sizes(words: list[bytes]) -> tuple[int, int]:
    """Return the bytes of the header block, and of block and body, from the head of a message.

    `MSG <subject> <sid> [reply] <bytes>`, `HMSG <subject> <sid> [reply] <header bytes> <bytes>` (ADR-4).
    """
    try:
        head = int(words[-2]) if words[0] == b"HMSG" else 0
        whole = int(words[-1])
        if not (0 <= head <= whole <= MESSAGE_BYTES and int(words[2]) >= 0):
            raise ValueError
        if not (5 <= len(words) <= 6 if words[0] == b"HMSG" else 4 <= len(words) <= 5):
            raise ValueError
    except (ValueError, IndexError):
        raise ProtocolError(f"the head of a message is wrong: {b' '.join(words)[:80]!r}") from None
    return head, whole


def info(data: bytes) -> Info:
    """Return an INFO from its JSON. Raises `ProtocolError`."""
    try:
        said = json.loads(data)
        return Info(
            version=tuple(int(each) for each in re.findall(r"\d+", said["version"])[:3]),
            max_payload=int(said["max_payload"]),
            nonce=said.get("nonce"),
            tls_required=bool(said.get("tls_required")),
            tls_available=bool(said.get("tls_available")),
            servers=tuple(str(each) for each in said.get("connect_urls") or ()),
            lame_duck=bool(said.get("ldm")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ProtocolError(f"the INFO of the server cannot be read: {data[:80]!r}") from None


def connect(fields: Mapping[str, Any]) -> bytes:
    """Return CONNECT with the options that every client here has, and `fields`."""
    options = {
        "verbose": False,
        "pedantic": False,
        "lang": "python",
        "protocol": 1,
        "headers": True,
        "no_responders": True,
        **fields,
    }
    return b"CONNECT " + json.dumps(options).encode() + CRLF


PING = b"PING\r\n"
PONG = b"PONG\r\n"


def subscribe(subject: str, number: int) -> bytes:
    """Return SUB. Raises `ValueError` for an invalid subject."""
    return b"SUB %b %d\r\n" % (address(subject), number)


def unsubscribe(number: int) -> bytes:
    """Return UNSUB."""
    return b"UNSUB %d\r\n" % number


def publish(subject: str, body: bytes, *, reply: str = "", fields: Mapping[str, str] | None = None) -> bytes:
    """Return PUB, or HPUB for a message with header fields. Raises `ValueError` for invalid ones."""
    block = headers.block(fields)
    words = b"%b %b" % (address(subject), reply.encode())
    if block:
        return b"HPUB %b %d %d\r\n%b%b\r\n" % (words, len(block), len(block) + len(body), block, body)
    return b"PUB %b %d\r\n%b\r\n" % (words, len(body), body)


def address(subject: str) -> bytes:
    """Return a subject as it is sent. Raises `ValueError` for one that would end the line."""
    if NO_SUBJECT.search(subject):
        raise ValueError(f"{subject!r} is not a subject")
    # A byte that is not UTF-8 came from the subject of another publisher: escape it.
    return subject.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode()
