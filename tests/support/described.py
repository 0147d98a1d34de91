"""Messages held against the AsyncAPI document that the broker serves."""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from broker.web import asyncapi


@cache
def document() -> dict[str, Any]:
    return asyncapi.document()


@cache
def validator(kind: str) -> Draft202012Validator:
    """Of the whole messages of a type."""
    schema = document()["components"]["messages"][kind]["payload"]
    return Draft202012Validator(schema | {"components": document()["components"]})


def check(message: dict[str, Any]) -> None:
    """Raises where a message of the broker is not as described."""
    kind = message["type"]
    assert kind in asyncapi.SERVER_MESSAGES, message
    validator(kind).validate(message)
    known = document()["components"]["schemas"][asyncapi.SERVER_MESSAGES[kind].__name__]["properties"]
    assert message["payload"].keys() <= known.keys(), message
