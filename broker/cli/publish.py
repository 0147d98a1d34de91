"""`broker publish`: one event, or one for each line of standard input."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import attrs
import click

from broker.cli import options
from broker.errors import BrokerError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from pathlib import Path
    from typing import Any

    from broker import config
    from broker.client import Publisher, Stored

    Store: TypeAlias = Callable[[bytes], Coroutine[Any, Any, Stored | None]]
    Begun: TypeAlias = asyncio.Queue[tuple[int, Awaitable[Stored | None]] | None]

IN_FLIGHT = 256
LINE_BYTES = 64 * 1024 * 1024  # NATS carries nothing larger
STANDARD_INPUT = "-"


@click.command()
@click.argument("channel", type=options.channel)
@click.argument("event", metavar="[JSON]", type=options.event, default=STANDARD_INPUT)
@options.tenant
@click.option("--id", "event_id", metavar="ID", help="Makes a retry harmless: the same id is stored once.")
@click.option(
    "--url",
    "--nats",
    "url",
    metavar="nats://…",
    help="The address of NATS; default: that of the broker on this machine.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print failures only.")
@options.data_dir
def publish(
    channel: str,
    event: str,
    tenant: str,
    event_id: str | None,
    url: str | None,
    quiet: bool,
    data_dir: Path | None,
) -> None:
    """Publish JSON into CHANNEL as a service does, through NATS.

    Without JSON, or with -, each line of standard input is an event; blank lines are skipped. Results are
    printed in the order of the lines. The first failure is reported, nothing after it is sent, and the exit
    code is 1. The empty text '' is a tombstone; the tenant _all is every tenant.
    """
    from broker import config, log
    from broker.cli import local

    if event == STANDARD_INPUT and event_id is not None:
        raise click.UsageError("--id is for one event; give its JSON as an argument.")
    settings = config.load(None, os.environ, production=False)
    log.configure(settings.log)
    address = url or local.running(local.find_data_dir(data_dir, os.environ), "nats")
    report = Report(channel, quiet)

    async def run() -> None:
        async with await connect(address, settings) as publisher:
            store = partial(publisher.publish, tenant, channel)
            if event == STANDARD_INPUT:
                if sys.stdin.isatty():
                    click.echo("Reading events, one a line, until Ctrl-D.", err=True)
                with report.progress():
                    await store_lines(store, report)
            else:
                report.add(await store(event.encode(), event_id=event_id))

    asyncio.run(run())
    if report.failures:
        raise SystemExit(1)


async def connect(address: str, settings: config.Config) -> Publisher:
    from broker.client import Publisher
    from broker.subjects import Names

    names = Names(**attrs.asdict(settings.subjects))
    try:
        # No reconnecting: a retry could overtake later events.
        return await Publisher.connect(
            address, names=names, event_bytes=settings.limits.event_bytes, reconnect=False
        )
    except Unavailable as error:
        hint = "start a broker with `broker dev`, or give the address of NATS with --url"
        raise Unavailable(f"{error.message}: {hint}") from error


async def store_lines(store: Store, report: Report) -> None:
    """Store each line of standard input, a bounded number at a time, until the first failure."""
    begun: Begun = asyncio.Queue()
    room = threading.Semaphore(IN_FLIGHT)

    def begin(number: int, line: bytes) -> None:
        if not report.failures:
            begun.put_nowait((number, asyncio.ensure_future(store(line))))

    hand_over = asyncio.get_running_loop().call_soon_threadsafe
    # A read from a terminal or pipe may wait for ever; a daemon thread does not keep the process for it.
    threading.Thread(target=read_lines, args=(hand_over, begin, begun, room), daemon=True).start()
    number = 0
    while not (report.failures and begun.empty()) and (item := await begun.get()) is not None:
        number, result = item
        try:
            report.add(await result)
        except BrokerError as error:
            report.fail(number, error)
        room.release()
    if report.failures:
        click.echo(f"{report.stored} stored; nothing after line {number} was sent", err=True)


def read_lines(
    hand_over: Callable[..., object],
    begin: Callable[[int, bytes], None],
    begun: Begun,
    room: threading.Semaphore,
) -> None:
    """Queue the lines of standard input as there is room, then None."""
    # Not sys.stdin, whose lock the interpreter takes when it ends. RuntimeError: the loop has ended first.
    with suppress(RuntimeError), closing(os.fdopen(0, "rb", closefd=False)) as source:
        for number, line in enumerate(iter(partial(source.readline, LINE_BYTES), b""), 1):
            if not line.isspace():
                room.acquire()
                hand_over(begin, number, line.strip())
        hand_over(begun.put_nowait, None)


@attrs.define(eq=False)
class Report:
    """The report on each event: stored ones on standard output, failures on standard error."""

    channel: str
    quiet: bool
    stored: int = 0
    failures: int = 0
    advance: Callable[[], None] = lambda: None

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show a counter on standard error if that is a terminal and the results go elsewhere."""
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn

        shown = sys.stderr.isatty() and (self.quiet or not sys.stdout.isatty())
        columns = SpinnerColumn(), "{task.completed} events"
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
            self.advance = partial(bar.advance, bar.add_task("", total=None))
            yield

    def add(self, stored: Stored | None) -> None:
        self.stored += 1
        self.advance()
        if not self.quiet:
            click.echo(f"{self.channel} {place(stored)}")

    def fail(self, number: int, error: BrokerError) -> None:
        self.failures += 1
        click.echo(f"line {number}: {error.message}", err=True)


def place(stored: Stored | None) -> str:
    if stored is None:
        return "sent; a live channel is not stored"
    return f"stored at {stored.sequence}{' before, under the same id' if stored.duplicate else ''}"
