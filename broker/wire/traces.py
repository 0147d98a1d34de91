"""The trace that a message belongs to: W3C Trace Context, https://www.w3.org/TR/trace-context/, section 3."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PARENT, STATE = "traceparent", "tracestate"

# Version, trace, span, flags. A later version might append fields; there is none yet.
PARENT_VALUE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
SAMPLED = 1


def well_formed(parent: str) -> bool:
    """Return whether a `traceparent` is valid; an invalid one is to be ignored."""
    return PARENT_VALUE.fullmatch(parent) is not None


def accepted(parent: str | None) -> str | None:
    """Return a client's `traceparent`; a malformed one is ignored (section 3.2.2.3)."""
    return parent if parent is not None and well_formed(parent) else None


def parent_of(headers: Mapping[str, str] | None) -> str | None:
    """Return the `traceparent` of a message. The name may be in any case: Go clients write `Traceparent`."""
    for name, value in (headers or {}).items():
        if name.lower() == PARENT and well_formed(value):
            return value
    return None


def sampled(parent: str | None) -> bool:
    """Return whether the origin of the trace wants it recorded."""
    return parent is not None and bool(int(parent[-2:], 16) & SAMPLED)
