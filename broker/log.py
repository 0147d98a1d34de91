"""Logging: one line an event on standard error, for people or for machines, without secrets."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

    from broker.config import Level, Log

SECRETS = frozenset({"token", "authorization", "body", "payload", "secret", "password"})


def configure(log: Log) -> None:
    """Sends structlog's events and the standard library's (nats, asyncio…) from `log.level` up to stderr.

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
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers(console)],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    set_level(log.level)


def set_level(level: Level) -> None:
    """Logs from this level up, from now on."""
    number = getattr(logging, level.upper())
    logging.getLogger().setLevel(number)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))


def level() -> Level:
    """The level that is in force."""
    return cast("Level", logging.getLevelName(logging.getLogger().level).lower())


def renderers(console: bool) -> list[Processor]:
    if console:
        # Rich's tracebacks would show the local variables of each frame, and with them tokens.
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def withhold_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Leaves out every key that could hold a token or a body, whatever it holds."""
    return {key: value for key, value in event.items() if key.lower() not in SECRETS}
