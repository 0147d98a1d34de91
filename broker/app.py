"""The composition root: the only module that chooses implementations.

The nesting of the nurseries is the order of shutdown: listeners close first, then connections end, then
tenants, then NATS.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import attrs
import structlog
import trio
from prometheus_client import CollectorRegistry, ProcessCollector

from broker import descriptors, systemd
from broker.actors import scrape
from broker.actors.supervisor import Supervisor
from broker.auth import admin as admin_token
from broker.auth import tokens
from broker.auth.keys import Keys
from broker.auth.tokens import Verifier
from broker.bus import streams
from broker.bus.nats import NatsBus
from broker.bus.server import EmbeddedServer
from broker.config import unusable
from broker.errors import CloseCode
from broker.links import tls
from broker.links.exchange import Backend
from broker.metrics.collector import Collector
from broker.metrics.keysets import KeySets
from broker.metrics.process import Pauses, Process
from broker.operations.bans import Bans
from broker.operations.diagnosis import Diagnosis
from broker.operations.documents import Documents
from broker.operations.process import Operations
from broker.operations.storage import Storage
from broker.operations.streams import Streams
from broker.reloading import Hangups, Reloader, leave
from broker.subjects import Names
from broker.turns import Turn
from broker.web import api, asyncapi, diagnosis, routes
from broker.web.admin import AdminPort
from broker.web.health import Health
from broker.web.listeners import open_ports
from broker.web.router import Router
from broker.web.server import PublicPort
from broker.web.site import Site
from broker.web.streaming import to_json

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from broker.config import Config, Nats
    from broker.config import Tracing as TracingSettings
    from broker.features.audit import Audit
    from broker.tracing import Tracing
    from broker.web.router import Action

# With the defaults a full collection stops everything for 300 ms at 8,000 connections; with these the
# longest pause is 14 ms. In return no connection may leave a reference cycle behind.
GC_THRESHOLDS = (5000, 8, 1_000_000)
STATE_FILE = "broker.json"
MILESTONE_FILE = "stream.json"
CLOSING_SECONDS = 15.0  # besides the drain: the embedded nats-server takes up to 10 s, leaving NATS up to 2 s
NOTICE_SECONDS = 0.5  # for requests that clients sent before they heard that the broker stops
READY_POLL_SECONDS = 0.02
# For reaching NATS before clients are accepted. They wait in the queue of the socket, since a refusal ends
# some (EventSource takes 503 for final); when NATS is away, they are told after that time.
OPENING_SECONDS = 5.0
DEMO_TOKEN_SECONDS = 300.0  # short, so that its renewal can be seen
SPANS_SECONDS = 5.0  # for the last spans, which must not use up the grace period

log = structlog.get_logger()


@attrs.define(eq=False)
class Stop:
    """The request to stop, and the close code for clients: restart (reconnect soon) or going away."""

    wanted: trio.Event = attrs.Factory(trio.Event)
    code: CloseCode = CloseCode.SERVICE_RESTART


@attrs.frozen(kw_only=True)
class Running:
    """The addresses of a running broker, as URLs; `nats` includes its credentials."""

    pid: int
    http: str
    ws: str
    admin: str
    nats: str


async def serve(
    config: Config,
    *,
    data_dir: Path,
    on_ready: Callable[[Running], None],
    stop: Stop | None = None,
    read: Callable[[], Config] | None = None,
    demo: bool = False,
) -> None:
    """Run the broker until SIGTERM, SIGINT or `stop`, then drain it; a second signal ends it at once.

    `on_ready` is called once an event can be delivered. With `read`, which reads the configuration, SIGHUP
    reloads it. With `demo` there is a demo page, with tokens signed for it. Raises `ConfigError` for an
    unusable configuration, and other `BrokerError`s for obstacles at the start.
    """
    keys = Keys.load(config.auth)
    verifier = Verifier(config.auth, config.limits, config.permissions, keys)
    context = tls.server_context(config.server)
    notifier = systemd.notifier(os.environ)
    passed = systemd.sockets(os.environ)
    names = Names(**attrs.asdict(config.subjects))
    open_directory(data_dir)
    room = descriptors.claim()
    if fault := room.fault(config.limits.connections):
        log.warning("descriptors_few", fault=fault)
    token = admin_token.load(config.server.admin_token_file, data_dir)
    stop = stop or Stop()
    tracing = open_tracing(config.tracing)

    async with trio.open_nursery() as engine:
        engine.start_soon(watch_signals, stop, engine.cancel_scope)
        hangups = Hangups()
        if read:
            await engine.start(hangups.run)
        engine.start_soon(keys.run)
        nats = config.nats
        if not nats.urls:
            embedded = EmbeddedServer(directory=data_dir / "nats", event_bytes=config.limits.event_bytes)
            nats = attrs.evolve(nats, urls=(await engine.start(embedded.run),))
        bus = NatsBus(
            nats=nats,
            stream=config.stream,
            names=names,
            audit=config.audit,
            milestones=data_dir / MILESTONE_FILE,
            embedded=not config.nats.urls,
            kept_by_key=kept_by_key(config, names),
        )
        supervisor = Supervisor(
            config=config,
            bus=bus,
            names=names,
            verifier=verifier,
            alive=notifier.feed_watchdog,
            tracing=tracing,
        )
        async with trio.open_nursery() as tenants:
            await tenants.start(supervisor.run)
            public, admin = await open_ports(config.server, passed)
            registry = CollectorRegistry()
            registry.register(Collector(partial(scrape.statistics, supervisor)))
            process = Process(certificate_expires=tls.expiry(config.server))
            registry.register(process)
            registry.register(KeySets(lambda: supervisor.verifier.keys.statistics()))
            pauses = Pauses()
            registry.register(pauses)
            ProcessCollector(registry=registry)
            health = Health(supervisor.not_ready, lambda: supervisor.verifier.keys.remarks())
            protocol = routes.protocol(supervisor.post, supervisor.services.table)
            site = Site(
                sign=partial(demo_token, config) if demo else None,
                documents={
                    "/asyncapi.json": lambda: to_json(
                        asyncapi.document(protocol, names, supervisor.services.table)
                    )
                },
            )
            public_port = PublicPort(
                Backend(
                    server=config.server,
                    limits=config.limits,
                    serve=supervisor.serve,
                    admission=supervisor.admission,
                    responses=process.responses,
                ),
                routes.table(protocol, health.routes(), site.routes()),
                development=site.development,
                ssl_context=context,
                descriptors=room,
            )
            admin_port = AdminPort(
                config.server,
                config.limits,
                registry=registry,
                health=health,
                router=Router(
                    api.routes(
                        Operations(supervisor),
                        Storage(supervisor),
                        Documents(supervisor),
                        Bans(supervisor),
                        Streams(bus),
                        *diagnosis.routes(Diagnosis(supervisor)),
                    ),
                    acted=partial(note_action, supervisor.audit),
                ),
                token=token,
            )
            running = Running(
                pid=os.getpid(),
                http=url("https" if context else "http", public),
                ws=url("wss" if context else "ws", public) + "/ws",
                admin=url("http", admin),
                nats=with_credentials(nats),
            )
            async with trio.open_nursery() as connections:
                ports = Ports(
                    public=partial(public_port.run, public, nursery=connections),
                    admin=partial(admin_port.run, admin, nursery=connections),
                    sockets=[*public, *admin],
                )
                await connections.start(ports.run)
                tune_collector()
                if await settled(supervisor, stop, notifier):
                    ports.ready.set()
                    with state_file(data_dir / STATE_FILE, running), watched_collector(pauses):
                        notifier.notify("READY=1", f"STATUS=serving {running.ws}")
                        log.info("ready", ws=running.ws, admin=running.admin)
                        on_ready(running)
                        if read:
                            reloader = Reloader(
                                config=config,
                                read=read,
                                keys=keys,
                                supervisor=supervisor,
                                public=public_port,
                                admin=admin_port,
                                data_dir=data_dir,
                                notifier=notifier,
                                hangups=hangups,
                                nursery=engine,
                                process=process,
                            )
                            tenants.start_soon(reloader.run)
                        await stop.wanted.wait()
                supervisor.draining = True
                grace = supervisor.config.drain.grace_seconds
                notifier.stopping(grace + CLOSING_SECONDS, len(supervisor.connections))
                ports.scope.cancel()
                await drain(supervisor, stop.code)
                connections.cancel_scope.cancel()
            tenants.cancel_scope.cancel()
        engine.cancel_scope.cancel()


def kept_by_key(config: Config, names: Names) -> list[streams.Wanted]:
    """Return the keyed streams of the features that are in use."""
    replicas = config.stream.replicas
    found = []
    if config.state.used:
        found.append(streams.state(config.state, names, replicas))
    if config.presence.enabled:
        found.append(streams.presence(config.presence, names, replicas))
    return found


@attrs.define(eq=False, kw_only=True)
class Ports:
    """The listeners, which close before the connections end.

    The public one accepts once the broker is `ready`, and otherwise after `OPENING_SECONDS`.
    """

    public: Callable[..., Awaitable[None]]
    admin: Callable[..., Awaitable[None]]
    sockets: list[socket.socket]
    ready: trio.Event = attrs.Factory(trio.Event)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with ExitStack() as opened, self.scope:
            for each in self.sockets:
                opened.enter_context(each)
            async with trio.open_nursery() as nursery:
                await nursery.start(self.admin)
                task_status.started()
                with trio.move_on_after(OPENING_SECONDS):
                    await self.ready.wait()
                await nursery.start(self.public)


def demo_token(config: Config, tenant: str, user: str) -> str:
    return tokens.sign(config.auth, tenant=tenant, user=user, now=time.time(), ttl=DEMO_TOKEN_SECONDS)


def note_action(audit: Audit, action: Action) -> None:
    """Record an operator's action; the address is all that is known of the bearer of the admin token."""
    tenant = action.on.get("tenant")
    audit.note(
        "admin",
        tenant=tenant if isinstance(tenant, str) else None,
        peer=action.peer,
        action=action.what,
        on=action.on,
        status=action.status,
    )


async def settled(supervisor: Supervisor, stop: Stop, notifier: systemd.Notifier) -> bool:
    """Wait until an event can be delivered; return False if the broker is to stop before that."""
    told = None
    while not stop.wanted.is_set():
        reason = supervisor.not_ready()
        if reason is None:
            return True
        if reason != told:
            notifier.notify(f"STATUS=waiting: {reason}")
            told = reason
        with trio.move_on_after(READY_POLL_SECONDS):
            await stop.wanted.wait()
    return False


async def drain(supervisor: Supervisor, code: CloseCode) -> None:
    """Ask all clients to reconnect, spread over time, and end each connection at its time.

    Publishes and acknowledgements continue until then. Returns after the grace period at the latest.
    """
    settings = supervisor.config.drain
    leaving = list(supervisor.connections)
    random.shuffle(leaving)
    spread = len(leaving) / settings.reconnects_per_second
    spread = min(spread, settings.grace_seconds * 0.8)
    delays = [spread * index / len(leaving) for index in range(len(leaving))]
    turn = Turn()
    for connection, delay in zip(leaving, delays, strict=True):
        connection.drain(delay)
        await turn.pass_on()
    log.info("draining", connections=len(leaving), seconds=round(spread, 1))
    told = trio.current_time()
    notice = min(NOTICE_SECONDS, settings.grace_seconds * 0.1)  # and as much for the last words of all

    async def dismiss() -> None:
        for connection, delay in zip(leaving, delays, strict=True):
            await trio.sleep_until(told + notice + delay)
            connection.dismiss(code)
        await trio.sleep_until(told + settings.grace_seconds - notice)
        for connection in leaving:  # whatever they still wait for
            connection.dismiss(code, at_once=True)

    with trio.move_on_after(settings.grace_seconds) as grace:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dismiss)
            await supervisor.emptied()  # which is earlier where clients leave as soon as they are asked to
            nursery.cancel_scope.cancel()
        for part in supervisor.parts:
            await part.flush()
        if supervisor.tracing:
            await send_spans(supervisor.tracing)
    if grace.cancelled_caught:
        log.warning("drain_cut_short", connections=len(supervisor.connections))


def open_tracing(settings: TracingSettings) -> Tracing | None:
    """Return the tracing, if enabled; only then is OpenTelemetry imported."""
    if not settings.enabled:
        return None
    from broker.tracing import Tracing, make_exporter

    return Tracing(settings, make_exporter(settings))


async def send_spans(tracing: Tracing) -> None:
    """Send the last spans, unless their collector is out of reach."""
    with trio.move_on_after(SPANS_SECONDS) as sending:
        await trio.to_thread.run_sync(tracing.close, abandon_on_cancel=True)
    if sending.cancelled_caught:
        log.warning("spans_lost", endpoint=tracing.settings.endpoint)


async def watch_signals(stop: Stop, scope: trio.CancelScope) -> None:
    """Stop the broker in order at the first signal, and at once at the second.

    SIGTERM is taken for a restart by a service manager, SIGINT (Ctrl-C) for a stop without one.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal", name=signal.Signals(number).name)
            if stop.wanted.is_set():
                scope.cancel()
            if number == signal.SIGINT:
                stop.code = CloseCode.GOING_AWAY
            stop.wanted.set()


def open_directory(path: Path) -> None:
    """Create the data directory and check that it is writable. Raises `ConfigError`."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise unusable(path, error) from error


@contextmanager
def state_file(path: Path, running: Running) -> Iterator[None]:
    """Keep the addresses in a file while the broker runs, for the commands that run beside it."""
    try:
        leave(path, attrs.asdict(running))
    except OSError as error:
        raise unusable(path, error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # a leftover only names a process that is gone
            path.unlink(missing_ok=True)


@contextmanager
def watched_collector(pauses: Pauses) -> Iterator[None]:
    """Count the pauses of the garbage collector."""
    gc.callbacks.append(pauses)
    try:
        yield
    finally:
        gc.callbacks.remove(pauses)


def tune_collector() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def with_credentials(nats: Nats) -> str:
    """Return the first address, with the credentials that another client needs."""
    first = nats.urls[0]
    if nats.user is None or "@" in first:
        return first
    password = nats.password_file.read_text().strip() if nats.password_file else ""
    scheme, _, rest = first.rpartition("://")
    return f"{scheme or 'nats'}://{quote(nats.user, safe='')}:{quote(password, safe='')}@{rest}"


def url(scheme: str, listeners: list[socket.socket]) -> str:
    host, port = listeners[0].getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
