"""JSON Schema of the classes that the broker reads and writes, for both of its descriptions."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

DISTRIBUTION = "nats-websocket-broker"
REFERENCE = "#/components/schemas/{name}"
Document = dict[str, Any]


def reference(name: str) -> Document:
    return {"$ref": REFERENCE.format(name=name)}


def of(kinds: Sequence[Any]) -> tuple[dict[Any, Document], dict[str, Document]]:
    """Return the schema of each type, and the components that these refer to, by name."""
    shapes, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    return dict(zip(kinds, shapes, strict=True)), components


def info(title: str, description: str) -> Document:
    return {"title": title, "version": version(DISTRIBUTION), "description": description}
