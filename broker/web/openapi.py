"""The OpenAPI document of the admin API, made of its routes and their classes.

https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import attrs

from broker.http.responses import JSON, PROBLEM, Problem
from broker.web import schemas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.web.router import Endpoint
    from broker.web.schemas import Document

NAMES = re.compile(r"{(\w+)}")


def document(routes: Sequence[Endpoint]) -> Document:
    """Return the document."""
    kinds = [kind for route in routes for kind in (route.answer, route.query, route.body) if kind]
    shapes, components = schemas.of([Problem, *kinds])
    queries = {
        kind: components.pop(kind.__name__) for kind in {route.query for route in routes if route.query}
    }
    for route in routes:
        if route.body:
            components[route.body.__name__]["additionalProperties"] = False
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route, shapes, queries)
    return {
        "openapi": "3.1.0",
        "info": schemas.info(
            "Admin API of the broker",
            "One broker process; with several over one NATS, ask each of them.",
        ),
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"admin": []}],
    }


def operation(route: Endpoint, shapes: dict[Any, Document], queries: dict[type, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.name,
        "parameters": parameters(route, queries),
        "responses": {
            str(route.status): {
                "description": HTTPStatus(route.status).phrase,
                "content": {route.media_type: {"schema": shapes[route.answer]}},
            },
            "default": {
                "description": "Refused or failed.",
                "content": {PROBLEM: {"schema": shapes[Problem]}},
            },
        },
    }
    if route.body:
        required = any(field.default is attrs.NOTHING for field in attrs.fields(route.body))
        schema = shapes[route.body]
        found["requestBody"] = {"required": required, "content": {JSON: {"schema": schema}}}
    return found


def parameters(route: Endpoint, queries: dict[type, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in NAMES.findall(route.path)
    ]
    if route.query:
        shape = queries[route.query]
        for name, schema in shape["properties"].items():
            required = name in shape["required"]
            found.append({"name": name, "in": "query", "required": required, "schema": schema})
    return found
