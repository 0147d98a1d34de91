"""`broker dev`: a complete broker on this machine, without configuration."""

from __future__ import annotations

import os
import shlex
import socket
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from broker.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from broker.app import Running
    from broker.config import Config

HOST = "127.0.0.1"
PORTS = {"listen": 8080, "admin_listen": 8081}
NATS_PORT = 4222
TOKEN_SECONDS = 86400.0


@click.command()
@options.listen
@options.admin_listen
@options.data_dir
def dev(listen: str | None, admin_listen: str | None, data_dir: Path | None) -> None:
    """Run everything on loopback: nats-server, broker, a key, a demo page and a demo service.

    The data directory keeps the events and the key; `token`, `publish`, `tail` and `request` find the broker
    by it.
    BROKER_SECTION__KEY sets any key of the configuration.
    """
    import attrs
    import trio

    from broker import app, config, log
    from broker.cli import demo, local

    where = local.find_data_dir(data_dir, os.environ)
    local.make_key(where)
    settings = local.development(where, os.environ, **{name: preferred(port) for name, port in PORTS.items()})
    server = settings.server
    server = attrs.evolve(
        server, listen=listen or server.listen, admin_listen=admin_listen or server.admin_listen
    )
    settings = attrs.evolve(settings, server=server)
    log.configure(settings.log)
    beside = "" if where == config.default_data_dir() else f" --data-dir {shlex.quote(str(where))}"

    async def run() -> None:
        async with trio.open_nursery() as nursery:

            def ready(running: Running) -> None:
                nursery.start_soon(demo.serve, running.nats, settings)
                show(settings, beside, running)

            await app.serve(settings, data_dir=where, on_ready=ready, demo=True)
            nursery.cancel_scope.cancel()

    trio.run(run)


def preferred(port: int) -> str:
    """Return the usual address if it is free, else one with any free port."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return f"{HOST}:0"
    return f"{HOST}:{port}"


def show(settings: Config, beside: str, running: Running) -> None:
    """Print where everything is and what to try; `beside` is the option that other commands need."""
    import time

    from rich.console import Console

    from broker.auth import tokens

    token = tokens.sign(settings.auth, tenant="dev", user="dev", now=time.time(), ttl=TOKEN_SECONDS)
    console = Console(highlight=False, markup=False, soft_wrap=True)  # a token must stay on one line
    console.print("The broker is ready. Ctrl-C stops it.", style="bold")
    for name, value, usual in (
        ("Demo page", running.http + "/", PORTS["listen"]),
        ("Docs", running.http + "/docs", PORTS["listen"]),
        ("WebSocket", running.ws, PORTS["listen"]),
        ("HTTP", running.http, PORTS["listen"]),
        ("Admin", running.admin, PORTS["admin_listen"]),
        ("NATS", running.nats, NATS_PORT),
    ):
        other = "" if urlsplit(value).port in (usual, None) else f"  (instead of {usual})"
        console.print(f"  {name:<10} {value}{other}")
    console.print(f"  {'Data':<10} {settings.server.data_dir}")
    console.print(f"  {'Token':<10} {token}")
    console.print(f"  {'':<10} tenant dev, user dev, good for a day", style="dim")
    console.print("Try next, in another terminal:", style="bold")
    console.print(f"  broker tail 'orders.>'{beside}")
    console.print(f'  broker publish orders.7 \'{{"state":"new"}}\'{beside}')
    console.print(f"  broker request demo.echo '[1, 2]'{beside}")
    console.print(f"  broker admin connections{beside}")
    console.file.flush()
