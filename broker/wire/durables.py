"""Names of durable subscriptions."""

from __future__ import annotations

import re

from broker.errors import BadMessage

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


def check_name(name: str) -> None:
    """Raise `BadMessage` for an invalid name."""
    if not NAME.match(name):
        raise BadMessage("payload.durable: 1 to 64 of the characters A-Z a-z 0-9 _ -")
