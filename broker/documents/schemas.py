"""JSON Schemas (https://json-schema.org) of documents: they judge what a change touches, and nothing else.

So a document from before its schema can be changed member by member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from jsonschema import Draft202012Validator, SchemaError, ValidationError, validators
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
MAX_CHARACTERS = 500  # of what is wrong: it may have the whole value in it
# Keywords whose message names members: another member is another fault.
NAMING = ("required", "dependentRequired", "additionalProperties", "unevaluatedProperties")


@attrs.frozen
class Schema:
    """A schema, ready to judge. Its references stay within it: nothing is fetched."""

    validator: Validator

    def faults(self, old: Value | None, new: Value, touched: Iterable[Path]) -> Mapping[str, str]:
        """Return what a change of these paths brought that the schema forbids, by JSON Pointer.

        The old value is judged only where its faults may be among those of the new one, and no more is judged
        than is told: it takes milliseconds.
        """
        found: dict[str, str] = {}
        suspects: dict[Any, tuple[Path, str]] = {}
        paths = Paths(touched)
        for key, path, message in self.errors(new):
            if paths.covers(path):
                found[pointer(path)] = message
                if len(found) == MAX_FAULTS:
                    return found
            elif paths.meets(path):
                suspects[key] = path, message
        if suspects and old is not None:
            for key, _, _ in self.errors(old):
                suspects.pop(key, None)
        found |= {pointer(path): message for path, message in suspects.values()}
        return dict(list(found.items())[:MAX_FAULTS])

    def errors(self, value: Value) -> Iterator[tuple[Any, Path, str]]:
        """Yield each fault of a value: what it is known by, its path, and what is wrong."""
        for error in self.validator.iter_errors(value):
            path = tuple(map(str, error.absolute_path))
            named = error.message if error.validator in NAMING else ""
            key = path, tuple(map(str, error.absolute_schema_path)), named
            yield key, path, error.message[:MAX_CHARACTERS]


def unique_items(validator: Any, wanted: bool, instance: Any, schema: Any) -> Iterator[ValidationError]:  # noqa: ARG001
    """Judge the keyword `uniqueItems` as `jsonschema` does, which compares each item with each other one."""
    if wanted and validator.is_type(instance, "array") and len(set(map(hashable, instance))) < len(instance):
        yield ValidationError("has non-unique elements")


def hashable(value: Any) -> Any:
    """Return what equals the same of an equal JSON value: 1 is 1.0, but `true` is no 1."""
    if isinstance(value, dict):
        return dict, frozenset((name, hashable(each)) for name, each in value.items())
    if isinstance(value, list):
        return list, tuple(map(hashable, value))
    return (bool, value) if isinstance(value, bool) else value


def parse(document: Any) -> Schema:
    """Return a schema by its decoded JSON. Raise `ValueError` with what is wrong with it."""
    if not isinstance(document, dict | bool):
        raise ValueError("a JSON Schema is an object")
    kind = validator_for(document, default=Draft202012Validator)
    own = validators.extend(kind, {"uniqueItems": unique_items})
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    resolver = Registry().with_resource("", resource).resolver()
    try:
        kind.check_schema(document)
        for reference in references(document):
            resolver.lookup(reference)
        if isinstance(document, dict):  # or references to all of it would lead to another class
            document = {name: each for name, each in document.items() if name != "$schema"}
        schema = Schema(own(document, registry=Registry()))
        list(schema.errors({}))
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
