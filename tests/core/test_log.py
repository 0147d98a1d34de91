from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import jwt
import pytest
import structlog

from broker import log
from broker.config import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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


# --- the rate limit --------------------------------------------------------------------------------


def limited(burst: int = 2, period: float = 10.0) -> tuple[Callable[..., dict[str, Any] | None], list[float]]:
    """A rate limit, as a function that answers with what is written of a line; and its clock."""
    clock = [0.0]
    limit = log.RateLimit(burst, period, lambda: clock[0])

    def say(event: str, *, method: str = "warning", **keys: Any) -> dict[str, Any] | None:
        try:
            return dict(limit(None, method, {"event": event, **keys}))
        except structlog.DropEvent:
            return None

    return say, clock


def test_a_flood_is_cut_and_counted() -> None:
    """Two of a hundred lines are written; the first one of the next period says how many were not."""
    say, clock = limited()
    written = [line for _ in range(100) if (line := say("dead_letter", tenant="acme"))]
    assert written == [{"event": "dead_letter", "tenant": "acme"}] * 2
    clock[0] = 9.9
    assert say("dead_letter", tenant="acme") is None
    clock[0] = 10.0
    assert say("dead_letter", tenant="acme") == {"event": "dead_letter", "tenant": "acme", "suppressed": 99}
    assert say("dead_letter", tenant="acme") == {"event": "dead_letter", "tenant": "acme"}
    assert say("dead_letter", tenant="acme") is None


def test_one_source_does_not_hide_another() -> None:
    """Events, tenants and addresses are counted apart; the port of an address is not looked at."""
    say, _ = limited(burst=1)
    for keys in ({}, {"tenant": "acme"}, {"tenant": "globex"}, {"peer": "[::1]:5"}, {"peer": "10.0.0.1:5"}):
        assert say("crashed", **keys)
        assert say("crashed", **keys) is None
    assert say("ended", tenant="acme")
    assert say("crashed", peer="10.0.0.1:6") is None
    assert say("crashed", peer="10.0.0.1:7", tenant=None) is None


def test_debugging_is_not_limited() -> None:
    """Whoever sets the level debug gets everything, and it uses up nothing of what others may say."""
    say, _ = limited(burst=1)
    assert all(say("looked", method="debug") for _ in range(10))
    assert say("looked")


def test_the_memory_of_the_rate_limit_is_bounded() -> None:
    """With more sources than are remembered the oldest begin anew."""
    say, _ = limited(burst=1)
    for number in range(log.KEPT_SOURCES + 1):
        assert say("refused", tenant=str(number))
    assert say("refused", tenant="0")
    assert say("refused", tenant=str(log.KEPT_SOURCES)) is None


def test_the_limit_is_in_force(stderr: Callable[[], str]) -> None:
    """As configured, for the loggers that modules hold."""
    log.configure(Log(burst=3))
    for _ in range(10):
        structlog.get_logger().warning("refused", tenant="acme")
    assert len(lines(stderr())) == 3


# --- what others write -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "console"])
def test_exceptions_carry_no_token_and_no_password(stderr: Callable[[], str], form: Any) -> None:
    """The words of an exception, ours or a library's, may hold what a client sent; a token is blotted out."""
    log.configure(Log(format=form))
    token = jwt.encode({"sub": "alice"}, "s" * 32, algorithm="HS256")
    for text in (f"no such header: bearer.{token}", f"nats://broker:hunter2@10.0.0.1:4222 said {token[:40]}"):
        try:
            raise ValueError(text)
        except ValueError as error:
            structlog.get_logger().exception("connection_crashed")
            logging.getLogger("nats").exception("failed with %s", text)
            structlog.get_logger().warning("refused", error=str(error))
    written = stderr()
    assert "hunter2" not in written
    assert "10.0.0.1:4222" in written
    assert not any(part in written for part in (*token.split("."), token[:30]))


def test_credentials_with_an_at_sign_are_blotted_out(stderr: Callable[[], str]) -> None:
    """Of an address with several at signs everything up to the last one is credentials."""
    log.configure(Log())
    structlog.get_logger().warning(
        "refused", error="nats://user:hun@ter2@host:4222, nats://user:hunter2@host"
    )
    (line,) = lines(stderr())
    assert line["error"] == "nats://[withheld]@host:4222, nats://[withheld]@host"


def test_the_journal_gets_priorities(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stderr: Callable[[], str]
) -> None:
    """Where standard error is the journal, each line begins with its priority; another file gets none."""
    with (tmp_path / "journal").open("w+") as journal:
        status = os.fstat(journal.fileno())
        monkeypatch.setattr(sys, "stderr", journal)
        for stream in (f"{status.st_dev}:{status.st_ino}", f"{status.st_dev}:{status.st_ino + 1}"):
            monkeypatch.setenv("JOURNAL_STREAM", stream)
            log.configure(Log(level="debug"))
            for level in ("debug", "info", "warning", "error"):
                getattr(structlog.get_logger(), level)(f"{level}_happened")
        journal.seek(0)
        written = journal.read().splitlines()
    assert [line[:3] for line in written[:4]] == ["<7>", "<6>", "<4>", "<3>"]
    assert [json.loads(line[3:])["level"] for line in written[:4]] == ["debug", "info", "warning", "error"]
    assert [json.loads(line)["level"] for line in written[4:]] == ["debug", "info", "warning", "error"]
