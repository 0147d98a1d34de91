"""From which pages a browser may connect (RFC 6454, RFC 6455 section 10.2).

The broker reads no cookies, so a foreign page holds nothing that would let it in; the list keeps other
people's pages from using our visitors' tokens once they have one.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import attrs
import structlog

from broker.web.problems import Refused, Response

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from broker.web.heads import Request

ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?\Z")
OWN_PORT = {"http": 80, "https": 443}
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
STRANGERS = 1000  # that are remembered

log = structlog.get_logger()


class NotAllowed(Refused):
    """The page is none of those that may use this port."""

    def __init__(self, origin: str, detail: str) -> None:
        super().__init__(403, detail)
        self.origin = origin


def check(request: Request, allowed: AbstractSet[str], *, loopback: bool = False) -> str | None:
    """The `Origin`, if there is one: without it the client is no browser. Raises `Refused` unless allowed.

    `allowed` holds origins as browsers write them: lower case, without the scheme's own port. When it is
    empty, the pages that this host and port serve are allowed, by whichever scheme, since a proxy may
    have taken the TLS off. With `loopback` pages of this machine are, too, from whichever port.
    """
    text = request.headers.get("origin")
    if text is None:
        return None
    if text.lower() == "null":
        raise NotAllowed("null", "The origin null is not allowed: it is any sandboxed page.")
    match = ORIGIN.match(text.lower())
    if match is None:
        raise Refused(400, "Origin is not scheme://host[:port].")
    scheme, host, port = match[1], match[2], int(match[3]) if match[3] else None
    if loopback and scheme in OWN_PORT and host in LOOPBACK:
        return text
    found = written(scheme, host, port)
    if found not in (allowed or {own(request, each) for each in OWN_PORT}):
        raise NotAllowed(found, "This origin is not allowed; server.origins lists those of the public port.")
    return text


def own(request: Request, scheme: str) -> str:
    """The origin of the pages that are served where this request went."""
    return written(scheme, f"[{request.host}]" if ":" in request.host else request.host, request.port)


@attrs.define(eq=False)
class Strangers:
    """Origins that were refused: each is one warning, with the line that would let it in."""

    seen: dict[tuple[str, tuple[str, ...]], None] = attrs.Factory(dict)  # the newest

    def note(self, origin: str, request: Request, peer: str, listed: tuple[str, ...]) -> None:
        """`listed` is `server.origins`; when that changes, each is worth a word again."""
        key = origin, listed
        if key in self.seen:
            return
        if len(self.seen) >= STRANGERS:
            del self.seen[next(iter(self.seen))]
        self.seen[key] = None
        if origin == "null":
            advice = "null is a sandboxed frame or a file, and cannot be let in: serve the page by HTTP"
        else:
            # Without a list the pages of the own host are let in; they are to stay.
            before = listed or (own(request, origin.partition(":")[0]),)
            advice = f"if that is a page of yours: [server] origins = {json.dumps([*before, origin])}"
        log.warning("origin_refused", origin=origin, host=request.host, peer=peer, next=advice)


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
