"""The interface to systemd: passed sockets, readiness, status and the watchdog.

sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3). The variables are removed from the environment, so
that children (nats-server) do not inherit them.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import attrs

from broker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
NAMES = ("public", "admin")


def sockets(
    environment: MutableMapping[str, str], *, first: int = FIRST_DESCRIPTOR
) -> dict[str, list[socket.socket]]:
    """Return the listening sockets that were passed, by name: "public", "admin".

    The names are those of `FileDescriptorName=`; without names all are public. Empty without socket
    activation. Raises `ConfigError` for another name, and for anything but a listening TCP socket.
    """
    owner = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "")
    if owner != str(os.getpid()) or not count.isdecimal():
        return {}
    labels = names.split(":") if names else [NAMES[0]] * int(count)
    if len(labels) != int(count):
        raise ConfigError([f"LISTEN_FDNAMES: {len(labels)} names for {count} sockets"])
    passed: dict[str, list[socket.socket]] = {}
    for descriptor, label in enumerate(labels, first):
        if label not in NAMES:
            raise ConfigError([f"LISTEN_FDNAMES: {label!r} is not one of {', '.join(NAMES)}"])
        passed.setdefault(label, []).append(listening(descriptor))
    return passed


def listening(descriptor: int) -> socket.socket:
    """Return the socket of a descriptor, not to be inherited by children."""
    try:
        os.set_inheritable(descriptor, False)
        passed = socket.socket(fileno=descriptor)
        if (
            passed.family in (socket.AF_INET, socket.AF_INET6)
            and passed.type == socket.SOCK_STREAM
            and passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            return passed
    except OSError as error:
        raise ConfigError([f"LISTEN_FDS: descriptor {descriptor}: {error.strerror}"]) from error
    passed.close()
    raise ConfigError([f"LISTEN_FDS: descriptor {descriptor} is not a listening TCP socket"])


@attrs.frozen(kw_only=True)
class Notifier:
    """Notifies systemd. Without `NOTIFY_SOCKET` it does nothing.

    `watchdog_seconds` is the interval within which `WATCHDOG=1` is expected; None if it is not.
    """

    address: str | None = None
    watchdog_seconds: float | None = None

    def notify(self, *assignments: str) -> None:
        """Send "READY=1", "STATUS=…", "STOPPING=1" and the like, one per line, in one message. Never blocks.

        Delivery makes no difference to what the broker does (sd_notify(3), "Return Value").
        """
        if self.address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            lines = (each.replace("\n", " ") for each in assignments)  # a reason may have several lines
            sender.sendto("\n".join(lines).encode(), self.address)

    def stopping(self, seconds: float, connections: int) -> None:
        """Report that connections are drained and the service stops in `seconds`, whatever its
        unit allows.
        """
        self.notify(
            "STOPPING=1",
            f"STATUS=draining {connections} connections",
            f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}",
        )

    def feed_watchdog(self) -> None:
        """Report that the process is alive, if a watchdog expects it."""
        if self.watchdog_seconds is not None:
            self.notify("WATCHDOG=1")


def notifier(environment: MutableMapping[str, str]) -> Notifier:
    """Return the notifier for `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.

    The address is a path, or an abstract name after "@". Other kinds (vsock) are for virtual machines.
    """
    address = environment.pop("NOTIFY_SOCKET", "")
    span = environment.pop("WATCHDOG_USEC", "")
    watched = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if address[:1] not in ("/", "@") or len(address) < 2:
        return Notifier()
    return Notifier(
        address=f"\0{address[1:]}" if address[0] == "@" else address,
        watchdog_seconds=int(span) / 1_000_000 if span.isdecimal() and watched and int(span) else None,
    )
