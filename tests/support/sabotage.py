"""Faults that a test makes on purpose."""

from __future__ import annotations

from typing import Any


class Sabotage(Exception):
    """Nothing in the broker expects this."""


def broken(*_: object, **__: object) -> Any:
    """A function that always fails, to put in the place of another."""
    raise Sabotage
