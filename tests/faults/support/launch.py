"""The command `broker` as the fault suite starts it: it can be asked for its tasks, and made narrow.

`python -m tests.faults.support.launch serve …`. On SIGUSR1 it writes how many Trio tasks live into the file
of FAULTS_TASKS; FAULTS_HELD bounds what may wait between NATS and the broker, stored and live records each.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def narrow(held: int) -> None:
    from broker.bus import ingest, live

    ingest.HELD_RECORDS = held
    live.HELD_MESSAGES = held


def count_tasks(number: int, frame: object) -> None:
    import trio

    Path(os.environ["FAULTS_TASKS"]).write_text(f"{trio.lowlevel.current_statistics().tasks_living}\n")


def main() -> None:
    if held := os.environ.get("FAULTS_HELD"):
        narrow(int(held))  # before `broker.bus.nats` takes them for its defaults
    signal.signal(signal.SIGUSR1, count_tasks)
    from broker.__main__ import main as broker

    broker()


if __name__ == "__main__":
    main()
