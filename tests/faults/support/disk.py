"""A disk of its own for nats-server's store, small, that can be filled and made read-only.

A tmpfs in a mount namespace that a process of ours holds: nothing of it is seen outside, and no right is
needed but that to make a user namespace.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from broker.bus.server import spawn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK = bytes(1 << 16)


@attrs.define(eq=False, kw_only=True)
class Disk:
    """`prefix` runs a command where the disk is mounted at `place`."""

    place: Path
    holder: int

    @property
    def prefix(self) -> tuple[str, ...]:
        nsenter = shutil.which("nsenter") or ""
        return (nsenter, "--user", "--mount", "--preserve-credentials", "--target", str(self.holder))

    @property
    def inside(self) -> Path:
        """What is at `place`, for those outside, too."""
        return self.place.__class__(f"/proc/{self.holder}/root{self.place}")

    @property
    def filler(self) -> Path:
        return self.inside / "filler"

    def fill(self) -> None:
        """Leaves no byte free."""
        with contextlib.suppress(OSError), self.filler.open("wb", buffering=0) as file:
            while True:
                file.write(CHUNK)

    def free(self) -> None:
        self.filler.unlink()

    def remount(self, how: str) -> None:
        """`ro` or `rw`; nothing may have a file open there for writing."""
        subprocess.run([*self.prefix, "mount", "-o", f"remount,{how}", str(self.place)], check=True)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Disk | None]:
    """A disk of `size` bytes; None where this system does not let us have one."""
    place.mkdir()
    script = f"mount -t tmpfs -o size={size} tmpfs '{place}' && echo mounted && exec cat"
    unshare = shutil.which("unshare")
    if unshare is None:
        yield None
        return
    command = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        mounted = process.stdout.readline()
        try:
            yield Disk(place=place, holder=process.pid) if mounted else None
        finally:
            process.kill()
