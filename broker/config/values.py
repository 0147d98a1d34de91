"""Values of keys: a reader for each kind of value, and the annotated type that carries it.

A reader takes a value from TOML or the environment and returns it converted, or raises `ValueError` with
the rest of a sentence that begins with the key. The sections are typed with the aliases below, so that
unit and range of a field stand in its declaration.
"""

from __future__ import annotations

import math
import re
from ipaddress import IPv6Network, ip_network
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+\Z", re.ASCII)
DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])", re.ASCII)
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
CENTURY = 100 * 365.25 * SECONDS["d"]  # NATS counts nanoseconds in 64 bits: 292 years

SLOWEST = 0.001  # per second: a wait must fit into 64 bits of milliseconds
MAPPED = IPv6Network("::ffff:0:0/96")  # IPv4-mapped addresses (RFC 4291, 2.5.5.2)

SIZE = re.compile(r"(\d+) ?(B|KiB|MiB|GiB|TiB)\Z", re.ASCII)
BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

# `Origin` as browsers write it: scheme, host in lower case and ASCII, and a port other than the scheme's
# own (RFC 6454 section 6.2).
ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?\Z")
OWN_PORT = {"http": "80", "https": "443"}

TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
TENANT = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_-]{0,63}\Z")
NO_HOST = re.compile(r"[\s,\x00-\x1f\x7f]")
STREAM = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}\Z")


def text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not text")
    if not value:
        raise ValueError("may not be empty")
    return value


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is neither true nor false")
    return value


def whole(low: int, high: int) -> Callable[[object], int]:
    """Return a reader of whole numbers from `low` to `high`."""

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{shown(value)} is not a whole number")
        if not low <= value <= high:
            raise ValueError(f"{value} is not within {low} to {high}")
        return value

    return read


def limit(value: object) -> int:
    """Return a count, or -1 for no limit as in NATS."""
    return -1 if value == -1 else whole(1, 2**62)(value)


def rate(value: object) -> float:
    """Return a rate per second: 0, or at least once in 1,000 s."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{shown(value)} is not a number")
    if not 0 <= value < math.inf:
        raise ValueError(f"{value} is not 0 or above")
    if 0 < value < SLOWEST:
        raise ValueError(f"{value} is below {SLOWEST}, once in {1 / SLOWEST:.0f} s")
    return float(value)


def number(value: object) -> float:
    """Return any number above 0."""
    found = rate(value)
    if not found:
        raise ValueError(f"{value} is not above 0")
    return found


def size(value: object) -> int:
    """Return a size in bytes, 1 B to 8 EiB: a whole number, or text such as "64MiB"."""
    if isinstance(value, str):
        match = SIZE.match(value)
        if match is None:
            raise ValueError(f'{shown(value)} is not a size; write bytes or text such as "64MiB"')
        value = int(match[1]) * BYTES[match[2]]
    return whole(1, 2**63 - 1)(value)


def any_size(value: object) -> int:
    """Return a size, or 0."""
    return 0 if value == 0 and not isinstance(value, bool) else size(value)


def span(value: object) -> float:
    """Return a duration in seconds, 0 included: a number, or text such as "90s", "10m", "1h30m", "7d"."""
    if isinstance(value, str):
        if not DURATION.match(value):
            raise ValueError(f'{shown(value)} is not a duration; write seconds or text such as "10m" or "7d"')
        value = math.fsum(float(count) * SECONDS[unit] for count, unit in DURATION_PART.findall(value))
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{shown(value)} is not a duration")
    if not 0 <= value <= CENTURY:
        raise ValueError(f"{value} seconds are not between 0 and a century")
    return float(value)


def seconds(value: object) -> float:
    """Return a duration above 0, in seconds."""
    length = span(value)
    if not length:
        raise ValueError("must be above 0")
    return length


def host_port(value: object) -> tuple[str, int]:
    """Return host and port of "HOST:PORT"; IPv6 addresses are in brackets, port 0 is any free one."""
    host, colon, port = text(value).rpartition(":")
    if not colon or not host:
        raise ValueError(f"{shown(value)} is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{shown(value)}: write an IPv6 address in brackets")
    if not re.fullmatch(r"[^\s/@\[\]]+", host):
        raise ValueError(f"{shown(value)} is not HOST:PORT")
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError(f"{shown(value)}: a port is a number from 0 to 65535")
    return host, int(port)


def listen(value: object) -> str:
    host_port(value)
    return text(value)


def origin(value: object) -> str:
    match = ORIGIN.match(text(value))
    if match is None:
        raise ValueError(f"{shown(value)} is not scheme://host[:port], in lower case and without a path")
    if match[3] is not None and match[3] == OWN_PORT.get(match[1]):
        raise ValueError(f"{shown(value)}: browsers leave out :{match[3]}, so it would never match")
    return text(value)


def network(value: object) -> str:
    """Return an IP network, "10.0.0.0/8" or "fd00::/8", or one address."""
    try:
        found = ip_network(text(value))
    except ValueError as error:
        raise ValueError(f"{shown(value)} is not an IP network such as 10.0.0.0/8: {error}") from None
    if isinstance(found, IPv6Network) and (found.subnet_of(MAPPED) or found.network_address.scope_id):
        raise ValueError(f"{shown(value)} never matches a peer: write IPv4 as such, and IPv6 without a zone")
    return str(found)


def is_host(name: str | None) -> bool:
    """Return whether a resolver can be asked for it. Raises `ValueError` with the reason in DNS."""
    return name is not None and bool(name.encode("idna")) and not NO_HOST.search(name)


def nats_url(value: object) -> str:
    try:
        url = urlsplit(text(value))
        known = url.scheme in ("nats", "tls") and is_host(url.hostname) and url.port != 0
    except ValueError as error:
        raise ValueError(f"{shown(value)} is not an address: {error}") from None
    if url.username is not None:
        # Not repeated here: this sentence is printed and logged.
        raise ValueError("contains credentials; set them as nats.user and nats.password_file")
    if not known or url.path or url.query or url.fragment:
        raise ValueError(f"{shown(value)} is not nats://HOST[:PORT] or tls://HOST[:PORT]")
    return text(value)


def http_url(value: object) -> str:
    try:
        url = urlsplit(text(value))
        known = url.scheme in ("http", "https") and is_host(url.hostname) and url.port != 0
    except ValueError as error:
        raise ValueError(f"{shown(value)} is not an address: {error}") from None
    if url.username is not None:
        raise ValueError("contains credentials, which would be displayed with it")
    if not known or url.fragment:
        raise ValueError(f"{shown(value)} is not http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH")
    return text(value)


def ratio(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{shown(value)} is not within 0 and 1")
    return float(value)


def subject_token(value: object) -> str:
    """Return one plain token of a subject, not one reserved by NATS (`$JS`, `_INBOX`)."""
    if not TOKEN.match(text(value)):
        raise ValueError(f"{shown(value)} is not a subject token: A-Z a-z 0-9 _ -, and no _ or - first")
    return text(value)


def own_token(value: object) -> str:
    """Return the same, or one that begins with `_`, as names reserved for programs do."""
    if not TOKEN.match(text(value).removeprefix("_")) or value == "_INBOX":
        raise ValueError(f"{shown(value)} is not a subject token: A-Z a-z 0-9 _ -, one _ first, not _INBOX")
    return text(value)


def tenant(value: object) -> str:
    """Return a tenant name as in tokens: the protocol page, "Names"."""
    if not TENANT.match(text(value)):
        raise ValueError(f"{shown(value)} is not a tenant name: 1 to 64 of A-Z a-z 0-9 _ -, and no _ first")
    return text(value)


def stream_name(value: object) -> str:
    """A JetStream name (ADR-6): no white space, no `.`, `*`, `>`, `/` or `\\`."""
    if not STREAM.match(text(value)):
        raise ValueError(f"{shown(value)} is not a stream name: no white space and none of . * > / \\")
    return text(value)


def shown(value: object) -> str:
    """Return a value for a message: as text or a TOML number, shortened."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 80 else value[:77] + "...")
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else f"a {type(value).__name__}"


Count = Annotated[int, whole(1, 2**31 - 1)]
Limit = Annotated[int, limit]
AnyCount = Annotated[int, whole(0, 2**31 - 1)]
Replicas = Annotated[int, whole(1, 5)]
Bytes = Annotated[int, size]
AnyBytes = Annotated[int, any_size]
Number = Annotated[float, number]
Rate = Annotated[float, rate]
Ratio = Annotated[float, ratio]
Seconds = Annotated[float, seconds]
Span = Annotated[float, span]
Listen = Annotated[str, listen]
Origin = Annotated[str, origin]
Network = Annotated[str, network]
HttpUrl = Annotated[str, http_url]
NatsUrl = Annotated[str, nats_url]
SubjectToken = Annotated[str, subject_token]
OwnToken = Annotated[str, own_token]
TenantName = Annotated[str, tenant]
StreamName = Annotated[str, stream_name]
