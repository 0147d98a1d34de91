"""What the README says of the repository."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([a-z][^):#]*)\)")


def test_every_file_that_it_names_is_there() -> None:
    """A file that has moved takes its line along."""
    named = LINK.findall((ROOT / "README.md").read_text())
    assert len(named) > 50
    assert [each for each in named if not (ROOT / each).exists()] == []
