"""The values that a document may have, so that every client in every language has the same.

It is a JSON object (RFC 8259) of at most 64 KiB, with at most 32 levels of objects and lists. Its names
differ within each object, none is `__proto__`, and its numbers are those of IEEE 754 doubles.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

Value: TypeAlias = "dict[str, Any]"

MAX_BYTES = 65_536
MAX_DEPTH = 32
PROTO = "__proto__"  # a member that JavaScript takes as an object's prototype
EXACT = 2**53  # up to here a double is every integer
INT64, UINT64 = -(2**63), 2**64


@attrs.frozen
class Invalid:
    """Why what is stored is no document."""

    reason: str


class Unfit(ValueError):
    """A part of a text is no value of a document."""


def parse(body: bytes) -> Value | Invalid:
    """Return the document that a stored body is, or why it is none."""
    if len(body) > MAX_BYTES:
        return Invalid(f"{len(body)} bytes; a document has at most {MAX_BYTES}")
    try:
        value = DECODER.decode(body.decode())
    except Unfit as error:
        return Invalid(str(error))
    except RecursionError:
        return Invalid(f"nested deeper than {MAX_DEPTH}")
    except ValueError as error:
        return Invalid(f"not JSON: {error}")
    if not isinstance(value, dict):
        return Invalid("not an object")
    reason = fault(value)
    return value if reason is None else Invalid(reason)


def fault(value: Any) -> str | None:
    """Return why a decoded JSON value cannot stand in a document; None when it can."""
    pending: list[tuple[Any, int]] = [((value,), 0)]
    while pending:
        each, depth = pending.pop()
        if type(each) is dict:
            if PROTO in each:
                return f"a member named {PROTO}"
            if not all(map(is_unicode, each)):
                return "a lone surrogate"
            each = each.values()
        for one in each:
            kind = type(one)
            if kind is dict or kind is list:
                if depth == MAX_DEPTH:
                    return f"nested deeper than {MAX_DEPTH}"
                if one:
                    pending.append((one, depth + 1))
            elif kind is str:
                if not is_unicode(one):
                    return "a lone surrogate"
            elif (kind is int and not is_double(one)) or (kind is float and not math.isfinite(one)):
                return "a number that a double cannot hold"
    return None


def is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_double(number: int) -> bool:
    """Return whether a double is this integer, or is written like it: JavaScript pads 2**70 with zeros."""
    if -EXACT <= number <= EXACT:
        return True
    try:
        double = float(number)
    except OverflowError:
        return False
    return int(double) == number or int(Decimal(repr(double))) == number


def encode(value: Any) -> bytes:
    """Return a value that has no `fault` as JSON."""
    try:
        return msgspec.json.encode(value)
    except OverflowError:
        return msgspec.json.encode(with_floats(value))


def with_floats(value: Any) -> Any:
    """Return a value with its integers of more than 64 bits as floats."""
    if isinstance(value, dict):
        return {name: with_floats(each) for name, each in value.items()}
    if isinstance(value, list):
        return [with_floats(each) for each in value]
    return float(value) if type(value) is int and not INT64 <= value < UINT64 else value


# --- reading -----------------------------------------------------------------------------------------


def members(pairs: Sequence[tuple[str, Any]]) -> Value:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Unfit(f"the member {twice[:40]!a} is there twice")
    return found


def integer(text: str) -> int:
    if len(text) > 400:  # the largest double has 309 digits
        raise Unfit("a number that a double cannot hold")
    return int(text)


def constant(text: str) -> float:
    raise Unfit(f"not JSON: {text}")


DECODER = json.JSONDecoder(object_pairs_hook=members, parse_int=integer, parse_constant=constant)
