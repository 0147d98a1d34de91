"""A request: its head read within bounds, checked, and parsed by h11; its body where somebody wants one.

h11 is generous where an origin server need not be: line ends without CR, control characters, folded
lines, anything twice. What proxies in front of us may understand otherwise is refused here (RFC 9112
sections 2.2, 3.2, 5.2, 6.3 and 11). What nobody here reads may be as odd as it likes. README has the table.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs
import h11
import trio

from broker.actors.transport import LinkLost
from broker.web.problems import Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from broker.config import Limits
    from broker.web.links import Link

END = b"\r\n\r\n"
# Browsers send about 15; what proxies add is of the same order.
HEADERS = 100
# The longest token in a query, and as much again as a list of channels or a proxy's path may need.
TARGET_BYTES_BESIDE_TOKEN = 2048
# Bare CR or LF, a folded line, and control characters but for the tab (RFC 9110 section 5.5).
FORBIDDEN = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\n(?=[ \t])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
LENGTHS = re.compile(rb"\r\ncontent-length[ \t]*:([^\r]*)", re.IGNORECASE)
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._~%!$&'()*+,;=-]+))(?::([0-9]{1,5}))?\Z", re.IGNORECASE)
# The headers that are read here, and in ASCII. Twice in one head each of the first has two meanings; the
# others are lists, of which several lines are one (RFC 9110 section 5.3).
SINGLE = {
    "authorization", "content-length", "host", "last-event-id", "origin", "sec-websocket-key",
    "sec-websocket-version", "transfer-encoding",
}  # fmt: skip
LISTS = {
    "accept", "accept-encoding", "connection", "expect", "if-none-match", "sec-websocket-protocol", "upgrade",
    "x-forwarded-for", "x-forwarded-host",
}  # fmt: skip
VERSIONS = (b"1.0", b"1.1")


@attrs.frozen(kw_only=True)
class Request:
    """A checked request.

    `headers` are those of `SINGLE` and `LISTS`, by their names in lower case. `host` is in lower case, too;
    an IPv6 one is without brackets. `version` is "1.0" or "1.1": the former understands no chunks.
    """

    method: str
    version: str
    path: str
    query: str
    host: str
    port: int | None
    headers: Mapping[str, str]
    framing: h11.Connection = attrs.field(eq=False, repr=False)  # knows where the body ends

    @property
    def has_body(self) -> bool:
        return self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers


async def read(
    link: Link, limits: Limits, begin: Callable[[], Awaitable[None]] | None = None
) -> tuple[Request, bytes]:
    """The next request, and what came after its head. `begin` is what happens first: `link.open` as a rule.

    Bounds: `limits.head_seconds` with the TLS handshake, `limits.head_bytes`. Raises `Refused`, and
    `LinkLost` where there is nobody who would understand an answer.
    """
    buffer = bytearray()
    scanned, line = 0, -1  # the end of the request line
    with trio.move_on_after(limits.head_seconds):
        await (begin or link.open)()
        while True:
            data = await link.receive()
            if not data:
                raise LinkLost
            buffer += data
            found = buffer.find(END, max(0, scanned - len(END) + 1))
            size = len(buffer) if found < 0 else found + len(END)
            odd = FORBIDDEN.search(buffer, max(0, scanned - 1), size) is not None
            if line < 0:
                line = buffer.find(b"\n", scanned, size)
                odd = odd or not buffer[scanned : line if line >= 0 else size].isascii()
            if odd:
                if not (buffer[:1].isalpha() and buffer[:1].isascii()):
                    raise LinkLost  # a TLS hello, or noise: this was never HTTP
                raise Refused(
                    400, "A head is unfolded lines that end with CR LF, without control characters."
                )
            if size > limits.head_bytes:
                status = 431 if 0 <= line < limits.head_bytes else 414
                raise Refused(
                    status, f"The head is longer than {limits.head_bytes} bytes (limits.head_bytes)."
                )
            if found >= 0:
                return parse(bytes(buffer[:size]), limits, link.local_host), bytes(buffer[size:])
            scanned = size
    if not buffer:
        raise LinkLost
    raise Refused(408, f"The head was not complete after {limits.head_seconds:g} s.")


async def read_body(
    link: Link, request: Request, trailing: bytes, *, most: int, seconds: float, limit: str = ""
) -> bytes:
    """The body of a request, by Content-Length or in chunks; `trailing` came with its head.

    Bounds: `most` bytes, which are the key `limit` of the configuration where it names one, and `seconds` for
    all of it. Raises `Refused` (400, 408, 413).
    """
    named = f" ({limit})" if limit else ""
    too_long = Refused(413, f"The body is longer than {most} bytes{named}.")
    if int(request.headers.get("content-length", "0")) > most:
        raise too_long
    framing = request.framing
    body = bytearray()
    with trio.move_on_after(seconds):
        if trailing:
            framing.receive_data(trailing)
        elif framing.they_are_waiting_for_100_continue:
            await link.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not isinstance(event := next_event(framing), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += event.data
                if len(body) > most:
                    raise too_long
            else:
                framing.receive_data(await link.receive())
        return bytes(body)
    raise Refused(408, f"The body was not complete after {seconds:g} s.")


def next_event(framing: h11.Connection) -> object:
    """What h11 makes of what it was given. Raises `Refused`."""
    try:
        return framing.next_event()
    except h11.RemoteProtocolError as error:
        error.__traceback__ = None  # a frame of h11's in it holds the error itself: a cycle
        raise Refused(400, "The body ends early, or its chunks are malformed.") from None


def parse(head: bytes, limits: Limits, local_host: str) -> Request:
    """A head of which every byte is known to be allowed. Raises `Refused`.

    `local_host` is the address that the client reached, for one of HTTP/1.0 that names none.
    """
    if head.count(b"\r\n") - 2 > HEADERS:
        raise Refused(431, f"More than {HEADERS} headers.")
    lengths: list[bytes] = LENGTHS.findall(head)
    if len(lengths) > 1 or (lengths and b"," in lengths[0]):  # h11 passes over those that agree
        raise Refused(400, "The header content-length stands there twice.")
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        error.__traceback__ = None  # a frame of h11's in it holds the error itself: a cycle
        # h11's own words may hold a header's value: a token.
        raise Refused(
            error.error_status_hint, "Not a request line, one Host and well-formed header lines."
        ) from None
    if not isinstance(event, h11.Request) or event.http_version not in VERSIONS:
        raise Refused(400, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    most = limits.token_bytes + TARGET_BYTES_BESIDE_TOKEN
    if len(event.target) > most:
        raise Refused(
            414,
            f"The request target is longer than {most} bytes"
            f" (limits.token_bytes and {TARGET_BYTES_BESIDE_TOKEN}).",
        )
    if not event.target.startswith(b"/"):
        raise Refused(400, "The request target is a path.")
    version = event.http_version.decode("ascii")
    headers = checked(event.headers)
    if "transfer-encoding" in headers and ("content-length" in headers or version == "1.0"):
        raise Refused(400, "Transfer-Encoding excludes Content-Length and HTTP/1.0.")
    host, port = authority(headers["host"]) if "host" in headers else (local_host, None)
    path, _, query = event.target.decode("ascii").partition("?")
    return Request(
        method=event.method.decode("ascii"),
        version=version,
        path=path,
        query=query,
        host=host,
        port=port,
        headers=headers,
        framing=connection,
    )


def checked(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Of the headers those that are read here. Raises `Refused`."""
    headers: dict[str, str] = {}
    for name_bytes, value in raw:
        name = name_bytes.decode("ascii")
        if name not in SINGLE and name not in LISTS:
            continue
        if not value.isascii():
            raise Refused(400, f"The header {name} is not ASCII.")
        text = value.decode("ascii")
        if name not in headers:
            headers[name] = text
        elif name in SINGLE:
            raise Refused(400, f"The header {name} stands there twice.")
        else:
            headers[name] += f", {text}"
    return headers


def authority(text: str) -> tuple[str, int | None]:
    """Host and port of a `Host` header (RFC 9110 section 7.2)."""
    match = HOST.match(text)
    if match is None or (match[3] and int(match[3]) > 65535):
        raise Refused(400, "The Host header is not HOST or HOST:PORT.")
    return (match[1] or match[2]).lower(), int(match[3]) if match[3] else None
