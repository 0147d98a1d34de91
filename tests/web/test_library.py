"""The modules of the browser client, as the documentation lists them."""

from __future__ import annotations

import re
from posixpath import join, normpath

import pytest

from broker import docs
from broker.web.files import zipped
from broker.web.site import library

ROW = re.compile(r"^\| \[`([\w/]+\.js)`\]\([^)]*\) \| [^|]+ \| ([\d.]+) \|$", re.MULTILINE)
LISTED = {name: float(size) for name, size in ROW.findall(docs.page("clients").text)}
FILES = {name: data for name, data in library().items() if name.startswith("client") and name.endswith(".js")}
# For types alone or for code. What the modules have between them is in types.d.ts, which is none.
IMPORT = re.compile(r'(?:\bfrom |import\(|^import )"(\.[^"]+)"', re.MULTILINE)
TYPES = "client/types.js", "client.js"
MOST_LINES = 400


def test_all_are_listed() -> None:
    assert set(LISTED) == set(FILES)


@pytest.mark.parametrize("name", LISTED)
def test_sizes(name: str) -> None:
    """As they are sent: nobody reads more from it than one decimal, and zlibs differ a little."""
    size = len(zipped(FILES[name])) / 1000
    assert LISTED[name] == pytest.approx(size, rel=0.1, abs=0.1), f"{name} has {size:.1f} KB"


@pytest.mark.parametrize("name", LISTED)
def test_imports_go_down(name: str) -> None:
    """To what stands below in the list, for types too; so there is no cycle. And nothing from elsewhere."""
    text = FILES[name].decode()
    imported = {normpath(join(name, "..", path)) for path in IMPORT.findall(text)} - set(TYPES)
    below = list(LISTED)[list(LISTED).index(name) + 1 :]
    assert imported <= set(below)
    assert len(re.findall(r"^(?:import|export) .* from ", text, re.MULTILINE)) <= len(IMPORT.findall(text))
    assert text.count("\n") < MOST_LINES


def test_the_entry_names_all() -> None:
    """So that a page needs two steps to load them, however deep they import each other."""
    imported = {normpath(path) for path in IMPORT.findall(FILES["client.js"].decode())}
    assert imported == set(FILES) - {"client.js"}


@pytest.mark.parametrize("name", sorted(set(FILES) - {"client.js"}))
def test_each_is_checked(name: str) -> None:
    """By tsc, also in the editor of who works on it."""
    assert FILES[name].startswith(b"// @ts-check\n/**")
