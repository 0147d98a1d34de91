"""From a message to the bytes of a WebSocket: unmasked server frames (RFC 6455 section 5.2)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from broker.subjects import is_live

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Converts an event's text frame for another kind of link; the flag: it carries the mark of a catch-up.
Framing: TypeAlias = "Callable[[bytes, bool], bytes]"


class Content(msgspec.Struct):
    event: Any


class Shown(msgspec.Struct):
    payload: Content


shown = msgspec.json.Decoder(Shown)

TEXT = 0x81
CLOSE = 0x88
PING = 0x89
PONG = 0x8A


def frame(opcode: int, payload: bytes) -> bytes:
    """Return one final, unmasked frame; `opcode` includes the FIN bit."""
    return head(opcode, len(payload)) + payload


def head(opcode: int, size: int) -> bytes:
    if size < 126:
        return bytes((opcode, size))
    if size < 65536:
        return struct.pack(">BBH", opcode, 126, size)
    return struct.pack(">BBQ", opcode, 127, size)


def close(code: int, reason: str) -> bytes:
    """Return a Close frame, with the reason cut to the 123 bytes that a control frame leaves for it."""
    return frame(CLOSE, struct.pack(">H", code) + reason.encode()[:123].decode(errors="ignore").encode())


def text(payload: bytes) -> bytes:
    """Return one text frame."""
    return head(TEXT, len(payload)) + payload


def payload(framed: bytes) -> bytes:
    """Return the payload of a text frame."""
    return framed[{126: 4, 127: 10}.get(framed[1], 2) :]


def take(buffer: bytearray) -> Iterator[bytes]:
    """Yield the payloads of our own frames that are complete, and remove them from the buffer."""
    while len(buffer) >= 2:
        start = {126: 4, 127: 10}.get(buffer[1], 2)
        if len(buffer) < start:
            return
        end = start + (buffer[1] if start == 2 else int.from_bytes(buffer[2:start]))
        if len(buffer) < end:
            return
        found = bytes(buffer[start:end])
        del buffer[:end]
        yield found


def event_head(channel: str, incarnation: str) -> bytes:
    """Return the part of an `event` message that depends on its channel alone, up to the sequence.

    A live channel has no position: its head ends before the publisher or event.
    """
    name = msgspec.json.encode(channel).decode()
    if is_live(channel):
        return f'{{"type":"event","payload":{{"channel":{name}'.encode()
    return f'{{"type":"event","payload":{{"channel":{name},"position":"{incarnation}-'.encode()


def event(prefix: bytes, sequence: int, body: bytes, publisher: str | None) -> bytes:
    """Return an `event` message as a text frame: the event's own bytes, spliced into our fields.

    `prefix` is from `event_head`; `sequence` 0 is a live event, which has no position.
    """
    parts = (
        prefix,
        b'%d"' % sequence if sequence else b"",
        published_by(publisher) if publisher is not None else b"",
        b',"event":',
        body,
        b"}}",
    )
    return text(b"".join(parts))


def published_by(user: str) -> bytes:
    return b',"publisher":{"user":%b}' % msgspec.json.encode(user)


def own(framed: bytes, user: str, event_id: str) -> bytes:
    """Return the text frame of an `event` as its publisher gets it, with the id of the publish."""
    before, publisher, rest = payload(framed).partition(published_by(user))  # not in a string, as below
    return text(b'%b%b,"id":%b}%b' % (before, publisher[:-1], msgspec.json.encode(event_id), rest))


def event_of(framed: bytes) -> Any:
    """Return the event in the text frame of an `event`, decoded."""
    return shown.decode(payload(framed)).payload.event


def converted(framed: list[bytes], framing: Framing | None, *, marked: bool = False) -> list[bytes]:
    """Return text frames of events, of which some may be empty, for a kind of link (None: WebSocket)."""
    return framed if framing is None else [frame and framing(frame, marked) for frame in framed]


def mark(framed: bytes, catch_up: int) -> bytes:
    """Return the text frame of an `event` with the number of the catch-up that it belongs to."""
    return text(b'%b,"catch_up":%d}}' % (payload(framed)[:-2], catch_up))


def paced(framed: bytes) -> bytes:
    """Return the text frame of an `event` with the mark of one that was paced."""
    return text(b'%b,"paced":true}}' % payload(framed)[:-2])


def trace(framed: bytes, parent: str) -> bytes:
    """Return the text frame of an `event` with the `traceparent` of the step that a client continues.

    It is inserted before the event's own bytes: `mark` expects those at the end.
    """
    before, name, event = payload(framed).partition(b',"event":')  # not in a string: quotes are escaped
    return text(b'%b,"traceparent":"%b"%b%b' % (before, parent.encode("ascii"), name, event))
