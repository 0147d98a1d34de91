"""Proxies in front of us: who is believed, and what they say of the client.

Of HTTP's headers `X-Forwarded-For` and `X-Forwarded-Host` are read, and only from a peer in
`server.trusted_proxies`. `Forwarded` (RFC 7239) is not: a proxy that writes one of the two passes the other
on as the client wrote it, so that whoever believes both believes the client.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

import attrs

from broker.web import heads
from broker.web.listeners import shown
from broker.web.problems import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.web.heads import Request

Address: TypeAlias = IPv4Address | IPv6Address
Networks: TypeAlias = "Sequence[IPv4Network | IPv6Network]"

# "IP", "IP:PORT", "[IP]" and "[IP]:PORT"; some proxies say the port.
HOP = re.compile(
    r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<four>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?|(?P<bare>[0-9a-f:.]+)",
    re.IGNORECASE,
)

HOPS = 32  # of our own proxies in a row: more are somebody's who would keep us busy


@lru_cache(maxsize=4)
def networks(texts: tuple[str, ...]) -> Networks:
    """`server.trusted_proxies`, ready to be asked."""
    return [ip_network(text) for text in texts]


def trusted(peer: str, proxies: Networks) -> bool:
    """Whether `peer`, "HOST:PORT", is one of the proxies."""
    found = hop(peer) if proxies else None
    return found is not None and within(found[0], proxies)


def within(address: Address, proxies: Networks) -> bool:
    return any(address in network for network in proxies)


def client(peer: str, forwarded_for: str, proxies: Networks) -> str:
    """The "HOST:PORT" of the client behind the trusted `peer`; port 0 where nobody said it.

    `X-Forwarded-For` is read from its right end, where our own proxies have written, up to the first
    address that is none of them: what stands left of that is the client's own word. Whatever is no address
    ends the chain too, and so do more than `HOPS`: then the last proxy that is known stands for the client.
    """
    for text in reversed(forwarded_for.rsplit(",", HOPS)):
        found = hop(text.strip(" \t"))
        if found is None:
            break
        peer = shown((str(found[0]), found[1]))
        if not within(found[0], proxies):
            break
    return peer


def outer(request: Request) -> Request:
    """The request with the host that the client asked the outermost proxy for.

    The Origin check needs it, where a proxy writes a `Host` of its own. What is no host is passed over.
    """
    name = request.headers.get("x-forwarded-host", "").partition(",")[0].strip(" \t")
    try:
        host, port = heads.authority(name)
    except Refused:
        return request
    return attrs.evolve(request, host=host, port=port)


def hop(text: str) -> tuple[Address, int] | None:
    """Address and port of one hop; None for what is no address."""
    match = HOP.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65535:
        return None
    try:
        address = ip_address(match["six"] or match["four"] or match["bare"])
    except ValueError:
        return None
    return plain(address), int(match["port"] or 0)


def plain(address: Address) -> Address:
    """An IPv4 address as such, also where a socket for both families writes it as an IPv6 one."""
    return getattr(address, "ipv4_mapped", None) or address
