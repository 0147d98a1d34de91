"""A route of a port, and how a request finds its route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import attrs
import msgspec

from broker.http.responses import Refused
from broker.links.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from broker.http.heads import Request
    from broker.http.responses import Response
    from broker.links.exchange import ClientExchange

Kind = TypeVar("Kind", bound=Exchange, contravariant=True)
Result = TypeVar("Result", covariant=True)
# A response; or what the link is used for from then on, while that runs; or None where a response has been
# sent.
Found: TypeAlias = "Response | Awaitable[None] | None"

GET, POST = ("GET", "HEAD"), ("POST",)
COMPONENT = "#/components/schemas/{name}"
SHOWN = 80  # characters of a request that a message repeats


@attrs.frozen(kw_only=True)
class Operation:
    """What a method of a route takes and answers, for the description of the protocol.

    The query has `channel` and these `parameters`, fields of the class `fields_of`; `texts` are further ones,
    with what each means, and `lists` are lists as `channel` is, beside it or alone. The body is one of the
    classes `bodies`. `replies` has the class of the response's body, None for none, by status; without any
    the response is a stream of messages.
    """

    method: str
    parameters: tuple[str, ...] = ()
    fields_of: type | None = None
    texts: Mapping[str, str] = attrs.field(factory=dict)
    lists: Mapping[str, str] = attrs.field(factory=dict)
    bodies: tuple[type, ...] = ()
    replies: Mapping[int, type | None] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Route(Generic[Kind, Result]):
    """A path of a port.

    `handle` answers its requests, or raises `Refused`. With `cross_origin`, the `Origin` is checked, and
    pages of an allowed one may read the response. A `reserved` route is served even when file descriptors run
    short.
    """

    path: str
    methods: tuple[str, ...]
    handle: Callable[[Kind], Awaitable[Result]]
    cross_origin: bool = False
    reserved: bool = False
    about: str = ""
    operations: tuple[Operation, ...] = ()


ClientRoute: TypeAlias = "Route[ClientExchange, Found]"


def schema(name: str) -> msgspec.Meta:
    """Return the annotation of an undecoded value: the description has its schema under this name."""
    return msgspec.Meta(extra_json_schema={"$ref": COMPONENT.format(name=name)})


def any_of(*names: str) -> msgspec.Meta:
    """Return the same for a value with one of several schemas."""
    return msgspec.Meta(
        extra_json_schema={"anyOf": [{"$ref": COMPONENT.format(name=name)} for name in names]}
    )


def find(
    request: Request, routes: Mapping[str, Route[Kind, Result]], *, others: Iterable[str] = ()
) -> Route[Kind, Result]:
    """Return the route of a request. Raises `Refused` (400, 404, 405); only POST may have a body.

    `others` are paths that the port serves by other means.
    """
    method, path = request.method, request.path[:SHOWN]
    route = routes.get(request.path)
    methods = () if route is None else route.methods
    if request.has_body and not (method == "POST" and "POST" in methods):
        raise Refused(400, f"Unexpected body: {method[:SHOWN]} {path} takes none.")
    if route is None:
        raise Refused(404, f"Unknown path: {path}; this port serves {', '.join(sorted((*routes, *others)))}.")
    if method not in methods:
        raise not_allowed(request, methods)
    return route


def not_allowed(request: Request, methods: Sequence[str]) -> Refused:
    """Return the refusal (405) of a method that is none of these."""
    allowed = ", ".join(methods)
    what = f"{request.method[:SHOWN]} is not allowed for {request.path[:SHOWN]}"
    return Refused(405, f"{what}; allowed methods: {allowed}.", ("Allow", allowed))
