"""What the README and the pages of the documentation say of the repository and of each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from broker import client, docs
from broker.web.docs import to_html

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [ROOT / "broker" / "docs" / f"{name}.md" for name in docs.NAMES]
LINK = re.compile(r"\]\(([^)\s:]+)\)")  # of this repository: without a scheme
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CITED = re.compile(r"[Tt]he protocol page(?:, \"([^\"]+)\")?")
WRAPPED = re.compile(r"\s*\n\s*(?:(?:#|//|\*) )?")


def headings(path: Path) -> set[str]:
    return {each.name for each in to_html(path.read_text())[1]}


def leads_nowhere(path: Path, link: str) -> bool:
    name, _, heading = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    if not target.is_relative_to(ROOT) or not target.exists():
        return True
    return bool(heading) and heading not in headings(target)


@pytest.mark.parametrize("path", [README, *PAGES], ids=lambda path: path.stem)
def test_every_link_leads_somewhere(path: Path) -> None:
    """A file that has moved takes its line along, and so does a heading."""
    links = LINK.findall(path.read_text())
    assert [each for each in links if leads_nowhere(path, each)] == []


def test_files_and_pages_are_linked() -> None:
    """The README leads to each page, and the pages to the files of the repository."""
    linked = {(README.parent / each).resolve() for each in LINK.findall(README.read_text())}
    assert set(PAGES) <= linked
    assert len([each for path in PAGES for each in LINK.findall(path.read_text())]) > 50


def test_every_citation_of_the_protocol_page_resolves() -> None:
    """Code that cites the page names a heading, which is there."""
    known = {each.text for each in to_html(docs.page("protocol").text)[1]}
    cited = {
        (path.relative_to(ROOT).as_posix(), heading)
        for kind in ("*.py", "*.js")
        for path in (ROOT / "broker").rglob(kind)
        for heading in CITED.findall(WRAPPED.sub(" ", path.read_text()))
    }
    assert len(cited) >= 7
    assert {each for each in cited if each[1] not in known} == set()


def test_python_in_the_pages_is_that_of_the_client() -> None:
    """Each block compiles, and the classes in it are those of `broker.client`."""
    blocks = [block for path in (README, *PAGES) for block in PYTHON.findall(path.read_text())]
    trees = [
        compile(each, "page", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT) for each in blocks
    ]
    names = {each.id for tree in trees for each in ast.walk(tree) if isinstance(each, ast.Name)}
    classes = {name for name in names if name[0].isupper()}
    assert {"AsyncioSession", "Session", "Publisher", "UnknownOutcome"} <= classes
    assert classes <= set(client.__all__)


def test_the_readme_is_short() -> None:
    """What it is, how to run it, and where to read on: the rest is in the pages."""
    assert len(README.read_text().splitlines()) < 180
