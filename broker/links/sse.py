"""`GET /sse`: Server-Sent Events, as a `Transport` that only sends.

The client says one thing, by the address that it opens: what it subscribes to. The response begins once that
has been accepted; until then a refusal is a problem document with a status of its own. The response is sent
in chunks, so that nobody takes a cut for its end; to an HTTP/1.0 client up to the close.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import msgspec

from broker.actors.transport import Closed, Inbound, Text
from broker.errors import CloseCode
from broker.http import queries
from broker.http.chunks import LAST_CHUNK, chunk, framing_for
from broker.http.refusals import from_message
from broker.http.responses import Refused, Response, problem
from broker.links.route import GET, Operation, Route
from broker.wire import frames, messages, sse
from broker.wire.following import Following, composed, taken_apart

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable

    from broker.actors.transport import LinkState
    from broker.http.queries import Query
    from broker.http.responses import Headers
    from broker.links.exchange import ClientExchange
    from broker.links.tcp import Link
    from broker.wire.frames import Framing

STARTS = ("position", "since", "last", "snapshot", "durable")
PARAMETERS = (*STARTS, "lag", "filter", "every_ms")
STATE_EVERY_MS = "state_every_ms"
# Until the broker names another time: spread, for the case that it dies with all its clients.
RETRY_MS = 1000, 5000
MEDIA_TYPE = "text/event-stream"
CACHING = "no-store, no-transform"  # a proxy that compresses would hold events back
UNBUFFERED = (("X-Accel-Buffering", "no"),)  # for nginx
# In the query, for polyfills that cannot set the header; they have several spellings.
LAST_EVENT_ID = "lastEventId"
SPELLINGS = dict.fromkeys(("lasteventid", "last-event-id", "last_event_id"), LAST_EVENT_ID)


async def handle(exchange: ClientExchange) -> Response | Awaitable[None]:
    """Subscribe to what the query says; the link carries events from then on."""
    request = exchange.request
    known = (*PARAMETERS, STATE_EVERY_MS, LAST_EVENT_ID)
    query = queries.parse(request.query, known, repeated=("channel", "state"), spellings=SPELLINGS)
    hello = exchange.hello(*exchange.credentials(query))
    last = request.headers.get("last-event-id") or query.get(LAST_EVENT_ID, [""])[0]
    events, documents = wishes_of(query, last)
    if request.method == "HEAD":  # the head alone: nothing is subscribed for it
        return head(request.version)
    link, responses = exchange.link, exchange.responses
    link.give_up_after(exchange.limits.stall_seconds)
    transport = SseTransport(link, events, documents, responses, exchange.headers, request.version)
    with exchange.place():
        return exchange.backend.serve(transport, hello)


ROUTE = Route(
    path="/sse",
    methods=(*GET, "OPTIONS"),
    handle=handle,
    cross_origin=True,
    about="Server-Sent Events: the messages of a connection that only listens, each in one `data:` line;"
    " `id:` is the position to resume from.",
    operations=(
        Operation(
            method="GET",
            parameters=PARAMETERS,
            fields_of=messages.Subscribe,
            texts={
                LAST_EVENT_ID: "The last `id:` of an event stream. It beats a start in the query.",
                STATE_EVERY_MS: "Of each document at most one change in that time, see `StateOpen`.",
            },
            lists={"state": "A channel or a pattern of documents; the parameter is repeated for each."},
        ),
    ),
)


def wishes_of(query: Query, last: str) -> tuple[bytes | None, Documents | None]:
    """Return the message that subscribes to what a query has of channels, and what it has of documents.

    `last` is the place of a client that comes back. It beats a start in the query. Raises `Refused` (400).
    """
    state = query.get("state")
    events, stood = taken_apart(last)
    if not (state or query.get("channel")):
        raise queries.no_channel()
    every_ms = value_of(STATE_EVERY_MS, query[STATE_EVERY_MS][0]) if STATE_EVERY_MS in query else None
    documents = Documents(channels=state, every_ms=every_ms, stood=stood) if state else None
    if not query.get("channel"):
        return None, documents
    wish: dict[str, Any] = {"channel": list(query["channel"])}
    for name in PARAMETERS:
        if name in query and not (events and name in STARTS):
            wish[name] = value_of(name, query[name][0])
    if events:
        wish["position"] = events
    return encoded("subscribe", wish), documents


def encoded(kind: str, wish: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"type": kind, "payload": wish})


def value_of(name: str, text: str) -> Any:
    """Return a parameter as JSON has it. Raises `Refused` (400)."""
    if name in ("last", "every_ms", STATE_EVERY_MS):
        return queries.whole_number(name, text)
    if name == "snapshot":
        if text not in ("", "true", "false"):
            raise Refused(400, "snapshot: must be true or false.")
        return text != "false"
    return queries.json_value(name, text) if name == "filter" else text


def head(version: str) -> Response:
    """Return the head of the response."""
    return Response(
        status=200,
        body=b"",
        media_type=MEDIA_TYPE,
        headers=UNBUFFERED,
        caching=CACHING,
        framing=framing_for(version),
    )


class Told(msgspec.Struct):
    """What a client is told of its token."""

    payload: messages.Authenticated


def event_in_chunk(framed: bytes, marked: bool) -> bytes:
    """Return the text frame of an `event` as a chunk of its own."""
    return chunk(sse.event(framed, marked))


@attrs.frozen(kw_only=True)
class Documents:
    """What a request has of documents, and where its client stands in them, see `Following`."""

    channels: list[str]
    every_ms: int | None
    stood: str | None


@attrs.define(eq=False)
class SseTransport:
    """One client after its request.

    `events` is its message about channels, and `asked` what it wants of documents, each until it has been
    received; `headers` are further ones of the response, `version` is the client's of HTTP. `responses`
    counts the response by status. `held` has what is sent before the response begins; it is None from then
    on. `following` are its documents once its token is known. Beside channels it is `mixed`.
    """

    name: ClassVar[str] = "sse"
    answers: ClassVar[bool] = False
    comes_and_goes: ClassVar[bool] = False
    link: Link
    events: bytes | None
    asked: Documents | None
    responses: Counter[int]
    headers: Headers = ()
    version: str = "1.1"
    held: list[bytes] | None = attrs.Factory(list)
    refusal: Response | None = None
    cause: str = ""  # of the refusal: a code of the protocol
    place: sse.Place = attrs.Factory(sse.Place)
    following: Following | None = None
    mixed: bool = attrs.field(init=False)
    with_documents: bool = attrs.field(init=False)
    send_nowait: Callable[[bytes | memoryview], int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.send_nowait = self.link.send_nowait
        self.with_documents = self.asked is not None
        self.mixed = self.with_documents and self.events is not None

    @property
    def partial_sends(self) -> bool:
        return self.link.partial_sends

    @property
    def framing(self) -> Framing:
        if self.with_documents:
            return self.composed
        return sse.event if self.version == "1.0" else event_in_chunk

    def composed(self, framed: bytes, marked: bool) -> bytes:
        """Return the text frame of an `event` or a `state`, with both positions in its `id:`.

        Beside events a `state` has none: P may have moved since it was told, and the next `id:` has both.
        """
        data = frames.payload(framed)
        if self.following is not None and data.startswith(sse.DOCUMENT):
            if self.following.ready:
                self.following.position = sse.document_position(data)
            return self.framed(sse.message(sse.one_line(data), self.documents_alone(), None))
        found = sse.event(framed, marked)
        if b"\nid: " in found:
            found = found[:-2] + self.both("").encode() + b"\n\n"
        return self.framed(found)

    def both(self, events: str | None) -> str:
        """Return the `id:` for a position in the events."""
        return composed(events, "" if self.following is None else self.following.place)

    def documents_alone(self) -> str | None:
        """Return the `id:` of a message about documents."""
        alone = self.following is not None and self.following.place and not self.mixed
        return self.both("") if alone else None

    def framed(self, data: bytes) -> bytes:
        return data if self.version == "1.0" else chunk(data)

    def limit_messages(self, message_bytes: int) -> None:
        """Do nothing: the client sends no messages."""

    def behind(self, *, begins: bool) -> None:
        """Do nothing: the client is not sent."""

    async def receive(self) -> Inbound:
        if self.events is not None and self.refusal is None:
            wish, self.events = self.events, None
            return Text(data=wish)
        if self.following is not None and self.asked is not None and self.refusal is None:
            self.asked = None
            return Text(data=encoded("state.open", self.following.wish))
        if self.refusal is not None:
            answer = self.encoded(self.refusal)
            return Closed(code=CloseCode.NORMAL, by="broker", reason=f"refused: {self.cause}", answer=answer)
        while await self.link.receive():
            pass  # a client has nothing to say; what it sends is dropped
        return Closed(code=1006, by="link")

    async def send_some(self, data: bytes | memoryview) -> int:
        return await self.link.send_some(data)

    def frame(self, message: bytes) -> bytes:
        sent = sse.decoder.decode(message)
        place = self.place.follow(sent)
        if self.following is not None and sent.type.startswith("state."):
            self.follow(self.following, sent)
            place = self.documents_alone()
        elif place is not None and self.with_documents:
            place = self.both(place)
        elif (asked := self.asked) is not None and sent.type == "connection.authenticated":
            rights = msgspec.json.decode(message, type=Told).payload
            self.following = Following(asked.channels, asked.every_ms, rights, asked.stood)
        data = sse.message(message, place, sent.payload.come_back_ms)
        if self.held is None:
            return self.framed(data)
        if sent.type == "error" and self.refusal is None:
            error = messages.Error(**msgspec.json.decode(message)["payload"])
            self.refusal, self.cause = from_message(error), error.code
        self.held.append(data)
        return self.begin() if sent.type in ("subscribed", "state.opened") else b""

    def follow(self, following: Following, sent: sse.Told) -> None:
        """Take a message about documents, except themselves."""
        if sent.type == "state.opened":
            following.opened(recovered=bool(sent.payload.recovered), partial=bool(sent.payload.refused))
        elif sent.type == "state.ready":
            following.told(sent.payload.position)

    def begin(self) -> bytes:
        """Return the head of the response, followed by what has been held back."""
        held, self.held = self.held or [], None
        self.responses[200] += 1
        beginning = head(self.version).beside(self.headers).encode()
        self.headers = ()
        first = sse.retry(random.randint(*RETRY_MS))  # noqa: S311 - jitter, no secret
        return beginning + self.framed(first + b"".join(held))

    def ping(self, position: str | None) -> bytes:
        if self.held is not None:
            return b""
        known = None if self.place.unfinished else position
        return self.framed(sse.heartbeat(self.both(known) if known and self.with_documents else known))

    def ask(self) -> bytes:
        return b"" if self.held is not None else self.framed(sse.heartbeat(None))

    def state(self) -> LinkState:
        return self.link.state()

    def close(self, code: int, reason: str) -> bytes:
        """Return the refusal if the response has not begun; else a comment for people, and the last chunk."""
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
