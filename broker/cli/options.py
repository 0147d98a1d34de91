"""Options and parameter types that several commands share."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from broker import subjects
from broker.errors import InvalidChannel

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def checked(read: Callable[[Any], T]) -> Callable[[Any], T]:
    """Return a click parameter type; a value that `read` refuses is a usage error."""

    @functools.wraps(read)
    def convert(value: Any) -> T:
        try:
            return read(value)
        except (ValueError, InvalidChannel) as error:
            raise click.BadParameter(str(error)) from None

    return convert


@checked
def address(value: str) -> str:
    from broker.config import host_port

    host_port(value)
    return value


@checked
def duration(value: str) -> float:
    from broker.config import seconds

    return seconds(value)


@checked
def pace(value: str) -> int:
    """A duration in ms."""
    from broker.client import checks
    from broker.config import seconds

    every_ms = round(seconds(value) * 1000)
    checks.check_every(every_ms)
    return every_ms


@checked
def channel(value: str) -> str:
    if subjects.expand_me(value, "user") != value:
        raise ValueError(f"{value!r}: `me` is the user of a token; here write users.<user>.<name>")
    return subjects.parse_channel(value)


@checked
def pattern(value: str) -> str:
    return subjects.parse_pattern(value)


@checked
def method(value: str) -> str:
    return subjects.parse_method(value)


@checked
def time(value: str) -> str:
    """RFC 3339, or how long ago."""
    from datetime import UTC, datetime, timedelta

    from broker.config import seconds

    try:
        then = datetime.fromisoformat(value)
    except ValueError:
        then = datetime.now(UTC) - timedelta(seconds=seconds(value))
    if then.tzinfo is None:
        raise ValueError(f"{value!r} lacks a time zone, such as Z")
    return then.isoformat()


@checked
def from_now(value: str) -> str:
    """Return the time at which a duration from now ends, as RFC 3339."""
    from datetime import UTC, datetime, timedelta

    from broker.config import seconds

    return (datetime.now(UTC) + timedelta(seconds=seconds(value))).isoformat()


@checked
def event(value: str) -> str:
    """JSON, the empty text for a tombstone, or "-" for standard input."""
    import msgspec

    if value not in ("", "-"):
        msgspec.json.decode(value.encode(errors="surrogateescape"))
    return value


@checked
def json(value: str) -> str:
    """JSON, or "-" for standard input."""
    import msgspec

    if value != "-":
        msgspec.json.decode(value.encode(errors="surrogateescape"))
    return value


@checked
def answer_time(value: str) -> float:
    """How long a service may take, in seconds."""
    from broker.client import checks
    from broker.config import seconds

    time = seconds(value)
    checks.check_timeout(time)
    return time


@checked
def web_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError(f"{value!r} is not http://HOST[:PORT] or https://HOST[:PORT]")
    return value.rstrip("/")


FILE = click.Path(path_type=Path, dir_okay=False)

data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the broker keeps its state, if not in the default place.",
)
listen = click.option(
    "--listen", type=address, metavar="HOST:PORT", help="The public port; 0 is any free one."
)
admin_listen = click.option("--admin-listen", type=address, metavar="HOST:PORT", help="The admin port.")
tenant = click.option("--tenant", metavar="T", default="dev", show_default=True, help="The tenant.")
user = click.option("--user", metavar="U", default="dev", show_default=True, help="The user.")
