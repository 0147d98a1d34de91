"""What every command has in common: help, version, how it fails."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from broker.__main__ import Commands, main
from broker.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "command", ["dev", "serve", "check-config", "token", "publish", "tail", "request", "help"]
)
def test_every_command_has_help(command: str) -> None:
    """Each is listed, and explains itself and each of its options."""
    assert command in CliRunner().invoke(main, ["--help"]).output
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    for parameter in main.commands[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--version` is that of the installed distribution."""
    monkeypatch.setattr(importlib.metadata, "version", {"nats-websocket-broker": "1.2.3"}.__getitem__)
    assert "1.2.3" in CliRunner().invoke(main, ["--version"]).output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["deb"],
        ["serve"],
        ["serve", "--config"],
        ["dev", "--listen", "8080"],
        ["token", "--ttl", "soon"],
        ["publish"],
        ["publish", "orders.*", "{}"],
        ["publish", "me.inbox", "{}"],
        ["publish", "orders.7", "{"],
        ["publish", "orders.7", "--id", "1"],
        ["tail"],
        ["tail", "a..b"],
        ["tail", "a", "--last", "0"],
        ["tail", "a", "--since", "yesterday"],
        ["tail", "a", "--since", "2026-01-01T00:00:00"],
        ["tail", "a", "--last", "1", "--snapshot"],
        ["tail", "a", "--url", "http://127.0.0.1"],
    ],
    ids=" ".join,
)
def test_used_wrongly(arguments: list[str], tmp_path: Path) -> None:
    """What could never work is told with exit code 2, before anything is touched."""
    result = CliRunner().invoke(main, arguments, env={"BROKER_SERVER__DATA_DIR": str(tmp_path)})
    assert result.exit_code == 2
    assert not result.stdout
    assert result.stderr
    assert not list(tmp_path.iterdir())


def test_failures_are_sentences_on_standard_error() -> None:
    """Errors of the broker, also from within nurseries, are one line each and exit code 1."""

    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        inner = ExceptionGroup("inner", [Unavailable("no NATS")])
        raise ExceptionGroup("outer", [inner, ConfigError(["a.b: wrong", "c.d: missing"])])

    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code == 1
    assert result.stderr == "no NATS\na.b: wrong\nc.d: missing\n"


def test_bugs_are_not_dressed_up() -> None:
    """What the broker did not raise on purpose keeps its traceback, in a group or not."""

    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(group, ["fail"]).exception, ZeroDivisionError)
