"""Bodies of unknown length: in chunks (RFC 9112 section 7.1), or up to the close for HTTP/1.0."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.http.responses import Framing

LAST_CHUNK = b"0\r\n\r\n"


def framing_for(version: str) -> Framing:
    """Return how a body of unknown length is sent to a client of this HTTP version."""
    return "close" if version == "1.0" else "chunks"


def chunk(data: bytes) -> bytes:
    """Return `data` as one chunk, and nothing for no data: an empty chunk is the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
