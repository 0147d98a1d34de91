"""From messages to the bytes of Server-Sent Events, and the position at which such a client may resume.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import msgspec

from broker.wire import frames

PAYLOAD = len('{"type":"event","payload":{"channel":"')
END_OF_NAME = b'","'  # the end of the channel: quotes within it are escaped
POSITION = b'position":"'
# A line end would end the `data:` field. In JSON it is only white space between tokens, never in a string.
ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


class Payload(msgspec.Struct):
    """The fields of a server message that matter for resuming and for reconnecting."""

    position: str | None = None
    to: str | None = None
    catch_up: int | None = None
    paced: bool = False
    reconnect_after_ms: int | None = None
    retry_after_ms: int | None = None
    recovered: bool | None = None
    refused: list[msgspec.Raw] = []

    @property
    def come_back_ms(self) -> int | None:
        return self.retry_after_ms if self.reconnect_after_ms is None else self.reconnect_after_ms


class Told(msgspec.Struct, rename="camel"):
    type: str
    payload: Payload
    message_id: str | None = None


decoder = msgspec.json.Decoder(Told)
CARRIERS = {"subscribed", "subscription.live", "pong", "connection.draining", "event"}


class Place:
    """The position at which a client would resume: the newest P that it was told.

    None while a catch-up is in progress: a client that knows a single position and came back with it would
    never get the rest of the catch-up. Without one it repeats its original request.
    """

    __slots__ = ("position", "unfinished")

    def __init__(self) -> None:
        self.position: str | None = None
        self.unfinished: set[int] = set()

    def follow(self, told: Told) -> str | None:
        """Return the place after a message, if the message has changed it."""
        payload = told.payload
        if payload.catch_up is not None:
            if told.type == "subscribed":
                self.unfinished.add(payload.catch_up)
                self.position = None
            if told.type != "subscription.live":
                return None
            self.unfinished.discard(payload.catch_up)
        if payload.paced:
            return None
        carried = payload.to if told.type == "gap" else payload.position
        if self.unfinished or carried is None or told.type not in (*CARRIERS, "gap"):
            return None
        self.position = carried
        return carried


def event(framed: bytes, marked: bool) -> bytes:
    """Return the text frame of an `event` as an SSE event; its position becomes `id:` if it is P."""
    data = one_line(frames.payload(framed))
    start = data.index(END_OF_NAME, PAYLOAD) + len(END_OF_NAME)
    if marked or not data.startswith(POSITION, start):
        return b"data: %b\n\n" % data
    start += len(POSITION)
    return b"data: %b\nid: %b\n\n" % (data, data[start : data.index(b'"', start)])


def one_line(data: bytes) -> bytes:
    """Return JSON without line ends."""
    return data.translate(ONE_LINE) if b"\n" in data or b"\r" in data else data


def message(data: bytes, place: str | None, retry_ms: int | None) -> bytes:
    """Return any other message, which has no line ends. `place` is P, if the client may resume there."""
    return b"data: %b\n%b%b\n" % (
        data,
        b"" if place is None else b"id: %b\n" % place.encode(),
        b"" if retry_ms is None else b"retry: %d\n" % retry_ms,
    )


def heartbeat(place: str | None) -> bytes:
    """Return P alone, which does not fire an event in the browser; or a comment."""
    return b":\n\n" if place is None else b"id: %b\n\n" % place.encode()


def comment(text: str) -> bytes:
    return b": %b\n\n" % " ".join(text.splitlines()).encode()


def retry(milliseconds: int) -> bytes:
    """Return the field that sets the time until the client reconnects."""
    return b"retry: %d\n\n" % milliseconds


DOCUMENT = b'{"type":"state","payload":{"channel":"'
UPTO = b'","position":"'


def document_position(data: bytes) -> str:
    """Return the position of a `state` message."""
    start = data.index(UPTO, len(DOCUMENT)) + len(UPTO)
    return data[start : data.index(b'"', start)].decode()
