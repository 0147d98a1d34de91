"""The documentation on the admin port, and in development on the public port."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

import pytest

from broker import docs
from broker.web import docs as web_docs
from broker.web.site import Site
from tests.web.harness import running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.web.harness import Answer, Running

    Ask = Callable[[bytes], Awaitable[Answer]]

PAGES = [f"/docs/{name}" for name in docs.NAMES]
SERVED = ["/docs", "/palette.css", "/docs.css", *PAGES]
REFERENCE = re.compile(r'(?:href|src)="([^"]*)"')
NAMED = re.compile(r' id="([^"]*)"')


def request(method: str, path: str, *headers: str, host: str = "localhost") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


@pytest.mark.parametrize("path", SERVED)
async def test_on_the_admin_port(ask: Ask, path: str) -> None:
    """Without a token, like the metrics; nothing of it may run a script or load from elsewhere."""
    answer = await ask(request("GET", path))
    assert answer.status == 200
    kind = "text/css" if path.endswith(".css") else "text/html"
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    head = await ask(request("HEAD", path))
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.body))
    again = await ask(request("GET", path, f"If-None-Match: {answer.headers['etag']}"))
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/docs/", "/docs/nothing", "/docs/protocol.md", "/docs/__init__.py", "/docs/../x"]
)
async def test_nothing_else(ask: Ask, path: str) -> None:
    """What is no page is no path."""
    answer = await ask(request("GET", path))
    assert answer.status == 404
    assert path in answer.problem["detail"]
    head = await ask(request("HEAD", path))
    assert (head.status, head.body) == (404, b"")


async def test_other_methods_and_hosts(ask: Ask) -> None:
    """They are read only, and under the port's own names."""
    assert (await ask(request("POST", "/docs"))).status == 405
    assert (await ask(request("GET", "/docs", host="elsewhere.example"))).status == 421


async def test_in_development() -> None:
    """The public port serves the same pages."""
    async with running(site=Site(sign="{} {}".format)) as run:
        for path in SERVED:
            assert (await run.ask(request("GET", path))).status == 200
            head = await run.ask(request("HEAD", path))
            assert (head.status, head.body) == (200, b"")
        assert (await run.ask(request("GET", "/docs/nothing"))).status == 404


async def test_not_in_production(port: Running) -> None:
    """The public port of a product has none of it."""
    for path in SERVED:
        assert (await port.ask(request("GET", path))).status == 404
        assert (await port.ask(request("HEAD", path))).status == 404


async def test_every_link_is_served(ask: Ask) -> None:
    """Each reference of each page leads to a page, and to a heading that it has."""
    pages = {path: (await ask(request("GET", path))).body.decode() for path in ("/docs", *PAGES)}
    names = {path: NAMED.findall(text) for path, text in pages.items()}
    wrong = []
    for path, text in pages.items():
        assert len(set(names[path])) == len(names[path])
        for link in map(html.unescape, REFERENCE.findall(text)):
            if link.startswith(("https://", "data:")) or link[1:] in web_docs.STYLES:
                continue
            target, _, heading = link.partition("#")
            target = target or path
            if target not in pages or (heading and heading not in names[target]):
                wrong.append((path, link))
    assert wrong == []
    listed = REFERENCE.findall(pages["/docs"].partition("<main>")[2].partition("</main>")[0])
    assert listed == PAGES


def test_markup_is_text() -> None:
    """Nothing in a page becomes an element that Markdown has not."""
    text = "# A <b>\n\n<script>x</script> [a](javascript:x) `<i>` [b](../errors.py) [c](protocol.md#names)\n"
    body, (heading,) = web_docs.to_html(text)
    assert body == (
        '<h1 id="a-b">A &lt;b&gt;</h1>\n<p>&lt;script&gt;x&lt;/script&gt; [a](javascript:x)'
        ' <code>&lt;i&gt;</code> b <a href="/docs/protocol#names">c</a></p>\n'
    )
    assert (heading.level, heading.text, heading.name) == (1, "A <b>", "a-b")


def test_equal_headings_have_names_of_their_own() -> None:
    """As on GitHub: the second one is numbered."""
    _, found = web_docs.to_html("## `a` and B, c\n\n## a and b c\n")
    assert [each.name for each in found] == ["a-and-b-c", "a-and-b-c-1"]


def test_tables_can_be_scrolled() -> None:
    """A table that is wider than the window moves within the page, also by keyboard."""
    body, _ = web_docs.to_html("| a | b |\n|---|---|\n| 1 | 2 |\n")
    assert body.startswith('<div class="table" tabindex="0"><table>')
    assert body.endswith("</table></div>\n")
