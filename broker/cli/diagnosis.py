"""`broker explain`, `broker trace`, `broker admin closes`, `broker admin audit`: find out why."""

from __future__ import annotations

import functools
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import click

from broker.cli import options
from broker.cli.admin import LIMIT, TENANT, admin, asking, pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.cli.api import Api
    from broker.cli.tables import Output

STEPS = ("step", "ok", "detail")
CLOSES = ("ended", "tenant", "user", "peer", "seconds", "code", "by", "reason", "position")
RECORDS = ("time", "kind", "tenant", "user", "peer", "what")
HOUR = 3600.0
MOST = 100_000  # lines of a trace
TOKEN = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)


# Not --token: here that is the client's.
looking = functools.partial(asking, option="--admin-token-file")


@click.command()
@click.option("--token", "given", metavar="T", help="The client's token; - reads it from standard input.")
@click.option("--token-file", "file", type=TOKEN, help="The client's token, in a file.")
@click.option("--channel", metavar="C", required=True, help="A channel or pattern, as a client writes it.")
@click.option("--publish", is_flag=True, help="Ask whether the token may publish, not subscribe.")
@click.option("--change", is_flag=True, help="Ask whether the token may change the document.")
@click.option("--tenant", metavar="T", help="The tenant that a monitoring token is used for.")
@looking
def explain(api: Api, output: Output, given: str | None, file: Path | None, **question: Any) -> None:
    """Explain step by step whether a token may use a channel on the running broker.

    The exit code is 0 when it may and 1 when it may not. Other users of the machine can see a token on the
    command line: prefer `--token -` or --token-file.
    """
    import json

    from broker.errors import Forbidden

    if (given is None) == (file is None):
        raise click.UsageError("Give the client's token by --token or --token-file.")
    token = file.read_text(errors="replace") if file else sys.stdin.read() if given == "-" else str(given)
    body = json.dumps({"token": token.strip(), **question}).encode()
    answer = api.ask("POST", "explain", body=body)
    output.many(answer, "steps", STEPS)
    if not answer["allowed"]:
        verb = next((name for name in ("change", "publish") if question[name]), "subscribe")
        raise Forbidden(f"not allowed to {verb}: {failed(answer['steps'], verb)}")


def failed(steps: list[dict[str, Any]], verb: str) -> str:
    """Return the step that decided: the one asked about, or the one that failed before it."""
    asked = [each for each in steps if each["step"] == verb]
    return str((asked or steps)[-1]["detail"])


@click.command()
@options.tenant
@click.option(
    "--channel",
    metavar="PATTERN",
    type=options.pattern,
    default=">",
    show_default=True,
    help="Which channels.",
)
@click.option("--count", type=click.IntRange(1, MOST), metavar="N", default=MOST, help="End after N lines.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, HOUR),
    metavar="S",
    default=HOUR,
    help="End after so long (at most an hour).",
)
@looking
def trace(api: Api, output: Output, tenant: str, channel: str, count: int, seconds: float) -> None:
    """Follow a tenant's next events: whether each was accepted, for whom, and what each connection got.

    `>` is every stored channel that is not private, `live.>` every live one. Prints a line for each event,
    and below it a line for each connection that did not simply receive it; JSON for programs. Ctrl-C ends
    it.
    """
    import json

    from broker.errors import Unavailable

    query = {"tenant": tenant, "channel": channel, "limit": count, "seconds": seconds}
    ended = False
    try:
        for line in api.lines("trace", query=query, seconds=seconds):
            texts = [json.dumps(line)] if output.as_json else list(told(line))
            for text in texts:
                click.echo(text)
            sys.stdout.flush()
            ended = line["kind"] == "end"
    except KeyboardInterrupt:
        return
    if not ended:
        raise Unavailable(f"{api.url} ended the trace early: is the broker still running?")


def told(line: dict[str, Any]) -> Iterator[str]:
    """Yield a line of a trace in readable form."""
    from broker.cli.tables import shown

    match line["kind"]:
        case "tracing":
            yield f"following {line['channel']} of {line['tenant']} after {line['position']}; Ctrl-C ends"
        case "event":
            everybody = ", to every tenant" if line["broadcast"] else ""
            yield shown(f"{head(line)}, {line['form']}{everybody} → {outcomes(line)}")
            for each in line["audiences"]:
                if each["denied"] or each["filtered"]:
                    why = "denied" if each["denied"] else "filtered out"
                    yield shown(f"    {each['pattern']}: {why} (connections: {each['connections']})")
            for each in line["connections"]:
                if each["outcome"] != "written":
                    yield shown(f"    {each['user']} {each['connection']} {each['pattern']}: {fate(each)}")
        case "dead_letter":
            yield shown(f"{head(line)} → dead letter: {line['reason']}, {line['detail']}")
        case "missed":
            yield f"{line['count']} more arrived too fast to be traced"
        case "end":
            yield f"ended: --{'count' if line['reason'] == 'limit' else 'seconds'} is reached"


def head(line: dict[str, Any]) -> str:
    """Return time, channel, position and size of a traced message."""
    from datetime import datetime

    time = datetime.fromtimestamp(line["time"]).astimezone().isoformat(timespec="milliseconds")[11:23]
    return f"{time} {line['channel']} {line['position'] or 'live'} {line['bytes']} bytes"


def outcomes(line: dict[str, Any]) -> str:
    if not line["outcomes"]:
        return "nobody subscribes to it here"
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in line["outcomes"].items())


def fate(each: dict[str, Any]) -> str:
    behind = each["events_behind"]
    far = f", {behind} events" if behind is not None else ""
    return f"{each['outcome'].replace('_', ' ')}{far} (lag {each['lag']})"


@admin.command()
@TENANT
@click.option("--user", metavar="U", help="Of this user.")
@click.option("--code", type=int, metavar="N", help="Only those with this close code.")
@LIMIT
@asking
def closes(api: Api, output: Output, **query: Any) -> None:
    """List how the last connections ended, the newest first."""
    query["limit"] = min(query["limit"], 1000)
    output.many(api.ask("GET", "closes", query=query), "closes", CLOSES)


@admin.command()
@TENANT
@click.option("--kind", metavar="K", help="authenticated, renewed, ended, refused, changed or admin.")
@click.option(
    "--since",
    type=options.time,
    metavar="TIME",
    help="Since a time: RFC 3339, or how long ago (10m, 2h, 7d).",
)
@LIMIT
@asking
def audit(api: Api, output: Output, limit: int, **query: Any) -> None:
    """List the audit trail of all brokers, the newest first."""
    found = pages(api, "records", limit, "audit", start="cursor", **query)
    if output.as_json:
        output.document(found)
    else:
        output.many({"records": [summed(record) for record in found["records"]]}, "records", RECORDS)


def summed(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as a row; fields without a column of their own go into `what`."""
    rest = {name: value for name, value in record.items() if name not in (*RECORDS, "broker", "transport")}
    what = ", ".join(f"{name} {value}" for name, value in rest.items())
    return {**dict.fromkeys(RECORDS), **record, "what": what}
