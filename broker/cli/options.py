"""Options and kinds of values that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable


class Reader(click.ParamType):
    """A kind of value that a function reads; what it raises `ValueError` for is used wrongly."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self.read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.read(value)
        except ValueError as error:
            return self.fail(str(error), param, ctx)


def read_address(value: str) -> str:
    from broker.config import host_port

    host_port(value)
    return value


def read_duration(value: str | float) -> float:
    from broker.config import seconds

    return seconds(value)


def read_channel(value: str) -> str:
    from broker import subjects
    from broker.errors import InvalidChannel

    try:
        if subjects.expand_me(value, "user") != value:
            raise ValueError(f"{value!r}: `me` is the user of a token; here write users.<user>.<name>")
        return subjects.parse_channel(value)
    except InvalidChannel as error:
        raise ValueError(error.message) from None


def read_pattern(value: str) -> str:
    from broker import subjects
    from broker.errors import InvalidChannel

    try:
        return subjects.parse_pattern(value)
    except InvalidChannel as error:
        raise ValueError(error.message) from None


ADDRESS = Reader("host:port", read_address)
DURATION = Reader("duration", read_duration)
CHANNEL = Reader("channel", read_channel)
PATTERN = Reader("pattern", read_pattern)
FILE = click.Path(path_type=Path, dir_okay=False)

data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the broker keeps its state, where that is not the default.",
)
listen = click.option("--listen", type=ADDRESS, help="The public port, HOST:PORT; port 0 is any free one.")
admin_listen = click.option("--admin-listen", type=ADDRESS, help="The admin port, HOST:PORT.")
tenant = click.option("--tenant", metavar="T", default="dev", show_default=True, help="The tenant.")
user = click.option("--user", metavar="U", default="dev", show_default=True, help="The user.")
