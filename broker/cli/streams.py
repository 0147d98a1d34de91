"""`broker admin streams` and `broker admin adopt`: which streams are ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from broker.cli.admin import YES, asking, confirm

if TYPE_CHECKING:
    from broker.cli.api import Api
    from broker.cli.tables import Output

STREAMS = ("stream", "ours", "fault", "differs")


@click.command()
@asking
def streams(api: Api, output: Output) -> None:
    """List the streams and buckets: whether they are ours, and how they differ from the configuration."""
    found = api.ask("GET", "streams")
    if not output.as_json:
        for each in found["streams"]:
            each["differs"] = [change(one) for one in each["differences"]]
    output.many(found, "streams", STREAMS)


@click.command()
@click.argument("stream")
@YES
@asking
def adopt(api: Api, output: Output, stream: str, yes: bool) -> None:
    """Make STREAM ours and as configured, after showing old → new and asking.

    Meant for a stream that somebody else has made, and for one of ours that was changed by hand or in which
    the configuration would delete events. Prints its previous settings.
    """
    if not yes:
        found = api.ask("GET", "streams", stream)
        for line in described(found):
            click.echo(line, err=True)
    confirm(yes, f"Make these changes to {stream}, and make it ours?")
    output.one(api.ask("POST", "streams", stream, "adopt"))


def described(found: dict[str, Any]) -> list[str]:
    """Return the text of what an adoption would change."""
    whose = "is ours" if found["ours"] else "was not made by this broker"
    done = [f"  {change(each)}{'  (loses)' if each['loses'] else ''}" for each in found["differences"]]
    return [f"{found['stream']} {whose}; to be changed:", *(done or ["  nothing"])]


def change(difference: dict[str, Any]) -> str:
    """Return "setting: old → new"."""
    name = difference["key"] or difference["setting"]
    return f"{name}: {difference['found']} → {difference['wanted']}"


COMMANDS = (streams, adopt)
