"""What clients say to a server and how they know that they are subscribed, by kind of server."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # that of RFC 6455, section 1.3: the answer is not what is measured
POSITION = re.compile(rb'"position":"([^"]+)"')


class Dialect(Protocol):
    """One client's part of the conversation."""

    def request(self) -> bytes:
        """The head that opens the WebSocket."""

    def join(self, position: str | None) -> bytes:
        """The frames that subscribe, from a position on; nothing when the handshake is all."""

    def joined(self, payload: bytes) -> bool:
        """Whether a message from the server says that the subscriptions are live."""


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame, masked with zeros (RFC 6455, section 5.3)."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8)
    return head + bytes(4) + payload


def head(path: str, host: str, *lines: str) -> bytes:
    return "\r\n".join(
        (
            f"GET {path} HTTP/1.1",
            f"Host: {host}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {KEY}",
            *lines,
            "\r\n",
        )
    ).encode()


@attrs.frozen
class BrokerClient:
    """A client of this broker: protocol `broker.v1`, its token in a header. It begins at `start`, if any.

    `documents`: its channels are such.
    """

    host: str
    token: str
    channels: Sequence[str]
    start: str | None = None
    documents: bool = False

    def request(self) -> bytes:
        lines = (f"Authorization: Bearer {self.token}", "Sec-WebSocket-Protocol: broker.v1")
        return head("/ws", self.host, *lines)

    def join(self, position: str | None) -> bytes:
        start = position or self.start
        payload = {"channel": list(self.channels)} | ({"position": start} if start else {})
        kind = "state.open" if self.documents else "subscribe"
        return masked(1, json.dumps({"type": kind, "payload": payload}).encode())

    def joined(self, payload: bytes) -> bool:
        if payload.startswith(b'{"type":"error"'):
            raise ConnectionError(payload.decode())
        if payload.startswith(b'{"type":"subscribed"'):
            return bool(json.loads(payload)["payload"]["live"])
        return payload.startswith((b'{"type":"subscription.live"', b'{"type":"state.ready"'))


@attrs.frozen
class NatsClient:
    """A client of nats-server's own WebSocket listener; its subjects are NATS's."""

    host: str
    channels: Sequence[str]

    def request(self) -> bytes:
        return head("/", self.host)

    def join(self, position: str | None) -> bytes:  # noqa: ARG002  NATS knows no position
        lines = b"".join(b"SUB %b %d\r\n" % (each.encode(), 1 + at) for at, each in enumerate(self.channels))
        return masked(2, b'CONNECT {"verbose":false,"pedantic":false}\r\n' + lines + b"PING\r\n")

    def joined(self, payload: bytes) -> bool:
        if b"-ERR" in payload:
            raise ConnectionError(payload.decode(errors="replace"))
        return b"PONG\r\n" in payload


@attrs.frozen
class Handshake:
    """A client of any WebSocket server, which only opens the connection."""

    host: str
    path: str

    def request(self) -> bytes:
        return head(self.path, self.host)

    def join(self, position: str | None) -> bytes:  # noqa: ARG002  there is nothing to join
        return b""

    def joined(self, payload: bytes) -> bool:  # noqa: ARG002  whatever it says
        return True


def position(payload: bytes) -> str | None:
    """The position in a message of `broker.v1`."""
    found = POSITION.search(payload)
    return found[1].decode() if found else None
