"""The AsyncAPI document of the protocol, made of the message classes and the routes.

https://www.asyncapi.com/docs/reference/specification/v3.0.0. The broker is the application that it describes:
it receives what clients send, and sends what they get.
"""

from __future__ import annotations

from inspect import getdoc
from typing import TYPE_CHECKING, Any, get_args

from msgspec import Struct, field

from broker import errors
from broker.http.responses import JSON
from broker.web import requests, schemas
from broker.web.schemas import Document, reference
from broker.wire import messages as m
from broker.wire.codec import MAX_MESSAGE_ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from broker.links.route import ClientRoute
    from broker.session.requests import Table
    from broker.subjects import Names

SERVER_MESSAGES: dict[str, type] = {
    kind.type: kind for kind in (*get_args(m.ServerMessage), m.Event, m.State)
}
NOT_FOR_CLIENTS = frozenset({errors.NotFound.code})
ABOUT = (
    "On a WebSocket, text frames with one JSON object each: `type`, `payload`, and `messageId`, which the"
    " client chooses and which is in every reply. Without a WebSocket, the same by HTTP requests. Clients"
    " ignore types and fields that they do not know; the broker refuses them. Services publish to NATS by any"
    " client of it."
)
CLOSED = "Why a connection was closed. 4500 to 4999: reconnecting will not help before something changes."
ADDRESS = {
    "tenant": "The tenant: 1 to 64 of A-Z a-z 0-9 _ -. `_all` is every tenant.",
    "channel": "1 to 16 tokens joined by `.`, at most 256 bytes; `users.<user>.…` is that user's alone.",
}


class Metadata(Struct, kw_only=True):
    """Metadata of an event. A `tenant_id` that contradicts the subject makes it a dead letter."""

    tenant_id: str | None = None
    source: str | None = None


class Envelope(Struct, kw_only=True):
    """The plain envelope of an event, one form in which services publish."""

    id: str
    type: str
    timestamp: str
    payload: Any
    metadata: Metadata | None = None


class CloudEvent(Struct, kw_only=True):
    """A CloudEvents 1.0 event in structured mode; further attributes are allowed.

    In binary mode the attributes are headers `ce-…` and the body is the data.
    """

    specversion: str
    id: str
    source: str
    type: str
    data: Any = None


class Headers(Struct, kw_only=True):
    """NATS headers that the broker reads. An id is unique in the whole stream: begin it with the tenant."""

    message_id: str | None = field(default=None, name="Nats-Msg-Id")
    traceparent: str | None = None


def document(routes: Iterable[ClientRoute], names: Names, table: Table) -> Document:
    """Return the document of a broker with these routes, subject prefixes and requests."""
    described = requests.table(routes)
    published = [Envelope, CloudEvent, Headers]
    kinds = [*m.CLIENT_MESSAGES.values(), *SERVER_MESSAGES.values(), *published, *requests.kinds(described)]
    kinds = list(dict.fromkeys(kinds))
    _, components = schemas.of(kinds)
    components["ErrorCode"] = coded(error_codes(), "What went wrong, for programs.")
    components["CloseCode"] = coded({each.value: each.meaning for each in errors.CloseCode}, CLOSED)
    components["Poll"]["anyOf"] = [  # of both at least one
        {"required": [name], "properties": {name: {"type": "array"}}} for name in ("channels", "state")
    ]
    for name in ("Error", "Refused", "Unsubscribed", "Problem"):
        components[name]["properties"]["code"] = reference("ErrorCode")
    both = {name_of(kind): kind for kind in (*m.CLIENT_MESSAGES.values(), *SERVER_MESSAGES.values())}
    messages = {name: message(kind, components[kind.__name__]) for name, kind in both.items()}
    messages |= dict(requests.messages(described))
    return {
        "asyncapi": "3.0.0",
        "info": schemas.info("The broker's protocol", ABOUT),
        "defaultContentType": JSON,
        "servers": servers(),
        "channels": channels(names, both) | requests.channels(described),
        "operations": dict(operations(table)) | dict(requests.operations(described, components)),
        "components": {
            "messages": messages | {"stored": on_subject(), "live": on_subject()},
            "schemas": components,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "For a WebSocket also `bearer.<token>` as subprotocol, or `authenticate`.",
                }
            },
        },
    }


def name_of(kind: Any) -> str:
    """Return the name of a message: its type, which a request and its reply may share."""
    replies = kind.type in m.CLIENT_MESSAGES and m.CLIENT_MESSAGES[kind.type] is not kind
    return f"{kind.type}.reply" if replies else kind.type


def coded(meanings: Mapping[Any, str], description: str) -> Document:
    """Return the schema of one of several codes, each with its meaning."""
    each = [{"const": code, "description": meaning} for code, meaning in meanings.items()]
    return {"description": description, "oneOf": each}


def error_codes() -> dict[str, str]:
    """Return the values of `error.code`, each with its meaning."""
    found = errors.by_code().items()
    return {code: getdoc(kind) or "" for code, kind in found if code not in NOT_FOR_CLIENTS}


def message(kind: Any, schema: Document) -> Document:
    """Return a whole message: the object around the payload."""
    asked = kind in m.CLIENT_MESSAGES.values()
    whole: Document = {
        "type": "object",
        "required": ["type"] if asked and not schema["required"] else ["type", "payload"],
        "properties": {
            "type": {"const": kind.type},
            "payload": reference(kind.__name__),
            "messageId": {"type": ["string", "null"], "maxLength": MAX_MESSAGE_ID_BYTES},
        },
    }
    if asked:
        whole["additionalProperties"] = False
    summary = schema["description"].partition("\n")[0]
    return {"name": kind.type, "title": kind.type, "summary": summary, "payload": whole}


def on_subject() -> Document:
    """Return what a service publishes: any JSON value, of which two forms are known."""
    known = [reference(kind.__name__) for kind in (Envelope, CloudEvent)]
    return {
        "summary": "Any JSON value; an empty body is a tombstone, which clients get as `null`.",
        "contentType": JSON,
        "headers": reference(Headers.__name__),
        "payload": {"anyOf": [*known, {"description": "Any other JSON value."}]},
    }


def servers() -> Document:
    host = {"default": "127.0.0.1:8080", "description": "Host, and port where it is not the default."}
    token = [{"$ref": "#/components/securitySchemes/token"}]
    broker = {"host": "{host}", "variables": {"host": host}, "security": token}
    nats = host | {"default": "127.0.0.1:4222"}
    return {
        "wss": broker | {"pathname": "/ws", "protocol": "wss"},
        "ws": broker | {"pathname": "/ws", "protocol": "ws", "description": "Without TLS."},
        "https": broker | {"protocol": "https"},
        "http": broker | {"protocol": "http", "description": "Without TLS."},
        "nats": {"host": "{host}", "protocol": "nats", "variables": {"host": nats}},
    }


def channels(names: Names, both: Iterable[str]) -> Document:
    def on_nats(prefix: str, kind: str, description: str) -> Document:
        return {
            "address": f"{prefix}.{{tenant}}.{{channel}}",
            "description": description,
            "servers": [{"$ref": "#/servers/nats"}],
            "parameters": {name: {"description": text} for name, text in ADDRESS.items()},
            "messages": {kind: {"$ref": f"#/components/messages/{kind}"}},
        }

    text = {"type": "string"}
    handshake = {
        "method": "GET",
        "headers": {
            "type": "object",
            "properties": {
                "Authorization": text | {"description": "`Bearer` and the token."},
                "Sec-WebSocket-Protocol": text
                | {"description": "`broker.v1`, and perhaps `bearer.<token>`."},
            },
        },
        "query": {
            "type": "object",
            "properties": {"tenant": text | {"description": "For monitoring tokens: the tenant to look at."}},
        },
        "bindingVersion": "0.1.0",
    }
    return {
        "connection": {
            "address": "/",
            "description": "One WebSocket connection. Its close has a `CloseCode` of `components.schemas`.",
            "servers": [{"$ref": "#/servers/wss"}, {"$ref": "#/servers/ws"}],
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in both},
            "bindings": {"ws": handshake},
        },
        "stored": on_nats(
            names.events, "stored", "Events that are kept in the stream and can be replayed, as `{channel}`."
        ),
        "live": on_nats(names.live, "live", "Events that are never stored, as `live.{channel}`."),
    }


def operations(table: Table) -> Iterator[tuple[str, Document]]:
    """Return the requests with their replies, and what the broker sends unasked."""
    connection = {"$ref": "#/channels/connection"}

    def each(*kinds: Any) -> list[Document]:
        return [{"$ref": f"#/channels/connection/messages/{name_of(kind)}"} for kind in kinds]

    for name, request in table.items():
        reply = {"channel": connection, "messages": each(*request.replies, m.Error)}
        yield (
            name,
            {"action": "receive", "channel": connection, "messages": each(request.message), "reply": reply},
        )
    answers = [request.replies[0] for request in table.values() if not request.unasked]
    unasked = [kind for kind in SERVER_MESSAGES.values() if kind not in answers]
    yield "deliver", {"action": "send", "channel": connection, "messages": each(*unasked)}
    for name in ("stored", "live"):
        channel = f"#/channels/{name}"
        yield (
            f"take_{name}",
            {
                "action": "receive",
                "channel": {"$ref": channel},
                "messages": [{"$ref": f"{channel}/messages/{name}"}],
            },
        )
