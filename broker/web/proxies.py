"""Proxies in front of the broker: which are trusted, and what they report of the client.

`X-Forwarded-For` and `X-Forwarded-Host` are read, and only from a peer in `server.trusted_proxies`.
`Forwarded` (RFC 7239) is not: a proxy that writes the former passes on the latter as the client wrote it, so
that trusting both would be trusting the client.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

import attrs

from broker.http import heads
from broker.http.responses import Refused
from broker.web.listeners import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.http.heads import Request
    from broker.links.tcp import Link

Address: TypeAlias = IPv4Address | IPv6Address
Networks: TypeAlias = "Sequence[IPv4Network | IPv6Network]"

# "IP", "IP:PORT", "[IP]" and "[IP]:PORT": some proxies add the port.
HOP = re.compile(
    r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<four>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?|(?P<bare>[0-9a-f:.]+)",
    re.IGNORECASE,
)

HOPS = 32  # of trusted proxies in a row: a longer chain is an attack


@lru_cache(maxsize=4)
def networks(texts: tuple[str, ...]) -> Networks:
    """Return `server.trusted_proxies`, parsed."""
    return [ip_network(text) for text in texts]


def trusted(peer: str, proxies: Networks) -> bool:
    """Return whether `peer`, "HOST:PORT", is one of the proxies."""
    found = hop(peer) if proxies else None
    return found is not None and within(found[0], proxies)


def within(address: Address, proxies: Networks) -> bool:
    return any(address in network for network in proxies)


def client(peer: str, forwarded_for: str, proxies: Networks) -> str:
    """Return "HOST:PORT" of the client behind the trusted `peer`; port 0 where no proxy reported it.

    `X-Forwarded-For` is read from the right, where trusted proxies have written, up to the first address that
    is none of them: whatever is to the left of that comes from the client. Anything but an address ends the
    chain too, and so does its length beyond `HOPS`: then the last known proxy counts as the client.
    """
    for text in reversed(forwarded_for.rsplit(",", HOPS)):
        found = hop(text.strip(" \t"))
        if found is None:
            break
        peer = shown((str(found[0]), found[1]))
        if not within(found[0], proxies):
            break
    return peer


def believe(link: Link, request: Request, proxies: Networks) -> Request:
    """Return the request as the client made it, and set the link's peer, as trusted proxies report."""
    if not trusted(link.peer, proxies):
        return request
    forwarded_for = request.headers.get("x-forwarded-for")
    if forwarded_for is not None:
        link.peer = client(link.peer, forwarded_for, proxies)
    return outer(request)


def outer(request: Request) -> Request:
    """Return the request with the host that the client asked the outermost proxy for.

    The Origin check needs it where a proxy writes a `Host` of its own. Anything but a host is ignored.
    """
    name = request.headers.get("x-forwarded-host", "").partition(",")[0].strip(" \t")
    try:
        host, port = heads.authority(name)
    except Refused:
        return request
    return attrs.evolve(request, host=host, port=port)


def hop(text: str) -> tuple[Address, int] | None:
    """Return address and port of one hop; None for anything else."""
    match = HOP.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65535:
        return None
    try:
        address = ip_address(match["six"] or match["four"] or match["bare"])
    except ValueError:
        return None
    return plain(address), int(match["port"] or 0)


def plain(address: Address) -> Address:
    """Return an IPv4 address as such, also where a socket for both families reports it as an IPv6 one."""
    return getattr(address, "ipv4_mapped", None) or address
