"""Requests: a head is read within bounds, checked and parsed in one pass; h11 reads a body, on demand.

An origin server need not accept all that HTTP has had. What a proxy in front of the broker might read
differently is refused here (RFC 9112 sections 2.2, 3.2, 5.2, 6.3 and 11): line ends without CR, control
characters, folded lines, duplicate headers. Of headers that the broker does not read only the name is
checked. The protocol page, "What is taken of HTTP", has the table.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Protocol

import attrs
import h11
import trio

from broker.actors.transport import LinkLost
from broker.http.responses import Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from broker.config import Limits

END = b"\r\n\r\n"
LF = 0x0A
# Browsers send about 15; what proxies add is of the same order.
HEADERS = 100
# Beside the longest token: what a list of channels or a proxy's path may need.
TARGET_BYTES_BESIDE_TOKEN = 2048
CONTROLS = bytes({*range(0x20), 0x7F} - {0x09})  # except the tab
# RFC 9110 section 5.6.2
TOKEN_CHARACTERS = b"!#$%&'*+-.^_`|~" + (string.digits + string.ascii_letters).encode()
REQUEST_LINE = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]+) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])")
LENGTH = re.compile(r"[0-9]{1,20}")
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._~%!$&'()*+,;=-]+))(?::([0-9]{1,5}))?\Z", re.IGNORECASE)
# The headers that the broker reads; they must be ASCII. A duplicate of a single one is ambiguous; several
# lines of a list are one list (RFC 9110 section 5.3).
SINGLE = {
    "authorization", "content-length", "host", "last-event-id", "origin", "sec-websocket-key",
    "sec-websocket-version",
}  # fmt: skip
LISTS = {
    "accept", "accept-encoding", "connection", "expect", "if-none-match", "sec-websocket-protocol",
    "transfer-encoding", "upgrade", "x-forwarded-for", "x-forwarded-host",
}  # fmt: skip
READ = {name.encode(): name for name in SINGLE | LISTS}
FRAMING = ("content-length", "transfer-encoding", "expect")  # what the body depends on
VERSIONS = (b"1.0", b"1.1")
MALFORMED = "Malformed head: expected a request line, one Host and header lines."


class Stream(Protocol):
    """A link to a client, as far as HTTP goes. `local_host` is the address that the client reached."""

    @property
    def local_host(self) -> str: ...

    def arrived(self) -> bytes | None:
        """Return what has arrived already; None if it is nothing yet, or not known without waiting."""

    async def receive(self) -> bytes:
        """Return what has arrived; nothing at the end."""

    async def send_all(self, data: bytes) -> None: ...


@attrs.frozen(kw_only=True)
class Request:
    """A checked request.

    `headers` has those of `SINGLE` and `LISTS`, with names in lower case. `host` is in lower case, too, and
    without brackets if it is an IPv6 address. `version` is "1.0" or "1.1"; the former has no chunks.
    """

    method: str
    version: str
    path: str
    query: str
    host: str
    port: int | None
    headers: Mapping[str, str]

    @property
    def has_body(self) -> bool:
        return self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers


async def read(
    stream: Stream, limits: Limits, begin: Callable[[], Awaitable[None]] | None = None
) -> tuple[Request, bytes]:
    """Return the next request, and the bytes that followed its head. `begin`, if any, runs first (TLS).

    Bounds: `limits.head_seconds` including `begin`, and `limits.head_bytes`. Raises `Refused`, and `LinkLost`
    where nobody is there who would understand a response.
    """
    head = Head(stream, limits)
    # Mostly a client's head comes with its connection. Then there is no wait, and no scope for one: 10 µs.
    if begin is None and (data := stream.arrived()) and (found := head.feed(data)):
        return found
    with trio.move_on_after(limits.head_seconds):
        if begin is not None:
            await begin()
        while True:
            data = await stream.receive()
            if not data:
                raise LinkLost
            if found := head.feed(data):
                return found
    if not head.buffer:
        raise LinkLost
    raise Refused(408, f"The head was incomplete after {limits.head_seconds:g} s (limits.head_seconds).")


@attrs.define(eq=False)
class Head:
    """The head of a request as it arrives; `line` is the end of its first line, once it is there."""

    stream: Stream
    limits: Limits
    buffer: bytearray = attrs.Factory(bytearray)
    scanned: int = 0
    line: int = -1

    def feed(self, data: bytes) -> tuple[Request, bytes] | None:
        """Take bytes. Return the request and what follows it, once it is whole. Raises as `read` does."""
        buffer, scanned, most = self.buffer, self.scanned, self.limits.head_bytes
        buffer += data
        found = buffer.find(END, max(0, scanned - len(END) + 1))
        size = len(buffer) if found < 0 else found + len(END)
        odd = is_odd(buffer, scanned, size)
        if self.line < 0:
            self.line = buffer.find(b"\n", scanned, size)
            odd = odd or not buffer[scanned : self.line if self.line >= 0 else size].isascii()
        if odd:
            if not (buffer[:1].isalpha() and buffer[:1].isascii()):
                raise LinkLost  # a TLS hello, or noise: this was never HTTP
            raise Refused(
                400, "Malformed head: no control characters, no folded lines, each line ends with CR LF."
            )
        if size > most:
            status = 431 if 0 <= self.line < most else 414
            raise Refused(status, f"The head exceeds {most} bytes (limits.head_bytes).")
        if found < 0:
            self.scanned = size
            return None
        return parse(bytes(buffer[:size]), self.limits, self.stream.local_host), bytes(buffer[size:])


def is_odd(buffer: bytearray, start: int, end: int) -> bool:
    """Return whether there is a folded line, a bare CR or LF, or another control character (RFC 9110 5.5).

    What is before `start` is known to be sound. A CR at the end is sound: its LF may follow.
    """
    start = max(0, start - 1)
    if buffer[start] == LF:  # which follows a CR
        start -= 1
    piece = bytes(buffer[max(0, start) : end])
    text = piece.removesuffix(b"\r").replace(b"\r\n", b"")
    # Passes in C take 4 µs; a regular expression takes 16.
    return len(text.translate(None, CONTROLS)) < len(text) or b"\n " in piece or b"\n\t" in piece


async def read_body(
    stream: Stream, request: Request, trailing: bytes, *, most: int, seconds: float, limit: str = ""
) -> bytes:
    """Return the body of a request, by Content-Length or in chunks; `trailing` followed its head.

    Bounds: `most` bytes, for which `limit` names the configuration's key, if any, and `seconds` for the whole
    body. Raises `Refused` (400, 408, 413).
    """
    named = f" ({limit})" if limit else ""
    too_long = Refused(413, f"The body exceeds {most} bytes{named}.")
    if int(request.headers.get("content-length", "0")) > most:
        raise too_long
    framing = framing_of(request)
    body = bytearray()
    with trio.move_on_after(seconds):
        if trailing:
            framing.receive_data(trailing)
        elif framing.they_are_waiting_for_100_continue:
            await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not isinstance(event := next_event(framing), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += event.data
                if len(body) > most:
                    raise too_long
            else:
                framing.receive_data(await stream.receive())
        return bytes(body)
    raise Refused(408, f"The body was incomplete after {seconds:g} s.")


def framing_of(request: Request) -> h11.Connection:
    """Return what knows where the body of a request ends."""
    framing = h11.Connection(h11.SERVER)
    fields = [f"{name}: {request.headers[name]}" for name in FRAMING if name in request.headers]
    lines = [f"POST / HTTP/{request.version}", "Host: broker", *fields, "\r\n"]
    framing.receive_data("\r\n".join(lines).encode("ascii"))
    framing.next_event()
    return framing


def next_event(framing: h11.Connection) -> object:
    """Return the next event of h11. Raises `Refused` (400)."""
    try:
        return framing.next_event()
    except h11.RemoteProtocolError as error:
        error.__traceback__ = None  # a frame of h11's in it holds the error itself: a cycle
        raise Refused(400, "Malformed body: it ends early, or a chunk is invalid.") from None


def parse(head: bytes, limits: Limits, local_host: str) -> Request:
    """Return the request of a head whose bytes are all known to be allowed. Raises `Refused`.

    `local_host` is the address that the client reached: HTTP/1.0 does not have to name one.
    """
    line, *fields = head[: -len(END)].split(b"\r\n")
    if len(fields) > HEADERS:
        raise Refused(431, f"Too many headers: at most {HEADERS} are accepted.")
    request_line = REQUEST_LINE.fullmatch(line)
    if request_line is None:
        raise Refused(400, MALFORMED)
    method, target, version = (part.decode("ascii") for part in request_line.groups())
    headers = checked(fields)
    if request_line[3] not in VERSIONS:
        raise Refused(400, "Unsupported HTTP version: use HTTP/1.1 or HTTP/1.0.")
    check_framing(headers, version)
    if "host" not in headers and version == "1.1":
        raise Refused(400, MALFORMED)
    most = limits.token_bytes + TARGET_BYTES_BESIDE_TOKEN
    if len(target) > most:
        raise Refused(
            414,
            f"The request target exceeds {most} bytes (limits.token_bytes and {TARGET_BYTES_BESIDE_TOKEN}).",
        )
    if not target.startswith("/"):
        raise Refused(400, "The request target must be a path.")
    host, port = authority(headers["host"]) if "host" in headers else (local_host, None)
    path, _, query = target.partition("?")
    return Request(
        method=method,
        version=version,
        path=path,
        query=query,
        host=host,
        port=port,
        headers=headers,
    )


def check_framing(headers: Mapping[str, str], version: str) -> None:
    """Raise `Refused` (400, 501) where it is not certain, or not known, where the body ends."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None and coding.lower() != "chunked":
        raise Refused(501, "Unknown Transfer-Encoding: use chunked.")
    if length is not None and not LENGTH.fullmatch(length):
        raise Refused(400, "Malformed Content-Length: expected a number.")
    if coding is not None and (length is not None or version == "1.0"):
        raise Refused(400, "Transfer-Encoding cannot go with Content-Length or HTTP/1.0.")


def checked(fields: Sequence[bytes]) -> dict[str, str]:
    """Return the headers that the broker reads. Raises `Refused` (400)."""
    headers: dict[str, str] = {}
    names = []
    for field in fields:
        name_bytes, colon, value = field.partition(b":")
        if not (name_bytes and colon):
            raise Refused(400, MALFORMED)
        names.append(name_bytes)
        name = READ.get(name_bytes.lower())
        if name is None:
            continue
        if not value.isascii():
            raise Refused(400, f"Non-ASCII value of header: {name}")
        text = value.strip(b" \t").decode("ascii")
        if name not in headers:
            headers[name] = text
        elif name in SINGLE:
            raise Refused(400, f"Duplicate header: {name}")
        else:
            headers[name] += f", {text}"
    if b"".join(names).translate(None, TOKEN_CHARACTERS):
        raise Refused(400, MALFORMED)
    return headers


def authority(text: str) -> tuple[str, int | None]:
    """Return host and port of a `Host` header (RFC 9110 section 7.2). Raises `Refused` (400)."""
    match = HOST.match(text)
    if match is None or (match[3] and int(match[3]) > 65535):
        raise Refused(400, "Malformed Host header: expected HOST or HOST:PORT.")
    return (match[1] or match[2]).lower(), int(match[3]) if match[3] else None
