"""Who is measured: the broker, and what runs beside it under the same load.

Every contender is a process of its own over one nats-server, which is ours as well. All end with the
`with` that started them.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import attrs
import tomlkit
from prometheus_client.parser import text_string_to_metric_families

from broker import config
from broker.auth import tokens
from broker.bench import floor
from broker.bench.dialects import BrokerClient, Handshake, NatsClient
from broker.bench.meter import SPAWN, resident
from broker.bus.server import find_binary, spawn
from broker.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from broker.bench.dialects import Dialect

HOST = "127.0.0.1"
EVENTS = config.Subjects().events
START_SECONDS = 30.0
STOP_SECONDS = 40.0
POLL_SECONDS = 0.02
MANY = 1_000_000  # of what the broker would else limit


class BenchError(BrokerError):
    """The measurement cannot be made; the message says why and what to do."""


@attrs.frozen(kw_only=True)
class Client:
    """Whom a client is and what it wants."""

    tenant: str = "bench"
    user: str = "bench"
    channels: Sequence[str] = ()
    start: str | None = None  # the position to begin at
    documents: bool = False  # the channels are such


@attrs.frozen(kw_only=True)
class Contender(ABC):
    """Somebody under test. `pids` are the processes whose CPU and memory count, as far as we can see them."""

    name: str
    pids: tuple[int, ...]
    host: str = HOST
    port: int

    @abstractmethod
    def dialect(self, client: Client) -> Dialect:
        """How that client speaks to it."""

    @abstractmethod
    def subject(self, tenant: str, channel: str) -> str:
        """Where an event is published for it."""


@attrs.frozen(kw_only=True)
class Nats:
    """A nats-server with JetStream and a WebSocket listener."""

    pid: int
    url: str
    websocket_port: int
    version: str


@contextmanager
def process(target: Callable[..., None], *args: object) -> Iterator[tuple[int, Connection]]:
    """A process of ours that has `target(*args, pipe)` to do; its id and our end of the pipe."""
    ours, theirs = SPAWN.Pipe()
    child = SPAWN.Process(target=target, args=(*args, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        yield child.pid or 0, ours
    finally:
        ours.close()
        child.terminate()
        child.join(STOP_SECONDS)


def answer(pipe: Connection, seconds: float) -> Any:
    """What the process says next. Raises `BenchError` when it says nothing or has failed."""
    try:
        said = pipe.recv() if pipe.poll(seconds) else TimeoutError(f"no answer within {seconds:g} s")
    except EOFError:
        said = ConnectionError("a process of the bench has ended by itself")
    if isinstance(said, Exception):
        raise BenchError(f"{said}; try fewer --clients or a lower --rate") from said
    return said


@contextmanager
def child(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that writes into `log` and ends when we do."""
    with log.open("wb") as output:
        started = spawn(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def until(read: Callable[[], Any], started: subprocess.Popen[bytes], log: Path) -> Any:
    """What `read` finds, as soon as it finds something. Raises `BenchError`."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and started.poll() is None:
        try:
            if found := read():
                return found
        except (OSError, ValueError):  # not there yet, or half written
            pass
        time.sleep(POLL_SECONDS)
    raise BenchError(f"{log.stem} did not start: {log.read_text()[-500:]}")


@contextmanager
def run_nats(directory: Path) -> Iterator[Nats]:
    """A nats-server with its store under `directory`."""
    directory.mkdir()
    file, log = directory / "nats.conf", directory / "nats.log"
    file.write_text(
        json.dumps(
            {
                "listen": f"{HOST}:-1",
                "http": f"{HOST}:-1",
                "ping_interval": "30m",  # the publisher never reads by itself
                "ports_file_dir": str(directory),
                "jetstream": {"store_dir": str(directory / "store")},
                "websocket": {"listen": f"{HOST}:-1", "no_tls": True},
            }
        )
    )
    with child([find_binary(), "-c", str(file)], log) as started:

        def ports() -> Any:
            (found,) = directory.glob("*.ports")
            return json.loads(found.read_text())

        found = until(ports, started, log)
        version = subprocess.run([find_binary(), "--version"], capture_output=True, check=True, text=True)  # noqa: S603  our own
        yield Nats(
            pid=started.pid,
            url=found["nats"][0],
            websocket_port=urlsplit(found["websocket"][0]).port or 0,
            version=version.stdout.strip().rpartition(" ")[2],
        )


@attrs.frozen(kw_only=True)
class BrokerProcess(Contender):
    """This broker: started here, or somewhere else."""

    name: str = "broker"
    admin: str
    auth: config.Auth

    def dialect(self, client: Client) -> BrokerClient:
        token = tokens.sign(
            self.auth,
            tenant=client.tenant,
            user=client.user,
            now=time.time(),
            ttl=3600,
            subscribe=[">"],
            request=[">"],
            change=[">"],
        )
        host = f"{self.host}:{self.port}"
        return BrokerClient(host, token, client.channels, client.start, client.documents)

    def subject(self, tenant: str, channel: str) -> str:
        return f"{EVENTS}.{tenant}.{channel}"


@contextmanager
def run_brokers(
    directory: Path, nats: Nats, count: int = 1, **sections: Mapping[str, Any]
) -> Iterator[BrokerProcess]:
    """`broker serve` without the limits that a load would hit: `count` processes on one port."""
    directory.mkdir()
    secret = directory / "secret"
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(32))
    basis: dict[str, Mapping[str, Any]] = {
        "nats": {"urls": [nats.url]},
        "stream": {"max_bytes": "4GiB"},
        "auth": {"keys": [{"name": "bench", "secret_file": "secret", "tenants": ["*"]}]},
        "limits": {
            "connections": MANY,
            "connections_per_user": MANY,
            "requests_per_second": MANY,
            "calls_per_second": MANY,
            "calls_burst": MANY,
            "replay_events": 100 * MANY,
            "heartbeat_seconds": 600.0,  # who only counts does not answer; `idle` has the default
        },
        "log": {"level": "warning", "format": "json"},
    }
    merged = basis | {name: {**basis.get(name, {}), **values} for name, values in sections.items()}
    with ExitStack() as stack:
        port, pids = 0, []
        for number in range(count):
            server = {
                "listen": f"{HOST}:{port}",
                "admin_listen": f"{HOST}:0",
                "data_dir": f"state{number}",
                "backlog": 4096,
                "reuse_port": count > 1,
            }
            file, log = directory / f"broker{number}.toml", directory / f"broker{number}.log"
            file.write_text(tomlkit.dumps({**merged, "server": server}))
            command = [sys.executable, "-m", "broker", "serve", "--config", str(file)]
            started = stack.enter_context(child(command, log))
            state = directory / f"state{number}" / "broker.json"
            found = until(partial(read_json, state), started, log)
            port = urlsplit(found["ws"]).port or 0
            pids.append(started.pid)
        yield BrokerProcess(
            pids=tuple(pids),
            port=port,
            admin=found["admin"],
            auth=config.load(file, {}, production=True).auth,
        )


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


@attrs.frozen(kw_only=True)
class NatsWebSocket(Contender):
    """nats-server's own WebSocket listener; its CPU counts all that the server does."""

    name: str = "nats-ws"

    def dialect(self, client: Client) -> NatsClient:
        wanted = [self.subject(client.tenant, each) for each in client.channels]
        return NatsClient(f"{self.host}:{self.port}", wanted)

    def subject(self, tenant: str, channel: str) -> str:
        return f"direct.{tenant}.{channel}"  # of no stream: nothing is stored for it


@attrs.frozen(kw_only=True)
class Bare(Contender):
    """A process of `floor`, or any other server, of which only the handshake is known."""

    path: str = "/"

    def dialect(self, client: Client) -> Dialect:
        if self.name == "floor":
            return BrokerClient(f"{self.host}:{self.port}", "none", client.channels)
        return Handshake(f"{self.host}:{self.port}", self.path)

    def subject(self, tenant: str, channel: str) -> str:
        return f"floor.{tenant}.{channel}"


@contextmanager
def run_floor(nats: Nats, channel: str) -> Iterator[Bare]:
    """The bare loop; it serves one channel to everybody."""
    subject = f"floor.bench.{channel}"
    with process(floor.serve_bare, nats.url, subject, channel) as (pid, pipe):
        yield Bare(name="floor", pids=(pid,), port=answer(pipe, START_SECONDS))


@contextmanager
def run_trio_websocket() -> Iterator[Bare]:
    with process(floor.serve_trio_websocket) as (pid, pipe):
        yield Bare(name="trio-websocket", pids=(pid,), port=answer(pipe, START_SECONDS))


def at_address(url: str) -> Bare:
    """Any WebSocket server somewhere else, for handshakes."""
    parts = urlsplit(url)
    return Bare(name=url, pids=(), host=parts.hostname or HOST, port=parts.port or 80, path=parts.path or "/")


def memory(contender: Contender) -> int:
    """Bytes resident, of what we can see of it."""
    return resident(*contender.pids)


def longest_collection(contender: Contender) -> float:
    """The longest pause of the broker's garbage collector so far, in seconds; 0 where it is not known."""
    if not isinstance(contender, BrokerProcess) or not contender.admin:
        return 0.0
    with urlopen(f"{contender.admin}/metrics", timeout=START_SECONDS) as answered:  # noqa: S310  our own
        for family in text_string_to_metric_families(answered.read().decode()):
            for sample in family.samples:
                if sample.name == "broker_gc_longest_pause_seconds":
                    return float(sample.value)
    return 0.0
