"""Which pages may connect (RFC 6454, RFC 6455 section 10.2), and what they may read (CORS).

The broker reads no cookies, so a foreign page has nothing that would let it in; the list of origins keeps it
from using a visitor's token once it has got one.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import attrs
import structlog

from broker.http.responses import Refused, Response

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from broker.http.heads import Request
    from broker.http.responses import Headers

ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?\Z")
OWN_PORT = {"http": 80, "https": 443}
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
STRANGERS = 1000  # that are remembered, the newest

log = structlog.get_logger()


class NotAllowed(Refused):
    """Pages of this origin may not use the port."""

    def __init__(self, origin: str, detail: str) -> None:
        super().__init__(403, detail)
        self.origin = origin


def check(request: Request, allowed: AbstractSet[str], *, loopback: bool = False) -> str | None:
    """Return the `Origin`; None without one: then the client is no browser. Raises `Refused` unless allowed.

    `allowed` holds origins as browsers write them: lower case, without the scheme's default port. If it is
    empty, pages of the same host and port are allowed, by either scheme, since a proxy may have terminated
    TLS. With `loopback`, pages of this machine are allowed as well, from any port.
    """
    text = request.headers.get("origin")
    if text is None:
        return None
    if text.lower() == "null":
        raise NotAllowed("null", "The origin null is not allowed: any sandboxed page has it.")
    match = ORIGIN.match(text.lower())
    if match is None:
        raise Refused(400, "Malformed Origin header: expected scheme://host[:port].")
    scheme, host, port = match[1], match[2], int(match[3]) if match[3] else None
    if loopback and scheme in OWN_PORT and host in LOOPBACK:
        return text
    found = written(scheme, host, port)
    if found not in (allowed or {own(request, each) for each in OWN_PORT}):
        raise NotAllowed(found, "This origin is not allowed; server.origins lists those that are.")
    return text


def own(request: Request, scheme: str) -> str:
    """Return the origin of pages that are served at the request's own address."""
    return written(scheme, f"[{request.host}]" if ":" in request.host else request.host, request.port)


@attrs.define(eq=False)
class Origins:
    """The origins that a port allows. A refused one is logged once, with the line that would allow it."""

    loopback: bool = False
    strangers: dict[tuple[str, tuple[str, ...]], None] = attrs.Factory(dict)

    def admit(self, request: Request, peer: str, listed: tuple[str, ...]) -> Headers:
        """Return the headers of a response that the page may read. Raises `Refused`.

        `listed` is `server.origins`.
        """
        try:
            return shared(check(request, frozenset(listed), loopback=self.loopback))
        except NotAllowed as refused:
            self.note(refused.origin, request, peer, listed)
            raise

    def note(self, origin: str, request: Request, peer: str, listed: tuple[str, ...]) -> None:
        """Log a refused origin, once for each value of `listed`."""
        key = origin, listed
        if key in self.strangers:
            return
        if len(self.strangers) >= STRANGERS:
            del self.strangers[next(iter(self.strangers))]
        self.strangers[key] = None
        if origin == "null":
            advice = "null is a sandboxed frame or a file, and cannot be allowed: serve the page by HTTP"
        else:
            # Without a list, pages of the same host are allowed; the advice keeps them.
            before = listed or (own(request, origin.partition(":")[0]),)
            advice = f"if the page is yours: [server] origins = {json.dumps([*before, origin])}"
        log.warning("origin_refused", origin=origin, host=request.host, peer=peer, next=advice)


def shared(origin: str | None) -> Headers:
    """Return the headers of a response that a page of this origin may read (Fetch standard, section 3.3).

    None of them allows credentials: the broker knows a client by its token alone.
    """
    if origin is None:
        return ()
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", "Retry-After, WWW-Authenticate"),
        ("Vary", "Origin"),
    )


def preflight(methods: Sequence[str]) -> Response:
    """Answer a preflight request (Fetch standard, section 4.8). `methods` has OPTIONS last."""
    headers = (
        ("Allow", ", ".join(methods)),
        ("Access-Control-Allow-Methods", ", ".join(methods[:-1])),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type, Last-Event-ID"),
        ("Access-Control-Max-Age", "600"),
    )
    return Response(status=204, body=b"", media_type="text/plain", headers=headers)


def written(scheme: str, host: str, port: int | None) -> str:
    """Return an origin as a browser writes it."""
    if port is None or port == OWN_PORT.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"
