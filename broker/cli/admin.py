"""`broker admin`: ask a running broker, and act on it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, get_args

import click

from broker.cli import options
from broker.config import Level

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker.cli.api import Api
    from broker.cli.tables import Output

CONNECTIONS = (
    "id",
    "tenant",
    "user",
    "address",
    "transport",
    "since",
    "subscriptions",
    "behind",
    "lag",
    "unsent_bytes",
)
TENANTS = ("tenant", "connections", "behind", "position", "restarts", "resting")
EVENTS = ("position", "time", "channel", "publisher", "event")
LETTERS = ("sequence", "time", "subject", "reason", "size", "detail")
PAGE = 1000  # the API's page size

COMMON = (
    click.option("--json", "as_json", is_flag=True, help="JSON also on a terminal."),
    click.option(
        "--url",
        type=options.web_address,
        metavar="http://HOST:PORT",
        envvar="BROKER_ADMIN_URL",
        show_envvar=True,
        help="The admin port; else that of the broker of the data directory.",
    ),
    options.data_dir,
)


def token_file(name: str) -> Callable[[Any], Any]:
    """Return the option for the admin token's file, under this name."""
    return click.option(
        name,
        "token_file",
        type=options.FILE,
        envvar="BROKER_ADMIN_TOKEN_FILE",
        show_envvar=True,
        help="The admin token; else the one of the data directory.",
    )


TENANT = click.option("--tenant", metavar="T", help="Of this tenant.")
LIMIT = click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    default=100,
    show_default=True,
    help="So many at most.",
)
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def asking(command: Callable[..., None], *, option: str = "--token-file") -> Callable[..., None]:
    """Give a command the API and its output, from the options that all of them have.

    `option` is the one for the admin token.
    """

    @functools.wraps(command)
    def run(
        *arguments: Any,
        url: str | None,
        token_file: Path | None,
        data_dir: Path | None,
        as_json: bool,
        **rest: Any,
    ) -> None:
        from broker.cli.api import Api
        from broker.cli.tables import Output

        command(Api.find(url, token_file, data_dir), Output.choose(as_json), *arguments, **rest)

    for each in (*COMMON, token_file(option)):
        run = each(run)
    return run


def pages(api: Api, key: str, limit: int, *path: str, start: str, **query: Any) -> dict[str, Any]:
    """Fetch page after page up to a limit and join them; `start` is the parameter for the next page's
    cursor.
    """
    found: list[Any] = []
    following = query.pop(start, None)
    while True:
        query = {**query, "limit": min(PAGE, limit - len(found)), start: following}
        page = api.ask("GET", *path, query=query)
        found += page[key]
        following = page["next"]
        if following is None or len(found) >= limit:
            return {**page, key: found}
        if start == "after":
            query.pop("since", None)  # as of the first page


@click.group()
def admin() -> None:
    """Ask a running broker through its admin port: the one of the data directory, or of --url.

    Tables on a terminal, JSON for programs.
    """


@admin.command()
@asking
def readiness(api: Api, output: Output) -> None:
    """Tell whether an event can travel from publisher to client; if not, say why and exit with 1."""
    answer = api.ask("GET", "readiness")
    output.one(answer)
    if not answer["ready"]:
        raise SystemExit(1)


@admin.command()
@TENANT
@click.option("--user", metavar="U", help="Of this user.")
@click.option("--transport", metavar="NAME", help="Only those over this transport: websocket, sse or poll.")
@click.option("--address", metavar="IP", help="From this address.")
@click.option("--behind/--up-to-date", default=None, help="Only those that lag, or only those that do not.")
@LIMIT
@asking
def connections(api: Api, output: Output, limit: int, **query: Any) -> None:
    """List connections."""
    found = pages(api, "connections", limit, "connections", start="cursor", **query)
    output.many(found, "connections", CONNECTIONS)


@admin.command()
@click.argument("connection_id", metavar="ID")
@asking
def connection(api: Api, output: Output, connection_id: str) -> None:
    """Show one connection with all details."""
    output.one(api.ask("GET", "connections", connection_id))


@admin.command()
@click.argument("connection_id", metavar="[ID]", required=False)
@click.option("--tenant", metavar="T", help="All of this tenant.")
@click.option("--user", metavar="U", help="All of this user of the tenant.")
@click.option(
    "--code",
    type=int,
    default=1012,
    show_default=True,
    help="Close code; with 4500 and above the client does not reconnect.",
)
@click.option("--reason", metavar="TEXT", help="The reason that the client is given.")
@YES
@asking
def disconnect(
    api: Api,
    output: Output,
    connection_id: str | None,
    tenant: str | None,
    user: str | None,
    yes: bool,
    **farewell: Any,
) -> None:
    """End one connection, or all of a tenant or user, and say how many.

    A client reconnects unless the code is 4500 or above. To keep it out, revoke its token.
    """
    if (connection_id is None) == (tenant is None):
        raise click.UsageError("Name one connection by its ID, or --tenant (and --user) for all of theirs.")
    if user is not None and tenant is None:
        raise click.UsageError("--user needs --tenant: users of different tenants may have the same name.")
    if connection_id is not None:
        output.one(api.ask("DELETE", "connections", connection_id, query=farewell))
        return
    whose = f"user {user} of tenant {tenant}" if user is not None else f"tenant {tenant}"
    confirm(yes, f"End all connections of {whose}?")
    output.one(api.ask("DELETE", "connections", query={"tenant": tenant, "user": user, **farewell}))


@admin.command()
@asking
def tenants(api: Api, output: Output) -> None:
    """List the tenants that have clients on this broker."""
    output.many(api.ask("GET", "tenants"), "tenants", TENANTS)


@admin.command()
@click.argument("name")
@asking
def tenant(api: Api, output: Output, name: str) -> None:
    """Show one tenant with all details."""
    output.one(api.ask("GET", "tenants", name))


@admin.command()
@click.argument("channel", type=options.channel)
@click.argument("event", metavar="JSON", type=options.event)
@click.option("--tenant", metavar="T", required=True, help="The tenant; _all is every tenant.")
@click.option("--id", "event_id", metavar="ID", help="Makes a retry harmless: the same id is stored once.")
@asking
def publish(api: Api, output: Output, channel: str, event: str, tenant: str, event_id: str | None) -> None:
    """Publish JSON into CHANNEL as a service does; the empty text is a tombstone."""
    fields = {"tenant": tenant, "channel": channel, "id": event_id}
    output.one(api.ask("POST", "publish", body=with_event(fields, event)))


@admin.command()
@click.argument("pattern", type=options.pattern, default=">")
@click.option("--tenant", metavar="T", required=True, help="The tenant.")
@click.option(
    "--since", type=options.time, metavar="TIME", help="Start at a time: RFC 3339, or how long ago (10m)."
)
@click.option("--after", metavar="P", help="Start after a position.")
@click.option(
    "--last", type=click.IntRange(1, PAGE), metavar="N", help="The newest N; the default is --limit."
)
@LIMIT
@asking
def history(api: Api, output: Output, pattern: str, limit: int, after: str | None, **query: Any) -> None:
    """Read the stored events of a tenant, oldest first."""
    query["channel"] = pattern
    found = pages(api, "events", limit, "history", start="after", after=after, **query)
    output.many(found, "events", EVENTS)


@admin.group("dead-letters")
def dead_letters() -> None:
    """Inspect, replay and delete stored messages that were not valid events."""


@dead_letters.command("list")
@TENANT
@click.option(
    "--reason",
    metavar="R",
    help="Only for this reason: not_json, too_large, invalid_channel, tenant_mismatch.",
)
@LIMIT
@asking
def list_letters(api: Api, output: Output, limit: int, **query: Any) -> None:
    """List dead letters, the newest first."""
    found = pages(api, "letters", limit, "dead-letters", start="cursor", **query)
    output.many(found, "letters", LETTERS)


@dead_letters.command()
@click.argument("sequence", type=click.IntRange(min=1))
@asking
def show(api: Api, output: Output, sequence: int) -> None:
    """Show one dead letter with its headers and body."""
    output.one(api.ask("GET", "dead-letters", str(sequence)))


@dead_letters.command()
@click.argument("sequence", type=click.IntRange(min=1))
@click.argument("event", metavar="[JSON]", type=options.event, required=False)
@asking
def replay(api: Api, output: Output, sequence: int, event: str | None) -> None:
    """Publish one under its original subject, unchanged or with JSON instead, and delete the dead letter."""
    body = None if event is None else with_event({}, event)
    output.one(api.ask("POST", "dead-letters", str(sequence), "replay", body=body))


@dead_letters.command()
@click.argument("sequence", type=click.IntRange(min=1))
@asking
def delete(api: Api, output: Output, sequence: int) -> None:
    """Delete one dead letter."""
    output.one(api.ask("DELETE", "dead-letters", str(sequence)))


@dead_letters.command()
@TENANT
@click.option("--reason", metavar="R", help="For this reason.")
@YES
@asking
def purge(api: Api, output: Output, yes: bool, **query: Any) -> None:
    """Delete all dead letters, or those of a tenant or for a reason."""
    which = " and ".join(f"{name} {value}" for name, value in query.items() if value is not None)
    confirm(yes, f"Delete the dead letters of {which}?" if which else "Delete all dead letters?")
    output.one(api.ask("DELETE", "dead-letters", query=query))


@admin.command("log-level")
@click.argument("level", type=click.Choice(get_args(Level)), required=False)
@asking
def log_level(api: Api, output: Output, level: str | None) -> None:
    """Show the log level, or set it until the next reload or restart."""
    import json

    if level is None:
        output.one(api.ask("GET", "log-level"))
    else:
        output.one(api.ask("PUT", "log-level", body=json.dumps({"level": level}).encode()))


@admin.command("config")
@asking
def configuration(api: Api, output: Output) -> None:
    """Show the configuration in force, without secrets."""
    output.one(api.ask("GET", "configuration"))


def with_event(fields: dict[str, str | None], event: str) -> bytes:
    """Return a request body with an event, byte for byte as it was given."""
    import msgspec

    from broker.wire.events import TOMBSTONE

    raw = event.encode(errors="surrogateescape") or TOMBSTONE
    return msgspec.json.encode({**fields, "event": msgspec.Raw(raw)})


def confirm(yes: bool, question: str) -> None:
    """Ask for confirmation unless --yes was given. Without a terminal, abort."""
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to confirm this on: add --yes.")
    click.confirm(question, abort=True)
