"""Positions in the stream: opaque to clients, the same for every broker over one NATS."""

from __future__ import annotations

import re

import attrs

from broker.errors import InvalidPosition

FORM = re.compile(r"([a-z0-9]{1,32})-(0|[1-9][0-9]{0,19})\Z")


@attrs.frozen
class Position:
    """A sequence (0: before everything) in one incarnation of the stream."""

    incarnation: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.incarnation}-{self.sequence}"


def parse(text: str) -> Position:
    """Return the position in a text. Raises `InvalidPosition` for anything that no broker can have sent."""
    found = FORM.match(text)
    if not found:
        raise InvalidPosition(f"position: {text[:40]!r} is not a position; send one back as it was received")
    return Position(found[1], int(found[2]))
