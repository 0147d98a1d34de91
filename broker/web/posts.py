"""`POST /publish` and `POST /acknowledge`: one message without a connection, answered as on a connection."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs
import msgspec

from broker.errors import BadMessage
from broker.http import queries
from broker.http.refusals import from_message
from broker.http.responses import JSON, Refused, Response, problem
from broker.links.route import POST, Operation, Route
from broker.wire import messages

if TYPE_CHECKING:
    from broker.links.exchange import ClientExchange
    from broker.links.route import ClientRoute
    from broker.wire.messages import ClientMessage

Reply: TypeAlias = messages.Published | messages.Acknowledged | messages.Error

grammar = msgspec.json.Decoder(msgspec.Raw)


class Post(Protocol):
    """Do what a message asks for, and return the reply."""

    async def __call__(self, message: bytes, *, token: str, tenant: str | None, peer: str) -> Reply: ...


@attrs.frozen(kw_only=True)
class Page:
    """A path to which the payload of a `message` is posted, and the `reply` with its `status`."""

    about: str
    message: type[ClientMessage]
    example: str
    reply: type[messages.ServerMessage]
    status: int

    def message_of(self, body: bytes) -> bytes:
        """Return the message whose payload is `body`. Raises `Refused` (400)."""
        try:
            grammar.decode(body)  # one whole value: nothing may end the payload early
        except (msgspec.DecodeError, RecursionError):
            not_json = problem(400, f"The body must be JSON: {self.example}.", code=BadMessage.code)
            raise Refused.by(not_json) from None
        return b'{"type":"%b","payload":%b}' % (self.message.type.encode(), body)

    def answer(self, reply: Reply) -> Response:
        """Return a reply as a response."""
        if isinstance(reply, messages.Error):
            return from_message(reply)
        document = msgspec.to_builtins(reply)
        document.pop("id", None)  # the client has it
        body = msgspec.json.encode(document)
        return Response(status=self.status, body=body, media_type=JSON)


PAGES = {
    "/publish": Page(
        about="A publish without a connection.",
        message=messages.Publish,
        example='{"channel": …, "event": …, "id": …}',
        reply=messages.Published,
        status=202,
    ),
    "/acknowledge": Page(
        about="An acknowledgement without a connection, for clients that listen or poll by a durable name.",
        message=messages.Acknowledge,
        example='{"durable": …, "position": …}',
        reply=messages.Acknowledged,
        status=200,
    ),
}


def routes(post: Post) -> list[ClientRoute]:
    return [
        Route(
            path=path,
            methods=(*POST, "OPTIONS"),
            handle=partial(handle, page, post),
            cross_origin=True,
            about=page.about,
            operations=(Operation(method="POST", bodies=(page.message,), replies={page.status: page.reply}),),
        )
        for path, page in PAGES.items()
    ]


async def handle(page: Page, post: Post, exchange: ClientExchange) -> None:
    """Answer within the client's place: a drain waits for that."""
    query = queries.parse(exchange.request.query, ())
    token, tenant = exchange.credentials(query)
    with exchange.place():
        message = page.message_of(await exchange.body())
        reply = await post(message, token=token, tenant=tenant, peer=exchange.link.peer)
        await exchange.answer(page.answer(reply))
