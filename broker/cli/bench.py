"""`broker bench`: measure the broker and others on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from broker.cli import options

if TYPE_CHECKING:
    from broker.bench.catalogue import Scenario
    from broker.bench.run import Address


def scenarios() -> dict[str, Scenario]:
    from broker.bench.catalogue import SCENARIOS

    return SCENARIOS


class Names(click.ParamType[str]):
    """The name of a scenario. Scenarios are imported late: no other command needs them."""

    name = "scenario"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in scenarios():
            self.fail(f"{value!r} is none of {', '.join(scenarios())}", param, ctx)
        return value


class BenchCommand(click.Command):
    """A command that lists the scenarios at the end of its help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click gives it
        with formatter.section("Scenarios"):
            formatter.write_dl([(name, each.about) for name, each in scenarios().items()])


@click.command(cls=BenchCommand)
@click.argument("scenario", type=Names())
@click.option("--clients", type=click.IntRange(1, 100_000), metavar="N", help="So many clients.")
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 1e6),
    metavar="EVENTS/S",
    help="Events per second, for scenarios that have a rate.",
)
@click.option("--size", type=click.IntRange(64, 1 << 20), metavar="BYTES", help="Of an event's JSON.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), metavar="S", help="Length of each phase.")
@click.option("--rounds", type=click.IntRange(1, 100), metavar="N", help="How often each phase is repeated.")
@click.option("--tenants", type=click.IntRange(1, 10_000), metavar="N", help="Of `mixed`.")
@click.option("--brokers", type=click.IntRange(1, 64), metavar="N", help="Broker processes on one port.")
@click.option("--events", type=click.IntRange(1000, 10**8), metavar="N", help="Of `history` and `pages`.")
@click.option(
    "--seed", type=int, default=1, show_default=True, metavar="N", help="Seed of everything random."
)
@click.option(
    "--against",
    multiple=True,
    metavar="WHOM",
    help="nats-ws, floor, trio-websocket, nats-py, ws://… (handshakes), or none; by default all that fit.",
)
@click.option("--url", metavar="ws://…", help="Measure this running broker instead of starting one.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all results to this file, as JSON.",
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with plots to this file.",
)
@click.option(
    "--page",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Write the scenario's section of this page of results, in Markdown.",
)
@options.data_dir
def bench(
    scenario: str,
    seed: int,
    against: tuple[str, ...],
    url: str | None,
    json_file: Path | None,
    html_file: Path | None,
    page: Path | None,
    data_dir: Path | None,
    **given: float | None,
) -> None:
    """Put a load on a broker and on others, in turn and over loopback, and compare them.

    It starts everything itself: a nats-server, a broker, what it is compared with, and the processes that
    publish and receive. With --url the broker is one of yours (`broker dev`, or --data-dir), with the limits
    that it has.
    """
    from rich.console import Console

    from broker.bench import html, report, run
    from broker.docs import sections

    which = scenarios()[scenario]
    wanted = list(which.beside) if not against else [each for each in against if each != "none"]
    for each in wanted:
        if each not in which.beside and not (each.startswith("ws://") and scenario in run.HANDSHAKES):
            known = ", ".join(which.beside) or "nothing"
            raise click.BadParameter(f"{scenario} can be compared with: {known}", param_hint="--against")
    parameters = {**which.defaults, **{name: value for name, value in given.items() if value is not None}}
    plan = run.Plan(seed=seed, against=wanted, **parameters)
    console = Console(stderr=True)
    if page:
        try:
            sections.split(page, f"bench {scenario}")  # said before the run, and not after it
        except sections.NoSection as error:
            raise click.BadParameter(str(error), param_hint="--page") from None
    at = at_address(url, data_dir) if url else None
    found = run.bench(scenario, which, plan, console, at)
    report.show(found, Console())
    for file, text in ((json_file, report.to_json(found)), (html_file, html.to_html(found).encode())):
        if file:
            file.write_bytes(text)
            console.print(f"written: {file}")
    if page:
        sections.write(page, f"bench {scenario}", report.section(found))
        console.print(f"written: {page}")


def at_address(url: str, data_dir: Path | None) -> Address:
    """Return the broker at an address, with the key and the NATS of the data directory."""
    from broker.bench.contenders import BrokerProcess
    from broker.bench.run import Address
    from broker.cli import local

    parts = urlsplit(url)
    if parts.scheme != "ws" or not parts.hostname:
        raise click.BadParameter(f"{url!r} is not ws://HOST[:PORT]", param_hint="--url")
    where = local.find_data_dir(data_dir, os.environ)
    here = url.rstrip("/") in (local.running(where, "ws"), local.running(where, "ws").removesuffix("/ws"))
    broker = BrokerProcess(
        pids=(int(local.running(where, "pid")),) if here else (),
        host=parts.hostname,
        port=parts.port or 80,
        admin=local.running(where, "admin") if here else "",
        auth=local.signing(where, os.environ).auth,
    )
    return Address(broker=broker, nats=local.running(where, "nats"))
