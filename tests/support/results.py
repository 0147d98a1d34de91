"""What tests have measured, and the sections of the page of results that are made of it.

A test records a row by `user_properties`, which reach the process that reports.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from broker.bench.report import Table, markdown
from broker.docs import sections

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

# The sections that there are, by name, and the columns of their tables.
COLUMNS: dict[str, Sequence[str]] = {
    "faults": (
        "fault", "clients", "acknowledged", "delivered", "duplicated", "missing", "announced", "recovery",
        "also",
    ),
    "conformance": ("group", "cases", "passed", "declined: binary", "declined: compression", "informational"),
}  # fmt: skip


def record(node: pytest.Item, section: str, *rows: Sequence[object]) -> None:
    """Keep rows of a section's table, which is written if the test passes."""
    node.user_properties += [(section, [str(cell) for cell in row]) for row in rows]


def pytest_addoption(parser: pytest.Parser) -> None:
    why = f"Write what tests have measured into its sections of this page: {' and '.join(COLUMNS)}."
    parser.addoption("--results", metavar="PAGE", type=Path, help=why)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the sections for which tests that passed have rows."""
    if not (page := config.getoption("--results")):
        return
    passed = terminalreporter.stats.get("passed", [])
    passed = terminalreporter.stats.get("passed", [])
    for name, columns in COLUMNS.items():
        rows = [row for each in passed for section, row in each.user_properties if section == name]
        if rows:
            table = Table(title=name, columns=columns, rows=rows)
            sections.write(page, name, f"{datetime.now(UTC).date()}:\n\n{markdown(table)}")
            terminalreporter.write_line(f"written: {name} in {page}")
