"""`broker serve`: run the broker in production."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import click

from broker.cli import options

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.option("--config", "file", type=options.FILE, required=True, help="The configuration, in TOML.")
@options.listen
@options.admin_listen
@options.data_dir
def serve(file: Path, listen: str | None, admin_listen: str | None, data_dir: Path | None) -> None:
    """Run the broker in production until SIGTERM or SIGINT. SIGHUP reloads the configuration.

    Options override the environment, which overrides the file.
    """
    hold_hangups()
    from functools import partial

    import attrs
    import trio

    from broker import app, config, log

    def read() -> config.Config:
        settings = config.load(file, os.environ, production=True)
        server = settings.server
        server = attrs.evolve(
            server,
            listen=listen or server.listen,
            admin_listen=admin_listen or server.admin_listen,
            data_dir=(data_dir or server.data_dir or config.default_data_dir()).absolute(),
        )
        return attrs.evolve(settings, server=server)

    settings = read()
    log.configure(settings.log)
    where = settings.server.data_dir or config.default_data_dir()
    trio.run(partial(app.serve, settings, data_dir=where, on_ready=lambda _: None, read=read))


def hold_hangups() -> None:
    """Block SIGHUP until the broker handles it. By default it would end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Ignored while the broker stops. Not by SIG_IGN, which children would inherit.
    signal.signal(signal.SIGHUP, lambda *_: None)
