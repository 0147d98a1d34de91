"""`broker help`: the pages of the documentation."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from broker import docs
from broker.__main__ import main

STYLED = re.compile(r"\x1b\[[0-9;]*m")


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["help", *arguments])


def on_a_terminal(*arguments: str) -> str:
    """What a command prints on a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "broker", *arguments], stdin=theirs, stdout=theirs, env=environment
    ) as process:
        os.close(theirs)
        printed = b""
        with contextlib.suppress(OSError):  # Linux says so at the end
            while data := os.read(ours, 65536):
                printed += data
        os.close(ours)
    assert process.returncode == 0
    return printed.decode()


def test_the_list() -> None:
    """A line for each page: its name, and what it is about."""
    result = asked()
    assert result.exit_code == 0
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert lines == [[each.name, each.summary] for each in docs.pages()]


def test_every_command_is_described() -> None:
    """The page for operators has a row for each."""
    _, _, rest = docs.page("operate").text.partition("## The command line\n")
    first_cells = re.findall(r"^\| (`broker .*?) \|", rest.partition("\n## ")[0], re.MULTILINE)
    assert set(re.findall(r"`broker ([a-z-]+)", " ".join(first_cells))) == main.commands.keys()


@pytest.mark.parametrize("name", docs.NAMES)
def test_a_page_away_from_a_terminal(name: str) -> None:
    """The Markdown as it is, for a pager or a file."""
    result = asked(name)
    assert (result.exit_code, result.stdout) == (0, docs.page(name).text)


def test_a_page_on_a_terminal() -> None:
    """Formatted: no marks of Markdown, no targets of links that lead nowhere from a terminal."""
    printed = on_a_terminal("help", "nats")
    text = STYLED.sub("", printed)
    assert text != printed
    assert "cluster.conf" in text
    assert "Whose stream it is" in text
    assert [mark for mark in ("](", "|---", "**", "## ", "../") if mark in text] == []
    assert max(map(len, text.splitlines())) <= 101


@pytest.mark.parametrize(
    ("topic", "sentence"),
    [
        ("protokoll", "There is no page 'protokoll'; did you mean protocol?"),
        ("c", "There is no page 'c'; did you mean clients?"),
        ("tail", "There is no page 'tail'; see `broker tail --help`."),
        ("zzz", f"There is no page 'zzz'; there are {', '.join(docs.NAMES)}."),
        ("../errors", f"There is no page '../errors'; there are {', '.join(docs.NAMES)}."),
    ],
)
def test_an_unknown_topic(topic: str, sentence: str) -> None:
    """One sentence, with the nearest names, and the exit code of a command that is used wrongly."""
    result = asked(topic)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{sentence}\n")
