"""Reloading of the configuration on SIGHUP, with a verdict in a file for `broker reload`.

Keys, permissions, limits, origins, trusted proxies, certificates, the drain, metrics and the log take effect
at once. For the rest the verdict says that it needs a restart. An invalid configuration changes nothing.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker import log as logging
from broker.auth import admin as admin_token
from broker.auth.keys import Keys
from broker.auth.tokens import Verifier
from broker.errors import ConfigError
from broker.links.tls import expiry, server_context
from broker.signals import Signal

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from broker.config import Config
    from broker.metrics.process import Process
    from broker.systemd import Notifier
    from broker.web.admin import AdminPort
    from broker.web.server import PublicPort

log = structlog.get_logger("broker.reload")

VERDICT_FILE = "reload.json"
SECTIONS = ("auth", "permissions", "limits", "drain", "metrics", "log")  # that take effect as a whole
SERVER = (  # of the section `server`
    "origins", "query_token", "tls_certificate", "tls_key", "tls_client_ca", "tls_client_required",
    "trusted_proxies", "proxy_protocol",
    "admin_token_file",
)  # fmt: skip


def merge(running: Config, wanted: Config) -> Config:
    """Return the configuration in force from now on: `wanted`, except what needs a restart."""
    server = attrs.evolve(running.server, **{name: getattr(wanted.server, name) for name in SERVER})
    config = attrs.evolve(running, server=server, **{name: getattr(wanted, name) for name in SECTIONS})
    if running.nats.urls:
        return config
    # The embedded nats-server was started for events of that size.
    limits = attrs.evolve(config.limits, event_bytes=running.limits.event_bytes)
    return attrs.evolve(config, limits=limits)


def differences(one: Config, other: Config) -> Iterator[str]:
    """Yield the keys, as "section.key", whose values differ."""
    for section in attrs.fields(type(one)):
        ours, theirs = getattr(one, section.name), getattr(other, section.name)
        for key in attrs.fields(type(ours)):
            if getattr(ours, key.name) != getattr(theirs, key.name):
                yield f"{section.name}.{key.name}"


@attrs.frozen(kw_only=True)
class Verdict:
    """The result of a reload and when it began (`time.monotonic_ns`); with `faults` nothing has changed."""

    pid: int
    began: int
    changed: list[str] = attrs.Factory(list)
    needs_restart: list[str] = attrs.Factory(list)
    faults: list[str] = attrs.Factory(list)


def leave(path: Path, value: object) -> None:
    """Replace a JSON file atomically, readable by our own user alone. Raises `OSError`."""
    written = path.with_name(f".{path.name}.{os.getpid()}")
    written.unlink(missing_ok=True)
    with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(value, file)
    written.replace(path)


@attrs.define(eq=False)
class Hangups:
    """Receiver of SIGHUP, including one that was blocked before. Several before `next` count as one."""

    heard: Signal = attrs.Factory(Signal)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Receive signals, until cancelled."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            task_status.started()
            async for _ in signals:
                self.heard.set()

    async def next(self) -> None:
        await self.heard.wait()


@attrs.define(eq=False, kw_only=True)
class Reloader:
    """Reloads the configuration, with `read`, after each SIGHUP. `config` is the one in force."""

    config: Config
    read: Callable[[], Config]
    keys: Keys
    supervisor: Supervisor
    public: PublicPort
    admin: AdminPort
    data_dir: Path
    notifier: Notifier
    hangups: Hangups
    nursery: trio.Nursery  # of the tasks that fetch keys
    process: Process

    async def run(self) -> None:
        """Reload after each SIGHUP, until cancelled, except while the broker is stopping.

        Run it once the broker is ready.
        """
        self.leave(Verdict(pid=os.getpid(), began=time.monotonic_ns()))
        while True:
            await self.hangups.next()
            if self.supervisor.draining:
                continue
            began = time.monotonic_ns()
            # sd_notify(3): for systemd the reload is done at the READY=1 that follows.
            self.notifier.notify("RELOADING=1", f"MONOTONIC_USEC={began // 1000}")
            changed, left, faults = await self.try_reload()
            self.process.reload(succeeded=not faults)
            if not self.supervisor.draining:  # STOPPING=1 was the last word
                self.notifier.notify("READY=1")
            # Last: it ends `broker reload`, for which systemd may wait until all else is done.
            verdict = Verdict(
                pid=os.getpid(), began=began, changed=changed, needs_restart=left, faults=faults
            )
            self.leave(verdict)

    def leave(self, verdict: Verdict) -> None:
        try:
            leave(self.data_dir / VERDICT_FILE, attrs.asdict(verdict))
        except OSError as error:
            log.warning(
                "verdict_not_written", error=str(error), next="`broker reload` cannot report the outcome"
            )

    async def try_reload(self) -> tuple[list[str], list[str], list[str]]:
        """Reload; return the keys that have changed, those that need a restart, and any faults."""
        try:
            return (*await self.reload(self.read()), [])
        except ConfigError as error:
            faults = list(error.faults)
        except (OSError, ValueError) as error:  # an impossible file name: "a\0b"
            faults = [str(error)]
        except Exception as error:  # no configuration may end the broker
            log.exception("reload_crashed")
            faults = [f"{type(error).__name__}: {error}; the broker's log says more"]
        log.error("reload_refused", faults=faults, next="the old one stays in force")
        return [], [], faults

    async def reload(self, wanted: Config) -> tuple[list[str], list[str]]:
        """Apply a configuration; return the keys that have changed, and those that need a restart.

        Raises `ConfigError` before it has changed anything.
        """
        config = merge(self.config, wanted)
        keys = Keys.load(config.auth, before=self.keys.remotes)
        verifier = Verifier(config.auth, config.limits, config.permissions, keys)
        context = self.certificate(config)
        token = admin_token.load(config.server.admin_token_file, self.data_dir)
        expires = expiry(config.server)
        self.keys.scope.cancel()
        await self.nursery.start(keys.run)
        before, self.config, self.keys = self.config, config, keys
        self.public.ssl_context, self.admin.token = context, token
        self.process.certificate_expires = expires
        for port in (self.public.backend, self.admin):
            port.server, port.limits = config.server, config.limits
        await self.supervisor.reload(config, verifier)
        changed, left = list(differences(before, config)), list(differences(config, wanted))
        log.info("reloaded", changed=changed, needs_restart=left)
        if fault := self.public.descriptors.fault(config.limits.connections):
            log.warning("descriptors_few", fault=fault)
        logging.configure(config.log)
        return changed, left

    def certificate(self, config: Config) -> ssl.SSLContext | None:
        """Return the TLS context for later handshakes. TLS itself is not switched on or off."""
        server = config.server
        if (self.public.ssl_context is None) != (server.tls_certificate is None):
            raise ConfigError(["server.tls_certificate: TLS is switched on and off by a restart"])
        return server_context(server)
