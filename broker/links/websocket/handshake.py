"""The WebSocket handshake (RFC 6455 section 4.2): a request becomes a link to a connection, or is refused."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

import attrs
from wsproto.utilities import generate_accept_token

from broker.http import queries
from broker.http.credentials import tenant_of
from broker.http.responses import Refused
from broker.links.route import GET, Route
from broker.links.websocket.transport import WebSocketTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from broker.http.heads import Request
    from broker.links.exchange import ClientExchange

PROTOCOL = "broker.v1"
BEARER = "bearer."
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 section 5.6.2
# Required in a response with 426 (RFC 9110 section 15.5.22).
UPGRADE = (("Connection", "Upgrade"), ("Upgrade", "websocket"))


@attrs.frozen(kw_only=True)
class Upgrade:
    """A valid handshake: the response to it, and the token that stood among its subprotocols."""

    response: bytes
    token: str | None


async def handle(exchange: ClientExchange) -> Awaitable[None]:
    """Bring the link to WebSocket, including what the client sent after its request."""
    opening = decide(exchange.request)
    query = queries.parse(exchange.request.query)
    hello = exchange.hello(exchange.token(query, opening.token), tenant_of(query), opening.response)
    transport = WebSocketTransport(exchange.link, exchange.limits.message_bytes)
    if exchange.trailing:
        transport.feed(exchange.trailing)
    with exchange.place():
        exchange.begin(101)
        return exchange.backend.serve(transport, hello)


ROUTE = Route(path="/ws", methods=GET, handle=handle, cross_origin=True)


def decide(request: Request) -> Upgrade:
    """Check everything but origin and token. Raises `Refused`."""
    key = handshake_key(request)
    protocol, token = subprotocol(request)
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {generate_accept_token(key).decode()}",
        *([f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []),
    ]
    return Upgrade(response="\r\n".join([*lines, "\r\n"]).encode("ascii"), token=token)


def handshake_key(request: Request) -> bytes:
    """Return the key of a request to upgrade. Raises `Refused` (400, 426)."""
    headers = request.headers
    if request.version == "1.0":
        raise Refused(426, "WebSocket needs HTTP/1.1 (nginx: proxy_http_version 1.1).", *UPGRADE)
    upgrades, options = items(headers.get("upgrade", "")), items(headers.get("connection", ""))
    if "websocket" not in upgrades or "upgrade" not in options:
        raise Refused(
            426, "WebSocket needs the headers Upgrade: websocket and Connection: Upgrade.", *UPGRADE
        )
    version = headers.get("sec-websocket-version")
    if version is None:
        raise Refused(400, "Missing header: sec-websocket-version")
    if version != "13":
        raise Refused(
            426, "Unsupported Sec-WebSocket-Version: use 13.", *UPGRADE, ("Sec-WebSocket-Version", "13")
        )
    key = headers.get("sec-websocket-key", "").encode("ascii")
    try:
        nonce = base64.b64decode(key, validate=True)
    except binascii.Error:
        nonce = b""
    if len(nonce) != 16:
        raise Refused(400, "Malformed Sec-WebSocket-Key: expected 16 bytes in base64.")
    return key


def subprotocol(request: Request) -> tuple[str | None, str | None]:
    """Return the subprotocol to answer with, and the token beside it. Raises `Refused` (400)."""
    header = request.headers.get("sec-websocket-protocol")
    if header is None:
        return None, None
    offers = [offer for each in header.split(",") if (offer := each.strip(" \t"))]
    if len(set(offers)) < len(offers) or not all(TOKEN.match(offer) for offer in offers):
        raise Refused(400, "Malformed Sec-WebSocket-Protocol: expected a list of different tokens.")
    if PROTOCOL not in offers:
        raise Refused(400, f"Unsupported subprotocol: offer {PROTOCOL}.")
    tokens = [offer.removeprefix(BEARER) for offer in offers if offer.startswith(BEARER)]
    if len(tokens) > 1:
        raise Refused(400, "The request carries two different tokens.")
    return PROTOCOL, tokens[0] if tokens else None


def items(header: str) -> list[str]:
    return [item.strip(" \t").lower() for item in header.split(",")]
