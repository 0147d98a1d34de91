"""The part of the AsyncAPI document that is plain HTTP, made of the routes and their operations.

The bindings are those of https://github.com/asyncapi/bindings/tree/master/http, version 0.3.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import attrs

from broker.http.responses import PROBLEM, Problem
from broker.web.schemas import reference
from broker.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from broker.links.route import ClientRoute, Operation
    from broker.web.schemas import Document

# The client of a stream sends no messages: it gets all but the replies to those.
STREAMED = [
    kind
    for kind in (*get_args(m.ServerMessage), m.Event, m.State)
    if kind not in (m.Published, m.Acknowledged, m.Answered, m.Past, m.Changed, m.Lost, m.Pong)
    and not kind.type.startswith("presence")
]
VERSION = "0.3.0"
TEXT: Document = {"type": "string"}
COMMON: dict[str, Document] = {
    "tenant": TEXT | {"description": "For monitoring tokens: the tenant to look at."},
    "access_token": TEXT | {"description": "The token, only where the broker is configured to take it here."},
}
PLACE = TEXT | {"description": "The last `id:` of an event stream. It beats a start in the query."}
TOKEN = TEXT | {"description": "`Bearer` and the token."}
CHANNEL: Document = {
    "type": "array",
    "items": TEXT,
    "minItems": 1,
    "description": "A channel or a pattern; the parameter is repeated for each.",
}


@attrs.frozen
class Described:
    """An operation of a route, and its names in the document."""

    route: ClientRoute
    operation: Operation

    @property
    def channel(self) -> str:
        return self.route.path.removeprefix("/")

    @property
    def name(self) -> str:
        return f"{self.operation.method.lower()}_{self.channel}"

    @property
    def request(self) -> str:
        return f"{self.name}.request"

    @property
    def replies(self) -> list[str]:
        if not self.operation.replies:
            return [kind.type for kind in STREAMED]
        return [f"{self.name}.{status}" for status in self.operation.replies]


def table(routes: Iterable[ClientRoute]) -> list[Described]:
    """Return every request that clients make."""
    return [Described(route, operation) for route in routes for operation in route.operations]


def kinds(described: Iterable[Described]) -> list[type]:
    """Return the classes of bodies and replies."""
    found: list[type] = [Problem]
    for each in described:
        found += [*each.operation.bodies, *filter(None, each.operation.replies.values())]
    return list(dict.fromkeys(found))


def query(operation: Operation, components: Mapping[str, Document]) -> Document:
    """Return the parameters of a request."""
    fields_of = operation.fields_of
    known = components[fields_of.__name__]["properties"] if fields_of else {}
    parameters = {name: plain(known[name]) for name in operation.parameters}
    texts = {name: TEXT | {"description": meaning} for name, meaning in operation.texts.items()}
    lists = {name: CHANNEL | {"description": meaning} for name, meaning in operation.lists.items()}
    required: Document = {"required": ["channel"] if fields_of else []}
    if lists:
        required = {"anyOf": [{"required": [name]} for name in ("channel", *lists)]}
    return {
        "type": "object",
        "properties": ({"channel": CHANNEL} if fields_of else {}) | lists | parameters | COMMON | texts,
        **required,
        "additionalProperties": False,
    }


def plain(schema: Document) -> Document:
    """Return the schema of a field as a parameter, which is never null."""
    kinds = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    found = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {name: value for name, value in found.items() if name != "default" or value is not None}


def messages(described: Iterable[Described]) -> Iterator[tuple[str, Document]]:
    """Return requests and replies by name; the messages of a stream are those of a WebSocket."""
    for each in described:
        bodies = [kind.__name__ for kind in each.operation.bodies]
        headers = {"Authorization": TOKEN} | ({} if each.operation.replies else {"Last-Event-ID": PLACE})
        summary = f"Body: {' or '.join(bodies)}." if bodies else "No body."
        yield each.request, message(summary, payload=bodies, headers=headers)
        for status, kind in each.operation.replies.items():
            names = [kind.__name__] if kind else []
            summary = f"Body: {' or '.join(names)}." if names else "No body."
            yield f"{each.name}.{status}", message(summary, payload=names, status=status)
    refused = message("Refused; `Retry-After` says when to try again.", payload=["Problem"])
    yield "problem", refused | {"contentType": PROBLEM}


def message(
    summary: str,
    *,
    payload: Sequence[str] = (),
    headers: Mapping[str, Document] | None = None,
    status: int = 0,
) -> Document:
    """Return a request or a reply whose body is one of several classes, or absent."""
    binding: Document = {"bindingVersion": VERSION}
    if headers:
        binding["headers"] = {"type": "object", "properties": dict(headers)}
    if status:
        binding["statusCode"] = status
    found: Document = {"summary": summary, "bindings": {"http": binding}}
    if not payload:
        return found
    bodies = [reference(name) for name in payload]
    return found | {"payload": bodies[0] if len(bodies) == 1 else {"oneOf": bodies}}


def channels(described: Iterable[Described]) -> Document:
    """Return one channel for each path."""
    found: dict[str, Any] = {}
    for each in described:
        channel = found.setdefault(
            each.channel,
            {
                "address": each.route.path,
                "description": each.route.about,
                "servers": [{"$ref": "#/servers/https"}, {"$ref": "#/servers/http"}],
                "messages": {},
            },
        )
        for name in (each.request, *each.replies, "problem"):
            channel["messages"][name] = {"$ref": f"#/components/messages/{name}"}
    return found


def operations(
    described: Iterable[Described], components: Mapping[str, Document]
) -> Iterator[tuple[str, Document]]:
    """Return the requests with their replies."""
    for each in described:
        channel = f"#/channels/{each.channel}"
        names = each.request, *each.replies, "problem"
        asked, *replies = ({"$ref": f"{channel}/messages/{name}"} for name in names)
        binding = {
            "method": each.operation.method,
            "query": query(each.operation, components),
            "bindingVersion": VERSION,
        }
        yield (
            each.name,
            {
                "action": "receive",
                "channel": {"$ref": channel},
                "messages": [asked],
                "reply": {"channel": {"$ref": channel}, "messages": replies},
                "bindings": {"http": binding},
            },
        )
