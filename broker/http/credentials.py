"""The token of a request, in each of the places where a client may put it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.http.responses import Refused

if TYPE_CHECKING:
    from broker.http.heads import Request
    from broker.http.queries import Query

CHALLENGE = 'Bearer realm="broker"'


def token_of(request: Request, query: Query, *, query_token: bool, offered: str | None = None) -> str | None:
    """Return the token, or None for a request without one.

    It stands in `Authorization`, in `?access_token=` where that is allowed (`query_token`), or in the
    subprotocol that a WebSocket client has `offered`. Raises `Refused` (400) for two different tokens, and
    for one where none may be.
    """
    in_query = query.get("access_token", [None])[0]
    if in_query is not None and not query_token:
        raise Refused(400, "access_token is not accepted in the query (server.query_token).")
    tokens = {token for token in (bearer(request), offered, in_query) if token is not None}
    if len(tokens) > 1:
        raise Refused(400, "The request carries two different tokens.")
    return tokens.pop() if tokens else None


def bearer(request: Request) -> str | None:
    """Return the token in `Authorization` (RFC 6750 section 2.1).

    Any other scheme is meant for a proxy in front of the broker. Raises `Refused` (400).
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    token = token.strip(" ")
    if not token or " " in token:
        raise Refused(400, "Malformed Authorization header: expected Bearer and one token.")
    return token


def tenant_of(query: Query) -> str | None:
    """Return the tenant that a monitoring token's holder asks for."""
    return query.get("tenant", [None])[0]


def missing() -> Refused:
    """Return the refusal (401) of a request that has to have a token."""
    return Refused(401, "Missing token: send Authorization: Bearer.", ("WWW-Authenticate", CHALLENGE))
