"""The PROXY protocol: its grammar, and a port that has proxies which speak it."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.config import Limits, Server
from broker.links.tls import ssl_context
from broker.web.proxy_protocol import HEADER_BYTES, Header, Malformed, parse
from tests.web.harness import Client, head, running

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
SERVER = Server(trusted_proxies=("127.0.0.0/8",), proxy_protocol=True)

ports = st.integers(0, 65535)
plain_six = st.integers(1 << 64, (1 << 128) - 1).map(IPv6Address)  # so none that is an IPv4 one in disguise


def text(source: IPv4Address | IPv6Address, destination: object, port: int) -> bytes:
    return f"PROXY TCP{source.version} {source} {destination} {port} 443\r\n".encode()


def binary(command: int, family: int, addresses: bytes, extensions: bytes = b"") -> bytes:
    rest = addresses + extensions
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


def addressed(source: IPv4Address | IPv6Address, port: int, extensions: bytes = b"") -> bytes:
    family = 0x11 if source.version == 4 else 0x21
    packed = source.packed + bytes(len(source.packed)) + struct.pack("!HH", port, 443)
    return binary(0x21, family, packed, extensions)


def shown(source: IPv4Address | IPv6Address, port: int) -> str:
    return f"{source}:{port}" if source.version == 4 else f"[{source}]:{port}"


FOUR, SIX = IPv4Address("203.0.113.9"), IPv6Address("2001:db8::9")
pairs = st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)) | st.tuples(plain_six, plain_six)


@given(pair=pairs, port=ports, extensions=st.binary(max_size=300), after=st.binary(max_size=40))
def test_good_headers(
    pair: tuple[IPv4Address, IPv4Address] | tuple[IPv6Address, IPv6Address],
    port: int,
    extensions: bytes,
    after: bytes,
) -> None:
    """Both versions give the source; a header ends where it ends, and every beginning of it is incomplete."""
    source, destination = pair
    for header in (text(source, destination, port), addressed(source, port, extensions)):
        assert parse(header + after) == Header(len(header), shown(source, port))
        for size in range(len(header)):
            assert parse(header[:size]) is None


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 \xff 1 2\r\n",
        binary(0x20, 0x00, b""),
        binary(0x20, 0x77, b"whatever"),  # of LOCAL all the rest is to be passed over
        binary(0x21, 0x00, b"", b"\x04\0\x01x"),
        binary(0x21, 0x31, bytes(216)),
    ],
)
def test_no_source(header: bytes) -> None:
    """Where the proxy speaks for itself, or of no IP address, the peer is the peer."""
    assert parse(header + b"GET") == Header(len(header), None)


@pytest.mark.parametrize(
    "header",
    [
        b"G",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
        b"PROXYTCP4",
        b"PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
        b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n",
        b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n",
        b"PROXY TCP4 1.1.1.01 1.1.1.1 1 1\r\n",
        b"PROXY TCP4 ::1 ::1 1 1\r\n",
        b"PROXY TCP4 1.1.1.1 ::1 1 1\r\n",
        b"PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n",
        b"PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n",
        b"PROXY TCP4 1.1.1.1 1.1.1.1 1 +1\r\n",
        b"PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n",
        b"PROXY TCP4 1.1.1.1 1.1.1.1 \xb2 1\r\n",
        b"PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN" + bytes(94),
        SIGNATURE[:-1] + b"\r",
        binary(0x11, 0x11, bytes(12)),
        binary(0x22, 0x11, bytes(12)),
        binary(0x21, 0x12, bytes(12)),
        binary(0x21, 0x41, bytes(12)),
        binary(0x21, 0x11, bytes(11)),
        binary(0x21, 0x21, bytes(35)),
        binary(0x21, 0x11, bytes(HEADER_BYTES)),
        binary(0x20, 0x00, bytes(HEADER_BYTES)),
    ],
)
def test_malformed(header: bytes) -> None:
    """What the specification does not allow is refused, as soon as it can be seen."""
    with pytest.raises(Malformed):
        parse(header)


@given(
    st.binary()
    | st.binary().map(lambda rest: SIGNATURE + rest)
    | st.text("PROXY TCP46 .:0189\r\n").map(lambda rest: b"PROXY " + rest.encode())
)
@example(b"")
def test_anything(data: bytes) -> None:
    """No bytes break it, and it never takes more than there is."""
    try:
        found = parse(data)
    except Malformed:
        return
    assert found is None or 0 < found.size <= len(data)


@pytest.mark.parametrize("source", [FOUR, SIX])
async def test_a_client_behind_it(source: IPv4Address | IPv6Address) -> None:
    """Either version, in one piece with the request or byte by byte, gives the client's address."""
    async with running(server=SERVER) as port:
        for header in (text(source, source, 5000), addressed(source, 5000, b"\xea" * 500)):
            async with port.client() as client:
                await client.upgrade(header + head())
            async with port.client() as client:
                for byte in header:
                    await client.send(bytes((byte,)))
                await client.upgrade()
        assert await port.peers() == [shown(source, 5000)] * 4


async def test_before_tls(files: tuple[Path, Path], trusting: ssl.SSLContext) -> None:
    """The header comes before the TLS hello, and of that nothing is lost."""
    async with running(server=SERVER, tls=(ssl_context(*files), trusting)) as port:
        for header in (text(FOUR, FOUR, 5000), addressed(SIX, 5000)):
            tcp = await trio.open_tcp_stream(*port.address)
            hello = Prefixed(tcp, header)
            stream = trio.SSLStream(hello, trusting, server_hostname="localhost", https_compatible=True)
            await Client(stream).upgrade()
            await trio.aclose_forcefully(tcp)
        assert await port.peers() == ["203.0.113.9:5000", "[2001:db8::9]:5000"]


class Prefixed(trio.abc.Stream):
    """A stream on which something goes out in one piece with the first bytes."""

    def __init__(self, tcp: trio.SocketStream, first: bytes) -> None:
        self.tcp, self.first = tcp, first

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        first, self.first = self.first, b""
        await self.tcp.send_all(first + bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await self.tcp.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.tcp.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.tcp.aclose()


async def test_the_proxy_itself() -> None:
    """A health check by LOCAL is answered, and its peer is the proxy."""
    async with running(server=SERVER) as port:
        async with port.client() as client:
            await client.send(binary(0x20, 0x00, b"") + head("/healthz"))
            assert (await client.answer()).status == 200
        async with port.client() as client:
            await client.upgrade(b"PROXY UNKNOWN\r\n" + head())
        assert (await port.peers())[0].startswith("127.0.0.1:")


async def test_a_proxy_behind_it() -> None:
    """X-Forwarded-For counts when the address from the header is that of a proxy, and not otherwise."""
    server = Server(trusted_proxies=("127.0.0.0/8", "10.0.0.0/8"), proxy_protocol=True)
    request = head(x_forwarded_for="198.51.100.1")
    async with running(server=server) as port:
        for source in (IPv4Address("10.0.0.5"), FOUR):
            async with port.client() as client:
                await client.upgrade(text(source, source, 5000) + request)
        assert await port.peers() == ["198.51.100.1:0", "203.0.113.9:5000"]


@pytest.mark.parametrize("said", [head(), b"\x16\x03\x01", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 x\r\n" + head()])
async def test_without_a_good_one(said: bytes) -> None:
    """A trusted peer without a header, or with a broken one, is cut off unanswered, and the log has why."""
    async with running(server=SERVER) as port:
        with capture_logs() as logged:
            assert (await port.ask(said)).status == 0
            await port.settled()
        entry = next(each for each in logged if each["event"] == "proxy_header_refused")
        assert entry["peer"].startswith("127.0.0.1:")
        assert entry["log_level"] == "warning"
        assert "1.1.1.1" not in entry["reason"]
        async with port.client() as client:
            await client.upgrade(text(FOUR, FOUR, 1) + head())


@pytest.mark.parametrize("said", [b"", b"PROXY TCP4 ", addressed(FOUR, 1)[:20]])
async def test_silence(said: bytes) -> None:
    """What is not complete within `limits.head_seconds`, or never comes to be, ends the connection."""
    async with running(server=SERVER, limits=Limits(head_seconds=0.2)) as port:
        assert (await port.ask(said)).status == 0
        async with port.client() as client:
            await client.send(said)
        await port.settled()
        assert not port.hellos


@pytest.mark.parametrize("header", [text(FOUR, FOUR, 5000), addressed(FOUR, 5000)])
async def test_from_a_stranger(header: bytes) -> None:
    """A peer that is no proxy cannot say that it is somebody else; without a header it is served."""
    server = Server(trusted_proxies=("10.0.0.0/8",), proxy_protocol=True)
    async with running(server=server) as port:
        assert (await port.ask(header + head())).status in (0, 400)
        await port.works()
        assert [peer.split(":")[0] for peer in await port.peers()] == ["127.0.0.1"]


async def test_where_it_is_not_spoken() -> None:
    """Trusted proxies of which no header is expected may send none."""
    async with running(server=Server(trusted_proxies=("127.0.0.1",))) as port:
        assert (await port.ask(text(FOUR, FOUR, 5000) + head())).status == 400
        await port.works()
