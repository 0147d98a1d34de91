"""Ports that other machines can reach: without TLS only where the configuration allows it explicitly.

Addresses are checked here; host names when the port is opened, by what they resolve to then.
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
    PUBLIC: "without TLS tokens and events can be read on the network: set server.tls_certificate and "
    "server.tls_key, or server.plain = true (BROKER_SERVER__PLAIN) behind a proxy that terminates TLS",
    ADMIN: "the admin port has no TLS: listen on loopback, or set server.admin_plain = true "
    "(BROKER_SERVER__ADMIN_PLAIN) where only operators can reach that network",
}


def loopback_only(server: Server, key: str) -> bool:
    """Return whether only this machine may reach the port under `key`."""
    return not server.admin_plain if key == ADMIN else server.tls_certificate is None and not server.plain


def fault(server: Server, key: str, address: str) -> str | None:
    """Return why the port under `key` may not listen on an IP address, and both ways out; None if it may."""
    if loopback_only(server, key) and not is_loopback(address):
        return f"other machines can reach {address}, and {WAYS_OUT[key]}"
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
    """Return whether it is in 127.0.0.0/8 (also IPv4-mapped, RFC 4291 section 2.5.5.2) or ::1."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
