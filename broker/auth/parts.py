"""Decode the parts of a token to bytes and JSON objects (RFC 7515), more strictly than that requires."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NoReturn, Self

from broker.errors import TokenInvalid


class Integer(float):
    """A whole number in a token: a float for a time, with `digits` as written for a name.

    One that is too large is infinite, as floats are.
    """

    digits: str

    def __new__(cls, text: str) -> Self:
        made = super().__new__(cls, text)
        made.digits = text
        return made


def name_of(value: object) -> str | None:
    """Return a claim as a name: text as it is, an integer as its digits; None for anything else."""
    if isinstance(value, Integer):
        return value.digits if value.digits.isdecimal() else None
    return value if isinstance(value, str) else None


def read_object(part: str, where: str) -> dict[str, Any]:
    """Return the JSON object in a part of a token. Raises `TokenInvalid`."""
    try:
        value = json.loads(
            decode(part, where).decode(),
            object_pairs_hook=unique,
            parse_int=Integer,
            parse_constant=no_number,
        )
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate passes as an escape, but not here
    except UnicodeError:
        raise TokenInvalid(f"{where}: holds invalid Unicode") from None
    except RecursionError:
        raise TokenInvalid(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise TokenInvalid(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise TokenInvalid(f"{where}: not a JSON object")
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def no_number(_text: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def decode(part: str, where: str) -> bytes:
    """Decode base64url (RFC 7515 section 2): no padding, no ignored bytes, canonical."""
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        data = b""
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode():
        raise TokenInvalid(f"{where}: not canonical base64url without padding")
    return data
