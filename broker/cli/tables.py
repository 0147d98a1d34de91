"""Answers of the admin API in readable form: a table, or one object with all its fields."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import attrs
import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@attrs.frozen
class Output:
    """Standard output: JSON for programs, tables on a terminal."""

    as_json: bool

    @classmethod
    def choose(cls, as_json: bool) -> Output:
        return cls(as_json or not sys.stdout.isatty())

    def many(self, document: Mapping[str, Any], key: str, columns: Sequence[str]) -> None:
        """Print a list of objects as a table with the named fields as columns."""
        if self.as_json:
            return self.document(document)
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*(name.replace("_", " ") for name in columns), box=None, pad_edge=False)
        for row in document[key]:
            table.add_row(*(Text(shown(row[name])) for name in columns))
        Console().print(table if document[key] else "none")
        return None

    def one(self, document: Mapping[str, Any]) -> None:
        """Print one object, a line for each field, nested ones indented."""
        if self.as_json:
            self.document(document)
        else:
            click.echo("\n".join(lines(document)))

    def document(self, document: object) -> None:
        click.echo(json.dumps(document, indent=2, ensure_ascii=not sys.stdout.isatty()))


def lines(document: Mapping[str, Any], indent: str = "") -> list[str]:
    found = []
    width = max((len(name) for name in document), default=0)
    for name, value in document.items():
        label = f"{indent}{name.replace('_', ' '):<{width}}"
        if isinstance(value, dict) and value:
            found += [f"{indent}{name.replace('_', ' ')}", *lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found.append(f"{indent}{name.replace('_', ' ')}")
            for each in value:
                first, *rest = lines(each, indent + "    ")
                found += [f"{indent}  - {first.lstrip()}", *rest]
        else:
            found.append(f"{label}  {shown(value)}")
    return found


def shown(value: object) -> str:
    """Return a value on one line, without control characters: users choose names and bodies."""
    if value is None or value in ([], {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
