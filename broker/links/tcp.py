"""One accepted TCP connection: bytes in, bytes out, and a certain end."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
from typing import TYPE_CHECKING, ClassVar

import attrs
import trio

from broker.actors.transport import LinkLost, LinkState

if TYPE_CHECKING:
    from collections.abc import Callable

RECEIVE_BYTES = 16 * 1024
LINGER_SECONDS = 2.0
# Without this bound the kernel buffers up to 4 MiB for a client that does not read: memory that no RSS shows,
# and a lag policy that sets in 4 MiB too late.
UNSENT_BYTES = 64 * 1024
# Offsets in struct tcp_info (linux/tcp.h), in bytes.
TCPI_PROBES, TCPI_UNACKED, TCPI_LAST_ACK_RECV, TCPI_RTT, TCPI_BYTES_ACKED = 3, 24, 56, 68, 120
TCP_INFO_BYTES = 136
LOST = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@attrs.define(eq=False)
class Link:
    """A TCP connection. `peer` is the client's "HOST:PORT".

    Once a request has been read, `peer` is the client that trusted proxies name; port 0 where they name none.
    """

    partial_sends: ClassVar[bool] = True
    raw: socket.socket
    peer: str

    def __attrs_post_init__(self) -> None:
        self.raw.setblocking(False)
        self.tune()

    def tune(self) -> None:
        with contextlib.suppress(OSError):  # some systems refuse once the peer has gone
            self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)

    def give_up_after(self, seconds: float) -> None:
        """Have the kernel end the link once sent bytes stay unacknowledged for `seconds`.

        For clients that cannot answer a heartbeat (TCP_USER_TIMEOUT of tcp(7)). The kernel's own time-out is
        about 15 minutes.
        """
        with contextlib.suppress(OSError, AttributeError):  # Linux only
            self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    @property
    def certificate(self) -> str | None:
        """The name in the client's certificate, verified; None without one."""
        return None

    @property
    def local_host(self) -> str:
        """The address of this host that the client reached."""
        return str(self.raw.getsockname()[0])

    def state(self) -> LinkState:
        """Return what the kernel knows of the bytes sent (tcp(7), linux/tcp.h)."""
        try:
            info = self.raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            (pending,) = struct.unpack("i", fcntl.ioctl(self.raw, termios.TIOCOUTQ, bytes(4)))
            (under_way,) = struct.unpack_from("I", info, TCPI_UNACKED)
            (milliseconds,) = struct.unpack_from("I", info, TCPI_LAST_ACK_RECV)
            (microseconds,) = struct.unpack_from("I", info, TCPI_RTT)
            acknowledged, received = struct.unpack_from("QQ", info, TCPI_BYTES_ACKED)
        except (OSError, ValueError, AttributeError, struct.error):  # closed, or not Linux
            return LinkState(known=False)
        return LinkState(
            acknowledged=acknowledged,
            received=received,
            pending=pending,
            round_trip=microseconds / 1e6,
            silence=milliseconds / 1e3,
            # Nothing is in flight, and at most one window probe is unanswered.
            full=pending > 0 and under_way == 0 and info[TCPI_PROBES] <= 1,
        )

    async def open(self) -> None:
        """Do what precedes the first byte of HTTP. Raises `LinkLost`."""

    def arrived(self) -> bytes | None:
        """Return what has arrived already; None if that is nothing."""
        try:
            return self.take()
        except OSError:  # `receive` returns the end
            return None

    async def receive(self) -> bytes:
        """Wait for data and return it; empty once the link has ended, in whichever way."""
        # What `trio.socket` does, without an object and two frames for each idle client.
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            data = self.take()
            if data is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
            while data is None:
                await trio.lowlevel.wait_readable(self.raw)
                data = self.take()
        except LOST:
            return b""
        return data

    def take(self) -> bytes | None:
        # Not within `receive`: a task that waits in an `except` block holds the exception, half a KiB.
        try:
            return self.raw.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None

    @property
    def send_nowait(self) -> Callable[[bytes | memoryview], int]:
        """The socket's own `send`: a call in between would be a tenth of a delivery's cost."""
        return self.raw.send

    def offer(self, data: bytes | memoryview) -> int:
        """Send what the link accepts at once and return the number of bytes. Raises `LinkLost`."""
        try:
            return self.send_nowait(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkLost from error

    async def send_some(self, data: bytes | memoryview) -> int:
        try:
            await trio.lowlevel.checkpoint()
            while not (sent := self.offer(data)):
                await trio.lowlevel.wait_writable(self.raw)
        except LOST as error:
            raise LinkLost from error
        return sent

    async def send_all(self, data: bytes) -> None:
        rest = memoryview(data)[self.offer(data) :]  # mostly empty: no turn of the event loop
        while rest:
            rest = rest[await self.send_some(rest) :]

    async def linger(self, seconds: float = LINGER_SECONDS) -> None:
        """Shut down sending, and wait at most `seconds` for the client to close.

        Closing with unread bytes would make TCP discard the last bytes sent (RFC 9112 section 9.6, RFC 6455
        section 7.1.1).
        """
        with trio.move_on_after(seconds), contextlib.suppress(OSError):
            self.raw.shutdown(socket.SHUT_WR)
            while await Link.receive(self):  # of TCP also under TLS: what it is does not matter
                pass

    async def cancel_when_closed(self, scope: trio.CancelScope) -> None:
        """Cancel `scope` once the client has closed; what it sends until then is dropped."""
        while await self.receive():
            pass
        scope.cancel()

    def abort(self) -> None:
        """Close the socket at once; a client that is still there gets a reset."""
        if self.raw.fileno() >= 0:
            with contextlib.suppress(OSError):
                self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            trio.lowlevel.notify_closing(self.raw)
            self.raw.close()
