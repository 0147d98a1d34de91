"""`broker reload`: have the running broker reload its configuration; the exit code is the result."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import click

from broker.cli import local, options
from broker.errors import BrokerError, ConfigError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from broker.reloading import Verdict

PATIENCE_SECONDS = 60.0  # for a configuration that names slow files, with thousands of connections
POLL_SECONDS = 0.02


@click.command("reload")
@options.data_dir
def reload(data_dir: Path | None) -> None:
    """Have the broker that runs on a data directory reload its configuration (SIGHUP), and wait for it.

    When it is refused, the faults are printed, the exit code is 1, and the old one stays in force.
    """
    where = local.find_data_dir(data_dir, os.environ)
    pid, sent = verdict(where).pid, time.monotonic_ns()
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        raise Unavailable(f"the broker on {where} (pid {pid}) cannot be signaled: {error.strerror}") from None
    told = outcome(where, pid, sent)
    if told.faults:
        raise ConfigError([*told.faults, "The configuration was refused; the previous one stays in force."])
    click.echo(f"in force: {', '.join(told.changed) or 'nothing has changed'}")
    if told.needs_restart:
        click.echo(f"needs a restart: {', '.join(told.needs_restart)}")


def verdict(where: Path) -> Verdict:
    """Return the last verdict of the broker that runs there. Raises `Unavailable`."""
    from broker.reloading import VERDICT_FILE, Verdict

    pid = local.running(where, "pid")
    try:
        found = Verdict(**json.loads((where / VERDICT_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        found = None
    if found is None or str(found.pid) != pid:
        raise Unavailable(f"the broker on {where} does not reload: `broker dev` reads its settings once")
    return found


def outcome(where: Path, pid: int, since: int) -> Verdict:
    """Return the verdict on a reload that began after `since`."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        if (told := verdict(where)).pid == pid and told.began >= since:
            return told
        time.sleep(POLL_SECONDS)
    raise BrokerError(f"the broker (pid {pid}) has not answered for {PATIENCE_SECONDS:g} s; see its log")
