"""Proxies in front: whose headers count, and whom they make of the peer."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config import Server
from broker.web import proxies
from tests.web.harness import head, running

OURS = ("10.0.0.0/8", "fd00::/8", "192.0.2.7")
TRUSTED = proxies.networks(OURS)
PROXY = "10.0.0.1:4000"

ours = st.one_of(
    st.ip_addresses(network="10.0.0.0/8"),
    st.ip_addresses(network="fd00::/8"),
    st.just(IPv4Address("192.0.2.7")),
)
others = st.ip_addresses().filter(
    lambda address: (
        not any(address in ip_network(each) for each in OURS) and not getattr(address, "ipv4_mapped", None)
    )
)
ports = st.integers(0, 65535)
garbage = st.sampled_from(
    [
        "",
        "unknown",
        "_hidden",
        "10.0.0.0/8",
        "10.0.0.1:x",
        "10.0.0.1:70000",
        "[::1",
        "1.2.3",
        "fe80::1%eth0",
        "for=1.2.3.4",
    ]
)


def written(address: object, port: int | None) -> str:
    text = f"[{address}]" if ":" in str(address) else str(address)
    return text if port is None else f"{text}:{port}"


@given(
    before=st.lists(st.one_of(st.text(" ,:[]x.1", max_size=20), others.map(str))),
    client=others,
    port=st.none() | ports,
    behind=st.lists(ours, max_size=proxies.HOPS - 1),
    blank=st.sampled_from(["", " ", "\t", "  "]),
)
def test_the_first_from_the_right(
    before: list[str], client: object, port: int | None, behind: list[object], blank: str
) -> None:
    """The first address that is no proxy is the client, whatever it wrote to the left of that itself."""
    chain = f",{blank}".join([*before, written(client, port), *map(str, behind)])
    assert proxies.client(PROXY, chain, TRUSTED) == written(client, port or 0)


@given(hops=st.lists(ours, min_size=1, max_size=proxies.HOPS - 1))
def test_proxies_alone(hops: list[object]) -> None:
    """Where all of them are ours, the request comes from the outermost."""
    chain = ", ".join(map(str, hops))
    assert proxies.client(PROXY, chain, TRUSTED) == written(hops[0], 0)


@given(before=others, broken=garbage, behind=st.lists(ours, max_size=proxies.HOPS - 1))
def test_no_address(before: object, broken: str, behind: list[object]) -> None:
    """What is no address ends the chain: the last known proxy stands for the client, at worst the peer."""
    chain = ", ".join([str(before), broken, *map(str, behind)])
    assert proxies.client(PROXY, chain, TRUSTED) == (written(behind[0], 0) if behind else PROXY)


def test_more_hops_than_there_are_proxies() -> None:
    """A header full of addresses of ours is not read to its end: 16 KB of them would take 40 ms."""
    hops = ["192.0.2.1", *[f"10.1.{number // 256}.{number % 256}" for number in range(1000)]]
    known = written(hops[-proxies.HOPS], 0)
    assert proxies.client(PROXY, ",".join(hops), TRUSTED) == known


@given(text=st.text(), forwarded=st.text())
def test_anything(text: str, forwarded: str) -> None:
    """No header breaks it, and what comes out is HOST:PORT with an address that there can be."""
    found = proxies.hop(proxies.client(PROXY, f"{text},{forwarded}", TRUSTED))
    assert found is not None
    assert not proxies.trusted(text, ())


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("10.255.0.1:80", True),
        ("11.0.0.1:80", False),
        ("[fd00::1]:80", True),
        ("[fe00::1]:80", False),
        ("[::ffff:10.0.0.1]:80", True),  # by a socket for both families
        ("192.0.2.7:80", True),
        ("192.0.2.8:80", False),
        ("[fe80::1%eth0]:80", False),
    ],
)
def test_trusted(peer: str, expected: bool) -> None:
    """A peer is a proxy when its address lies in one of the networks."""
    assert proxies.trusted(peer, TRUSTED) is expected


LOOPBACK = Server(trusted_proxies=("127.0.0.0/8",))


async def test_the_address_from_the_header() -> None:
    """From a trusted peer the client is who X-Forwarded-For says, over several lines of it too."""
    async with running(server=LOOPBACK) as port:
        for said in ("203.0.113.9", "198.51.100.1, 203.0.113.9, 127.0.0.9", "203.0.113.9:0"):
            async with port.client() as client:
                await client.upgrade(head(x_forwarded_for=said))
        async with port.client() as client:
            two = b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 127.0.0.5\r\n\r\n"
            await client.upgrade(head()[:-2] + two)
        assert await port.peers() == ["203.0.113.9:0"] * 4


async def test_other_headers() -> None:
    """Of other headers than that nothing is read, also from a trusted peer."""
    async with running(server=LOOPBACK) as port:
        async with port.client() as client:
            await client.upgrade(head(forwarded="for=198.51.100.1", x_real_ip="198.51.100.1"))
        assert (await port.peers())[0].startswith("127.0.0.1:")


@pytest.mark.parametrize("said", ["nobody", "", "1.2.3.4.5", "203.0.113.9, unknown"])
async def test_a_broken_header(said: str) -> None:
    """It costs the client nothing but its address: that is the proxy's then."""
    async with running(server=LOOPBACK) as port:
        async with port.client() as client:
            await client.upgrade(head(x_forwarded_for=said))
        assert (await port.peers())[0].startswith("127.0.0.1:")


async def test_from_a_stranger() -> None:
    """From a peer that is no proxy the headers mean nothing, for the address and for the origin."""
    async with running(server=Server(trusted_proxies=("10.0.0.0/8",))) as port:
        async with port.client() as client:
            await client.upgrade(head(x_forwarded_for="203.0.113.9", x_forwarded_host="b.example"))
        assert (await port.peers())[0].startswith("127.0.0.1:")
        foreign = head(x_forwarded_host="b.example", origin="https://b.example")
        assert (await port.ask(foreign)).status == 403


@pytest.mark.parametrize(
    ("outer", "origin", "status"),
    [
        ("chat.example", "https://chat.example", 101),
        ("chat.example", "http://chat.example", 101),
        ("chat.example:8443", "https://chat.example:8443", 101),
        ("chat.example, inner.example", "https://chat.example", 101),
        ("chat.example", "https://broker.example", 403),
        ("chat.example", "https://evil.example", 403),
        ("not a host", "https://broker.example", 101),
        ("", "https://broker.example", 101),
        (None, "https://broker.example", 101),
        (None, "https://chat.example", 403),
    ],
)
async def test_the_host_from_the_header(outer: str | None, origin: str, status: int) -> None:
    """Without `server.origins` pages of the host are let in that the client asked the proxy for."""
    async with running(server=LOOPBACK) as port:
        request = head(x_forwarded_host=outer, origin=origin)
        if status == 101:
            async with port.client() as client:
                await client.upgrade(request)
        else:
            assert (await port.ask(request)).status == status


async def test_listed_origins() -> None:
    """Where origins are listed they alone count, whatever a proxy says of its host."""
    server = Server(trusted_proxies=("127.0.0.1",), origins=("https://app.example",))
    async with running(server=server) as port:
        request = head(x_forwarded_host="chat.example", origin="https://chat.example")
        assert (await port.ask(request)).status == 403


def test_addresses_are_unmapped() -> None:
    """An IPv4 address is the same one in either family, so that it has one limit and one name in the log."""
    assert proxies.client(PROXY, "::ffff:203.0.113.9", TRUSTED) == "203.0.113.9:0"
    assert str(proxies.plain(ip_address("2001:db8::1"))) == "2001:db8::1"
