"""NATS message headers: a block of bytes to a mapping, and what may go into one (ADR-4)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = b"NATS/1.0"
STATUS = VERSION + b" "  # begins the block of a message by the server itself: a status and no body
BLANKS = " \t"
LINE_BREAK = re.compile(r"[\r\n]")
NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def parse(block: bytes) -> dict[str, str]:
    """Return the fields of a header block; of a repeated one the last, since the server appends its own.

    Only blanks around a value are stripped: a subject in one may end in any other byte. Bytes that are not
    UTF-8 become lone surrogates, so that they cannot be mistaken for another name.
    """
    fields = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            fields[text(name)] = text(value.strip(b" \t"))
    return fields


def block(fields: Mapping[str, str] | None) -> bytes:
    """Return the header block of a message, nothing without fields.

    Raises `ValueError` for a name that is none and for a line break.
    """
    if not fields:
        return b""
    lines = "".join([f"{name}: {value.strip(BLANKS)}\r\n" for name, value in fields.items()])
    if not lines.count("\r") == lines.count("\n") == len(fields):
        check_lines(fields)
    for name in fields:
        check_name(name)
    return b"%b\r\n%b\r\n" % (VERSION, lines.encode())


@lru_cache(maxsize=100)
def check_name(name: str) -> None:
    """Raise `ValueError` for what is not the name of a header; few are in use."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header")


def status(block: bytes) -> int:
    """Return the status code of a message by the server itself (204, 404, ...), 0 for any other."""
    code = block[len(STATUS) : len(STATUS) + 3]
    return int(code) if block.startswith(STATUS) and code.isdigit() else 0


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def check_lines(fields: Mapping[str, str]) -> None:
    """Raise `ValueError` when a field would end its line and begin another."""
    for name, value in fields.items():
        if LINE_BREAK.search(value) or LINE_BREAK.search(name):
            raise ValueError(f"the header {name!r} holds a line break")
