"""The documentation: one Markdown file per page, next to this one.

`broker help` prints the pages and the ports serve them, so that an installed broker explains itself. A page
begins with its title, `# …`, and a sentence about itself. Its links to other pages and to files of the
repository are relative to its file.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import attrs

from broker.docs.sections import COMMENT

NAMES = (
    "protocol",
    "clients",
    "documents",
    "tokens",
    "nats",
    "operate",
    "results",
    "architecture",
)  # as listed
DIRECTORY = Path(__file__).parent
# Diagrams are for viewers that draw them; the text next to each has the same figures.
DIAGRAM = re.compile(r"^```mermaid\n.*?^```\n\n?", re.MULTILINE | re.DOTALL)


@attrs.frozen(kw_only=True)
class Page:
    """A page, in Markdown without its diagrams and comments."""

    name: str
    title: str
    summary: str
    text: str


@cache
def page(name: str) -> Page:
    """Return a page by its name, one of `NAMES`."""
    text = (DIRECTORY / f"{name}.md").read_text(encoding="utf-8")
    title, summary, _ = text.split("\n\n", 2)
    return Page(
        name=name,
        title=title.removeprefix("# "),
        summary=summary,
        text=COMMENT.sub("", DIAGRAM.sub("", text)),
    )


def pages() -> list[Page]:
    """Return all pages, in the order in which they are listed."""
    return [page(name) for name in NAMES]


def nearest(name: str) -> list[str]:
    """Return the names of the pages that begin with `name`, or else are spelt much like it."""
    begin = [each for each in NAMES if name and each.startswith(name.lower())]
    return begin or get_close_matches(name.lower(), NAMES, n=2, cutoff=0.5)
