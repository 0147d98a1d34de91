"""`broker publish`: one event, or one for each line of standard input."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import attrs
import click

from broker.cli import options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from rich.progress import Progress

    from broker.client import Publisher, Stored

IN_FLIGHT = 256
LINE_BYTES = 64 * 1024 * 1024  # NATS carries nothing larger
STANDARD_INPUT = "-"

Store: TypeAlias = "Callable[[bytes], Awaitable[Stored | None]]"


@click.command()
@click.argument("channel", type=options.CHANNEL)
@click.argument("event", metavar="[JSON]", default=STANDARD_INPUT)
@options.tenant
@click.option("--id", "event_id", metavar="ID", help="Makes a retry harmless: the same id is stored once.")
@click.option("--url", "--nats", "url", metavar="nats://…", help="Where NATS is, when not beside the broker.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing when all goes well.")
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
    """Publishes JSON into CHANNEL of a tenant, as a service does: through NATS.

    Without JSON, or with -, each line of standard input is an event. Each is reported once it is stored;
    at the first that fails it reads no further, says which line it was, and ends with 1. The tenant _all
    is every tenant. Event bytes are passed on untouched.
    """
    from broker import config
    from broker.cli import local

    if event == STANDARD_INPUT and event_id is not None:
        raise click.UsageError("--id is for one event; give its JSON as an argument.")
    settings = config.load(None, os.environ, production=False)
    address = url or local.running(local.find_data_dir(data_dir, os.environ), "nats")
    report = Report(channel, quiet)
    asyncio.run(run(settings, address, tenant, channel, event, event_id, report))


async def run(
    settings: config.Config,
    address: str,
    tenant: str,
    channel: str,
    event: str,
    event_id: str | None,
    report: Report,
) -> None:
    from broker.client import Publisher
    from broker.subjects import Names

    names = Names(**attrs.asdict(settings.subjects))
    publisher = await Publisher.connect(
        address, names=names, event_bytes=settings.limits.event_bytes, reconnect=False
    )
