"""What is tested is what is installed: a wheel, or this directory where pip was told `-e`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

import broker
from tests.support import command

SAYS = "import broker; print(broker.__file__)"
AMONG_TESTS = "tests.support.whereabouts"


def installed() -> Path:
    """Where pip has put the package."""
    distribution = metadata.distribution("nats-websocket-broker")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return Path(url2pathname(urlsplit(origin["url"]).path)) / "broker"
    return Path(str(distribution.locate_file("broker")))


def test_by_the_tests() -> None:
    """`python -m pytest` would take the directory that it is started in; `pytest`, or `python -P`, do not."""
    assert Path(broker.__file__).parent == installed()


@pytest.mark.parametrize(
    "words", [(sys.executable, "-c", SAYS), command.program(AMONG_TESTS)], ids=["alone", "with tests"]
)
def test_by_the_processes_that_they_start(words: tuple[str, ...]) -> None:
    """Also one that finds the tests too, in a directory that has a `broker` of its own."""
    said = subprocess.run(
        words, cwd=command.ROOT, env=command.environment(), capture_output=True, check=True, text=True
    )
    assert Path(said.stdout.strip()).parent == installed()
