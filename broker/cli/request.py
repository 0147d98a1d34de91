"""`broker request`: ask a service as a client does, and print its answer."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from broker.cli import connecting, options, tables

if TYPE_CHECKING:
    from pathlib import Path

    from broker.client import Session
    from broker.errors import BrokerError

STANDARD_INPUT = "-"
# What to do next, by the code.
ADVICE = {
    "unavailable": "no service has received it; start one that answers, and repeat the request",
    "timeout": "find out whether it has acted before you repeat the request",
    "rejected": "the service says so itself; correct the request",
    "bad_answer": "correct the service, which may have acted on the request",
    "forbidden": "a token may ask what `broker token --request PATTERN` says",
    "too_large": "send less, or raise limits.message_bytes of the broker",
    "unknown_type": "this broker offers no requests; update it",
}


@click.command()
@click.argument("method", type=options.method)
@click.argument("data", metavar="[JSON]", default="null", type=options.json)
@click.option(
    "--timeout",
    type=options.answer_time,
    metavar="5s|500ms|…",
    default="5s",
    show_default=True,
    help="How long to wait for the answer, at most 30s.",
)
@click.option("--id", "request_id", metavar="ID", help="By which the service recognises a repetition.")
@options.tenant
@options.user
@connecting.token
@connecting.url
@options.data_dir
@click.pass_context
def request(
    context: click.Context,
    method: str,
    data: str,
    timeout: float,
    request_id: str | None,
    tenant: str,
    user: str,
    token: str | None,
    url: str | None,
    data_dir: Path | None,
) -> None:
    """Ask the service that answers on METHOD, and print its answer as JSON.

    With - the JSON is read from standard input; without JSON it is null. The request is sent once. An error
    is printed on standard error with its code and what to do next, and the exit code is 1.
    """
    import msgspec
    import trio

    from broker.errors import BrokerError

    session = connecting.open_session(
        context, tenant=tenant, user=user, token=token, url=url, data_dir=data_dir
    )
    body = sys.stdin.buffer.read() if data == STANDARD_INPUT else data.encode(errors="surrogateescape")

    async def run() -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            nursery.start_soon(watch, session)
            try:
                return await ask()
            finally:
                nursery.cancel_scope.cancel()

    async def ask() -> Any:
        try:
            return await session.request(method, body, timeout=timeout, id=request_id)
        except BrokerError as error:
            raise explained(error) from error

    click.echo(msgspec.json.encode(trio.run(run)))


async def watch(session: Session) -> None:
    """Raise if the first connection fails: another would meet the same, and later than now."""
    from broker.client import Message, Reconnecting, SessionEnded
    from broker.errors import BrokerError

    met = False
    with suppress(SessionEnded):  # the request ends with it too
        async for item in session:
            if isinstance(item, Message) and item.type == "connection.authenticated":
                return
            if isinstance(item, Reconnecting):
                raise BrokerError(item.reason) if met else connecting.no_broker(session, item.reason)
            met = True


def explained(error: BrokerError) -> BrokerError:
    """Return the error with its code, and what to do next."""
    from broker.client import SessionEnded
    from broker.errors import BrokerError, Rejected

    if isinstance(error, SessionEnded):
        return error
    status = f" ({error.status})" if isinstance(error, Rejected) and error.status is not None else ""
    advice = f"; {ADVICE[error.code]}" if error.code in ADVICE else ""
    return BrokerError(f"{error.code}{status}: {tables.shown(error.message)}{advice}")
