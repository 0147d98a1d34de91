"""Which ports other machines may reach: one without TLS only when somebody has said so.

Names are judged by what they resolve to, which only who opens the port knows; addresses are judged here.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from broker.config.values import host_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.config.sections import Server

PUBLIC, ADMIN = "server.listen", "server.admin_listen"
WAYS_OUT = {
    PUBLIC: "without TLS everybody on the way reads tokens and events: set server.tls_certificate and "
    "server.tls_key, or server.plain = true (BROKER_SERVER__PLAIN) behind a proxy that ends TLS",
    ADMIN: "the admin port has no TLS: listen on loopback, or set server.admin_plain = true "
    "(BROKER_SERVER__ADMIN_PLAIN) where nobody but operators reaches that network",
}


def loopback_only(server: Server, key: str) -> bool:
    """Return whether the port under `key` has to stay on this machine."""
    return not server.admin_plain if key == ADMIN else server.tls_certificate is None and not server.plain


def fault(server: Server, key: str, address: str) -> str | None:
    """Return what is wrong with the port under `key` on an IP address, and both ways out; None when
    nothing is.
    """
    if loopback_only(server, key) and not is_loopback(address):
        return f"other machines reach {address}, and {WAYS_OUT[key]}"
    return None


def faults(server: Server) -> Iterator[tuple[str, str]]:
    """Yield each key that names an exposed address, with its fault."""
    for key, listen in ((PUBLIC, server.listen), (ADMIN, server.admin_listen)):
        host, _ = host_port(listen)
        if is_address(host) and (found := fault(server, key, host)):
            yield key, found


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """127.0.0.0/8 and ::1, the former also as an IPv6 socket shows it (RFC 4291 section 2.5.5.2)."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
