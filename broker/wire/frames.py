"""From a message to the bytes of a WebSocket: unmasked server frames (RFC 6455 section 5.2)."""

from __future__ import annotations

import struct

import msgspec

from broker.subjects import is_live

TEXT = 0x81
CLOSE = 0x88
PING = 0x89
PONG = 0x8A


def frame(opcode: int, payload: bytes) -> bytes:
    """One final, unmasked frame; `opcode` with the FIN bit."""
    return head(opcode, len(payload)) + payload


def head(opcode: int, size: int) -> bytes:
    if size < 126:
        return bytes((opcode, size))
    if size < 65536:
        return struct.pack(">BBH", opcode, 126, size)
    return struct.pack(">BBQ", opcode, 127, size)


def close(code: int, reason: str) -> bytes:
    """A Close frame. The reason is cut to the 123 bytes that a control frame leaves for it."""
    return frame(CLOSE, struct.pack(">H", code) + reason.encode()[:123].decode(errors="ignore").encode())


def text(payload: bytes) -> bytes:
    """One text frame."""
    return head(TEXT, len(payload)) + payload


def event_head(channel: str, incarnation: str) -> bytes:
    """The part of an `event` message that depends on its channel alone, up to the sequence.

    A live channel has no position, so that it ends where the event begins.
    """
    name = msgspec.json.encode(channel).decode()
    if is_live(channel):
        return f'{{"type":"event","payload":{{"channel":{name}'.encode()
    return f'{{"type":"event","payload":{{"channel":{name},"position":"{incarnation}-'.encode()


def event(prefix: bytes, sequence: int, body: bytes, publisher: str | None) -> bytes:
    """An `event` message as a text frame: the event's own bytes, spliced into our fields.

    `prefix` is from `event_head`; `sequence` 0 is a live event, which has no position.
    """
    parts = (
        prefix,
        b'%d"' % sequence if sequence else b"",
        b',"publisher":{"user":%b}' % msgspec.json.encode(publisher) if publisher is not None else b"",
        b',"event":',
        body,
        b"}}",
    )
    return text(b"".join(parts))


def mark(framed: bytes, catch_up: int) -> bytes:
    """The text frame of an `event` with the number of the catch-up that it belongs to."""
    return extended(framed, b'"catch_up":%d' % catch_up)


def trace(framed: bytes, parent: str) -> bytes:
    """The text frame of an `event` with the `traceparent` of the step that a client continues."""
    return extended(framed, b'"traceparent":"%b"' % parent.encode("ascii"))


def extended(framed: bytes, field: bytes) -> bytes:
    """The text frame of an `event` with one more field in its payload."""
    start = {126: 4, 127: 10}.get(framed[1], 2)
    return text(b"%b,%b}}" % (framed[start:-2], field))
