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
from broker.wire import messages, sse

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
    known = (*PARAMETERS, LAST_EVENT_ID)
    query = queries.parse(request.query, known, repeated=("channel",), spellings=SPELLINGS)
    hello = exchange.hello(*exchange.credentials(query))
    wish = subscribe(query, request.headers.get("last-event-id"))
    if request.method == "HEAD":  # the head alone: nothing is subscribed for it
        return head(request.version)
    link, responses = exchange.link, exchange.responses
    link.give_up_after(exchange.limits.stall_seconds)
    transport = SseTransport(link, wish, responses, exchange.headers, request.version)
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
            texts={LAST_EVENT_ID: "The last `id:` of an event stream. It beats a start in the query."},
        ),
    ),
)


def subscribe(query: Query, last_event_id: str | None) -> bytes:
    """Return the `subscribe` message that a query stands for. Raises `Refused` (400).

    `last_event_id` is the header, with the position of a client that comes back. It beats a start in the
    query.
    """
    last_event_id = last_event_id or query.get(LAST_EVENT_ID, [""])[0]
    if not query.get("channel"):
        raise queries.no_channel()
    wish: dict[str, Any] = {"channel": list(query["channel"])}
    for name in PARAMETERS:
        if name in query and not (last_event_id and name in STARTS):
            wish[name] = value_of(name, query[name][0])
    if last_event_id:
        wish["position"] = last_event_id
    return msgspec.json.encode({"type": "subscribe", "payload": wish})


def value_of(name: str, text: str) -> Any:
    """Return a parameter as JSON has it. Raises `Refused` (400)."""
    if name in ("last", "every_ms"):
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


def event_in_chunk(framed: bytes, marked: bool) -> bytes:
    """Return the text frame of an `event` as a chunk of its own."""
    return chunk(sse.event(framed, marked))


@attrs.define(eq=False)
class SseTransport:
    """One client after its request.

    `wish` is its `subscribe` message until that is received, `headers` are further ones of the response,
    `version` is the client's of HTTP. `responses` counts the response by status. `held` has what is sent
    before the response begins; it is None from then on.
    """

    name: ClassVar[str] = "sse"
    answers: ClassVar[bool] = False
    comes_and_goes: ClassVar[bool] = False
    link: Link
    wish: bytes | None
    responses: Counter[int]
    headers: Headers = ()
    version: str = "1.1"
    held: list[bytes] | None = attrs.Factory(list)
    refusal: Response | None = None
    cause: str = ""  # of the refusal: a code of the protocol
    place: sse.Place = attrs.Factory(sse.Place)
    send_nowait: Callable[[bytes | memoryview], int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.send_nowait = self.link.send_nowait

    @property
    def partial_sends(self) -> bool:
        return self.link.partial_sends

    @property
    def framing(self) -> Framing:
        return sse.event if self.version == "1.0" else event_in_chunk

    def framed(self, data: bytes) -> bytes:
        return data if self.version == "1.0" else chunk(data)

    def limit_messages(self, message_bytes: int) -> None:
        """Do nothing: the client sends no messages."""

    def behind(self, *, begins: bool) -> None:
        """Do nothing: the client is not sent."""

    async def receive(self) -> Inbound:
        if self.wish is not None:
            wish, self.wish = self.wish, None
            return Text(data=wish)
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
        data = sse.message(message, self.place.follow(sent), sent.payload.come_back_ms)
        if self.held is None:
            return self.framed(data)
        if sent.type == "error" and self.refusal is None:
            error = messages.Error(**msgspec.json.decode(message)["payload"])
            self.refusal, self.cause = from_message(error), error.code
        self.held.append(data)
        return self.begin() if sent.type == "subscribed" else b""

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
        return self.framed(sse.heartbeat(None if self.place.unfinished else position))

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
