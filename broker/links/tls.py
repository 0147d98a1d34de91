"""TLS over an accepted connection, and the context of its handshakes."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, ClassVar

import attrs
import trio
from cryptography import x509

from broker.actors.transport import LinkLost
from broker.errors import ConfigError
from broker.links.tcp import LOST, RECEIVE_BYTES, Link

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker import config


@attrs.define(eq=False)
class TlsLink(Link):
    """A TLS connection. All sends wait: half a record cannot be taken back and sent later."""

    partial_sends: ClassVar[bool] = False
    context: ssl.SSLContext
    stream: trio.SSLStream[trio.SocketStream] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # As is usual for HTTPS, a TCP close without TLS's close_notify counts as a close. Bodies have a
        # length and WebSocket has its Close frame, so nobody takes a cut for an end.
        self.stream = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(self.raw)),
            self.context,
            server_side=True,
            https_compatible=True,
        )
        self.tune()  # after SocketStream, which sets options of its own

    async def open(self) -> None:
        try:
            await self.stream.do_handshake()
        except LOST as error:
            raise LinkLost from error
        finally:
            # Trio's stream keeps a bound method for its handshake after the handshake: a reference cycle for
            # each client, with OpenSSL's buffers in it.
            with contextlib.suppress(AttributeError):  # a private attribute; Trio may have dropped it
                self.stream._handshook._afn = None  # type: ignore[assignment]

    @property
    def certificate(self) -> str | None:
        der = self.stream.getpeercert(binary_form=True)
        return None if der is None else certified(der)

    def arrived(self) -> None:
        """Return None: what has arrived is encrypted."""

    async def receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some(RECEIVE_BYTES))
        except LOST:
            return b""

    @property
    def send_nowait(self) -> Callable[[bytes | memoryview], int]:
        return nothing_at_once

    async def send_some(self, data: bytes | memoryview) -> int:
        try:
            await self.stream.send_all(data)
        except LOST as error:
            raise LinkLost from error
        return len(data)


def nothing_at_once(_: bytes | memoryview) -> int:
    return 0


def certified(der: bytes) -> str:
    """Return the subject of a certificate (RFC 4514), or its alternative names where it has none."""
    certificate = x509.load_der_x509_certificate(der)
    if certificate.subject.rdns:
        return certificate.subject.rfc4514_string()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return ",".join(str(name.value) for name in names)


def ssl_context(
    certificate: Path, key: Path | None, *, client_ca: Path | None = None, client_required: bool = False
) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and later and HTTP/1.1 only.

    `certificate` is a PEM chain, leaf first; without `key` the private key is in the same file. With
    `client_ca` clients are asked for a certificate of these authorities: a wrong one ends the handshake, and
    so does none with `client_required`. Raises `ConfigError` naming the key of the section `server`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # `load_cert_chain` does not say which of the two files is at fault; this reads the certificate alone.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=certificate)
    except OSError as error:
        raise ConfigError([f"server.tls_certificate: {certificate}: {reason(error)}"]) from error
    try:
        # Given a password, OpenSSL does not ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise ConfigError([f"server.tls_key: {key or certificate}: {reason(error)}"]) from error
    if client_ca is not None:
        try:
            context.load_verify_locations(cafile=client_ca)
        except OSError as error:
            raise ConfigError([f"server.tls_client_ca: {client_ca}: {reason(error)}"]) from error
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    return context


def server_context(server: config.Server) -> ssl.SSLContext | None:
    """Return the context of the public port's handshakes; None without a certificate."""
    if server.tls_certificate is None:
        return None
    return ssl_context(
        server.tls_certificate,
        server.tls_key,
        client_ca=server.tls_client_ca,
        client_required=server.tls_client_required,
    )


def expiry(server: config.Server) -> float | None:
    """Return when the server's certificate expires, in Unix seconds; None without TLS."""
    if server.tls_certificate is None:
        return None
    leaf, *_ = x509.load_pem_x509_certificates(server.tls_certificate.read_bytes())
    return leaf.not_valid_after_utc.timestamp()


def reason(error: OSError) -> str:
    """Return what is wrong with a file, in words."""
    if isinstance(error, ssl.SSLError):
        return f"no usable PEM ({error.reason or 'nothing found'})"
    return error.strerror or str(error)
