"""What happens to the store of a nats-server that is down; it lies in the server's `directory`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def keep_copy(directory: Path) -> None:
    """Yesterday's copy is made."""
    copy(directory, "store", "copy")


def restore_copy(directory: Path) -> None:
    """It takes the place of the store."""
    copy(directory, "copy", "store")


def copy(directory: Path, source: str, target: str) -> None:
    if (directory / target).exists():
        shutil.rmtree(directory / target)
    shutil.copytree(directory / source, directory / target)


def blocks(directory: Path, stream: str = "EVENTS") -> list[Path]:
    """The files with the messages of a stream, oldest first."""
    found = (directory / "store").glob(f"**/streams/{stream}/msgs/*.blk")
    return sorted(found, key=lambda path: int(path.stem))


def truncate(directory: Path, part: float = 0.5) -> None:
    """The newest block ends early, and the index, which would tell, is gone."""
    newest = blocks(directory)[-1]
    with newest.open("r+b") as file:
        file.truncate(int(newest.stat().st_size * part))
    forget_index(directory)


def flip_bits(directory: Path, part: float = 0.5) -> None:
    """Some bits of the newest block are others than were written."""
    newest = blocks(directory)[-1]
    with newest.open("r+b") as file:
        file.seek(int(newest.stat().st_size * part))
        there = file.read(8)
        file.seek(-len(there), 1)
        file.write(bytes(each ^ 0xFF for each in there))


def forget_index(directory: Path) -> None:
    for index in (directory / "store").glob("**/streams/EVENTS/msgs/index.db"):
        index.unlink()


def forget_bucket(directory: Path) -> None:
    """The control bucket is gone, with the generation in it."""
    for place in (directory / "store").glob("**/streams/KV_broker_control"):
        shutil.rmtree(place)
