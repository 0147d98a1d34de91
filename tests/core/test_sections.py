"""Sections of the page of results: replaced as a whole, and nothing else of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker import docs
from broker.bench.catalogue import SCENARIOS
from broker.docs import sections
from tests.support.results import COLUMNS

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "# Results\n\nText.\n\n<!-- a -->\n<!-- end of a -->\n\n<!-- b -->\nold\n<!-- end of b -->\nEnd.\n"


def test_a_section_is_replaced(tmp_path: Path) -> None:
    """Again and again, whatever was there; what is around it stays."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    sections.write(page, "b", "| new |\n")
    once = page.read_text()
    assert once == PAGE.replace("old\n", "\n| new |\n\n")
    sections.write(page, "b", "| new |")
    assert page.read_text() == once


@pytest.mark.parametrize("page", ["", "<!-- c -->\n", "<!-- end of c -->\n<!-- c -->\n"])
def test_a_page_without_the_section(tmp_path: Path, page: str) -> None:
    """The message has the file and the lines to add; the page stays as it was."""
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(sections.NoSection, match=r"page\.md.*<!-- c --> and <!-- end of c -->"):
        sections.write(path, "c", "new")
    assert path.read_text() == page


@pytest.mark.parametrize("name", [*(f"bench {each}" for each in SCENARIOS), *COLUMNS])
def test_the_page_of_results_has_all(name: str) -> None:
    """What each command measures is there, written by it, with the goals that the scenarios have now."""
    _, text, _ = sections.split(docs.DIRECTORY / "results.md", name)
    assert text.count("\n|") > 2
    scenario = SCENARIOS.get(name.removeprefix("bench "))
    for target in scenario.targets if scenario else ():
        assert f"{target.bound:g}" in text.replace(",", "")


def test_comments_are_for_commands() -> None:
    assert "<!--" not in docs.page("results").text
