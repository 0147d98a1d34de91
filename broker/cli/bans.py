"""`broker admin revoke`, `suspend` and the like: keep tokens, users and tenants out, on every broker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from broker.cli import options
from broker.cli.admin import TENANT, YES, asking, confirm

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.cli.api import Api
    from broker.cli.tables import Output

BANS = ("kind", "tenant", "user", "token_id", "since", "until", "reason")
UNTIL = click.option(
    "--for",
    "until",
    type=options.from_now,
    metavar="1h|7d|…",
    help="How long. Default: a revocation until all present tokens have expired, a suspension until lifted.",
)
REASON = click.option("--reason", metavar="TEXT", default="", help="The reason that clients are given.")


def meant(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say whose tokens are meant."""
    for option in (
        click.option("--token-id", metavar="JTI", help="Only the token with this id (its claim `jti`)."),
        click.option("--user", metavar="U", help="The tokens of this user."),
        click.option("--tenant", metavar="T", required=True, help="The tenant; '*' for monitoring tokens."),
    ):
        command = option(command)
    return command


@click.command()
@TENANT
@asking
def revocations(api: Api, output: Output, tenant: str | None) -> None:
    """List the revocations and suspensions in force."""
    output.many(api.ask("GET", "revocations", query={"tenant": tenant}), "revocations", BANS)


@click.command()
@meant
@UNTIL
@REASON
@YES
@asking
def revoke(api: Api, output: Output, yes: bool, **wish: Any) -> None:
    """Revoke one token, or all of a user or tenant, and end their connections on every broker.

    A user or tenant may return with a token that is issued later.
    """
    if wish["user"] is None and wish["token_id"] is None:
        confirm(yes, f"Revoke all tokens of tenant {wish['tenant']}?")
    output.one(api.ask("POST", "revocations", body=json.dumps(wish).encode()))


@click.command()
@meant
@asking
def restore(api: Api, output: Output, **wish: Any) -> None:
    """Lift a revocation: tokens that have not expired are accepted again."""
    output.one(api.ask("DELETE", "revocations", query=wish))


@click.command()
@click.argument("tenant")
@UNTIL
@REASON
@YES
@asking
def suspend(api: Api, output: Output, tenant: str, yes: bool, **wish: Any) -> None:
    """Suspend a tenant: end its connections and refuse all of its tokens, on every broker."""
    confirm(yes, f"Suspend tenant {tenant} and end all of its connections?")
    output.one(api.ask("PUT", "tenants", tenant, "suspension", body=json.dumps(wish).encode()))


@click.command()
@click.argument("tenant")
@asking
def resume(api: Api, output: Output, tenant: str) -> None:
    """Lift the suspension of a tenant."""
    output.one(api.ask("DELETE", "tenants", tenant, "suspension"))


COMMANDS = (revocations, revoke, restore, suspend, resume)
