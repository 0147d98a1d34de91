"""SIGHUP: another configuration for a broker that goes on running.

Keys, permissions, limits, origins, trusted proxies, certificates, the drain, metrics and the log take effect
at once. The rest needs a restart, and is said to. A configuration that cannot be used changes nothing.
"""

from __future__ import annotations

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
from broker.web.links import expiry, server_context

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

SECTIONS = ("auth", "permissions", "limits", "drain", "metrics", "log")  # that take effect as a whole
SERVER = (  # of the section `server`
    "origins", "query_token", "tls_certificate", "tls_key", "tls_client_ca", "tls_client_required",
    "trusted_proxies", "proxy_protocol",
    "admin_token_file",
)  # fmt: skip


def merge(running: Config, wanted: Config) -> Config:
    """What runs from now on: of `wanted` all that does not need a restart."""
    server = attrs.evolve(running.server, **{name: getattr(wanted.server, name) for name in SERVER})
    config = attrs.evolve(running, server=server, **{name: getattr(wanted, name) for name in SECTIONS})
    if running.nats.urls:
        return config
    # Our own nats-server was started for events of that size.
    limits = attrs.evolve(config.limits, event_bytes=running.limits.event_bytes)
    return attrs.evolve(config, limits=limits)


def differences(one: Config, other: Config) -> Iterator[str]:
    """The keys, as "section.key", that have other values."""
    for section in attrs.fields(type(one)):
        ours, theirs = getattr(one, section.name), getattr(other, section.name)
        for key in attrs.fields(type(ours)):
            if getattr(ours, key.name) != getattr(theirs, key.name):
                yield f"{section.name}.{key.name}"


@attrs.define(eq=False)
class Hangups:
    """Hears SIGHUP, also one that was held back before. Several until somebody asks are one."""

    heard: trio.Event = attrs.Factory(trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            task_status.started()
            async for _ in signals:
                self.heard.set()

    async def next(self) -> None:
        await self.heard.wait()
        self.heard = trio.Event()


@attrs.define(eq=False, kw_only=True)
class Reloader:
    """Reads the configuration anew, by `read`, after each hang-up. `config` is the one in force."""

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
        """Until cancelled. To be run once the broker is ready; while it is about to stop, nothing is read."""
        while True:
            await self.hangups.next()
            if self.supervisor.draining:
                continue
            # sd_notify(3): systemd takes a reload for done at the READY=1 that follows.
            self.notifier.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            succeeded = False
            try:
                await self.reload(self.read())
                succeeded = True
            except ConfigError as error:
                log.error("reload_refused", faults=list(error.faults), next="the old one stays in force")
            except (OSError, ValueError) as error:  # a file that cannot be one: "a\0b"
                log.error("reload_refused", faults=[str(error)], next="the old one stays in force")
            self.process.reload(succeeded=succeeded)
            if not self.supervisor.draining:  # STOPPING=1 was the last word
                self.notifier.notify("READY=1")

    async def reload(self, wanted: Config) -> None:
        """Puts a configuration into force. Raises `ConfigError` before it has changed anything."""
        config = merge(self.config, wanted)
        keys = Keys.load(config.auth, before=self.keys.remotes)
        verifier = Verifier(config.auth, config.limits, config.permissions, keys)
        context = self.certificate(config)
        token = admin_token.load(config.server.admin_token_file, self.data_dir)
        self.keys.scope.cancel()
        await self.nursery.start(keys.run)
        before, self.config, self.keys = self.config, config, keys
        self.public.ssl_context, self.admin.token = context, token
        self.process.certificate_expires = expiry(config.server)
        for port in (self.public, self.admin):
            port.server, port.limits = config.server, config.limits
        await self.supervisor.reload(config, verifier)
        changed, left = list(differences(before, config)), list(differences(config, wanted))
        log.info("reloaded", changed=changed, needs_restart=left)
        logging.configure(config.log)

    def certificate(self, config: Config) -> ssl.SSLContext | None:
        """What later handshakes are made with. TLS itself is not switched on or off."""
        server = config.server
        if (self.public.ssl_context is None) != (server.tls_certificate is None):
            raise ConfigError(["server.tls_certificate: TLS is switched on and off by a restart"])
        return server_context(server)
