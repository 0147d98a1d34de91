"""What the commands share that are a client of the broker: its address, a token, and the session."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    from pathlib import Path

    from broker.client import Session
    from broker.client.calls import Token
    from broker.errors import Unavailable

TOKEN_SECONDS = 3600.0  # another is signed for each connection and before expiry

token = click.option(
    "--token", metavar="T", help="The token to use; else one is signed with the key of `broker dev`."
)
url = click.option("--url", metavar="ws://…", help="The address of the broker, if not on this machine.")


def open_session(
    context: click.Context,
    *,
    tenant: str,
    user: str,
    token: str | None,
    url: str | None,
    data_dir: Path | None,
) -> Session:
    """Return a session, not yet connected. With a monitoring token, `tenant` is the one to monitor."""
    from broker.cli import local
    from broker.client import Session

    where = local.find_data_dir(data_dir, os.environ)
    named = context.get_parameter_source("tenant") is click.core.ParameterSource.COMMANDLINE
    return Session(
        url=websocket(url or local.running(where, "ws")),
        token=given(token) if token else signer(where, tenant, user),
        tenant=tenant if token and named else None,
    )


def no_broker(session: Session, reason: str) -> Unavailable:
    """Return the error for a first connection that cannot be opened."""
    from broker.errors import Unavailable

    return Unavailable(f"no broker answers at {session.url} ({reason}): {remedy(reason)}")


def remedy(reason: str) -> str:
    """Return what to do about a first connection that failed."""
    if reason.startswith("TLS failed"):
        return "name the host of its certificate by --url, and its authority's file by SSL_CERT_FILE"
    return "start a broker with `broker dev`, or give its address with --url"


def websocket(url: str) -> str:
    """`url` with the path where it has none. Raises `click.BadParameter` when it is no WebSocket address."""
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise click.BadParameter(f"{url!r} is not ws://HOST[:PORT] or wss://HOST[:PORT]", param_hint="--url")
    return parts._replace(path=parts.path.rstrip("/") or "/ws").geturl()


def given(token: str) -> str:
    from broker.client.tokens import looked_at

    try:
        return looked_at(token)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--token") from None


def signer(data_dir: Path, tenant: str, user: str) -> Token:
    import time

    from broker.auth import tokens
    from broker.cli import local

    auth = local.signing(data_dir, os.environ).auth

    async def sign() -> str:
        return tokens.sign(auth, tenant=tenant, user=user, now=time.time(), ttl=TOKEN_SECONDS)

    return sign
