"""Logging: one line per event on standard error, for people or for machines, without secrets.

Names of events are in snake_case, one for each thing that can happen. Lines about a connection have the
keys `connection`, `tenant`, `user` and `peer`; `error` is a sentence.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from typing import TYPE_CHECKING, cast

import attrs
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from structlog.typing import EventDict, Processor, WrappedLogger

    from broker.config import Level, Log

SECRETS = frozenset({"token", "authorization", "body", "payload", "secret", "password"})
# A JWT or the beginning of one, wherever it stands, and the credentials in an address.
HIDDEN = re.compile(r"eyJ[\w-]{8,}(?:\.[\w-]*)*|(?<=://)[^/\s]+(?=@)")
# The syslog priorities: `journalctl -p warning` shows warnings and what is worse.
PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
KEPT_SOURCES = 1024  # how many events and sources have their rate tracked


def configure(log: Log) -> None:
    """Send structlog's events and the standard library's (nats, asyncio…) from `log.level` up to stderr.

    The format "auto" is for people on a terminal and JSON otherwise. May be called again.
    """
    console = log.format == "console" or (log.format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        withhold_secrets,
    ]
    limit = RateLimit(log.burst, log.period, time.monotonic)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers(console)],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Prioritized(formatter) if to_journal() else formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    structlog.configure(
        processors=[limit, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    set_level(log.level)


def to_journal() -> bool:
    """Return whether standard error is the journal of systemd (systemd.exec(5), `JOURNAL_STREAM`)."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


@attrs.define(eq=False)
class Prioritized(logging.Formatter):
    """Begins each line with its priority, which the journal takes off again (sd-daemon(3))."""

    formatter: logging.Formatter

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{PRIORITIES.get(record.levelno, 6)}>"
        return prefix + self.formatter.format(record).replace("\n", f"\n{prefix}")


def set_level(level: Level) -> None:
    """Log from this level up from now on."""
    number = getattr(logging, level.upper())
    logging.getLogger().setLevel(number)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))


def level() -> Level:
    """Return the level in force."""
    return cast("Level", logging.getLevelName(logging.getLogger().level).lower())


def renderers(console: bool) -> list[Processor]:
    told: list[Processor] = [structlog.processors.format_exc_info, hide]
    if console:
        # Rich's tracebacks would show the local variables of each frame, including tokens.
        plain = structlog.dev.plain_traceback
        return [
            *told,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain),
        ]
    return [*told, structlog.processors.JSONRenderer()]


def withhold_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Remove every key that could hold a token or a body."""
    return {key: value for key, value in event.items() if key.lower() not in SECRETS}


def hide(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace tokens and credentials within texts, such as the exception messages of libraries."""
    return {
        key: HIDDEN.sub("[withheld]", value) if isinstance(value, str) else value
        for key, value in event.items()
    }


@attrs.define(eq=False)
class RateLimit:
    """A limit of `burst` lines per event and source within `period` seconds.

    A source is a tenant, or else a peer's address, so that a misbehaving one does not hide others. The first
    line after a suppression states in `suppressed` how many were dropped. Debug lines are not limited.
    """

    burst: int
    period: float
    clock: Callable[[], float]
    windows: dict[Hashable, Window] = attrs.Factory(dict)  # in order of their beginning

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Raise `structlog.DropEvent` for lines beyond the limit."""
        if method == "debug":
            return event
        now = self.clock()
        key = event.get("event"), source(event)
        window = self.windows.get(key)
        if window is None or now >= window.began + self.period:
            self.windows.pop(key, None)
            if len(self.windows) >= KEPT_SOURCES:
                del self.windows[next(iter(self.windows))]
            suppressed = window.suppressed if window else 0
            self.windows[key] = Window(began=now)
            return {**event, "suppressed": suppressed} if suppressed else event
        window.lines += 1
        if window.lines <= self.burst:
            return event
        window.suppressed += 1
        raise structlog.DropEvent


@attrs.define(eq=False, kw_only=True)
class Window:
    """The lines of one event and source since `began`."""

    began: float
    lines: int = 1
    suppressed: int = 0


def source(event: EventDict) -> str | None:
    """Return the source of a line: its tenant, or else its peer without the port, which changes."""
    if tenant := event.get("tenant"):
        return str(tenant)
    peer = event.get("peer")
    return f"peer {str(peer).rpartition(':')[0]}" if peer else None
