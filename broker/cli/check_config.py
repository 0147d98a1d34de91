"""`broker check-config`: report every fault, or print the effective configuration."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from broker.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from broker.config import Config


@click.command("check-config")
@click.argument("file", type=options.FILE)
def check_config(file: Path) -> None:
    """Report every fault of a configuration FILE, or print the effective configuration as TOML.

    The environment counts too. Secrets are never printed.
    """
    from broker import config
    from broker.config import exposure
    from broker.errors import ConfigError

    settings, faults = config.examine(file, os.environ, production=True)
    faults += access_faults(settings)
    faults += [f"{key}: {sentence}" for key, sentence in exposure.faults(settings.server)]
    if faults:
        raise ConfigError(faults)
    click.echo(config.effective(settings), nl=False)


def access_faults(settings: Config) -> list[str]:
    """Return the faults in keys and in patterns; each is checked even if the other has faults."""
    from broker.auth import admin as admin_token
    from broker.auth.keys import Keys
    from broker.auth.tokens import Verifier
    from broker.errors import ConfigError
    from broker.features.state import rules

    faults = []
    file = settings.server.admin_token_file
    readable = file if file and os.access(file, os.R_OK) else None  # else it is reported already
    for check in (
        lambda: settings.auth.keys and Keys.load(settings.auth),  # a missing key has been reported already
        lambda: readable and admin_token.read(readable, "server.admin_token_file"),
        lambda: Verifier(settings.auth, settings.limits, settings.permissions, Keys(())),
        lambda: rules.read(settings.state),
    ):
        try:
            check()
        except ConfigError as error:
            faults += error.faults
    return faults
