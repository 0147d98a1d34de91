"""Frames that have arrived whole, which nearly all do: read without the state that wsproto needs for others.

Taken are unfragmented texts, pings and pongs without any fault. Whatever else there is, wsproto judges.
"""

from __future__ import annotations

from broker.actors.transport import Alive, Control, Inbound, Text
from broker.wire import frames

MASKED, LENGTH = 0x80, 0x7F
SHORT, MEDIUM = 125, 126  # the longest length in the second byte; the second byte of one in two more
MASK_BYTES = 4


def take(data: bytes, limit: int) -> tuple[Inbound | None, bytes]:
    """Return what the first frame says, and the bytes after it; None and `data` where wsproto has to read it.

    `limit`: bytes of a message.
    """
    opcode, size, at = data[0], data[1] & LENGTH if len(data) > 1 else 0, 2
    if opcode not in (frames.TEXT, frames.PING, frames.PONG) or len(data) < 2 or not data[1] & MASKED:
        return None, data
    if size > SHORT:
        size, at = int.from_bytes(data[2:4], "big"), 4
        if data[1] != MASKED | MEDIUM or size <= SHORT or opcode != frames.TEXT:
            return None, data
    end = at + MASK_BYTES + size
    if len(data) < end or size > limit:
        return None, data
    payload = unmasked(data[at + MASK_BYTES : end], data[at : at + MASK_BYTES])
    if opcode == frames.PONG:
        return Alive(), data[end:]
    if opcode == frames.PING:
        return Control(data=frames.frame(frames.PONG, payload)), data[end:]
    return (Text(data=payload), data[end:]) if is_utf8(payload) else (None, data)


def unmasked(payload: bytes, mask: bytes) -> bytes:
    """Return the payload of a client's frame (RFC 6455 section 5.3)."""
    size = len(payload)
    key = (mask * (size // MASK_BYTES + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def is_utf8(payload: bytes) -> bool:
    if payload.isascii():
        return True
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
