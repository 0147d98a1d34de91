"""Node.js and the packages of `tests/browser`, for the tests that need them, where they can be had."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "browser"
OLDEST_NODE = 18
SECONDS = 900  # a bound for what must end; nothing is measured by it


def run(
    *command: str, seconds: float = SECONDS, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=HERE,
        env={**os.environ, **environment},
        input=stdin,
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
    with (HERE / "package.json").open() as manifest:
        fcntl.flock(manifest, fcntl.LOCK_EX)  # tests run in several processes: one installs at a time
        done = run(npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
    if done.returncode:
        pytest.skip(f"npm cannot install what the tests need: {done.stderr.strip().splitlines()[-1:]}")
    return HERE / "node_modules"
