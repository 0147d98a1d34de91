"""TLS: the same port behind it, and handshakes that fail at no cost."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trio
import trustme

from broker.config import Limits
from broker.errors import ConfigError
from broker.web.links import ssl_context
from tests.web.harness import PING, TEXT, Client, frame, head, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.web.harness import Running

OTHER = trustme.CA()


async def test_served(files: tuple[Path, Path], trusting: ssl.SSLContext) -> None:
    """Health, refusals and the WebSocket are as without TLS, large messages and bad frames too."""
    async with running(tls=(ssl_context(*files), trusting)) as port:
        assert (await port.ask(head("/healthz"))).status == 200
        assert (await port.ask(head(sec_websocket_key="no"))).status == 400
        await port.works()
        async with port.client() as client:
            await client.upgrade()
            text = "x" * 60_000
            await client.send(frame(TEXT, text.encode()))
            received = ""
            while len(received) < len(text):
                event = await client.event()
                received += getattr(event, "data", "")
            assert received == text
            await client.send(frame(PING, mask=None))
            assert (await client.closed())[0] == 1002


async def test_no_handshake(files: tuple[Path, Path], trusting: ssl.SSLContext) -> None:
    """Plain HTTP, silence, a client that does not trust us, an old TLS: closed, and the next is served."""
    old, foreign = ssl.create_default_context(), ssl.create_default_context()
    OTHER.configure_trust(foreign)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with running(tls=(ssl_context(*files), trusting), limits=Limits(head_seconds=0.3)) as port:
        for data in (head(), b"", b"\x16\x03\x01"):
            async with await trio.open_tcp_stream(*port.address) as tcp:
                await tcp.send_all(data)
                # At most an alert of TLS's own.
                assert not (await Client(tcp).rest()).startswith(b"HTTP")
        for refusing in (foreign, old):
            async with await trio.open_tcp_stream(*port.address) as tcp:
                stream = trio.SSLStream(tcp, refusing, server_hostname="localhost")
                with pytest.raises(trio.BrokenResourceError):
                    await stream.do_handshake()
        await port.works()
        assert len(port.hellos) == 1


async def test_cut(files: tuple[Path, Path], trusting: ssl.SSLContext) -> None:
    """A TLS client that is gone without a word of TLS is gone with 1006."""
    async with running(tls=(ssl_context(*files), trusting)) as port:
        async with port.client() as client:
            await client.upgrade()
        await port.settled()
        assert [closed.code for closed in port.closes] == [1006]
        await port.works()


def test_files(files: tuple[Path, Path], tmp_path: Path) -> None:
    """What cannot be loaded is named: the key of the configuration, and the file."""
    certificate, key = files
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(OTHER.issue_cert("localhost").private_key_pem.bytes())
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(encrypted_pem(key.read_bytes()))
    empty = tmp_path / "empty.pem"
    empty.touch()
    for certificate_file, key_file, named in (
        (tmp_path / "missing.pem", key, f"server.tls_certificate: {tmp_path / 'missing.pem'}: No such file"),
        (empty, key, f"server.tls_certificate: {empty}"),
        (key, key, f"server.tls_certificate: {key}"),
        (certificate, tmp_path / "missing.pem", f"server.tls_key: {tmp_path / 'missing.pem'}: No such file"),
        (certificate, empty, f"server.tls_key: {empty}"),
        (certificate, certificate, f"server.tls_key: {certificate}"),
        (certificate, foreign, f"server.tls_key: {foreign}"),
        (certificate, encrypted, f"server.tls_key: {encrypted}"),
        (certificate, None, f"server.tls_key: {certificate}"),
    ):
        with pytest.raises(ConfigError) as caught:
            ssl_context(certificate_file, key_file)
        assert caught.value.faults[0].startswith(named)
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    assert ssl_context(both, None).minimum_version == ssl.TLSVersion.TLSv1_2


def encrypted_pem(pem: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return serialization.load_pem_private_key(pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


async def test_client_certificates(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Asked for, they are verified and their subject is told; others are refused."""
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "clients.pem")

    def client(issuer: trustme.CA | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=files[0])
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if issuer:
            issuer.issue_cert("billing", common_name="billing").configure_cert(context)
        return context

    async def works(port: Running, context: ssl.SSLContext) -> bool:
        async with await trio.open_tcp_stream(*port.address) as tcp:
            stream = trio.SSLStream(tcp, context, server_hostname="localhost", https_compatible=True)
            try:
                # With TLS 1.3 a client hears of a refusal when it reads.
                await stream.send_all(head())
                return (await stream.receive_some()).startswith(b"HTTP/1.1 101")
            except trio.BrokenResourceError:
                return False

    for required in (False, True):
        server = ssl_context(*files, tmp_path / "clients.pem", required=required)
        async with running(tls=(server, client(authority))) as port:
            assert await works(port, client(authority))
            assert "CN=billing" in (port.hellos[-1].certificate or "")
            assert not await works(port, client(other))
            assert await works(port, client(None)) is not required
            assert len(port.hellos) == 2 - required
            assert required or port.hellos[-1].certificate is None
    with pytest.raises(ConfigError, match=r"server\.tls_client_ca: .*nowhere"):
        ssl_context(*files, tmp_path / "nowhere")
