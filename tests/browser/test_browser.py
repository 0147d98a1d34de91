"""The browser client where it lives: its logic under Node, its types, and pages in a real Chromium.

The tests themselves are JavaScript, beside this file: `unit/` with a scripted WebSocket and a clock of its
own, `pages/` with a `broker dev` process of their own. Here they are given what they need, or skipped with a
reason.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STATIC = HERE.parents[1] / "broker" / "web" / "static"
PAGES = sorted(path.name for path in (HERE / "pages").glob("*.test.js"))
OLDEST_NODE = 18
SECONDS = 300
# What a page pays for it: minified as an application's bundler does it, and as it travels.
MINIFIED_BYTES, COMPRESSED_BYTES = 26_000, 12_000

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def run(*command: str, seconds: float = SECONDS, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=HERE,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture(scope="session")
def node() -> str:
    """Node, new enough."""
    found = shutil.which("node") or shutil.which("nodejs")
    if found is None:
        pytest.skip("there is no Node.js here: apt install nodejs npm")
    version = run(found, "--version").stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node.js {version} is older than {OLDEST_NODE}")
    return found


@pytest.fixture(scope="session")
def modules(node: str) -> Path:
    """What `package.json` names, installed beside it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm here: apt install npm")
    done = run(npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
    if done.returncode:
        pytest.skip(f"npm cannot install what the tests need: {done.stderr.strip().splitlines()[-1:]}")
    return HERE / "node_modules"


def assert_passed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("file", sorted(path.name for path in (HERE / "unit").glob("*.test.js")))
def test_logic(node: str, file: str) -> None:
    """Back-off, close codes, tokens, resume, order, pauses, publishing, the optimistic store."""
    assert_passed(run(node, "--test", f"unit/{file}"))


@pytest.mark.parametrize("project", ["types", "types/tsconfig.client.json"], ids=["usage", "client"])
def test_types(modules: Path, project: str) -> None:
    """What an application may write, and what not; and the client itself by its JSDoc."""
    assert_passed(run(str(modules / ".bin" / "tsc"), "--project", project))


def test_size(modules: Path) -> None:
    """The client has no dependencies and stays small."""
    source = STATIC / "client.js"
    assert not [line for line in source.read_text().splitlines() if line.startswith("import ")]
    done = run(str(modules / ".bin" / "esbuild"), "--minify", "--format=esm", str(source))
    assert_passed(done)
    minified = done.stdout.encode()
    assert len(minified) < MINIFIED_BYTES
    assert len(gzip.compress(minified, 9)) < COMPRESSED_BYTES


@pytest.mark.parametrize("file", PAGES)
def test_pages(node: str, modules: Path, file: str) -> None:
    """The page, cuts and fallbacks, tabs, the store and the hooks, against a broker process."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt install chromium")
    done = run(node, "--test", f"pages/{file}", BROKER_PYTHON=sys.executable, BROKER_CHROMIUM=CHROMIUM)
    assert_passed(done)
