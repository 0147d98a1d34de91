"""Requests that nobody should send: each has its answer, costs nothing, and the next client is served."""

from __future__ import annotations

import contextlib
import re
import ssl
from typing import TYPE_CHECKING

import h11
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from broker.config import Limits
from broker.http.heads import is_odd, parse
from broker.http.responses import Refused
from tests.web.harness import KEY, head

if TYPE_CHECKING:
    from broker.http.heads import Request
    from tests.web.harness import Running

GOOD = head()


def with_line(line: bytes) -> bytes:
    """The good handshake with one line more."""
    return GOOD[:-2] + line + b"\r\n\r\n"


def tls_hello() -> bytes:
    """What a browser sends that was told wss:// by mistake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


ROWS = {
    # what is no head
    "nothing": (b"", 0),
    "half a head": (GOOD[:40], 408),
    "TLS hello": (tls_hello(), 0),
    "binary noise": (bytes(range(128, 256)) * 200, 0),
    "letters": (b"A" * 20_000, 414),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /ws\r\n\r\n", 400),
    "SMTP": (b"HELO broker.example\r\n\r\n", 400),
    "empty line first": (b"\r\n" + GOOD, 400),
    # bytes
    "NUL in a value": (with_line(b"cookie: a\0b"), 400),
    "NUL in a name": (with_line(b"coo\0kie: a"), 400),
    "control character": (with_line(b"cookie: \x01"), 400),
    "DEL": (with_line(b"cookie: \x7f"), 400),
    "non-ASCII Host": (head(host="brök"), 400),
    "non-ASCII Connection": (head(connection="Upgrade, ü"), 400),
    "non-ASCII Sec-WebSocket-Protocol": (head(sec_websocket_protocol="broker.v1, ü"), 400),
    "non-ASCII target": (head("/ws?tenant=ü"), 400),
    "bare LF": (with_line(b"a: b\nc: d"), 400),
    "bare CR": (with_line(b"a: b\rc: d"), 400),
    "only LF": (GOOD.replace(b"\r\n", b"\n"), 400),
    "folded line": (with_line(b"a: b\r\n c"), 400),
    "space before colon": (with_line(b"a : b"), 400),
    "no colon": (with_line(b"abc"), 400),
    # sizes
    "2,000 headers": (with_line(b"\r\n".join(b"a: b" for _ in range(2000))), 431),
    "101 headers": (head(**{f"x{i}": "y" for i in range(96)}), 431),
    "20 KB header": (with_line(b"cookie: " + b"a" * 20_000), 431),
    "1 MB request line": (head("/ws?" + "a" * 1_000_000), 414),
    "12 KB target": (head("/ws?" + "a" * 12_000), 414),
    # the request line
    "HTTP/1.0": (head(version="HTTP/1.0"), 426),
    "HTTP/1.0 without Host": (head(version="HTTP/1.0", host=None), 426),
    "HTTP/1.2": (head(version="HTTP/1.2"), 400),
    "POST": (head(method="POST"), 405),
    "lower-case method": (head(method="get"), 405),
    "CONNECT": (head("broker.example:443", method="CONNECT"), 400),
    "absolute target": (head("http://broker.example/ws"), 400),
    "other path": (head("/"), 404),
    "other path in a query": (head("/wss?/ws"), 404),
    "percent-encoded path": (head("/%77s"), 404),
    # doubled or missing
    "no Host": (head(host=None), 400),
    "two Hosts": (with_line(b"Host: broker.example"), 400),
    "two hosts in one": (head(host="a, b"), 400),
    "Host with a path": (head(host="broker.example/ws"), 400),
    "Host with a user": (head(host="me@broker.example"), 400),
    "Host with a port too high": (head(host="broker.example:65536"), 400),
    "empty Host": (head(host=""), 400),
    "no Upgrade": (head(upgrade=None), 426),
    "Upgrade to h2c": (head(upgrade="h2c"), 426),
    "no Connection": (head(connection=None), 426),
    "Connection: close": (head(connection="close"), 426),
    "no version": (head(sec_websocket_version=None), 400),
    "two versions": (with_line(b"Sec-WebSocket-Version: 13"), 400),
    "version 8": (head(sec_websocket_version="8"), 426),
    "no key": (head(sec_websocket_key=None), 400),
    "two keys": (with_line(f"Sec-WebSocket-Key: {KEY}".encode()), 400),
    "key of 15 bytes": (head(sec_websocket_key="AAAAAAAAAAAAAAAAAAAA"), 400),
    "key of 17 bytes": (head(sec_websocket_key="AAAAAAAAAAAAAAAAAAAAAAA="), 400),
    "key not base64": (head(sec_websocket_key="AAAA*AAAAAAAAAAAAAAAAAAAAA=="), 400),
    "two Origins": (head(origin="http://broker.example")[:-2] + b"Origin: http://a\r\n\r\n", 400),
    "two Authorizations": (head(authorization="Bearer a")[:-2] + b"Authorization: Bearer a\r\n\r\n", 400),
    # a body
    "upgrade with a body": (head(content_length="5") + b"hello", 400),
    "upgrade with chunks": (head(transfer_encoding="chunked") + b"0\r\n\r\n", 400),
    "unknown transfer coding": (head(transfer_encoding="gzip"), 501),
    "Content-Length contradicting": (head(content_length="0, 5"), 400),
    "Content-Length negative": (head(content_length="-1"), 400),
}


@pytest.mark.parametrize(("request_bytes", "status"), ROWS.values(), ids=ROWS)
async def test_refused(port: Running, request_bytes: bytes, status: int) -> None:
    """Each row gets its status as a problem document, or silence, and leaves nothing behind."""
    async with port.client() as client:
        with contextlib.suppress(trio.BrokenResourceError):
            await client.send(request_bytes)
        answer = await client.answer()
    assert answer.status == status
    if status:
        assert answer.problem["status"] == status
        assert answer.problem["type"] == "about:blank"
        assert answer.problem["title"]
        assert answer.problem["detail"]
        assert answer.headers["cache-control"] == "no-store"
        assert int(answer.headers["content-length"]) == len(answer.body)
    assert not port.hellos
    await port.works()
    await port.settled()


async def test_details(port: Running) -> None:
    """What must come with 404, 405 and 426 comes with them."""
    unknown = (await port.ask(head("/metrics"))).problem["detail"]
    assert unknown.startswith("Unknown path: /metrics; this port serves /acknowledge, /client.d.ts, ")
    assert unknown.endswith(", /sse, /state, /ws.")
    answer = await port.ask(head("/publish", method="DELETE"))
    assert answer.headers["allow"] == "POST, OPTIONS"
    assert answer.problem["detail"] == "DELETE is not allowed for /publish; allowed methods: POST, OPTIONS."
    answer = await port.ask(head(sec_websocket_version="12"))
    assert answer.headers["sec-websocket-version"] == "13"
    assert answer.headers["upgrade"] == "websocket"


async def test_slow_head(port: Running) -> None:
    """A byte now and then does not buy time: the deadline is for the whole head."""
    async with port.client() as client:

        async def drip() -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                for byte in GOOD:
                    await client.send(bytes([byte]))
                    await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            answer = await client.answer()
            nursery.cancel_scope.cancel()
    assert answer.status == 408
    await port.works()


async def test_connect_and_leave(port: Running) -> None:
    """Clients that connect and go, politely or not, leave nothing."""
    for request in (b"", GOOD[:60], GOOD):
        for _ in range(20):
            async with port.client() as client:
                await client.send(request)
    await port.settled()
    await port.works()


async def test_storm(port: Running) -> None:
    """300 clients at once are all served."""
    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(port.works)
    await port.settled()


async def test_head_in_pieces(port: Running) -> None:
    """Where the network cuts a head makes no difference."""
    for at in (1, 3, len(GOOD) - 3, len(GOOD) - 2, len(GOOD) - 1):
        async with port.client() as client:
            await client.send(GOOD[:at])
            await trio.testing.wait_all_tasks_blocked(0.01)
            await client.upgrade(GOOD[at:])


async def test_h11_peer(port: Running) -> None:
    """h11 as a client understands our answers, and healthz and readyz say what they know."""
    for target, reason, status in (
        ("/healthz", "no canary yet", 200),
        ("/readyz", None, 200),
        ("/readyz", "no canary yet", 503),
    ):
        port.reason = reason
        async with port.client() as client:
            peer = h11.Connection(h11.CLIENT)
            request = h11.Request(method="GET", target=target, headers=[("Host", "localhost")])
            await client.send(peer.send(request) or b"")
            await client.send(peer.send(h11.EndOfMessage()) or b"")
            events: list[h11.Event] = []
            while not events or not isinstance(events[-1], h11.EndOfMessage):
                event = peer.next_event()
                if event is h11.NEED_DATA:
                    peer.receive_data(bytes(await client.stream.receive_some()))
                else:
                    assert isinstance(event, h11.Event)
                    events.append(event)
        response, *body, _ = events
        assert isinstance(response, h11.Response)
        assert response.status_code == status
        content = b"".join(event.data for event in body if isinstance(event, h11.Data))
        assert content == b"ok\n" if status == 200 else b"no canary yet" in content


HEAD_LINES = st.lists(
    st.one_of(
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40),
        st.sampled_from(
            [line for line in GOOD.decode().split("\r\n") if line]
            + ["Content-Length: 0", "Transfer-Encoding: chunked", "Host: [::1]:1", "Expect: 100-continue"]
        ),
    ),
    min_size=1,
    max_size=12,
)


PIECES = [b"a", b"\r\n", b"\r\n ", b"\r\n\t", b"\r", b"\n", b" ", b"\t", b"\0", b"\x7f", b"\xe4"]
# The same in one expression: a bare LF or CR, a folded line, another control character than the tab.
ODD = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\n(?=[ \t])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=12),
    cuts=st.lists(st.integers(1, 4), max_size=12),
)
def test_odd_lines(pieces: list[bytes], cuts: list[int]) -> None:
    """However a head is cut, it is odd as soon as a regular expression says so of what has come so far."""
    data, buffer = b"".join(pieces), bytearray()
    for size in [*cuts, len(data)]:
        start = len(buffer)
        if new := data[start : start + size]:
            buffer += new
            assert is_odd(buffer, start, len(buffer)) == (ODD.search(buffer) is not None)
            if ODD.search(buffer):
                return


LINES = [
    *(line.encode() for line in GOOD.decode().split("\r\n")[1:] if line),
    *(b"Content-Length: 0", b"content-length: 12", b"Content-Length: 1, 1", b"Content-Length: +1"),
    *(b"Transfer-Encoding: chunked", b"TRANSFER-ENCODING:\tChunked ", b"Transfer-Encoding: gzip, chunked"),
    *(b"Host: [::1]:1", b"Host:a", b"Host: a/b", b"HOST: a:65536", b"Host:"),
    *(b"Cookie: \xfc", b"Accept: \xfc", b"Cookie : a", b": a", b"a", b"", b"a:", b"\xfc: a", b"a b: c"),
    *(b"Content-Length: " + b"0" * 21, b"Origin:  http://a\t ", b"Connection: a", b"Expect: 100-continue"),
]
REQUEST_LINES = [
    *(b"GET /ws HTTP/1.1", b"GET /ws?a=b HTTP/1.0", b"POST / HTTP/1.1", b"!#$%&'*+-.^_`|~09azAZ / HTTP/1.1"),
    *(b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"GET / http/1.1", b"GET / HTTP/1.10"),
    *(b"GET / HTTP/2.0", b"GET / HTTP/1.2", b"GET /", b"GET", b"", b"G(T / HTTP/1.1", b"GET * HTTP/1.1"),
    *(b"GET http://a/ HTTP/1.1", b"GET /" + b"a" * 2200 + b" HTTP/1.1", b"GET /\x7e HTTP/1.1"),
]


def by_h11(head_bytes: bytes) -> int | tuple[str, str, str]:
    """The status with which h11 has a head refused, by our limits; or method, version and target."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=Limits().head_bytes)
    connection.receive_data(head_bytes)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        return error.error_status_hint
    if not isinstance(event, h11.Request) or event.http_version not in (b"1.0", b"1.1"):
        return 400
    if len(event.target) > 100 + 2048:
        return 414
    return event.method.decode(), event.http_version.decode(), event.target.decode()


def read(head_bytes: bytes) -> int | Request:
    try:
        return parse(head_bytes, Limits(token_bytes=100), "127.0.0.1")
    except Refused as refused:
        return refused.response.status


def compare(line: bytes, *fields: bytes) -> None:
    """Whatever h11 refuses is refused, by the same status; the rest is read as h11 reads it, or refused."""
    head_bytes = b"\r\n".join([line, *fields, b"\r\n"])
    head_bytes = head_bytes[: head_bytes.index(b"\r\n\r\n") + 4]
    theirs, request = by_h11(head_bytes), read(head_bytes)
    if isinstance(request, int) or isinstance(theirs, int):
        assert isinstance(request, int)
        # We refuse more; and where more than one thing is at fault either may be named.
        assert request in (theirs, 400) or (theirs, request) == (400, 501) or isinstance(theirs, tuple)
        return
    target = request.path + ("?" + request.query) * ("?" in theirs[2])
    assert (request.method, request.version, target) == theirs
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head_bytes)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    for name in request.headers:
        values = [value.decode() for each, value in event.headers if each.decode() == name]
        assert request.headers[name] == ", ".join(values) or name == "transfer-encoding"


@pytest.mark.parametrize("line", REQUEST_LINES)
def test_each_line_as_h11(line: bytes) -> None:
    """One line of each kind, and none, with any request line."""
    compare(line)
    for field in LINES:
        compare(line, field)
        compare(line, b"Host: a", field)


@given(line=st.sampled_from(REQUEST_LINES[:4]), fields=st.lists(st.sampled_from(LINES), max_size=8))
def test_any_lines_as_h11(line: bytes, fields: list[bytes]) -> None:
    """Any of them together."""
    compare(line, *fields)


@given(lines=HEAD_LINES)
def test_any_head(lines: list[str]) -> None:
    """Whatever the lines hold, a head is parsed or refused: nothing else comes out of the parser."""
    head_bytes = "\r\n".join([*lines, "\r\n"]).encode()
    with contextlib.suppress(Refused):
        request = parse(head_bytes, Limits(), "127.0.0.1")
        assert request.path.startswith("/")
        assert request.host
