"""Files as HTTP sends them: compressed, and only once."""

from __future__ import annotations

import gzip
import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from broker.http.heads import Request
    from broker.http.responses import Response

GZIP = "application/gzip"  # compressed already
KEPT = 128  # compressed files
# RFC 9110 section 12.5.3: gzip is listed, and not with weight 0.
ZIPPED = re.compile(r"(?:^|,)\s*gzip\s*(?:,|$|;\s*q=(?!0(?:\.0*)?\s*(?:,|$)))", re.IGNORECASE)


def revalidated(request: Request, response: Response) -> Response:
    """Return a file, compressed if the client accepts that, or 304 (RFC 9110 section 13.1.2)."""
    headers = [("Vary", "Accept-Encoding")]
    if response.media_type != GZIP and ZIPPED.search(request.headers.get("accept-encoding", "")):
        response = attrs.evolve(response, body=zipped(response.body))
        headers.append(("Content-Encoding", "gzip"))
    tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    known = request.headers.get("if-none-match", "").split(",")
    tagged = attrs.evolve(response.beside((*headers, ("ETag", tag))), caching="no-cache")
    if tag in [each.strip(" \t").removeprefix("W/") for each in known]:
        return attrs.evolve(tagged, status=304, body=b"")
    return tagged


@lru_cache(maxsize=KEPT)
def zipped(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)  # without a time: the same bytes, and tag, on every broker
