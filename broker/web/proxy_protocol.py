"""The PROXY protocol, versions 1 and 2: a header in which a proxy names the client.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, sections 2.1 and 2.2. Only the source address is
used; extensions (TLVs) are skipped. `parse` is pure; `read` takes the header off a link and not a byte more,
since TLS reads from the socket itself.
"""

from __future__ import annotations

import re
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import attrs
import trio

from broker.actors.transport import LinkLost
from broker.links.tcp import LOST
from broker.web.listeners import shown
from broker.web.proxies import plain

if TYPE_CHECKING:
    from broker.links.tcp import Link
    from broker.web.proxies import Address

LINE = b"PROXY "
LINE_BYTES = 107  # the longest line of version 1, with CR LF
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FIXED = struct.Struct("!12sBBH")  # signature, version and command, family and protocol, length of the rest
LOCAL, PROXY = 0x20, 0x21
# TLVs may hold names of certificates and identifiers of clouds; nginx has the same bound.
HEADER_BYTES = 4096
TEXT_FAMILIES: dict[str, type[Address]] = {"TCP4": IPv4Address, "TCP6": IPv6Address}
# Of streams: unspecified, IPv4, IPv6, unix; with the bytes that addresses and ports take.
FAMILIES = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}
PORT = re.compile(r"0|[1-9][0-9]{0,4}")


class Malformed(Exception):
    """This is no PROXY protocol header. The text says why, and quotes nothing of it."""


@attrs.frozen
class Header:
    """A complete header of `size` bytes.

    `source` is None where the proxy speaks for itself or knows no IP address; then the peer stays the proxy.
    """

    size: int
    source: str | None


async def read(link: Link) -> str | None:
    """Take the header off a link that is unread yet, and return the client's "HOST:PORT", if it has that.

    Raises `Malformed` and `LinkLost`. Has no time-out of its own.
    """
    header = b""
    try:
        while True:
            await trio.lowlevel.wait_readable(link.raw)
            with suppress(BlockingIOError):
                seen = link.raw.recv(HEADER_BYTES, socket.MSG_PEEK)
                if not seen:
                    raise LinkLost
                found = parse(header + seen)
                # Bytes that are only peeked at would wake us again and again.
                header += link.raw.recv(len(seen) if found is None else found.size - len(header))
                if found is not None:
                    return found.source
    except LOST as error:
        raise LinkLost from error


def parse(data: bytes) -> Header | None:
    """Return the header at the beginning of `data`; None while it is incomplete. Raises `Malformed`."""
    if data.startswith(SIGNATURE):
        return binary(data)
    if data.startswith(LINE):
        return line(data)
    if SIGNATURE.startswith(data) or LINE.startswith(data):
        return None
    raise Malformed("it does not begin with a PROXY protocol header")


def line(data: bytes) -> Header | None:
    """Parse version 1: `PROXY TCP4 <source> <destination> <source port> <destination port>` and CR LF."""
    text, end, _ = data[:LINE_BYTES].partition(b"\r\n")
    if not end:
        if len(data) >= LINE_BYTES:
            raise Malformed(f"version 1: no end of line within {LINE_BYTES} bytes")
        return None
    size = len(text) + len(end)
    family, *words = text[len(LINE) :].decode("ascii", "replace").split(" ")
    if family == "UNKNOWN":
        return Header(size, None)
    if family not in TEXT_FAMILIES or len(words) != 4:
        raise Malformed("version 1: not TCP4, TCP6 or UNKNOWN with two addresses and two ports")
    source, _ = (address(family, word) for word in words[:2])
    port, _ = (number(word) for word in words[2:])
    return Header(size, shown((str(plain(source)), port)))


def address(family: str, text: str) -> Address:
    try:
        if "%" not in text:  # a zone means something on the proxy's machine only
            return TEXT_FAMILIES[family](text)
    except ValueError:
        pass
    raise Malformed(f"version 1: an address that is not {family}")


def number(text: str) -> int:
    if PORT.fullmatch(text) and int(text) < 65536:
        return int(text)
    raise Malformed("version 1: a port that is not between 0 and 65535")


def binary(data: bytes) -> Header | None:
    """Parse version 2: 16 bytes, the addresses, and extensions."""
    if len(data) < FIXED.size:
        return None
    _, command, family, length = FIXED.unpack_from(data)
    size = FIXED.size + length
    if command not in (LOCAL, PROXY):
        raise Malformed("version 2: a command other than LOCAL and PROXY, or another version")
    if size > HEADER_BYTES:
        raise Malformed(f"version 2: a header of {size} bytes; the limit is {HEADER_BYTES}")
    # LOCAL is a proxy's own health check: the rest of such a header is to be ignored.
    if command == PROXY and length < FAMILIES.get(family, HEADER_BYTES):
        raise Malformed("version 2: not a stream of a known address family, or too short for its addresses")
    if len(data) < size:
        return None
    if command == PROXY and family == 0x11:
        source, port = struct.unpack_from("!4s4xH", data, FIXED.size)
    elif command == PROXY and family == 0x21:
        source, port = struct.unpack_from("!16s16xH", data, FIXED.size)
    else:
        return Header(size, None)
    packed = IPv4Address(source) if family == 0x11 else IPv6Address(source)
    return Header(size, shown((str(plain(packed)), port)))
