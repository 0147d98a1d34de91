"""Which addresses key sets may be fetched from."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

PRINTABLE = re.compile(r"[!-~]+\Z")
PORTS = {"http": 80, "https": 443}


def address_fault(url: str) -> str | None:
    """Return why keys cannot be fetched from `url`, or None when they can."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in PORTS or not PRINTABLE.match(url):
        return "is not an https address"
    if "@" in parts.netloc:
        return "may not contain a user or password; a JWK Set is public"
    if parts.scheme == "http" and not is_loopback(host):
        return "needs https: over http anybody on the network path could inject keys"
    return None


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
