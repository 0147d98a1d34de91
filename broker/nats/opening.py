"""The opening of a connection to a NATS server: greeting, TLS, login."""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from broker.nats import login, protocol
from broker.nats.protocol import Decoder, Info, ProtocolError, Refusal, Sign

if TYPE_CHECKING:
    from broker import config
    from broker.nats.login import Server
    from broker.nats.protocol import Event

CONNECT_SECONDS = 2.0
READ_BYTES = 1 << 16
OLDEST_SERVER = (2, 11)


class Refused(Exception):
    """The server does not let us in, or is not one that can be used; the text says why."""


async def open_stream(
    server: Server, options: config.Nats
) -> tuple[trio.abc.Stream, Decoder, Info, list[Event]]:
    """Connect and log in to one server.

    Return the stream, what decodes it, the server's INFO, and what it said after it had let us in. Raises
    `Refused`, `ProtocolError`, `OSError`, `ValueError` for unusable files, `trio.BrokenResourceError` and
    `trio.TooSlowError`; no socket is left open then.
    """
    decoder = Decoder()
    with trio.fail_after(CONNECT_SECONDS):
        tcp = await trio.open_tcp_stream(server.host, server.port)
        stream: trio.abc.Stream = tcp
        try:
            secured = options.tls_first
            if secured:
                stream = await secure(tcp, server, options)
            info, early = await greeting(stream, decoder)
            wants = server.tls or options.tls_ca is not None or options.tls_certificate is not None
            if not secured and wants and not (info.tls_required or info.tls_available):
                raise Refused("the server has no TLS, and the configuration wants it")
            if not secured and (wants or info.tls_required):
                if early or decoder.rest:
                    raise ProtocolError("the server goes on in plain text where TLS begins")
                stream = await secure(tcp, server, options)
            fields = {"name": "broker", "tls_required": stream is not tcp}
            fields |= login.credentials(server, options, info)
            await stream.send_all(protocol.connect(fields) + protocol.PING)
            said = await until(Sign.PONG, stream, decoder)
            if info.version < OLDEST_SERVER:
                major, minor = OLDEST_SERVER
                raise Refused(
                    f"nats-server {'.'.join(map(str, info.version))} has no batched direct get; "
                    f"it must be at least {major}.{minor}"
                )
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
    return stream, decoder, info, [*early, *said]


async def secure(tcp: trio.SocketStream, server: Server, options: config.Nats) -> trio.abc.Stream:
    """Return TLS over a stream, after the handshake."""
    stream = trio.SSLStream(
        tcp, login.tls_context(options), server_hostname=server.tls_name, https_compatible=True
    )
    await stream.do_handshake()
    return stream


async def greeting(stream: trio.abc.Stream, decoder: Decoder) -> tuple[Info, list[Event]]:
    """Return the server's INFO, and what it said after that. Raises `Refused`."""
    while not (said := await understand(stream, decoder)):
        pass
    match said:
        case [Info() as info, *early]:
            return info, early
    raise Refused(str(said[0]))


async def until(last: Sign, stream: trio.abc.Stream, decoder: Decoder) -> list[Event]:
    """Return what the server says until it has said `last`, or more. Raises `Refused`."""
    said: list[Event] = []
    while last not in said:
        said += await understand(stream, decoder)
        if refusal := next((each for each in said if isinstance(each, Refusal)), None):
            raise Refused(str(refusal))
    return said


async def understand(stream: trio.abc.Stream, decoder: Decoder) -> list[Event]:
    data = await receive(stream)
    if not data:
        raise Refused("the server closed the connection")
    return decoder.receive(data)


async def receive(stream: trio.abc.Stream) -> bytes:
    """Return the next bytes; nothing at the end.

    A bare socket is waited for first: Trio's `receive_some` would try to read before that, each time in vain.
    """
    if not isinstance(stream, trio.SocketStream):
        return bytes(await stream.receive_some(READ_BYTES))
    while True:
        await trio.lowlevel.wait_readable(stream.socket)
        with suppress(BlockingIOError):
            return os.read(stream.socket.fileno(), READ_BYTES)


async def send(stream: trio.abc.Stream, data: bytes) -> None:
    """Send all of the data. A bare socket mostly takes it at once, without a turn of the loop."""
    if not isinstance(stream, trio.SocketStream):
        await stream.send_all(data)
        return
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(stream.socket.fileno(), rest) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(stream.socket)


def reason(error: BaseException) -> str:
    """Return why a connection failed, in a few words."""
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {CONNECT_SECONDS:g} s"
    if isinstance(error, BaseExceptionGroup):  # an attempt for each address of the host
        return ", ".join(dict.fromkeys(map(reason, error.exceptions)))
    if isinstance(error, OSError | trio.BrokenResourceError | trio.ClosedResourceError) and error.__cause__:
        return reason(error.__cause__)  # Trio's own texts say what it did, not why that failed
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is refused: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error) or type(error).__name__
