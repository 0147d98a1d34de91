"""The routes of the admin API: which request is answered by what, in JSON both ways.

A route is a row: method, path with `{names}`, and what answers it. Its parameters and body are attrs classes,
held to by msgspec, so that what is refused and what the OpenAPI document says come from the same place.
"""

from __future__ import annotations

from inspect import isawaitable
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import attrs
import msgspec

from broker.errors import BrokerError
from broker.web.problems import Refused, Response, problem
from broker.web.streaming import Lines, head, to_json
from broker.web.upgrade import parameters
from broker.wire.codec import nearest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from broker.web.heads import Request

DOCUMENT = "/api/openapi.json"
# The fields of a request that are kept of what was done: never a token or the body of an event.
TARGETS = (
    "tenant",
    "user",
    "connection",
    "channel",
    "token_id",
    "sequence",
    "code",
    "reason",
    "until",
    "level",
)
# What an error is for HTTP; whatever is not here is ours.
STATUS = {
    "bad_message": 400,
    "invalid_channel": 400,
    "invalid_position": 400,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "unavailable": 503,
}


@attrs.frozen(kw_only=True)
class Route:
    """One thing to ask for.

    `handle` is called with the values of the path in their order, then the query and the body where they are
    declared, and returns the answer or something to await for it. `answer` is the answer's type, `query` and
    `body` are attrs classes. A `BrokerError` becomes a problem document.
    """

    method: str
    path: str
    summary: str
    handle: Callable[..., Any]
    answer: Any
    query: type[attrs.AttrsInstance] | None = None
    body: type[attrs.AttrsInstance] | None = None
    status: int = 200
    media_type: str = "application/json"

    @property
    def name(self) -> str:
        """What a program may call it."""
        return str(self.handle.__name__)

    def match(self, segments: Sequence[str]) -> list[str] | None:
        """The values of the path; None when it is another."""
        wanted = self.path.split("/")
        if len(wanted) != len(segments):
            return None
        values = []
        for name, found in zip(wanted, segments, strict=True):
            if name.startswith("{") and found:
                values.append(found)
            elif name != found:
                return None
        return values


@attrs.frozen
class Action:
    """What somebody at `peer` has done: the route, on what, and the status that answered it."""

    peer: str
    what: str
    on: dict[str, object]
    status: int


def targets(route: Route, arguments: Sequence[Any]) -> dict[str, object]:
    """On what a request acts: the values of its path, and of its fields those that name something."""
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    found: dict[str, object] = dict(zip(names, arguments, strict=False))
    for wish in arguments[len(names) :]:
        found |= {name: value for name in TARGETS if (value := getattr(wish, name, None)) is not None}
    return found


@attrs.frozen
class Router:
    """Finds the route of a request and answers it."""

    routes: Sequence[Route]
    acted: Callable[[Action], None] = attrs.field(kw_only=True, default=lambda _: None)

    async def answer(
        self, request: Request, read_body: Callable[[], Awaitable[bytes]], peer: str
    ) -> Response | Lines:
        """The answer of a route. Raises `Refused`; `read_body` is called where a body is expected.

        `acted` hears of each request of `peer` that was more than a look.
        """
        route, values = self.find(request)
        arguments: list[Any] = list(values)
        if route.query:
            arguments.append(from_query(request.query, route.query))
        elif request.query:
            raise Refused(400, f"{route.method} {route.path} takes no query.")
        if route.body:
            arguments.append(from_json(await read_body() if request.has_body else b"{}", route.body))
        elif request.has_body:
            raise Refused(400, f"{route.method} {route.path} takes no body.")
        status = 500  # of what breaks, or is broken off, in the middle
        try:
            found = route.handle(*arguments)
            if isawaitable(found):
                found = await found
            if isinstance(found, Lines):
                return head(request.version) if request.method == "HEAD" else found
            response = Response(status=route.status, body=to_json(found), media_type=route.media_type)
            status = response.status
        except BrokerError as error:
            response = refusal(error)
            status = response.status
        finally:
            if route.method != "GET":
                self.acted(Action(peer, f"{route.method} {route.path}", targets(route, arguments), status))
        return response

    def find(self, request: Request) -> tuple[Route, list[str]]:
        """The route, and the values of its path. Raises `Refused` (404, 405)."""
        try:
            segments = [unquote(each, errors="strict") for each in request.path.split("/")]
        except UnicodeDecodeError:
            raise Refused(400, "The path is not percent-encoded UTF-8.") from None
        allowed: list[str] = []
        for route in self.routes:
            values = route.match(segments)
            if values is not None:
                methods = ("GET", "HEAD") if route.method == "GET" else (route.method,)
                if request.method in methods:
                    return route, values
                allowed += methods
        if allowed:
            raise Refused(405, f"There is {', '.join(allowed)} here.", ("Allow", ", ".join(allowed)))
        known = dict.fromkeys(route.path for route in self.routes)
        shown = request.path[:80]
        raise Refused(404, f"{shown}: no such path; {DOCUMENT} lists all{nearest(shown, known)}")


def from_query(query: str, kind: type[attrs.AttrsInstance]) -> object:
    """The parameters of an address, text all of them. Raises `Refused`."""
    found = parameters(query)
    refuse_unknown(found, kind)
    try:
        return msgspec.convert(found, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(400, f"The query: {told(error)}; see {DOCUMENT}") from None


def from_json(data: bytes, kind: type[attrs.AttrsInstance]) -> object:
    """A body. Raises `Refused`."""
    try:
        refuse_unknown(msgspec.json.decode(data, type=dict[str, msgspec.Raw]), kind)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"The body: {told(error)}; see {DOCUMENT}") from None


def told(error: Exception) -> str:
    """msgspec's sentence, by the name of the field."""
    return str(error).replace("`$.", "`").replace("`$`", "the top")


def refuse_unknown(found: Mapping[str, object], kind: type[attrs.AttrsInstance]) -> None:
    known: Iterable[str] = [field.name for field in attrs.fields(kind)]
    for name in found:
        if name not in known:
            raise Refused(400, f"{name[:40]}: unknown field{nearest(name, known)}")


def refusal(error: BrokerError) -> Response:
    headers = [("Retry-After", str(ceil(error.retry_after)))] if error.retry_after else []
    return problem(STATUS.get(error.code, 500), error.message, *headers)
