"""`broker tail`: a WebSocket client that resumes, and prints one event per line."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from broker.cli import connecting, options

if TYPE_CHECKING:
    from pathlib import Path

    import trio

    from broker.client import Event, Message, Session

NO_BREAKS = bytes.maketrans(b"\r\n", b"  ")  # JSON has raw line breaks only between its tokens


def checked_filter(_: click.Context, __: click.Parameter, text: str | None) -> bytes | None:
    from broker.client.checks import filter_of
    from broker.errors import BrokerError

    if text is None:
        return None
    try:
        filter_of(text.encode(), {})
    except (BrokerError, ValueError) as error:
        raise click.BadParameter(str(error)) from None
    return text.encode()


@click.command()
@click.argument("patterns", metavar="PATTERN...", nargs=-1, required=True, type=options.pattern)
@click.option(
    "--since",
    type=options.time,
    metavar="TIME",
    help="Start at a time: RFC 3339, or how long ago (10m, 2h, 7d).",
)
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Start with the newest N events.")
@click.option("--snapshot", is_flag=True, help="Start with the newest event of each channel.")
@click.option("--position", metavar="P", help="Start after a position, as an earlier tail printed it.")
@click.option(
    "--filter",
    "wanted",
    metavar="JSON",
    callback=checked_filter,
    help='Only events that pass: \'{"/amount": {"gt": 100}}\'.',
)
@click.option(
    "--every",
    type=options.pace,
    metavar="TIME",
    help="Of each channel at most one event in a time (500ms, 2s), the newest.",
)
@options.tenant
@options.user
@connecting.token
@connecting.url
@click.option(
    "--json/--raw",
    "whole",
    default=True,
    help="Print an object with channel and position for each event, or its JSON alone.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@options.data_dir
@click.pass_context
def tail(
    context: click.Context,
    patterns: tuple[str, ...],
    since: str | None,
    last: int | None,
    snapshot: bool,
    position: str | None,
    wanted: bytes | None,
    every: int | None,
    tenant: str,
    user: str,
    token: str | None,
    url: str | None,
    whole: bool,
    count: int | None,
    data_dir: Path | None,
) -> None:
    """Print the events of channels and patterns as they come, until Ctrl-C.

    Each line is {"channel": …, "position": …, "event": …}, with "publisher" when a client published it;
    live events have no position. It resumes after a lost connection. Gaps and reconnections are reported on
    standard error. With a monitoring --token, --tenant is the tenant to monitor.
    """
    import trio

    starts = {"since": since, "last": last, "snapshot": snapshot, "position": position}
    start: dict[str, Any] = {name: value for name, value in starts.items() if value}
    if len(start) > 1:
        raise click.UsageError(f"--{' and --'.join(start)}: a subscription has one start.")
    if snapshot and wanted is not None:
        raise click.UsageError("--snapshot and --filter: a snapshot cannot be filtered.")
    session = connecting.open_session(
        context, tenant=tenant, user=user, token=token, url=url, data_dir=data_dir
    )

    async def run() -> None:
        await session.subscribe(*patterns, **start, filter=wanted, every_ms=every)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_by_signal, nursery.cancel_scope)
            nursery.start_soon(session.run)
            await follow(session, whole, count)
            nursery.cancel_scope.cancel()

    trio.run(run)


async def end_by_signal(scope: trio.CancelScope) -> None:
    import trio

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def follow(session: Session, whole: bool, count: int | None) -> None:
    """Print events until there were `count` of them, or the reader of the output is gone."""
    from broker.client import Event, Gap, Reconnecting

    met, printed = False, 0
    async for item in session:
        if isinstance(item, Event):
            printed += 1
            if not write(line(item, whole)) or printed == count:
                return
        elif isinstance(item, Gap):
            lost = "" if item.count is None else f", {item.count} events"
            tell(f"gap in {', '.join(item.channels)}: {item.reason}{lost}")
        elif not isinstance(item, Reconnecting):
            met = True
            notice(item)
        elif met:
            tell(f"{item.reason}; reconnecting in {item.after:.1f} s")
        else:
            raise connecting.no_broker(session, item.reason)


def line(event: Event, whole: bool) -> bytes:
    import msgspec

    data = event.data.translate(NO_BREAKS)
    if not whole:
        return data
    fields = {"channel": event.channel, "position": event.position, "publisher": event.publisher}
    shown = {name: value for name, value in fields.items() if value is not None}
    return msgspec.json.encode({**shown, "event": msgspec.Raw(data)})


def write(data: bytes) -> bool:
    """Write a line; return False when the reader is gone, as in `broker tail … | head -1`."""
    try:
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must not fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def notice(message: Message) -> None:
    """Report what is not an event. Raises `BrokerError` when the whole subscription was refused."""
    from broker.errors import BrokerError

    said = message.payload
    match message.type:
        case "source":
            tell("the broker lost NATS" if said["state"] == "interrupted" else "the broker has NATS again")
        case "connection.draining":
            tell("the broker is shutting down")
        case "subscribed":
            for refused in said["refused"]:
                tell(f"{refused['channel']}: refused, {refused['code']}")
        case "unsubscribed":
            tell(f"{names(said['channel'])}: ended, {said.get('code', 'unsubscribed')}")
        case "error" if message.message_id is not None and not said["retryable"]:
            raise BrokerError(said["message"])
        case "error" if said["retryable"]:
            tell(said["message"])


def names(channel: str | list[str]) -> str:
    return channel if isinstance(channel, str) else ", ".join(channel)


def tell(text: str) -> None:
    click.echo(text, err=True)
