"""JSON Schemas (https://json-schema.org) of documents: they judge what a change touches, and nothing else.

So a document from before its schema can be changed member by member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from jsonschema import Draft202012Validator, SchemaError
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from broker.documents.patches import Paths, pointer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from jsonschema.protocols import Validator

    from broker.documents.patches import Path
    from broker.documents.values import Value

MAX_FAULTS = 20
# Keywords whose message names members: another member is another fault.
NAMING = ("required", "dependentRequired", "additionalProperties", "unevaluatedProperties")


@attrs.frozen
class Schema:
    """A schema, ready to judge. Its references stay within it: nothing is fetched."""

    validator: Validator

    def faults(self, old: Value | None, new: Value, touched: Iterable[Path]) -> Mapping[str, str]:
        """Return what a change of these paths brought that the schema forbids, by JSON Pointer."""
        found = {}
        paths = Paths(touched)
        before = {} if old is None else self.errors(old)
        for key, (path, message) in self.errors(new).items():
            if paths.meets(path) and (paths.covers(path) or key not in before):
                found[pointer(path)] = message
        return dict(list(found.items())[:MAX_FAULTS])

    def errors(self, value: Value) -> dict[Any, tuple[Path, str]]:
        found = {}
        for error in self.validator.iter_errors(value):
            path = tuple(map(str, error.absolute_path))
            named = error.message if error.validator in NAMING else ""
            found[path, tuple(map(str, error.absolute_schema_path)), named] = path, error.message
        return found


def parse(document: Any) -> Schema:
    """Return a schema by its decoded JSON. Raise `ValueError` with what is wrong with it."""
    if not isinstance(document, dict | bool):
        raise ValueError("a JSON Schema is an object")
    kind = validator_for(document, default=Draft202012Validator)
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    resolver = Registry().with_resource("", resource).resolver()
    try:
        kind.check_schema(document)
        for reference in references(document):
            resolver.lookup(reference)
        schema = Schema(kind(document, registry=Registry()))
        schema.errors({})
    except SchemaError as error:
        where = pointer(tuple(map(str, error.absolute_path)))
        raise ValueError(f"no JSON Schema: {where or 'all of it'}: {error.message}") from None
    except Unresolvable as error:
        raise ValueError(f"no JSON Schema: {error.ref!r} is not in it; nothing is fetched") from None
    except RecursionError:
        raise ValueError("no JSON Schema: it contains itself, or is nested too deeply") from None
    return schema


def references(document: Any) -> Iterator[str]:
    pending = [document]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            pending += each.values()
            yield from (value for name, value in each.items() if name == "$ref" and isinstance(value, str))
        elif isinstance(each, list):
            pending += each
