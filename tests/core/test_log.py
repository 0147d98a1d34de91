from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from broker import log
from broker.config import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What standard error was given so far; afterwards the logging of this process is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield lambda: capsys.readouterr().err
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(written: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.splitlines()]


def test_an_event_is_one_line_of_json(stderr: Callable[[], str]) -> None:
    """Away from a terminal each event is a JSON object with time, level, logger and its own keys."""
    log.configure(Log())
    structlog.get_logger("broker.test").info("connected", server="nats-1")
    (line,) = lines(stderr())
    assert line["event"] == "connected"
    assert line["server"] == "nats-1"
    assert line["level"] == "info"
    assert line["logger"] == "broker.test"
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_token_and_no_body_is_ever_written(stderr: Callable[[], str], form: Any) -> None:
    """Keys that may hold a secret are left out, in both formats and in any case of letters."""
    log.configure(Log(format=form))
    held = dict.fromkeys(("token", "Authorization", "body", "payload", "secret", "password"), "hunter2")
    structlog.get_logger().warning("refused", tenant="acme", **held)
    written = stderr()
    assert "acme" in written
    assert "hunter2" not in written


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_local_variables(stderr: Callable[[], str], form: Any) -> None:
    """An exception is logged with its traceback, but not with the values of the frames."""
    log.configure(Log(format=form))
    hidden = "hunter" + "2"
    try:
        int(hidden[:0])
    except ValueError:
        structlog.get_logger().exception("failed")
    written = stderr()
    assert "ValueError" in written
    assert "hunter2" not in written


def test_the_level_holds_for_the_standard_library_too(stderr: Callable[[], str]) -> None:
    """Events below the level are dropped, from structlog and from libraries; the others share the form."""
    log.configure(Log(level="warning"))
    structlog.get_logger().info("quiet")
    logging.getLogger("nats.aio").info("quiet")
    structlog.get_logger().warning("loud")
    logging.getLogger("nats.aio").warning("lost %s", "it")
    ours, theirs = lines(stderr())
    assert ours["event"] == "loud"
    assert (theirs["event"], theirs["logger"]) == ("lost it", "nats.aio")


def test_configuring_again_replaces_what_was(stderr: Callable[[], str]) -> None:
    """A second call, as after a reload, does not write each event twice."""
    log.configure(Log(level="error"))
    log.configure(Log())
    structlog.get_logger().info("once")
    assert len(lines(stderr())) == 1
