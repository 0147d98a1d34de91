"""SIGHUP: another configuration for a broker that goes on running.

Keys, permissions, limits, origins, certificates, the drain and the log take effect at once. The rest needs
a restart, and is said to. A configuration that cannot be used changes nothing.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker import log as logging
from broker.auth.keys import Keys
from broker.auth.tokens import Verifier
from broker.errors import ConfigError
from broker.web.links import server_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from broker.actors.supervisor import Supervisor
    from broker.config import Config
    from broker.systemd import Notifier
    from broker.web.admin import AdminPort
    from broker.web.server import PublicPort

log = structlog.get_logger("broker.reload")

SECTIONS = ("auth", "permissions", "limits", "drain", "log")  # that take effect as a whole
SERVER = (  # of the section `server`
    "origins", "query_token", "tls_certificate", "tls_key", "tls_client_ca", "tls_client_required",
)  # fmt: skip


def merge(running: Config, wanted: Config) -> Config:
    """What runs from now on: of `wanted` all that does not need a restart."""
    server = attrs.evolve(running.server, **{name: getattr(wanted.server, name) for name in SERVER})
    return attrs.evolve(running, server=server, **{name: getattr(wanted, name) for name in SECTIONS})


def differences(one: Config, other: Config) -> Iterator[str]:
    """The keys, as "section.key", that have other values."""
    for section in attrs.fields(type(one)):
        ours, theirs = getattr(one, section.name), getattr(other, section.name)
        for key in attrs.fields(type(ours)):
            if getattr(ours, key.name) != getattr(theirs, key.name):
                yield f"{section.name}.{key.name}"


@attrs.define(eq=False, kw_only=True)
class Reloader:
    """Reads the configuration anew, by `read`, whenever SIGHUP comes. `config` is the one in force."""

    config: Config
    read: Callable[[], Config]
    keys: Keys
    supervisor: Supervisor
    public: PublicPort
    admin: AdminPort
    notifier: Notifier
    nursery: trio.Nursery  # of the tasks that fetch keys

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Reports started when a signal would be heard."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                # sd_notify(3): systemd takes a reload for done at the READY=1 that follows.
                self.notifier.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
                try:
                    await self.reload(self.read())
                except ConfigError as error:
                    log.error("reload_refused", faults=list(error.faults), next="the old one stays in force")
                except (OSError, ValueError) as error:  # a file that cannot be one: "a\0b"
                    log.error("reload_refused", faults=[str(error)], next="the old one stays in force")
                self.notifier.notify("READY=1")

    async def reload(self, wanted: Config) -> None:
        """Puts a configuration into force. Raises `ConfigError` before it has changed anything."""
        config = merge(self.config, wanted)
        keys = Keys.load(config.auth, before=self.keys.remotes)
        verifier = Verifier(config.auth, config.limits, config.permissions, keys)
        context = self.certificate(config)
        self.keys.scope.cancel()
        await self.nursery.start(keys.run)
        before, self.config, self.keys = self.config, config, keys
        self.public.ssl_context = context
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
