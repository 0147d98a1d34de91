"""`POST /publish`, `GET /history` and others: messages without a connection, answered as on one."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

import msgspec

from broker.errors import BadMessage
from broker.http import queries
from broker.http.refusals import from_message
from broker.http.responses import JSON, Refused, Response, problem
from broker.links.route import GET, POST, Operation, Route
from broker.wire.messages import Error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.http.queries import Query
    from broker.links.exchange import ClientExchange
    from broker.links.route import ClientRoute
    from broker.session.requests import AnyRequest, Page, Table
    from broker.wire.messages import Documents, Members, ServerMessage

grammar = msgspec.json.Decoder(msgspec.Raw)
members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Post(Protocol):
    """Do what a message asks for, and return the reply."""

    async def __call__(
        self, message: bytes, *, token: str, tenant: str | None, peer: str
    ) -> ServerMessage | Documents | Members: ...


def routes(post: Post, table: Table) -> list[ClientRoute]:
    """Return a route for each request that has a form without a connection."""
    found: dict[str, list[tuple[AnyRequest, Page[Any]]]] = {}
    for request in table.values():
        if page := request.page:
            found.setdefault(page.path, []).append((request, page))
    return [
        Route(
            path=path,
            methods=(*(method for _, page in pages for method in methods(page)), "OPTIONS"),
            handle=partial(handle, pages, post),
            cross_origin=True,
            about=" ".join(page.about for _, page in pages),
            operations=tuple(operation(request, page) for request, page in pages),
        )
        for path, pages in found.items()
    ]


def methods(page: Page[Any]) -> tuple[str, ...]:
    return POST if page.query is None else GET


def operation(request: AnyRequest, page: Page[Any]) -> Operation:
    """Return the description of a request without a connection."""
    replies: dict[int, type | None] = {page.status: page.reply or request.replies[0]}
    if page.query is not None:
        return Operation(method="GET", parameters=page.query, fields_of=request.message, replies=replies)
    return Operation(method="POST", bodies=(request.message,), replies=replies)


async def handle(pages: Sequence[tuple[AnyRequest, Page[Any]]], post: Post, exchange: ClientExchange) -> None:
    """Answer within the client's place: a drain waits for that.

    A request that waits ends with the connection, as it does over a WebSocket.
    """
    method = exchange.request.method
    request, page = next((each for each in pages if method in methods(each[1])), pages[0])
    query = queries.parse(
        exchange.request.query, page.query or (), repeated=() if page.query is None else ("channel",)
    )
    token, tenant = exchange.credentials(query)
    with exchange.place():
        if page.query is not None:
            message = asked(request, page, query)
        else:
            message = message_of(request, page, await exchange.body())
        work = post(message, token=token, tenant=tenant, peer=exchange.link.peer)
        reply = await (exchange.while_connected(work) if request.waits else work)
        await exchange.answer(response(page, reply))


def message_of(request: AnyRequest, page: Page[Any], body: bytes) -> bytes:
    """Return the message whose payload is `body`. Raise `Refused` (400)."""
    try:
        grammar.decode(body)  # one whole value: nothing may end the payload early
    except (msgspec.DecodeError, RecursionError):
        not_json = problem(400, f"The body must be JSON: {page.example}.", code=BadMessage.code)
        raise Refused.by(not_json) from None
    with suppress(msgspec.ValidationError):  # no object: it is refused later
        for name in page.without:
            if name in members.decode(body):
                needs = problem(400, f"payload.{name}: needs a connection.", code=BadMessage.code)
                raise Refused.by(needs)
    return b'{"type":"%b","payload":%b}' % (request.message.type.encode(), body)


def asked(request: AnyRequest, page: Page[Any], query: Query) -> bytes:
    """Return the message that a query stands for. Raise `Refused` (400)."""
    if "channel" not in query:
        raise queries.no_channel()
    channels = query["channel"]
    payload: dict[str, Any] = {"channel": channels if len(channels) > 1 else channels[0]}
    hints = get_type_hints(request.message)
    for name in page.query or ():
        if name in query:
            (text,) = query[name]
            payload[name] = queries.value(name, text, hints[name])
    return msgspec.json.encode({"type": request.message.type, "payload": payload})


def response(page: Page[Any], reply: ServerMessage | Documents | Members) -> Response:
    """Return a reply as a response."""
    if isinstance(reply, Error):
        return from_message(reply)
    document = msgspec.json.decode(msgspec.json.encode(reply), type=dict[str, msgspec.Raw])
    document.pop("id", None)  # the client has it
    body = msgspec.json.encode(document)
    return Response(status=page.status, body=body, media_type=JSON)
