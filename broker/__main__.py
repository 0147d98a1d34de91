"""The command `broker`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from broker.cli import bans, documents, streams
from broker.cli.admin import admin
from broker.cli.bench import bench
from broker.cli.check_config import check_config
from broker.cli.dev import dev
from broker.cli.diagnosis import explain, trace
from broker.cli.help import help_
from broker.cli.publish import publish
from broker.cli.reload import reload
from broker.cli.request import request
from broker.cli.serve import serve
from broker.cli.tail import tail
from broker.cli.token import token
from broker.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Commands(click.Group):
    """Reports the broker's own errors as sentences on standard error, with exit code 1.

    And errors of the operating system, with the file and the reason.
    """

    def invoke(self, ctx: click.Context) -> Any:
        problems: list[BaseException] = []
        try:
            return super().invoke(ctx)
        except* (BrokerError, OSError) as group:
            problems.extend(leaves(group))
        for problem in problems:
            if isinstance(problem, BrokenPipeError):
                raise problem  # the reader has closed the pipe, which click handles
            click.echo(sentence(problem), err=True)
        return ctx.exit(1)


def sentence(problem: BaseException) -> str:
    if isinstance(problem, OSError) and problem.filename is not None:
        return f"{problem.filename}: {problem.strerror}"
    return str(problem)


def leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


for command in (*bans.COMMANDS, *streams.COMMANDS, documents.state):
    admin.add_command(command)


@click.group(
    cls=Commands,
    commands=[
        dev,
        serve,
        reload,
        check_config,
        token,
        publish,
        tail,
        request,
        bench,
        admin,
        explain,
        trace,
        help_,
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="nats-websocket-broker")
def main() -> None:
    """Forward events from NATS JetStream to WebSocket clients: in order, once, per tenant."""


if __name__ == "__main__":
    main()
