"""Sections of a page that a command writes: what it measured, between two comments with a name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

COMMENT = re.compile(r"^<!-- .*? -->\n", re.MULTILINE)


class NoSection(LookupError):
    """A page has no place for a section; the message says what to add."""


def split(path: Path, name: str) -> tuple[str, str, str]:
    """Return a page up to a section, the section, and the page from its end. Raises `NoSection`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, opened, rest = path.read_text(encoding="utf-8").partition(begin)
    section, closed, after = rest.partition(end)
    if not (opened and closed):
        raise NoSection(f"{path} has no section {name!r}; add the lines {begin.strip()} and {end.strip()}")
    return before + begin, section, end + after


def write(path: Path, name: str, text: str) -> None:
    """Replace a section of a page, in Markdown. Raises `NoSection`."""
    before, _, after = split(path, name)
    path.write_text(f"{before}\n{text.strip()}\n\n{after}", encoding="utf-8")
