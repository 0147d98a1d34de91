"""`broker help`: print a page of the documentation."""

from __future__ import annotations

import re
import sys

import click

# Targets that only a reader of the repository can follow.
RELATIVE = re.compile(r"\[([^]]+)\]\((?!https?:)[^)]*\)")
WIDEST = 110  # columns of text


@click.command("help")
@click.argument("topic", required=False)
@click.pass_context
def help_(context: click.Context, topic: str | None) -> None:
    """Print a page of the documentation; without TOPIC, list the pages."""
    from broker import docs

    if topic is None:
        width = max(map(len, docs.NAMES))
        for each in docs.pages():
            click.echo(f"{each.name:<{width}}  {each.summary}")
    elif topic in docs.NAMES:
        show(docs.page(topic).text)
    else:
        click.echo(unknown(topic, context), err=True)
        context.exit(2)


def unknown(topic: str, context: click.Context) -> str:
    """Return a sentence with the pages, or the command, that may have been meant."""
    from broker import docs

    group = context.parent.command if context.parent else None
    if isinstance(group, click.Group) and topic in group.commands:
        return f"There is no page {topic!r}; see `broker {topic} --help`."
    if near := docs.nearest(topic):
        return f"There is no page {topic!r}; did you mean {' or '.join(near)}?"
    return f"There is no page {topic!r}; there are {', '.join(docs.NAMES)}."


def show(text: str) -> None:
    """Print Markdown: formatted on a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    formatted = Markdown(RELATIVE.sub(r"\1", text), hyperlinks=False)
    console.print(formatted, width=min(console.width, WIDEST))
