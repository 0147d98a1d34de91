"""`GET /sse`: Server-Sent Events as a `Transport` that only sends.

The client says one thing, by the address that it opened: what it subscribes to. The answer begins when that
has been accepted; until then the status is still open, and what is refused is a problem document. It goes in
chunks, so that nobody takes a cut for its end; to HTTP/1.0 up to the end of the link.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import msgspec

from broker.actors.transport import Closed, Inbound, Text
from broker.errors import CloseCode
from broker.web.problems import Refused, Response, problem
from broker.web.queries import NO_CHANNEL
from broker.web.refusals import told as refusal_of
from broker.web.streaming import LAST_CHUNK, chunk, framing_for
from broker.wire import messages, sse

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping, Sequence

    from broker.actors.transport import LinkState
    from broker.web.links import Link
    from broker.wire.frames import Framing

STARTS = ("position", "since", "last", "snapshot", "durable")
PARAMETERS = (*STARTS, "lag")
# Where nobody has said when to come back: spread, for all clients of a broker that has died.
RETRY_MS = 1000, 5000
MEDIA_TYPE = "text/event-stream"
CACHING = "no-store, no-transform"  # a proxy that compresses holds events back
UNBUFFERED = (("X-Accel-Buffering", "no"),)  # for nginx
# In the address, as polyfills write it that cannot set the header, in whichever spelling.
LAST_EVENT_ID = "lastEventId"
SPELLINGS = dict.fromkeys(("lasteventid", "last-event-id", "last_event_id"), LAST_EVENT_ID)


def subscribe(query: Mapping[str, Sequence[str]], last_event_id: str | None) -> bytes:
    """The `subscribe` message that an address stands for. Raises `Refused`.

    `last_event_id` is the header: where a client goes on that comes back. It beats what the address says.
    """
    last_event_id = last_event_id or query.get(LAST_EVENT_ID, [""])[0]
    if not query.get("channel"):
        raise Refused(400, NO_CHANNEL)
    wish: dict[str, Any] = {"channel": list(query["channel"])}
    for name in PARAMETERS:
        if name in query and not (last_event_id and name in STARTS):
            wish[name] = value_of(name, query[name][0])
    if last_event_id:
        wish["position"] = last_event_id
    return msgspec.json.encode({"type": "subscribe", "payload": wish})


def value_of(name: str, text: str) -> str | int | bool:
    if name == "last":
        if not (text.isdecimal() and len(text) < 10):
            raise Refused(400, "last: must be a whole number.")
        return int(text)
    if name == "snapshot":
        if text not in ("", "true", "false"):
            raise Refused(400, "snapshot: must be true or false.")
        return text != "false"
    return text


def head(version: str) -> Response:
    """How the answer begins."""
    return Response(
        status=200,
        body=b"",
        media_type=MEDIA_TYPE,
        headers=UNBUFFERED,
        caching=CACHING,
        framing=framing_for(version),
    )


def event_in_chunk(framed: bytes, marked: bool) -> bytes:
    """The text frame of an `event` as a chunk of its own."""
    return chunk(sse.event(framed, marked))


@attrs.define(eq=False)
class SseTransport:
    """One client after its request.

    `wish` is its `subscribe` message, `headers` what the answer has beside, `version` the client's of HTTP.
    `responses` counts the answer by its status. `held` is what the client is told before that has begun.
    """

    name: ClassVar[str] = "sse"
    answers: ClassVar[bool] = False
    comes_and_goes: ClassVar[bool] = False
    link: Link
    wish: bytes | None
    responses: Counter[int]
    headers: tuple[tuple[str, str], ...] = ()
    version: str = "1.1"
    held: list[bytes] | None = attrs.Factory(list)
    refusal: Response | None = None
    place: sse.Place = attrs.Factory(sse.Place)
    send_nowait: Callable[[bytes | memoryview], int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.send_nowait = self.link.send_nowait  # the link's own: this is called for each delivery

    @property
    def partial_sends(self) -> bool:
        return self.link.partial_sends

    @property
    def framing(self) -> Framing:
        return sse.event if self.version == "1.0" else event_in_chunk

    def framed(self, data: bytes) -> bytes:
        return data if self.version == "1.0" else chunk(data)

    def adopt(self, message_bytes: int) -> None:
        """The client sends no messages."""

    def behind(self, *, begins: bool) -> None:
        """The client finds out by itself."""

    async def receive(self) -> Inbound:
        if self.wish is not None:
            wish, self.wish = self.wish, None
            return Text(data=wish)
        if self.refusal is not None:
            answer = self.encoded(self.refusal)
            return Closed(code=CloseCode.NORMAL, by="broker", reason="refused", answer=answer)
        while await self.link.receive():
            pass  # there is nothing that a client may say; nothing of it is kept
        return Closed(code=1006, by="link")

    async def send_some(self, data: bytes | memoryview) -> int:
        return await self.link.send_some(data)

    def frame(self, message: bytes) -> bytes:
        told = sse.decoder.decode(message)
        data = sse.message(message, self.place.follow(told), told.payload.come_back_ms)
        if self.held is None:
            return self.framed(data)
        if told.type == "error" and self.refusal is None:
            self.refusal = refusal_of(messages.Error(**msgspec.json.decode(message)["payload"]))
        self.held.append(data)
        return self.begin() if told.type == "subscribed" else b""

    def begin(self) -> bytes:
        """The head of the answer, with what has been held back for it."""
        held, self.held = self.held or [], None
        self.responses[200] += 1
        beginning = head(self.version).beside(self.headers).encode()
        self.headers = ()
        first = sse.retry(random.randint(*RETRY_MS))  # noqa: S311 - jitter, no secret
        return beginning + self.framed(first + b"".join(held))

    def ping(self, position: str | None) -> bytes:
        if self.held is not None:
            return b""
        return self.framed(sse.heartbeat(None if self.place.unfinished else position))

    def ask(self) -> bytes:
        return b"" if self.held is not None else self.framed(sse.heartbeat(None))

    def state(self) -> LinkState:
        return self.link.state()

    def close(self, code: int, reason: str) -> bytes:
        """What was wrong, where the answer has not begun; else a comment for people, and the proper end."""
        if self.held is None:
            last = b"" if self.version == "1.0" else LAST_CHUNK
            return self.framed(sse.comment(f"closed: {int(code)} {reason}")) + last
        if self.refusal is None:
            status = 500 if code == CloseCode.INTERNAL_ERROR else 503
            self.refusal = problem(status, f"{reason}.", ("Retry-After", "1"))
        return self.encoded(self.refusal)

    def encoded(self, refusal: Response) -> bytes:
        self.responses[refusal.status] += 1
        return attrs.evolve(refusal, headers=refusal.headers + self.headers).encode()

    async def linger(self) -> None:
        await self.link.linger()

    def abort(self) -> None:
        self.link.abort()
