"""The command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-W", "error", "-m", "broker")
PATIENCE_SECONDS = 200  # a bound for what must come; a busy machine takes long to start a process


@attrs.frozen(kw_only=True)
class Result:
    code: int
    out: str
    err: str


def environment(**variables: str) -> dict[str, str]:
    """Ours without settings of a broker, so that only `variables` count."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return inherited | variables


def program(module: str) -> tuple[str, ...]:
    """A module of the tests as a command: it finds them behind what is installed, not before it."""
    run = f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    code = f"import runpy, sys; sys.path.append({str(ROOT)!r}); {run}"
    return (sys.executable, "-W", "error", "-c", code)


async def broker(
    *arguments: str | Path, stdin: bytes = b"", prefix: tuple[str, ...] = (), **variables: str
) -> Result:
    """Runs a command to its end, by the program `prefix` where one is given."""
    with trio.fail_after(PATIENCE_SECONDS):
        process = await trio.run_process(
            [*prefix, *COMMAND, *map(str, arguments)],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(**variables),
        )
    return Result(code=process.returncode, out=process.stdout.decode(), err=process.stderr.decode())


@attrs.define(eq=False)
class Running:
    """A command that is at work; `line` waits for the next line of its standard output or error."""

    process: trio.Process
    buffers: dict[str, bytes] = attrs.field(factory=lambda: {"stdout": b"", "stderr": b""})

    async def line(self, stream: str = "stdout") -> str:
        with trio.fail_after(PATIENCE_SECONDS):
            while b"\n" not in self.buffers[stream]:
                more = await getattr(self.process, stream).receive_some()
                if not more:
                    await self._read_on()
                    raise AssertionError(f"{stream} ended: {self.buffers}")
                self.buffers[stream] += more
        line, _, self.buffers[stream] = self.buffers[stream].partition(b"\n")
        return line.decode()

    async def until(self, text: str, stream: str = "stdout") -> str:
        """The next line that holds `text`."""
        while text not in (line := await self.line(stream)):
            pass
        return line

    async def _read_on(self) -> None:
        """Reads what a command that has ended said last, so that the failure tells why."""
        for name in self.buffers:
            while more := await getattr(self.process, name).receive_some():
                self.buffers[name] += more

    async def end(self) -> int:
        """Waits for its exit code; what it still says is dropped."""
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for stream in self.buffers:
                    nursery.start_soon(swallow, getattr(self.process, stream))
            return await self.process.wait()


async def swallow(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some():
        pass


@asynccontextmanager
async def start(*arguments: str | Path, **variables: str) -> AsyncIterator[Running]:
    """A command for the length of a block, killed at its end if it is still there."""
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process,
                [*COMMAND, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
                env=environment(**variables),
            )
        )
        try:
            yield Running(process)
        finally:
            process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                await trio.aclose_forcefully(stream)
