"""The browser client where it lives: its logic under Node, its types, and pages in a real Chromium.

The tests themselves are JavaScript, beside this file: `unit/` with a scripted WebSocket and a clock of its
own, `pages/` with a `broker dev` process of their own. Here they are given what they need, or skipped with a
reason.
"""

from __future__ import annotations

import gzip
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.node import HERE, run

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

STATIC = HERE.parents[1] / "broker" / "web" / "static"
SIMULATIONS = "simulation.test.js", "storms.test.js"
UNITS = [
    pytest.param(path.name, marks=pytest.mark.simulation if path.name in SIMULATIONS else ())
    for path in sorted((HERE / "unit").glob("*.test.js"))
]
PAGES = sorted(path.name for path in (HERE / "pages").glob("*.test.js"))
# What a page pays for it: minified as an application's bundler does it, and as it travels.
MINIFIED_BYTES, COMPRESSED_BYTES = 87_500, 31_300

# The first is the same browser without a window, at half the work.
BROWSERS = "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


def assert_passed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("file", UNITS)
def test_logic(node: str, file: str) -> None:
    """Back-off, close codes, tokens, resume, order, pauses, publishing, the optimistic store."""
    assert_passed(run(node, "--test", f"unit/{file}"))


@pytest.mark.parametrize("project", ["types", "types/tsconfig.client.json"], ids=["usage", "client"])
def test_types(modules: Path, project: str) -> None:
    """What an application may write, and what not; and the client itself by its JSDoc."""
    assert_passed(run(str(modules / ".bin" / "tsc"), "--project", project))


def test_size(modules: Path) -> None:
    """The client has no dependencies and stays small."""
    done = run(
        str(modules / ".bin" / "esbuild"), "--bundle", "--minify", "--format=esm", str(STATIC / "client.js")
    )
    assert_passed(done)
    minified = done.stdout.encode()
    assert len(minified) < MINIFIED_BYTES
    assert len(gzip.compress(minified, 9)) < COMPRESSED_BYTES


@pytest.mark.parametrize("file", PAGES)
def test_pages(node: str, modules: Path, held: list[int], file: str) -> None:
    """The page, cuts and fallbacks, tabs, the store and the hooks, against a broker process."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt install chromium-headless-shell")
    done = run(
        *(node, "--test", f"pages/{file}"),
        BROKER_PYTHON=sys.executable,
        BROKER_CHROMIUM=CHROMIUM,
        BROKER_PORT=str(held[0]),
    )
    assert_passed(done)
