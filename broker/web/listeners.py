"""Listening sockets, and the loop that accepts on them."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog
import trio

from broker.actors.transport import LinkLost
from broker.config import Server, exposure, host_port
from broker.descriptors import UNBOUNDED
from broker.errors import ConfigError
from broker.links.tcp import Link
from broker.links.tls import TlsLink

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from broker import config

log = structlog.get_logger()

# Answers a request, or returns what the link is used for from then on: nothing of the request is kept
# meanwhile.
Handle: TypeAlias = "Callable[[Link], Awaitable[Awaitable[None] | None]]"
Context: TypeAlias = "Callable[[], ssl.SSLContext | None]"  # for the next handshake; None without TLS

# Connections accepted in one turn: a storm of reconnects is cheaper in batches, but other tasks need their
# turn.
BATCH = 64
BACK_OFF_SECONDS = 0.1
NEXT_STEPS = {
    errno.EMFILE: "raise LimitNOFILE= of the service, or lower limits.connections",
    errno.ENFILE: "raise fs.file-max of the system (sysctl)",
}
ABSENT = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
# accept(2): errors of the new connection, which Linux reports here, and of firewalls.
TRANSIENT = {
    *(errno.ECONNABORTED, errno.ECONNRESET, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET, errno.ETIMEDOUT),
}


async def open_ports(
    server: config.Server, passed: Mapping[str, list[socket.socket]]
) -> tuple[list[socket.socket], list[socket.socket]]:
    """Return the sockets of the public and of the admin port: those that systemd passed, or as `server` says.

    Raises `ConfigError` for an address that cannot be opened, and for a port without TLS that other machines
    can reach; then all sockets are closed.
    """
    with ExitStack() as opened:
        public = passed.get("public") or await open_listeners(
            server.listen, server.backlog, reuse_port=server.reuse_port
        )
        if "public" in passed:
            note_ignored(server.listen, public)
        check_exposure(server, exposure.PUBLIC, public, opened)
        admin = passed.get("admin") or await open_listeners(
            server.admin_listen, server.backlog, key=exposure.ADMIN
        )
        check_exposure(server, exposure.ADMIN, admin, opened)
        opened.pop_all()
    return public, admin


def note_ignored(listen: str, passed: Sequence[socket.socket]) -> None:
    """Log that the address of the configuration has no effect, since systemd passed sockets with another."""
    used = [shown(each.getsockname()) for each in passed]
    if listen not in (*used, Server().listen):
        log.warning("listen_ignored", listen=listen, used=used, next="systemctl edit broker.socket")


def check_exposure(server: config.Server, key: str, sockets: list[socket.socket], opened: ExitStack) -> None:
    for each in sockets:
        opened.enter_context(each)
    for each in sockets:
        if fault := exposure.fault(server, key, each.getsockname()[0]):
            raise ConfigError([f"{key}: {fault}"])


async def open_listeners(
    listen: str, backlog: int, *, key: str = "server.listen", reuse_port: bool = False
) -> list[socket.socket]:
    """Listen on "HOST:PORT", on every address that HOST has. Port 0 is any free one.

    With `reuse_port`, other processes of the same user may listen there too (SO_REUSEPORT of socket(7)), and
    the kernel spreads connections over them. Raises `ConfigError` naming `key`, the configuration's key for
    `listen`.
    """
    try:
        host, port = host_port(listen)
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return bind([(family, address) for family, _, _, _, address in found], backlog, reuse_port)
    except ValueError as error:
        raise ConfigError([f"{key}: {error}"]) from error
    except OSError as error:
        raise ConfigError([f"{key}: cannot listen on {listen}: {reason_of(error)}"]) from error


def reason_of(error: OSError) -> str:
    """Return what is wrong, and what to do about it."""
    reason = error.strerror or str(error)
    if isinstance(error, socket.gaierror):
        return f"{reason}; use an address instead of a name, such as 127.0.0.1 or 0.0.0.0"
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"{reason}; stop the process that listens there (`ss -ltnp` shows it), or choose another port"
            )
        case errno.EACCES:
            return f"{reason}; choose a port above 1023, or have systemd open this one (broker.socket)"
        case errno.EADDRNOTAVAIL:
            return f"{reason}; choose an address of this machine (`ip address` shows them)"
    return reason


def bind(
    addresses: Iterable[tuple[socket.AddressFamily, Any]], backlog: int, reuse_port: bool
) -> list[socket.socket]:
    """Listen on those of the addresses that this machine has. Raises `OSError`, also if it has none."""
    absent: OSError | None = None
    with ExitStack() as opened:
        listeners = []
        for family, address in addresses:
            try:
                made = socket.create_server(address, family=family, backlog=backlog, reuse_port=reuse_port)
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent = error  # `localhost` may be ::1 as well on a machine without IPv6
            else:
                listeners.append(opened.enter_context(made))
        if absent and not listeners:
            raise absent
        opened.pop_all()
    return listeners


def no_tls() -> None:
    """Return no context: plain TCP."""


async def accept(
    listeners: Sequence[socket.socket],
    handle: Handle,
    *,
    nursery: trio.Nursery,
    context: Context = no_tls,
    full: int = UNBOUNDED.full,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept for ever, run `handle` for each connection in `nursery`, and close the connection after it.

    A connection whose file descriptor is `full` or higher is closed at once. When cancelled, the listeners
    are closed; accepted connections go on.
    """
    try:
        async with trio.open_nursery() as loops:
            for listener in listeners:
                listener.setblocking(False)
                loops.start_soon(accept_on, listener, handle, nursery, context, full)
            task_status.started()
    finally:
        for listener in listeners:
            trio.lowlevel.notify_closing(listener)
            listener.close()


async def accept_on(
    listener: socket.socket, handle: Handle, nursery: trio.Nursery, context: Context, full: int
) -> None:
    failing = 0  # the number of the error that was logged
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            for _ in range(BATCH):
                raw, address = listener.accept()
                if raw.fileno() >= full:
                    raw.close()
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                failing = 0
                nursery.start_soon(connection, raw, shown(address), handle, context)
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno in TRANSIENT:
                continue
            # The connection stays in the backlog. Logged once, until something has been accepted again.
            if failing != error.errno:
                log.warning("accept_failed", error=error.strerror, next=NEXT_STEPS.get(error.errno or 0))
            failing = error.errno or -1
            await trio.sleep(BACK_OFF_SECONDS)


async def connection(raw: socket.socket, peer: str, handle: Handle, context: Context) -> None:
    """Serve one accepted connection to its end. Whatever breaks in it, others go on."""
    try:
        tls = context()
        link = Link(raw, peer) if tls is None else TlsLink(raw, peer, tls)
        try:
            serving = await handle(link)
            if serving is not None:
                await serving
        except LinkLost:
            log.debug("connection_lost", peer=link.peer)
        finally:
            link.abort()
    except Exception:  # beyond this it would end the broker
        log.exception("link_crashed", peer=peer)
    finally:
        raw.close()


def shown(address: tuple[str | int, ...]) -> str:
    """Return an address as "HOST:PORT", an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
