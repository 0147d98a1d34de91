"""Times as text (RFC 3339)."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec

from broker import errors

BELOW_MICROSECONDS = re.compile(r"(?<=\.[0-9]{6})[0-9]+")


def rfc3339(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def precisely(nanoseconds: int) -> str:
    """Return a time (ns since 1970) to the microsecond, truncated: `parse_time` is not after it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{rfc3339(seconds)[:-1]}.{rest // 1000:06}Z"


def parse_time(text: str, field: str = "payload.since") -> datetime:
    try:
        # Truncated to the microsecond: rounded up, the time could be after the event that is meant.
        time = msgspec.convert(BELOW_MICROSECONDS.sub("", text), datetime)
        if time.tzinfo:
            return time.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):  # outside the calendar when converted to UTC
        pass
    raise errors.BadMessage(
        f"{field}: {text[:40]!r} is not an RFC 3339 time with an offset, such as 2026-01-31T12:00:00Z"
    )
