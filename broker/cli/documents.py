"""`broker admin state`: documents, for operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker.cli import options
from broker.cli.admin import LIMIT, YES, asking, confirm, pages

if TYPE_CHECKING:
    from broker.cli.api import Api
    from broker.cli.tables import Output

DOCUMENTS = ("channel", "revision", "time", "publisher", "size", "invalid", "value")
OF = click.option("--tenant", metavar="T", required=True, help="Of this tenant.")
REVISION = click.option("--revision", metavar="R", help="Only if nothing has changed since this revision.")


@click.group()
def state() -> None:
    """List, show, replace and delete documents."""


@state.command("list")
@click.argument("pattern", default=">")
@OF
@LIMIT
@asking
def list_documents(api: Api, output: Output, pattern: str, tenant: str, limit: int) -> None:
    """List the documents of a tenant, those changed last at the end."""
    found = pages(api, "documents", limit, "documents", start="cursor", tenant=tenant, channel=pattern)
    output.many(found, "documents", DOCUMENTS)


@state.command("get")
@click.argument("channel")
@OF
@asking
def get(api: Api, output: Output, channel: str, tenant: str) -> None:
    """Show one document."""
    output.one(api.ask("GET", "documents", tenant, channel))


@state.command("set")
@click.argument("channel")
@click.argument("value", metavar="JSON", type=options.json)
@OF
@REVISION
@asking
def replace(api: Api, output: Output, channel: str, value: str, tenant: str, revision: str | None) -> None:
    """Replace a document as a whole, or make one. JSON may be "-": standard input.

    Neither its service nor a schema is asked.
    """
    import sys

    import msgspec

    raw = sys.stdin.buffer.read() if value == "-" else value.encode(errors="surrogateescape")
    body = msgspec.json.encode({"value": msgspec.Raw(raw), "revision": revision})
    output.one(api.ask("PUT", "documents", tenant, channel, body=body))


@state.command("delete")
@click.argument("channel")
@OF
@REVISION
@YES
@asking
def delete(api: Api, output: Output, channel: str, tenant: str, revision: str | None, yes: bool) -> None:
    """Delete a document. Clients that have it open see it go."""
    confirm(yes, f"Delete {channel} of {tenant}?")
    output.one(api.ask("DELETE", "documents", tenant, channel, query={"revision": revision}))
