"""What a service tells its manager: a real socket for NOTIFY_SOCKET."""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_SECONDS = 60


@attrs.define(eq=False)
class Notified:
    """A manager that is told; each message as its assignments (sd_notify(3))."""

    raw: socket.socket
    address: str

    async def next(self) -> dict[str, str]:
        """The next message."""
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.lowlevel.wait_readable(self.raw)
        return self.read()

    def read(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.raw.recv(4096).decode().split("\n"))

    async def until(self, name: str) -> dict[str, str]:
        """The next message that says `name`."""
        while name not in (message := await self.next()):
            pass
        return message

    def waiting(self) -> list[dict[str, str]]:
        """What has come and was not read yet."""
        messages = []
        with suppress(BlockingIOError):
            while True:
                messages.append(self.read())
        return messages


@contextmanager
def manager(directory: Path) -> Iterator[Notified]:
    """A manager that listens for the length of a block."""
    address = str(directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as raw:
        raw.bind(address)
        raw.setblocking(False)
        yield Notified(raw, address)
