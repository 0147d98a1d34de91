"""Which files know each other, type-only imports included; import-linter holds the layers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import broker

ROOT = Path(broker.__file__).parent


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imports(module: str) -> set[str]:
    """The modules of ours that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in MODULES else node.module for name in names)
    return found & MODULES.keys()


@pytest.mark.parametrize("package", ["http", "links", "web"])
def test_no_two_files_know_each_other(package: str) -> None:
    """Taking away files that import none of the others leaves nothing: there is no circle."""
    files = {name: imports(name) for name in MODULES if f"{name}.".startswith(f"broker.{package}.")}
    assert files
    while free := [name for name, imported in files.items() if not imported & files.keys()]:
        for name in free:
            del files[name]
    assert not files


@pytest.mark.parametrize(("package", "above"), [("http", ["links", "web"]), ("links", ["web"])])
def test_nothing_knows_what_is_above_it(package: str, above: list[str]) -> None:
    for name in MODULES:
        if f"{name}.".startswith(f"broker.{package}."):
            for each in above:
                assert not [found for found in imports(name) if found.startswith(f"broker.{each}.")], name
