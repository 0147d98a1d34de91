"""The documentation as HTML."""

from __future__ import annotations

import html
import re
from collections import Counter
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio
from markdown_it import MarkdownIt

from broker import docs
from broker.http.responses import Response
from broker.links.route import GET, Route
from broker.web.files import revalidated

if TYPE_CHECKING:
    from collections.abc import Iterable

    from markdown_it.token import Token

    from broker.links.exchange import Exchange

INDEX = "/docs"
STYLES = "palette.css", "docs.css"  # the first one is the demo page's too
POLICY = (
    "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = (("X-Content-Type-Options", "nosniff"), ("Content-Security-Policy", POLICY))
PAGE = re.compile(r"(\w+)\.md(#.*)?")  # a link to another page
NEITHER = re.compile(r"[^\w\- ]")  # what GitHub leaves out of the name of a heading
FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · broker</title>
<link rel="icon" href="data:,">
{styles}
</head>
<body>
<header><a href="{index}">broker</a><nav aria-label="Pages">{pages}</nav></header>
<div class="columns">
<main>
{body}
</main>
<nav class="contents" aria-label="On this page">{contents}</nav>
</div>
</body>
</html>
"""


@attrs.frozen
class Heading:
    """A heading: its level, its text, and the name by which links refer to it."""

    level: int
    text: str
    name: str


def routes() -> list[Route[Exchange, Response]]:
    """Return the routes of the documentation: a list of its pages, each page, and their style sheets."""
    pages = {
        INDEX: partial(answer, None),
        **{f"{INDEX}/{name}": partial(answer, name) for name in docs.NAMES},
    }
    found = [Route(path=path, methods=GET, handle=handle) for path, handle in pages.items()]
    return [*found, *(Route(path=f"/{name}", methods=GET, handle=partial(style, name)) for name in STYLES)]


async def answer(name: str | None, exchange: Exchange) -> Response:
    """Answer with a page, or with the list of all."""
    body = await trio.to_thread.run_sync(rendered, name)  # the first time this takes up to 0.2 s
    return as_file(exchange, body, "text/html")


async def style(name: str, exchange: Exchange) -> Response:
    path = Path(__file__).parent / "static" / name
    return as_file(exchange, path.read_bytes(), "text/css")


def as_file(exchange: Exchange, body: bytes, kind: str) -> Response:
    media_type = f"{kind}; charset=utf-8"
    return revalidated(
        exchange.request, Response(status=200, body=body, media_type=media_type, headers=HEADERS)
    )


@cache
def rendered(name: str | None) -> bytes:
    """Return a page, or the list of all (None), as HTML."""
    if name is None:
        items = [f"- [{each.title}]({each.name}.md): {each.summary}\n" for each in docs.pages()]
        title, text = "Documentation", f"# Documentation\n\n{''.join(items)}"
    else:
        title, text = docs.page(name).title, docs.page(name).text
    body, headings = to_html(text)
    pages = "".join(
        f'<a href="{INDEX}/{each.name}"{current(each.name == name)}>{html.escape(each.title)}</a>'
        for each in docs.pages()
    )
    contents = "".join(
        f'<a class="level{each.level}" href="#{each.name}">{html.escape(each.text)}</a>'
        for each in headings
        if each.level in (2, 3)
    )
    styles = "\n".join(f'<link rel="stylesheet" href="/{each}">' for each in STYLES)
    return FRAME.format(
        title=html.escape(title), styles=styles, index=INDEX, pages=pages, body=body, contents=contents
    ).encode()


def current(is_current: bool) -> str:
    return ' aria-current="page"' if is_current else ""


def to_html(text: str) -> tuple[str, list[Heading]]:
    """Return Markdown as HTML, and its headings. HTML in it is text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", lambda *_: '<div class="table" tabindex="0"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(text)
    headings = named(tokens)
    for token in tokens:
        if token.children:
            token.children = linked(token.children)
    return parser.renderer.render(tokens, parser.options, {}), headings


def named(tokens: list[Token]) -> list[Heading]:
    """Give each heading its name as `id`, and return all headings."""
    found: list[Heading] = []
    seen: Counter[str] = Counter()
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(each.content for each in content.children or ())
            name = anchor(text)
            number, seen[name] = seen[name], seen[name] + 1
            name = f"{name}-{number}" if number else name
            opening.attrSet("id", name)
            found.append(Heading(int(opening.tag[1:]), text, name))
    return found


def anchor(text: str) -> str:
    """Return the name of a heading, as on GitHub."""
    return NEITHER.sub("", text.lower()).replace(" ", "-")


def linked(tokens: Iterable[Token]) -> list[Token]:
    """Return inline tokens with links to pages as these are served.

    What links to a file of the repository becomes text: a broker has no such files.
    """
    found: list[Token] = []
    served: list[bool] = []
    for token in tokens:
        if token.type == "link_open":
            target = str(token.attrGet("href"))
            if page := PAGE.fullmatch(target):
                token.attrSet("href", f"{INDEX}/{page[1]}{page[2] or ''}")
            served.append(bool(page) or target.startswith(("#", "https://")))
            if not served[-1]:
                continue
        elif token.type == "link_close" and not served.pop():
            continue
        found.append(token)
    return found
