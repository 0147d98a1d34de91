"""`broker token`: print a signed token."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from broker.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from broker.config import Config

EVERY_TENANT = "*"  # the default tenant of a monitoring token


@click.command()
@options.tenant
@options.user
@click.option(
    "--subscribe", metavar="PATTERN", multiple=True, help="A pattern that it may subscribe to; repeatable."
)
@click.option(
    "--publish", metavar="PATTERN", multiple=True, help="A pattern that it may publish to; repeatable."
)
@click.option(
    "--request",
    metavar="PATTERN",
    multiple=True,
    help="A pattern of methods that it may ask; repeatable.",
)
@click.option(
    "--change",
    metavar="PATTERN",
    multiple=True,
    help="A pattern of documents that it may change; repeatable.",
)
@click.option(
    "--presence",
    metavar="PATTERN",
    multiple=True,
    help="A pattern of channels, among those that it may subscribe to, where it may be present; repeatable.",
)
@click.option(
    "--observe",
    metavar="PATTERN",
    multiple=True,
    help="A pattern of channels where it may see who is present; repeatable.",
)
@click.option(
    "--deny",
    metavar="PATTERN",
    multiple=True,
    help="A pattern that it may neither subscribe nor publish to, nor request or change; repeatable.",
)
@click.option(
    "--ttl",
    type=options.duration,
    metavar="10m|2h|…",
    default="1h",
    show_default=True,
    help="How long it is valid.",
)
@click.option(
    "--monitoring", is_flag=True, help="A token that may subscribe in any tenant, and nothing else."
)
@click.option("--config", "file", type=options.FILE, help="Sign with a secret of this configuration.")
@click.option(
    "--key", metavar="NAME", help="The name of the key to sign with; default: the first suitable one."
)
@options.data_dir
def token(
    tenant: str,
    user: str,
    subscribe: tuple[str, ...],
    publish: tuple[str, ...],
    request: tuple[str, ...],
    change: tuple[str, ...],
    presence: tuple[str, ...],
    observe: tuple[str, ...],
    deny: tuple[str, ...],
    ttl: float,
    monitoring: bool,
    file: Path | None,
    key: str | None,
    data_dir: Path | None,
) -> None:
    """Print a token, signed with the key of `broker dev` or of a configuration.

    With --subscribe, --publish, --request, --change, --presence, --observe or --deny it may do what these say
    and no more ("me.>" is always allowed, and without --presence it may be present where it may subscribe);
    without them it has the broker's default permissions.
    """
    import time

    from broker.auth import tokens

    settings = signing_config(file, data_dir)
    if ttl > settings.limits.token_max_seconds:
        raise click.BadParameter(
            f"the broker accepts no token with a life of more than {settings.limits.token_max_seconds:g} s",
            param_hint="--ttl",
        )
    lists = {
        "subscribe": subscribe, "publish": publish, "request": request, "change": change,
        "presence": presence, "observe": observe, "deny": deny,
    }  # fmt: skip
    click.echo(
        tokens.sign(
            with_key(settings, key).auth,
            tenant=EVERY_TENANT if monitoring else tenant,
            user=user,
            now=time.time(),
            ttl=ttl,
            **{name: patterns or None for name, patterns in lists.items()},
        )
    )


def signing_config(file: Path | None, data_dir: Path | None) -> Config:
    from broker import config
    from broker.cli import local

    if file is not None:
        return config.load(file, os.environ, production=False)
    return local.signing(local.find_data_dir(data_dir, os.environ), os.environ)


def with_key(settings: Config, name: str | None) -> Config:
    """Return `settings` with the named key alone."""
    import attrs

    if name is None:
        return settings
    keys = tuple(key for key in settings.auth.keys if key.name == name)
    if not keys:
        known = ", ".join(key.name for key in settings.auth.keys) or "none"
        raise click.BadParameter(f"there is no key {name!r}; there are: {known}", param_hint="--key")
    return attrs.evolve(settings, auth=attrs.evolve(settings.auth, keys=keys))
