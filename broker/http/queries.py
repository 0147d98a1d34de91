"""The query of a request."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl

import msgspec

from broker.http.responses import Refused
from broker.wire.codec import nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Query: TypeAlias = "dict[str, list[str]]"

COMMON = ("access_token", "tenant")
PARAMETERS = 1000  # at most; a connection has fewer subscriptions


def parse(
    query: str,
    known: Collection[str] | None = None,
    *,
    repeated: Collection[str] = (),
    spellings: Mapping[str, str] = MappingProxyType({}),
) -> Query:
    """Return the values of each parameter: one, or several where it is in `repeated`. Raises `Refused`.

    With `known`, parameters that are neither in it nor in `repeated` or `COMMON` are refused. `spellings`
    maps other spellings of a name, in lower case, to the known one.
    """
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=PARAMETERS)
    except ValueError:
        raise Refused(400, f"Malformed query: not UTF-8, or more than {PARAMETERS} parameters.") from None
    found: Query = {}
    names = None if known is None else (*known, *repeated, *COMMON)
    for given, value in pairs:
        name = spellings.get(given.lower(), given)
        if names is not None and name not in names:
            raise Refused(400, f"{name[:40]}: unknown parameter{nearest(name, names)}")
        if name in found and name not in repeated:
            raise Refused(400, f"Duplicate parameter: {name[:40]}")
        found.setdefault(name, []).append(value)
    return found


def value(name: str, text: str, kind: Any) -> Any:
    """Return a parameter as what the type of its field asks for. Raises `Refused` (400)."""
    if kind == str | None:
        return text
    return whole_number(name, text) if kind == int | None else json_value(name, text)


def whole_number(name: str, text: str) -> int:
    """Return the number that a parameter is. Raises `Refused` (400)."""
    if not (text.isdecimal() and len(text) < 10):
        raise Refused(400, f"{name}: must be a whole number.")
    return int(text)


def json_value(name: str, text: str) -> Any:
    """Return a parameter that is JSON. Raises `Refused` (400)."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise Refused(400, f"{name}: must be JSON.") from None


def no_channel() -> Refused:
    """Return the refusal (400) of a query without the channels that it has to name."""
    return Refused(400, "Missing parameter: channel, at least one: ?channel=orders.>&channel=…")
