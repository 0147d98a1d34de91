"""From which pages a browser may connect (RFC 6454, RFC 6455 section 10.2).

The broker reads no cookies, so a foreign page holds nothing that would let it in; the list keeps other
people's pages from using our visitors' tokens once they have one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from broker.web.problems import Refused, Response

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from broker.web.heads import Request

ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?\Z")
OWN_PORT = {"http": 80, "https": 443}


def check(request: Request, allowed: AbstractSet[str]) -> str | None:
    """The `Origin`, if there is one: without it the client is no browser. Raises `Refused` unless allowed.

    `allowed` holds origins as browsers write them: lower case, without the scheme's own port. When it is
    empty, the pages that this host and port serve are allowed, by whichever scheme, since a proxy may
    have taken the TLS off.
    """
    text = request.headers.get("origin")
    if text is None:
        return None
    if text.lower() == "null":
        raise Refused(403, "The origin null is not allowed: it is any sandboxed page.")
    match = ORIGIN.match(text.lower())
    if match is None:
        raise Refused(400, "Origin is not scheme://host[:port].")
    scheme, host, port = match[1], match[2], int(match[3]) if match[3] else None
    if not allowed:
        host_in_brackets = f"[{request.host}]" if ":" in request.host else request.host
        allowed = {written(each, host_in_brackets, request.port) for each in OWN_PORT}
    if written(scheme, host, port) not in allowed:
        raise Refused(403, "This origin is not allowed; server.origins lists those of the public port.")
    return text


def shared(origin: str | None) -> tuple[tuple[str, str], ...]:
    """The headers of an answer that a page of an allowed origin may read (Fetch standard, section 3.3).

    No credentials: the broker knows a client by its token alone.
    """
    if origin is None:
        return ()
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", "Retry-After, WWW-Authenticate"),
        ("Vary", "Origin"),
    )


def preflight(methods: Sequence[str]) -> Response:
    """The answer to a browser that asks before it sends a request."""
    headers = (
        ("Allow", ", ".join((*methods, "OPTIONS"))),
        ("Access-Control-Allow-Methods", ", ".join(methods)),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type, Last-Event-ID"),
        ("Access-Control-Max-Age", "600"),
    )
    return Response(status=204, body=b"", media_type="text/plain", headers=headers)


def written(scheme: str, host: str, port: int | None) -> str:
    """As a browser writes it."""
    if port is None or port == OWN_PORT.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"
