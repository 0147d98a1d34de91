"""The broker as a process of its own that can be killed, stopped and looked into from outside."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import tomlkit
import trio
from prometheus_client.parser import text_string_to_metric_families

from broker import config
from broker.auth import tokens
from tests.faults.support.http import get
from tests.support import command

LAUNCH = command.program("tests.faults.support.launch")
FLEETING = ("broker.actors.tenant.Tenant.run",)  # tenants stay for a minute
READY_SECONDS = 120.0
EXIT_SECONDS = 120.0


@attrs.frozen(kw_only=True)
class Held:
    """What a broker holds; `tasks` by name, without those that come and go while it holds the same."""

    connections: int
    tasks: Counter[str]
    descriptors: int
    threads: int
    memory: int  # bytes resident

    def above(self, base: Held, memory: int) -> list[str]:
        """What is more than at its base; `memory` is how many bytes more are none."""
        found = []
        for name in ("connections", "descriptors", "threads"):
            now, then = getattr(self, name), getattr(base, name)
            if now > then:
                found.append(f"{name}: {now}, at base {then}")
        found += [f"tasks: {count} more of {name}" for name, count in (self.tasks - base.tasks).items()]
        if self.memory > base.memory + memory:
            found.append(f"memory: {self.memory >> 20} MiB, at base {base.memory >> 20} MiB")
        return found


@attrs.define(eq=False, kw_only=True)
class BrokerProcess:
    """`broker serve` over `nats`, with sections of its configuration as given. It may be started again."""

    directory: Path
    nats: dict[str, Any]
    sections: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    files: dict[str, str] = attrs.field(factory=dict)  # beside the configuration: secrets
    variables: dict[str, str] = attrs.field(factory=dict)
    keys: list[dict[str, Any]] = attrs.field(factory=list)  # that it believes beside its own
    prefix: tuple[str, ...] = ()  # a command that runs it
    state: Path | None = None  # where its data directory is, when not beside its configuration
    process: trio.Process | None = None
    addresses: dict[str, Any] = attrs.field(factory=dict)
    base: Held | None = None
    auth: config.Auth = attrs.field(init=False)
    nats_url: str = ""  # where it says that NATS is
    starts: int = 0

    def address(self, name: str) -> str | None:
        """None while it does not run, and until its base is known: no client comes before that."""
        return self.addresses.get(name) if self.base else None

    @property
    def ws(self) -> str | None:
        """Where clients connect."""
        return self.address("ws")

    @property
    def port(self) -> int:
        """The public one; 1, where nobody listens, while it does not run."""
        return urlsplit(self.ws).port or 1 if self.ws else 1

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    @property
    def admin(self) -> str | None:
        return self.address("admin")

    @property
    def log(self) -> Path:
        return self.directory / "broker.log"

    def prepare(self) -> None:
        self.directory.mkdir()
        if self.state:
            (self.directory / "state").symlink_to(self.state)
        for name, content in {"secret": secrets.token_hex(32), **self.files}.items():
            file = self.directory / name
            file.touch(mode=0o600)
            file.write_text(content)
        self.configure()

    def configure(self) -> None:
        """Writes the configuration, which the next start reads."""
        sections: dict[str, dict[str, Any]] = {
            "server": {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "data_dir": "state"},
            "nats": self.nats,
            "stream": {"max_bytes": "256MiB"},
            "permissions": {"subscribe": [">", "live.>"], "publish": [">", "live.>"]},
            "limits": {"messages_per_minute": 60000, "messages_burst": 1000, "requests_per_second": 1000},
            "log": {"level": "info", "format": "json"},
        }
        for name, values in self.sections.items():
            sections[name] = sections.get(name, {}) | values
        key = {"name": "main", "secret_file": "secret", "tenants": ["*"]}
        file = self.directory / "broker.toml"
        file.write_text(tomlkit.dumps({**sections, "auth": {"keys": [key, *self.keys]}}))
        self.auth = config.load(file, {}, production=True).auth

    def token(self, tenant: str, user: str, *, ttl: float = 3600, **claims: Any) -> str:
        return tokens.sign(self.auth, tenant=tenant, user=user, now=time.time(), ttl=ttl, **claims)

    async def launch(self) -> None:
        """Starts it, and does not wait until it is ready."""
        if not self.starts:
            self.prepare()
        self.starts += 1
        self.base = None
        with self.log.open("ab") as log:
            self.process = await trio.lowlevel.open_process(
                [*self.prefix, *LAUNCH, "serve", "--config", str(self.directory / "broker.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=command.environment(FAULTS_TASKS=str(self.directory / "tasks"), **self.variables),
            )

    async def ready(self) -> None:
        """Waits until it serves, and notes what it holds before it has any client."""
        assert self.process
        state = self.directory / "state" / "broker.json"
        with trio.fail_after(READY_SECONDS):
            while True:
                assert self.process.poll() is None, f"see {self.log}"
                try:
                    addresses = json.loads(state.read_text())
                except (FileNotFoundError, ValueError):  # not there yet, or half written
                    addresses = {"pid": 0}
                if addresses["pid"] == self.process.pid:
                    break
                await trio.sleep(0.02)
        self.addresses, self.nats_url = addresses, addresses["nats"]
        self.base = await self.held()

    async def start(self) -> None:
        await self.launch()
        await self.ready()

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def stop(self) -> None:
        """Stops it as a whole, as if its loop were blocked."""
        self.signal(signal.SIGSTOP)

    def cont(self) -> None:
        self.signal(signal.SIGCONT)

    async def kill9(self) -> None:
        """Kills it, and waits for its end and that of its children: they write until then."""
        assert self.process
        self.addresses = {}
        children = self.children()
        self.process.kill()
        await self.process.wait()
        with trio.fail_after(EXIT_SECONDS):
            while any(child.exists() for child in children):
                await trio.sleep(0.02)

    def children(self) -> list[Path]:
        """Where the kernel tells of each, such as a nats-server of its own."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [Path("/proc", each) for each in found.split()]

    async def end(self) -> None:
        """Kills it, where it is still there."""
        if self.process:
            self.process.kill()
            await self.process.wait()

    async def exited(self) -> int:
        """Waits for its end; the exit code."""
        assert self.process
        with trio.fail_after(EXIT_SECONDS):
            code = await self.process.wait()
        self.addresses = {}
        return code

    # --- looking into it ---------------------------------------------------------------------------

    async def metrics(self) -> dict[str, float]:
        """Every metric by its name, the sum where it has labels."""
        _, body = await get(self.addresses["admin"], "/metrics")
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0) + sample.value
        return found

    async def held(self) -> Held:
        pid = self.pid
        metrics, tasks = await self.metrics(), await self.tasks()
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        return Held(
            connections=int(metrics["broker_connections"]),
            tasks=tasks,
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            threads=int(status["Threads"]),
            memory=int(status["VmRSS"].split()[0]) * 1024,
        )

    async def tasks(self) -> Counter[str]:
        file = self.directory / "tasks"
        file.unlink(missing_ok=True)
        self.signal(signal.SIGUSR1)
        with trio.fail_after(READY_SECONDS):
            while not (file.exists() and file.read_text().endswith("\n")):
                await trio.sleep(0.01)
        names = Counter[str](json.loads(file.read_text()))
        for name in FLEETING:
            del names[name]
        return names

    def crashes(self) -> list[str]:
        """What its log says of exceptions that nobody expected; a sabotage is."""
        words = ("crashed", "Traceback", "nats_client_failed")
        lines = [line for line in self.log.read_text().splitlines() if "Sabotage" not in line]
        return [line for line in lines if any(word in line for word in words)]
