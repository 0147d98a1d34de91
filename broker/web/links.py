"""One accepted connection: bytes in, bytes out, and a sure end. Plain TCP, or TLS over it."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import ssl
import struct
import termios
from typing import TYPE_CHECKING, ClassVar

import attrs
import trio
from cryptography import x509

from broker.actors.transport import LinkLost, LinkState
from broker.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from broker import config

RECEIVE_BYTES = 16 * 1024
LINGER_SECONDS = 2.0
# Without it the kernel takes up to 4 MiB for a client that does not read: memory that no RSS shows,
# and a lag policy that starts 4 MiB too late.
UNSENT_BYTES = 64 * 1024
# Of struct tcp_info, in bytes.
TCPI_PROBES, TCPI_UNACKED, TCPI_LAST_ACK_RECV, TCPI_RTT, TCPI_BYTES_ACKED = 3, 24, 56, 68, 120
TCP_INFO_BYTES = 136
LOST = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@attrs.define(eq=False)
class Link:
    """A TCP connection: `raw` is non-blocking. `peer` is the client's "HOST:PORT".

    Once a request has been read it is what trusted proxies say; port 0 is one that they do not say.
    """

    partial_sends: ClassVar[bool] = True
    raw: socket.socket
    peer: str

    def __attrs_post_init__(self) -> None:
        self.raw.setblocking(False)
        self.tune()

    def tune(self) -> None:
        with contextlib.suppress(OSError):  # some systems refuse when the peer has gone already
            self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)

    def give_up_after(self, seconds: float) -> None:
        """Has the kernel end the link when the client has acknowledged nothing of what was sent for so long.

        For clients that cannot answer a heartbeat (TCP_USER_TIMEOUT of tcp(7); else it takes the kernel
        about 15 minutes).
        """
        with contextlib.suppress(OSError, AttributeError):  # the option is Linux's
            self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    @property
    def certificate(self) -> str | None:
        """The name in the certificate that the client has shown, verified."""
        return None

    @property
    def local_host(self) -> str:
        """The address of ours that the client reached."""
        return str(self.raw.getsockname()[0])

    def state(self) -> LinkState:
        """What has become of the bytes, by tcp(7) and linux/tcp.h."""
        try:
            info = self.raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            (pending,) = struct.unpack("i", fcntl.ioctl(self.raw, termios.TIOCOUTQ, bytes(4)))
            (under_way,) = struct.unpack_from("I", info, TCPI_UNACKED)
            (milliseconds,) = struct.unpack_from("I", info, TCPI_LAST_ACK_RECV)
            (microseconds,) = struct.unpack_from("I", info, TCPI_RTT)
            acknowledged, received = struct.unpack_from("QQ", info, TCPI_BYTES_ACKED)
        except (OSError, ValueError, AttributeError, struct.error):  # it is gone, or this is not Linux
            return LinkState(known=False)
        return LinkState(
            acknowledged=acknowledged,
            received=received,
            pending=pending,
            round_trip=microseconds / 1e6,
            silence=milliseconds / 1e3,
            # Nothing is under way; whether there is room again was answered, or has just been asked.
            full=pending > 0 and under_way == 0 and info[TCPI_PROBES] <= 1,
        )

    async def open(self) -> None:
        """What has to happen before the first byte of HTTP. Raises `LinkLost`."""

    async def receive(self) -> bytes:
        """What has arrived, at least a byte; nothing when the link has ended, in whichever way."""
        # As `trio.socket` does it, without its object and its two frames for each idle client.
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
        # Not within `receive`: who waits in an `except` holds the exception, half a KiB.
        try:
            return self.raw.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None

    def send_nowait(self, data: bytes | memoryview) -> int:
        try:
            return self.raw.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkLost from error

    async def send_some(self, data: bytes | memoryview) -> int:
        try:
            await trio.lowlevel.checkpoint()
            while not (sent := self.send_nowait(data)):
                await trio.lowlevel.wait_writable(self.raw)
        except LOST as error:
            raise LinkLost from error
        return sent

    async def send_all(self, data: bytes) -> None:
        rest = memoryview(data)[self.send_nowait(data) :]  # mostly all of it, and no turn of the loop
        while rest:
            rest = rest[await self.send_some(rest) :]

    async def linger(self, seconds: float = LINGER_SECONDS) -> None:
        """Says that nothing more comes, and waits at most so long for the client to say the same.

        To close at once with bytes unread would make TCP throw away our last words (RFC 9112
        section 9.6, RFC 6455 section 7.1.1).
        """
        with trio.move_on_after(seconds), contextlib.suppress(OSError):
            self.raw.shutdown(socket.SHUT_WR)
            while await Link.receive(self):  # what it is does not matter, also under TLS
                pass

    def abort(self) -> None:
        """Frees the socket at once; a client that is still there gets a reset."""
        if self.raw.fileno() >= 0:
            with contextlib.suppress(OSError):
                self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            trio.lowlevel.notify_closing(self.raw)
            self.raw.close()


@attrs.define(eq=False)
class TlsLink(Link):
    """TLS: all sends wait, since half a record cannot be taken back and sent later."""

    partial_sends: ClassVar[bool] = False
    context: ssl.SSLContext
    stream: trio.SSLStream[trio.SocketStream] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # As HTTPS is spoken everywhere: a close without TLS's own goodbye is a close. Bodies have a
        # length and WebSocket has its Close frame, so nobody takes a cut for an end.
        self.stream = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(self.raw)),
            self.context,
            server_side=True,
            https_compatible=True,
        )
        self.tune()  # after SocketStream, which has a mind of its own

    async def open(self) -> None:
        try:
            await self.stream.do_handshake()
        except LOST as error:
            raise LinkLost from error
        finally:
            # Trio's stream keeps its handshake's method, though it never comes to that again: a cycle
            # for each client, with OpenSSL's buffers in it.
            with contextlib.suppress(AttributeError):  # a Trio that has it no more needs no help
                self.stream._handshook._afn = None  # type: ignore[assignment]

    @property
    def certificate(self) -> str | None:
        der = self.stream.getpeercert(binary_form=True)
        return None if der is None else certified(der)

    async def receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some(RECEIVE_BYTES))
        except LOST:
            return b""

    def send_nowait(self, data: bytes | memoryview) -> int:  # noqa: ARG002 - nothing is taken at once
        return 0

    async def send_some(self, data: bytes | memoryview) -> int:
        try:
            await self.stream.send_all(data)
        except LOST as error:
            raise LinkLost from error
        return len(data)


def certified(der: bytes) -> str:
    """Whose certificate it is: its subject (RFC 4514), or its alternative names where it has none."""
    certificate = x509.load_der_x509_certificate(der)
    if certificate.subject.rdns:
        return certificate.subject.rfc4514_string()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return ",".join(str(name.value) for name in names)


def ssl_context(
    certificate: Path, key: Path | None, *, client_ca: Path | None = None, client_required: bool = False
) -> ssl.SSLContext:
    """TLS 1.2 and later, HTTP/1.1 only.

    `certificate` is a PEM chain, leaf first; without `key` the key stands in the same file. With `client_ca`
    clients are asked for a certificate of those authorities: a wrong one ends the handshake, and none does
    with `client_required`. Raises `ConfigError` naming the key of the section `server`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # `load_cert_chain` does not say which of the two files is at fault. This reads the one alone.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=certificate)
    except OSError as error:
        raise ConfigError([f"server.tls_certificate: {certificate}: {told(error)}"]) from error
    try:
        # With a password at hand OpenSSL does not ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise ConfigError([f"server.tls_key: {key or certificate}: {told(error)}"]) from error
    if client_ca is not None:
        try:
            context.load_verify_locations(cafile=client_ca)
        except OSError as error:
            raise ConfigError([f"server.tls_client_ca: {client_ca}: {told(error)}"]) from error
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    return context


def server_context(server: config.Server) -> ssl.SSLContext | None:
    """What the handshakes of the public port are made with; None without a certificate."""
    if server.tls_certificate is None:
        return None
    return ssl_context(
        server.tls_certificate,
        server.tls_key,
        client_ca=server.tls_client_ca,
        client_required=server.tls_client_required,
    )


def expiry(server: config.Server) -> float | None:
    """When the certificate that clients are shown expires, in Unix seconds; None without TLS."""
    if server.tls_certificate is None:
        return None
    leaf, *_ = x509.load_pem_x509_certificates(server.tls_certificate.read_bytes())
    return leaf.not_valid_after_utc.timestamp()


def told(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no usable PEM ({error.reason or 'nothing found'})"
    return error.strerror or str(error)
