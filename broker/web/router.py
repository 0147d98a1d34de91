"""The routes of the admin API: what answers which request, in JSON both ways.

A route has a method, a path with `{names}`, and a handler. Its parameters and its body are attrs classes that
msgspec validates: refusals and the OpenAPI document come from the same place.
"""

from __future__ import annotations

from inspect import isawaitable
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import attrs
import msgspec

from broker.errors import BrokerError
from broker.http import queries
from broker.http.responses import Refused, Response, problem
from broker.links.route import not_allowed
from broker.web.streaming import Lines, head, to_json
from broker.wire.codec import nearest, unknown_field
from broker.wire.events import MAX_DEPTH, is_deeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from broker.http.heads import Request

DOCUMENT = "/api/openapi.json"
# The fields of a request that the audit trail keeps: never a token or the body of an event.
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
# The status of an error; 500 for all others.
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
class Endpoint:
    """One operation of the API.

    `handle` is called with the values of the path in their order, then with query and body where these are
    declared, and returns the answer or an awaitable of it. `answer` is the answer's type, `query` and `body`
    are attrs classes. A `BrokerError` becomes a problem document.
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
        """The operation's name for programs."""
        return str(self.handle.__name__)

    def match(self, segments: Sequence[str]) -> list[str] | None:
        """Return the values of the path; None if it is another one."""
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
    """What an operator at `peer` did: the route, its targets, and the status of the response."""

    peer: str
    what: str
    on: dict[str, object]
    status: int


def targets(route: Endpoint, arguments: Sequence[Any]) -> dict[str, object]:
    """Return what a request acts on: the values of its path, and the fields that name something."""
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    found: dict[str, object] = dict(zip(names, arguments, strict=False))
    for wish in arguments[len(names) :]:
        found |= {name: value for name in TARGETS if (value := getattr(wish, name, None)) is not None}
    return found


@attrs.frozen
class Router:
    """Finds the route of a request and answers it. `acted` hears of each request that was not a GET."""

    routes: Sequence[Endpoint]
    acted: Callable[[Action], None] = attrs.field(kw_only=True, default=lambda _: None)

    async def answer(
        self, request: Request, read_body: Callable[[], Awaitable[bytes]], peer: str
    ) -> Response | Lines:
        """Return the answer. Raises `Refused`. `read_body` is called where a body is expected."""
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
        status = 500  # if it breaks, or is cancelled
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

    def find(self, request: Request) -> tuple[Endpoint, list[str]]:
        """Return the route, and the values of its path. Raises `Refused` (400, 404, 405)."""
        try:
            segments = [unquote(each, errors="strict") for each in request.path.split("/")]
        except UnicodeDecodeError:
            raise Refused(400, "Malformed path: not percent-encoded UTF-8.") from None
        allowed: list[str] = []
        for route in self.routes:
            values = route.match(segments)
            if values is not None:
                methods = ("GET", "HEAD") if route.method == "GET" else (route.method,)
                if request.method in methods:
                    return route, values
                allowed += methods
        if allowed:
            raise not_allowed(request, allowed)
        known = dict.fromkeys(route.path for route in self.routes)
        shown = request.path[:80]
        raise Refused(404, f"Unknown path: {shown}; {DOCUMENT} lists all{nearest(shown, known)}")


def from_query(query: str, kind: type[attrs.AttrsInstance]) -> object:
    """Return the parameters of a query, all of which are text. Raises `Refused` (400)."""
    found = {name: values[0] for name, values in queries.parse(query).items()}
    refuse_unknown(found, kind)
    try:
        return msgspec.convert(found, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(400, f"Invalid query: {reason_of(error)}; see {DOCUMENT}") from None


def from_json(data: bytes, kind: type[attrs.AttrsInstance]) -> object:
    """Return a body. Raises `Refused` (400)."""
    if is_deeper(data, MAX_DEPTH + 1):  # an event, and the object around it
        raise Refused(400, f"Invalid body: nested too deeply; see {DOCUMENT}")
    try:
        refuse_unknown(msgspec.json.decode(data, type=dict[str, msgspec.Raw]), kind)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"Invalid body: {reason_of(error)}; see {DOCUMENT}") from None


def reason_of(error: Exception) -> str:
    """Return the message of msgspec, with the plain name of the field."""
    return str(error).replace("`$.", "`").replace("`$`", "the top")


def refuse_unknown(found: Mapping[str, object], kind: type[attrs.AttrsInstance]) -> None:
    if unknown := unknown_field(found, attrs.fields_dict(kind)):
        raise Refused(400, unknown)


def refusal(error: BrokerError) -> Response:
    headers = [("Retry-After", str(ceil(error.retry_after)))] if error.retry_after else []
    return problem(STATUS.get(error.code, 500), error.message, *headers)
