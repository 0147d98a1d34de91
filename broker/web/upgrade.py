"""The WebSocket handshake as a decision: a request in, 101 out, or a refusal (RFC 6455 section 4.2)."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import attrs
from wsproto.utilities import generate_accept_token

from broker.actors.transport import Hello
from broker.web.problems import Refused

if TYPE_CHECKING:
    from broker.web.heads import Request

PROTOCOL = "broker.v1"
BEARER = "bearer."
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 section 5.6.2
# What 426 has to say (RFC 9110 section 15.5.22).
UPGRADE = (("Connection", "Upgrade"), ("Upgrade", "websocket"))


@attrs.frozen(kw_only=True)
class Upgrade:
    """A handshake that holds: what the client said of itself, and the answer."""

    hello: Hello
    response: bytes


def decide(request: Request, *, peer: str, query_token: bool) -> Upgrade:
    """Checks everything but the origin. `query_token`: whether `?access_token=` counts. Raises `Refused`."""
    key = handshake_key(request)
    protocol, offered = subprotocol(request)
    query = parameters(request.query)
    token = the_token(request, offered, query.get("access_token"), query_token=query_token)
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {generate_accept_token(key).decode()}",
        *([f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []),
    ]
    return Upgrade(
        hello=Hello(peer=peer, token=token, tenant=query.get("tenant")),
        response="\r\n".join([*lines, "\r\n"]).encode("ascii"),
    )


def handshake_key(request: Request) -> bytes:
    headers = request.headers
    if request.version == "1.0":
        raise Refused(426, "A WebSocket opens by HTTP/1.1 (nginx: proxy_http_version 1.1).", *UPGRADE)
    upgrades, options = items(headers.get("upgrade", "")), items(headers.get("connection", ""))
    if "websocket" not in upgrades or "upgrade" not in options:
        raise Refused(426, "A WebSocket opens with Upgrade: websocket and Connection: Upgrade.", *UPGRADE)
    version = headers.get("sec-websocket-version")
    if version is None:
        raise Refused(400, "Sec-WebSocket-Version is missing.")
    if version != "13":
        raise Refused(426, "Only version 13 is spoken here.", *UPGRADE, ("Sec-WebSocket-Version", "13"))
    key = headers.get("sec-websocket-key", "").encode("ascii")
    try:
        nonce = base64.b64decode(key, validate=True)
    except binascii.Error:
        nonce = b""
    if len(nonce) != 16:
        raise Refused(400, "Sec-WebSocket-Key is not 16 bytes in base64.")
    return key


def subprotocol(request: Request) -> tuple[str | None, str | None]:
    """The subprotocol to answer with, and the token that stood beside it."""
    header = request.headers.get("sec-websocket-protocol")
    if header is None:
        return None, None
    offers = [offer for each in header.split(",") if (offer := each.strip(" \t"))]
    if len(set(offers)) < len(offers) or not all(TOKEN.match(offer) for offer in offers):
        raise Refused(400, "Sec-WebSocket-Protocol is not a list of different tokens.")
    if PROTOCOL not in offers:
        raise Refused(400, f"Only the subprotocol {PROTOCOL} is spoken here.")
    tokens = [offer.removeprefix(BEARER) for offer in offers if offer.startswith(BEARER)]
    if len(tokens) > 1:
        raise Refused(400, "The request carries two different tokens.")
    return PROTOCOL, tokens[0] if tokens else None


def the_token(
    request: Request, offered: str | None, in_query: str | None, *, query_token: bool
) -> str | None:
    """The token of a request, wherever it stands. Raises `Refused` where it may not, and for two."""
    if in_query is not None and not query_token:
        raise Refused(400, "access_token in the address is not accepted here (server.query_token).")
    tokens = {token for token in (bearer(request), offered, in_query) if token is not None}
    if len(tokens) > 1:
        raise Refused(400, "The request carries two different tokens.")
    return tokens.pop() if tokens else None


def bearer(request: Request) -> str | None:
    """The token in `Authorization` (RFC 6750 section 2.1). Another scheme is for a proxy in front of us."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    token = token.strip(" ")
    if not token or " " in token:
        raise Refused(400, "Authorization is not Bearer and one token.")
    return token


def parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError:
        raise Refused(400, "The query is not UTF-8.") from None
    values = dict(pairs)
    if len(values) < len(pairs):
        raise Refused(400, "A query parameter stands there twice.")
    return values


def items(header: str) -> list[str]:
    return [item.strip(" \t").lower() for item in header.split(",")]
