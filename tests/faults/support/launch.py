"""The command `broker` as the fault suite starts it: it can be asked for its tasks, and made narrow.

On SIGUSR1 it writes the names of its Trio tasks into the file of FAULTS_TASKS, and has the allocator give
back what is free, so that what is resident is what is held.
FAULTS_HELD bounds what may wait between NATS and the broker, stored and live records each; FAULTS_REFRESH is
how often, in seconds, it asks an address for keys, and how long it waits for an answer; FAULTS_SESSION is how
long a session without a poll lives, and FAULTS_MEMORY how long the feed is remembered; FAULTS_CLOCK is a
file that says by how many seconds its clock is wrong. With FAULTS_SEAMS a client has a fault of its own by
the name of its user, see `tests.support.seams`; on SIGUSR2 it writes into that file how often each has
struck. FAULTS_FILES is how many files it may have open, the half of it to begin with.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
from functools import partial
from pathlib import Path


def narrow(held: int) -> None:
    from broker.bus import ingest, live

    ingest.HELD_RECORDS = held
    live.HELD_MESSAGES = held


def hurry(seconds: float) -> None:
    from broker.auth import jwks, keys

    timing = partial(jwks.Timing, refresh_seconds=seconds, fetch_seconds=seconds)
    vars(keys)["Timing"] = timing


def set_clock(path: Path) -> None:
    """Has `time.time` be wrong from now on, by what the file says at the time."""
    right = time.time
    time.time = lambda: right() + float(path.read_text() or 0)  # an empty one is just being written


def forget(seconds: float) -> None:
    from broker.links.poll import session

    session.SESSION_SECONDS = seconds


def remember(seconds: float) -> None:
    from broker.actors import supervisor

    vars(supervisor)["KEPT_SECONDS"] = seconds


def sabotage(file: Path) -> None:
    from broker.links.poll.session import PollTransport
    from broker.links.sse import SseTransport
    from broker.links.tcp import Link
    from broker.links.websocket.transport import WebSocketTransport
    from tests.support.seams import ACTORS, Seams, transports

    seams = Seams()
    seams.install((*ACTORS, *transports(Link, WebSocketTransport, SseTransport, PollTransport)))

    def count(number: int, frame: object) -> None:
        new = file.with_suffix(".new")
        new.write_text(json.dumps(seams.hits))
        new.replace(file)

    signal.signal(signal.SIGUSR2, count)


def confine(files: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (files // 2, files))


def name_tasks(number: int, frame: object) -> None:
    import trio

    with contextlib.suppress(AttributeError):  # another allocator than glibc's
        ctypes.CDLL(None).malloc_trim(0)
    names = []
    waiting = [trio.lowlevel.current_root_task()]
    while waiting:
        if task := waiting.pop():
            names.append(task.name)
            waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    Path(os.environ["FAULTS_TASKS"]).write_text(json.dumps(names) + "\n")


def main() -> None:
    if clock := os.environ.get("FAULTS_CLOCK"):
        set_clock(Path(clock))  # before anybody takes it for a default
    if held := os.environ.get("FAULTS_HELD"):
        narrow(int(held))  # before `broker.bus.nats` takes them for its defaults
    if seconds := os.environ.get("FAULTS_REFRESH"):
        hurry(float(seconds))
    if seconds := os.environ.get("FAULTS_SESSION"):
        forget(float(seconds))
    if seconds := os.environ.get("FAULTS_MEMORY"):
        remember(float(seconds))
    if files := os.environ.get("FAULTS_FILES"):
        confine(int(files))
    if file := os.environ.get("FAULTS_SEAMS"):
        sabotage(Path(file))
    signal.signal(signal.SIGUSR1, name_tasks)
    from broker.__main__ import main as broker

    broker()


if __name__ == "__main__":
    main()
