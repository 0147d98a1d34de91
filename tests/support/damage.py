"""What happens to the store of a nats-server that is down: `NatsServer.directory` has it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer


def keep_copy(nats: NatsServer) -> None:
    """Yesterday's copy is made."""
    copy(nats, "store", "copy")


def restore_copy(nats: NatsServer) -> None:
    """It takes the place of the store."""
    copy(nats, "copy", "store")


def copy(nats: NatsServer, source: str, target: str) -> None:
    shutil.rmtree(nats.directory / target, ignore_errors=True)
    shutil.copytree(nats.directory / source, nats.directory / target)


def blocks(nats: NatsServer, stream: str = "EVENTS") -> list[Path]:
    """The files with the messages of a stream, oldest first."""
    found = (nats.directory / "store").glob(f"**/streams/{stream}/msgs/*.blk")
    return sorted(found, key=lambda path: int(path.stem))


def truncate(nats: NatsServer, part: float = 0.5) -> None:
    """The newest block ends early, and the index, which would tell, is gone."""
    newest = blocks(nats)[-1]
    with newest.open("r+b") as file:
        file.truncate(int(newest.stat().st_size * part))
    forget_index(nats)


def flip_bits(nats: NatsServer, part: float = 0.5) -> None:
    """Some bits of the newest block are others than were written."""
    newest = blocks(nats)[-1]
    with newest.open("r+b") as file:
        file.seek(int(newest.stat().st_size * part))
        there = file.read(8)
        file.seek(-len(there), 1)
        file.write(bytes(each ^ 0xFF for each in there))


def forget_index(nats: NatsServer) -> None:
    for index in (nats.directory / "store").glob("**/streams/EVENTS/msgs/index.db"):
        index.unlink()


def forget_bucket(nats: NatsServer) -> None:
    """The control bucket is gone, with the generation in it."""
    for place in (nats.directory / "store").glob("**/streams/KV_broker_control"):
        shutil.rmtree(place)
