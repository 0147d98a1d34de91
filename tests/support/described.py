"""Messages held against the AsyncAPI document that the broker serves."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from broker.http.responses import JSON
from broker.subjects import Names
from broker.web import asyncapi, routes
from tests.support.requests import TABLE

if TYPE_CHECKING:
    from broker.wire.messages import Published


async def post(message: bytes, *, token: str, tenant: str | None, peer: str) -> Published:
    raise NotImplementedError


PROTOCOL = routes.protocol(post, TABLE)


@cache
def document(names: Names = Names()) -> dict[str, Any]:  # noqa: B008  a frozen value
    return asyncapi.document(PROTOCOL, names, TABLE)


@cache
def validator(kind: str) -> Draft202012Validator:
    """Of the whole messages of a name."""
    return of_schema(document()["components"]["messages"][kind]["payload"])


def check(message: dict[str, Any]) -> None:
    """Raises where a message of the broker is not as described."""
    kind = message["type"]
    assert kind in asyncapi.SERVER_MESSAGES, message
    described = asyncapi.SERVER_MESSAGES[kind]
    validator(asyncapi.name_of(described)).validate(message)
    known = document()["components"]["schemas"][described.__name__]["properties"]
    assert message["payload"].keys() <= known.keys(), message


def resolved(reference: dict[str, str]) -> Any:
    """What a reference within the document leads to, in the end."""
    found: Any = reference
    while "$ref" in found:
        target, found = found["$ref"], document()
        for step in target.removeprefix("#/").split("/"):
            found = found[step]
    return found


def of_schema(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema | {"components": document()["components"]})


def asked(operation: str) -> Draft202012Validator:
    """Of the bodies of a request."""
    [message] = document()["operations"][operation]["messages"]
    return of_schema(resolved(message)["payload"])


def check_answer(operation: str, status: int, media_type: str, body: Any) -> None:
    """Raises where an answer is none of those that a request is promised."""
    promised = [resolved(each) for each in document()["operations"][operation]["reply"]["messages"]]
    if status >= 400:
        [message] = [each for each in promised if each.get("contentType") == media_type]
    else:
        [message] = [each for each in promised if each["bindings"]["http"].get("statusCode") == status]
        assert media_type == JSON
    of_schema(message["payload"]).validate(body)
    assert body.keys() <= resolved(message["payload"])["properties"].keys(), body
