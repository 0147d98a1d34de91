"""The part of the AsyncAPI document that is plain HTTP, made of what the port reads and writes.

The bindings are those of https://github.com/asyncapi/bindings/tree/master/http, version 0.3.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import attrs

from broker.http.responses import PROBLEM, Problem
from broker.links import sse
from broker.links.poll import messages as polls
from broker.web import posts
from broker.web.schemas import reference
from broker.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from broker.web.schemas import Document

KINDS = (polls.Ask, polls.Leave, polls.Polled, Problem)
# A stream's client says nothing: it hears all but what answers the messages that it cannot send.
STREAMED = [
    kind
    for kind in (*get_args(m.ServerMessage), m.Event)
    if kind not in (m.Published, m.Acknowledged, m.Pong)
]
VERSION = "0.3.0"
TEXT: Document = {"type": "string"}
COMMON: dict[str, Document] = {
    "tenant": TEXT | {"description": "For monitoring tokens: the tenant to look at."},
    "access_token": TEXT | {"description": "The token, only where the broker is configured to take it here."},
}
PLACE = "Of an event stream: the last `id:`. It beats the start in the query."
CHANNEL: Document = {
    "type": "array",
    "items": TEXT,
    "minItems": 1,
    "description": "A channel or a pattern; the parameter is repeated for each.",
}
ABOUT = {
    "/sse": "Server-Sent Events: the messages of a connection that only listens, each in one `data:` line;"
    " `id:` is the position to resume from.",
    "/poll": "Long polling: a subscription that stays between its requests.",
    "/publish": "A publish without a connection.",
    "/acknowledge": "An acknowledgement without a connection, for who listens or polls under a durable name.",
}


@attrs.frozen(kw_only=True)
class Operation:
    """A request by its method and path. Messages are named as in `components`."""

    method: str
    path: str
    query: Document
    request: str
    replies: Sequence[str]

    @property
    def name(self) -> str:
        return f"{self.method.lower()}_{self.channel}"

    @property
    def channel(self) -> str:
        return self.path.removeprefix("/")


def complete(components: dict[str, Document]) -> None:
    """Says in the schemas what lists hold that go through undecoded, and what text stands for."""
    ask, polled = components["Ask"], components["Polled"]["properties"]
    ask["additionalProperties"] = False
    ask["properties"]["lag"] = components["Subscribe"]["properties"]["lag"]
    components["Leave"]["additionalProperties"] = False
    components["Leave"]["properties"]["leave"] = {"const": True}
    polled["events"]["items"], polled["gaps"]["items"] = reference("Event"), reference("Gap")
    polled["refused"]["items"] = {"anyOf": [reference("Refused"), reference("Unsubscribed")]}
    polled["limits"] = components["Established"]["properties"]["limits"]
    components["Problem"]["properties"]["code"] = reference("ErrorCode")


def table(components: Mapping[str, Document]) -> list[Operation]:
    """Every request that clients make."""

    def query(names: Iterable[str] = (), kind: str = "") -> Document:
        known = components[kind]["properties"] if kind else {}
        parameters = {name: plain(known[name]) for name in names}
        return {
            "type": "object",
            "properties": ({"channel": CHANNEL} if kind else {}) | parameters | COMMON,
            "required": ["channel"] if kind else [],
            "additionalProperties": False,
        }

    streamed = [kind.type for kind in STREAMED]
    stream = query(sse.PARAMETERS, "Subscribe")
    stream["properties"][sse.LAST_EVENT_ID] = TEXT | {"description": PLACE}
    return [
        Operation(
            method="GET",
            path="/sse",
            query=stream,
            request="request",
            replies=streamed,
        ),
        Operation(
            method="GET",
            path="/poll",
            query=query(polls.PARAMETERS, "Ask"),
            request="request",
            replies=["polled"],
        ),
        Operation(method="POST", path="/poll", query=query(), request="poll", replies=["polled", "left"]),
        *(
            Operation(
                method="POST",
                path=path,
                query=query(),
                request=f"post.{page.message.type}",
                replies=[f"posted.{page.message.type}"],
            )
            for path, page in posts.PAGES.items()
        ),
    ]


def plain(schema: Document) -> Document:
    """Of a field what is left of it in a query, where nothing is null."""
    kinds = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    found = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {name: value for name, value in found.items() if name != "default" or value is not None}


def messages() -> Iterator[tuple[str, Document]]:
    """What goes to and fro, but for the messages that a stream has in common with a WebSocket."""
    token = {"Authorization": TEXT | {"description": "`Bearer` and the token."}}
    place = TEXT | {"description": PLACE}
    yield "request", message("A request without a body.", headers=token | {"Last-Event-ID": place})
    body = {"payload": {"oneOf": [reference("Ask"), reference("Leave")]}}
    yield "poll", message("The body of a poll, or of the last word to its session.", headers=token) | body
    yield "left", message("The session has ended.", status=204)
    yield "polled", message("The answer of a poll.", payload="Polled", status=200)
    for page in posts.PAGES.values():
        name, reply = page.message.__name__, page.reply.__name__
        yield f"post.{page.message.type}", message(f"The body is a {name}.", payload=name, headers=token)
        yield (
            f"posted.{page.message.type}",
            message(f"The answer is a {reply}.", payload=reply, status=page.status),
        )
    told = message("The request was not served; `Retry-After` says when it may be.", payload="Problem")
    yield "problem", told | {"contentType": PROBLEM}


def message(
    summary: str, *, payload: str = "", headers: Mapping[str, Document] | None = None, status: int = 0
) -> Document:
    binding: Document = {"bindingVersion": VERSION}
    if headers:
        binding["headers"] = {"type": "object", "properties": dict(headers)}
    if status:
        binding["statusCode"] = status
    found: Document = {"summary": summary, "bindings": {"http": binding}}
    return found | ({"payload": reference(payload)} if payload else {})


def channels(operations: Iterable[Operation]) -> Document:
    """One for each path."""
    found: dict[str, Any] = {}
    for each in operations:
        channel = found.setdefault(
            each.channel,
            {
                "address": each.path,
                "description": ABOUT[each.path],
                "servers": [{"$ref": "#/servers/https"}, {"$ref": "#/servers/http"}],
                "messages": {},
            },
        )
        for name in (each.request, *each.replies, "problem"):
            channel["messages"][name] = {"$ref": f"#/components/messages/{name}"}
    return found


def described(operations: Iterable[Operation]) -> Iterator[tuple[str, Document]]:
    """The requests with their answers."""
    for each in operations:
        channel = f"#/channels/{each.channel}"

        def messages(*names: str, channel: str = channel) -> list[Document]:
            return [{"$ref": f"{channel}/messages/{name}"} for name in names]

        binding = {"method": each.method, "query": each.query, "bindingVersion": VERSION}
        yield (
            each.name,
            {
                "action": "receive",
                "channel": {"$ref": channel},
                "messages": messages(each.request),
                "reply": {"channel": {"$ref": channel}, "messages": messages(*each.replies, "problem")},
                "bindings": {"http": binding},
            },
        )
