"""`GET` and `POST /poll`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from broker.http import queries
from broker.http.responses import Response
from broker.links.poll import messages
from broker.links.poll.session import PollTransport, Sessions
from broker.links.route import GET, POST, Operation, Route

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from broker.links.exchange import ClientExchange
    from broker.links.route import ClientRoute

LEFT = Response(status=204, body=b"", media_type="text/plain")


def route() -> ClientRoute:
    """Return the route of a port, with sessions of its own."""
    return Route(
        path="/poll",
        methods=(*GET, *POST, "OPTIONS"),
        handle=partial(handle, Sessions()),
        cross_origin=True,
        about="Long polling: a subscription that stays between its requests.",
        operations=(
            Operation(
                method="GET",
                parameters=messages.PARAMETERS,
                fields_of=messages.Poll,
                replies={200: messages.Polled},
                lists={"state": "A channel or a pattern of documents; the parameter is repeated for each."},
            ),
            Operation(
                method="POST",
                bodies=(messages.Poll, messages.Leave),
                replies={200: messages.Polled, 204: None},
            ),
        ),
    )


async def handle(sessions: Sessions, exchange: ClientExchange) -> Response:
    """Answer a poll, from its session or a new one."""
    in_query = exchange.request.method != "POST"
    names, repeated = (messages.PARAMETERS, ("channel", "state")) if in_query else ((), ())
    query = queries.parse(exchange.request.query, names, repeated=repeated)
    poll = messages.from_query(query) if in_query else messages.from_body(await exchange.body())
    if isinstance(poll, messages.Leave):
        sessions.leave(poll.session)
        return LEFT
    token, tenant = exchange.credentials(query)
    if exchange.request.method == "HEAD":  # no session begins, and none is used
        return messages.HEAD
    tenant = poll.tenant if tenant is None else tenant
    session = sessions.find(poll.session) or begin(sessions, exchange, tenant)
    return await exchange.while_connected(session.answer(poll, token, tenant))


def begin(sessions: Sessions, exchange: ClientExchange, tenant: str | None) -> PollTransport:
    """Begin a session, which outlives the request. Raises `Refused`."""
    with exchange.place():
        session = PollTransport(sessions)
        serving = exchange.backend.serve(session, exchange.hello(None, tenant))
    exchange.backend.nursery.start_soon(finish, serving)
    return session


async def finish(serving: Awaitable[None]) -> None:
    await serving
