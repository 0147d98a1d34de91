"""What the port takes of HTTP and what it refuses: the table of the protocol page, row by row."""

from __future__ import annotations

import re

import pytest

from broker import docs
from broker.config import Limits
from tests.web.harness import KEY, head, running

TABLE = re.compile(r"### What is taken of HTTP\n(?:[^|].*\n|\n)+\| a request.*\n\|---.*\n((?:\|.*\n)+)")


def plain(line: str, *headers: str | bytes, body: bytes = b"") -> bytes:
    """A request by its line, with `Host` unless it is of HTTP/1.0."""
    host: list[bytes] = [] if line.endswith("1.0") else [b"Host: broker.example"]
    lines = [line.encode(), *host, *(each.encode() if isinstance(each, str) else each for each in headers)]
    return b"\r\n".join([*lines, b"", b""]) + body


GET, TOKEN = "GET /healthz HTTP/1.1", "Authorization: Bearer a.b.c"
EVENT = b'{"channel":"a","event":1}'


def post(*headers: str, body: bytes = b"", line: str = "POST /publish HTTP/1.1") -> bytes:
    return plain(line, TOKEN, *headers, body=body)


def sized(version: str, *headers: str) -> bytes:
    lengths = f"Content-Length: {len(EVENT)}"
    return post(lengths, *headers, body=EVENT, line=f"POST /publish HTTP/{version}")


def handshake(*lines: str) -> bytes:
    """Of a WebSocket, beside what every one has."""
    fixed = ("Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")
    return plain("GET /ws HTTP/1.1", *fixed, *lines)


CHUNKED = "Transfer-Encoding: chunked"
IN_CHUNKS = b"19\r\n" + EVENT + b"\r\n0\r\n\r\n"

# By the words of the page: requests, each with its status. 0 is a link that is cut without a word.
CASES: dict[str, list[tuple[bytes, int]]] = {
    "bytes 0x80 to 0xFF in a header that is not read here: `Cookie`, `User-Agent`, `X-…`": [
        (plain(GET, "Cookie: city=Zürich", b"User-Agent: \xff\x80", "X-Name: ü"), 200),
        (head(cookie="city=Zürich", sec_websocket_extensions="ü"), 101),
    ],
    "HTTP/1.0, also without `Host`: `GET`, `HEAD`, `POST`": [
        (plain("GET /readyz HTTP/1.0"), 200),
        (plain("GET /healthz HTTP/1.0", "Connection: keep-alive"), 200),
        (plain("HEAD /healthz HTTP/1.0"), 200),
        (sized("1.0"), 202),
    ],
    "`HEAD` wherever `GET` is": [
        (plain("HEAD /healthz HTTP/1.1"), 200),
        (plain("HEAD /client.js HTTP/1.1"), 200),
        (plain("HEAD /sse?channel=a HTTP/1.1", TOKEN), 200),
        (plain("HEAD /poll?channel=a HTTP/1.1", TOKEN), 200),
    ],
    "a list in several lines, or with empty items: `Connection`, `Upgrade`, `Sec-WebSocket-Protocol`,"
    " `Accept-Encoding`, `X-Forwarded-For`": [
        (
            handshake("Connection: keep-alive", "Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"),
            101,
        ),
        (
            handshake(
                "Connection: , Upgrade",
                "Upgrade: websocket,",
                "Sec-WebSocket-Protocol: bearer.a.b.c",
                "Sec-WebSocket-Protocol: , broker.v1",
                "Sec-WebSocket-Extensions: a",
                "Sec-WebSocket-Extensions: b",
            ),
            101,
        ),
        (
            plain(
                GET,
                "Accept-Encoding: br",
                "Accept-Encoding: gzip",
                "X-Forwarded-For: ::1",
                "X-Forwarded-For: a",
            ),
            200,
        ),
        (plain(GET, "Access-Control-Request-Headers: a", "Access-Control-Request-Headers: b"), 200),
    ],
    "a header twice that is not read here": [
        (plain(GET, "Cookie: a", "Cookie: b", "Forwarded: a", "Forwarded: b"), 200)
    ],
    "a body in chunks, with trailers; `Expect: 100-continue`": [
        (post(CHUNKED, body=IN_CHUNKS), 202),
        (post(CHUNKED, body=IN_CHUNKS[:-2] + b"X-Sum: 1\r\n\r\n"), 202),
        (sized("1.1", "Expect: 100-continue"), 202),
    ],
    "bytes 0x80 to 0xFF in the request line or in a header that is read here": [
        (plain("GET /healthz?ü HTTP/1.1"), 400),
        (plain("GËT /healthz HTTP/1.1"), 400),
        *(
            (plain(GET, f"{name}: ü"), 400)
            for name in (
                "Authorization",
                "Origin",
                "Last-Event-ID",
                "Accept",
                "Accept-Encoding",
                "Connection",
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Protocol",
                "Upgrade",
                "X-Forwarded-For",
                "If-None-Match",
            )
        ),
    ],
    "a control character, bare CR or LF, a folded line, a line without a colon or with a blank before it": [
        (plain(GET, "Cookie: a\0b"), 400),
        (plain(GET, "Cookie: \x01"), 400),
        (plain(GET, "Cookie: \x7f"), 400),
        (plain(GET, "Cookie: a\nb: c"), 400),
        (plain(GET, "Cookie: a\rb: c"), 400),
        (plain(GET).replace(b"\r\n", b"\n"), 400),
        (plain(GET, "Cookie: a\r\n b"), 400),
        (plain(GET, "Cookie: a\r\n\tb"), 400),
        (plain(GET, "Cookie"), 400),
        (plain(GET, "Cookie : a"), 400),
        (plain(GET, "Content-Length : 0"), 400),
        (b"\r\n" + plain(GET), 400),
    ],
    "`Host` missing in HTTP/1.1, twice, or not HOST[:PORT]": [
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (plain(GET, "Host: broker.example"), 400),
        (plain("GET /healthz HTTP/1.0", "Host: a", "Host: a"), 400),
        (plain("GET /healthz HTTP/1.0", "Host: a/b"), 400),
        (plain("GET /healthz HTTP/1.0", "Host: a@b"), 400),
    ],
    "a header twice that has one value: `Authorization`, `Origin`, `Last-Event-ID`, `Sec-WebSocket-Key`": [
        *(
            (plain(GET, f"{name}: a", f"{name}: a"), 400)
            for name in (
                "Authorization",
                "Origin",
                "Last-Event-ID",
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Version",
            )
        ),
    ],
    "`Content-Length` twice, as a list, signed, or beside `Transfer-Encoding`": [
        (sized("1.1", f"Content-Length: {len(EVENT)}"), 400),
        (post("Content-Length: 25, 25", body=EVENT), 400),
        (post("Content-Length: +25", body=EVENT), 400),
        (post("Content-Length: 0x19", body=EVENT), 400),
        (post("Content-Length: 25", CHUNKED, body=IN_CHUNKS), 400),
        (post(CHUNKED, "content-length: 25", body=IN_CHUNKS), 400),
    ],
    "`Transfer-Encoding` in HTTP/1.0; chunks that are none": [
        (post(CHUNKED, body=IN_CHUNKS, line="POST /publish HTTP/1.0"), 400),
        (post(CHUNKED, body=b"zz\r\n"), 400),
        (post(CHUNKED, body=b"-1\r\n\r\n"), 400),
        (post(CHUNKED, body=b"19\n" + EVENT + b"\r\n0\r\n\r\n"), 400),
        (post(CHUNKED, body=b"18\r\n" + EVENT + b"\r\n0\r\n\r\n"), 400),
    ],
    "any other `Transfer-Encoding`, or two": [
        (post("Transfer-Encoding: gzip, chunked", body=IN_CHUNKS), 501),
        (post("Transfer-Encoding: xchunked", body=IN_CHUNKS), 501),
        (post(CHUNKED, CHUNKED, body=IN_CHUNKS), 501),
        (post("Transfer-Encoding: chunked, chunked", body=IN_CHUNKS), 501),
    ],
    "a target that is no path; another version of HTTP": [
        (plain("GET http://broker.example/healthz HTTP/1.1"), 400),
        (plain("CONNECT broker.example:443 HTTP/1.1"), 400),
        (plain("OPTIONS * HTTP/1.1"), 400),
        (plain("GET /healthz HTTP/1.2"), 400),
        (b"GET /healthz\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ],
    "a body where none is expected": [
        (plain("GET /sse?channel=a HTTP/1.1", TOKEN, "Content-Length: 1", body=b"a"), 400),
        (plain(GET, CHUNKED, body=b"0\r\n\r\n"), 400),
        (plain("HEAD /healthz HTTP/1.1", "Content-Length: 1", body=b"a"), 400),
    ],
    "a WebSocket without `Upgrade` or by HTTP/1.0": [
        (plain("GET /ws HTTP/1.1"), 426),
        (plain("HEAD /ws HTTP/1.1"), 426),
        (head(upgrade="h2c"), 426),
        (head(connection="keep-alive"), 426),
        (head(version="HTTP/1.0"), 426),
    ],
    "another path": [(plain("GET /nowhere HTTP/1.1"), 404), (plain("GET /metrics HTTP/1.0"), 404)],
    "another method": [
        (plain("DELETE /healthz HTTP/1.1"), 405),
        (plain("HEAD /publish HTTP/1.1"), 405),
        (plain("get /healthz HTTP/1.1"), 405),
        (plain("POST /sse?channel=a HTTP/1.0"), 405),
    ],
    "a head that takes longer than `head_seconds`, a body longer than `body_seconds`": [
        (plain(GET)[:-2], 408),
        (sized("1.1")[:-1], 408),
    ],
    "a body over `message_bytes`": [
        (post("Content-Length: 70000"), 413),
        (post(CHUNKED, body=b"11170\r\n" + b"a" * 70000), 413),
    ],
    "a target over `token_bytes` + 2,048": [
        (plain(f"GET /sse?channel={'a' * 11_000} HTTP/1.1", TOKEN), 414),
        (b"GET /" + b"a" * 20_000, 414),
    ],
    "a head over `head_bytes`, or over 100 headers": [
        (plain(GET, "Cookie: " + "a" * 20_000), 431),
        (plain(GET, *(f"X{number}: a" for number in range(101))), 431),
    ],
    "what is not HTTP at all: TLS, noise": [(b"\x16\x03\x01\x02\0\x01", 0), (b"\xff" * 100, 0), (b"", 0)],
}
WORDS = {0: "is cut off"}


def test_the_page_has_this_table() -> None:
    """Each row stands there in these words, with what is answered, and no other does."""
    found = TABLE.search(docs.page("protocol").text)
    assert found
    rows = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in found[1].splitlines()]
    expected = []
    for words, cases in CASES.items():
        statuses = {status for _, status in cases}
        if min(statuses) and max(statuses) < 300:
            expected.append((words, "taken"))
        else:
            (status,) = statuses
            expected.append((words, WORDS.get(status, str(status))))
    assert rows == expected


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [pytest.param(*case, id=words) for words, cases in CASES.items() for case in cases],
)
async def test_each_case(request_bytes: bytes, status: int) -> None:
    """As the table says; what is refused is told by a problem document, but for `HEAD`, which has no body."""
    limits = Limits(head_seconds=0.3, body_seconds=0.3)
    async with running(limits=limits) as port, port.client() as client:
        await client.send(request_bytes)
        if status == 101:
            await client.upgrade(b"")
        else:
            answer = await client.answer()
            assert answer.status == status
            if request_bytes.startswith(b"HEAD"):
                assert answer.body == b""
            elif status >= 400:
                assert answer.problem["status"] == status
            assert status in (0, 426) or answer.headers["connection"] == "close"
