"""What systemd hands a service, and what it wants to hear.

sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3). The variables are taken out of
the environment, so that children (nats-server) do not inherit them.
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
    """Return the listening sockets that were passed, under "public" and "admin"; empty without socket
    activation.

    The names are those of `FileDescriptorName=`; where there are none, all are public. Raises
    `ConfigError` when one has another name or is no listening TCP socket.
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
            raise ConfigError([f"LISTEN_FDNAMES: {label!r} is none of {', '.join(NAMES)}"])
        passed.setdefault(label, []).append(listening(descriptor))
    return passed


def listening(descriptor: int) -> socket.socket:
    """Return the socket behind a descriptor, ours alone."""
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
    raise ConfigError([f"LISTEN_FDS: descriptor {descriptor} is no listening TCP socket"])


@attrs.frozen(kw_only=True)
class Notifier:
    """The way back to systemd. Without `NOTIFY_SOCKET` there is nobody to tell, and nothing happens.

    `watchdog_seconds`: within each such span `WATCHDOG=1` is expected; `None`: it is not.
    """

    address: str | None = None
    watchdog_seconds: float | None = None

    def notify(self, *assignments: str) -> None:
        """Send "READY=1", "STATUS=…", "STOPPING=1" and the like, a line each, as one message. Never blocks.

        Whether it arrives makes no difference to what we do (sd_notify(3), "Return Value").
        """
        if self.address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            lines = (each.replace("\n", " ") for each in assignments)  # a reason may have several
            sender.sendto("\n".join(lines).encode(), self.address)

    def stopping(self, seconds: float, connections: int) -> None:
        """Say that the service leaves within `seconds`, whatever its unit allows, and what it is at."""
        self.notify(
            "STOPPING=1",
            f"STATUS=draining {connections} connections",
            f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}",
        )

    def feed_watchdog(self) -> None:
        """Say that all is well, where that is wanted."""
        if self.watchdog_seconds is not None:
            self.notify("WATCHDOG=1")


def notifier(environment: MutableMapping[str, str]) -> Notifier:
    """Return who is to be told, from `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.

    A path, or with "@" first an abstract name. Other kinds (vsock) are for virtual machines, not services.
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
