"""TLS: the same port behind it, and handshakes that fail at no cost."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.config import Limits
from broker.errors import ConfigError
from broker.links.tls import certified, ssl_context
from tests.web.harness import PING, TEXT, Client, frame, head, running

if TYPE_CHECKING:
    from pathlib import Path

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


@pytest.fixture
def devices() -> trustme.CA:
    """An authority for clients."""
    return trustme.CA()


def showing(trusting: ssl.SSLContext, issued: trustme.LeafCert) -> ssl.SSLContext:
    issued.configure_cert(trusting)
    return trusting


async def test_a_client_without_a_certificate(
    files: tuple[Path, Path], trusting: ssl.SSLContext, tmp_path: Path, devices: trustme.CA
) -> None:
    """With an authority for clients it is served, nameless; where one is required it is not."""
    devices.cert_pem.write_to_path(tmp_path / "devices.pem")
    optional = ssl_context(*files, client_ca=tmp_path / "devices.pem")
    async with running(tls=(optional, trusting)) as port:
        await port.works()
        assert [hello.certificate for hello in port.hellos] == [None]
    required = ssl_context(*files, client_ca=tmp_path / "devices.pem", client_required=True)
    async with running(tls=(required, trusting)) as port:
        # TLS 1.3 lets a client go on before it hears that it was refused.
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await port.works()
        assert port.hellos == []


@pytest.mark.parametrize("required", [False, True])
async def test_a_client_with_a_certificate(
    files: tuple[Path, Path], trusting: ssl.SSLContext, tmp_path: Path, devices: trustme.CA, required: bool
) -> None:
    """Its verified name comes with the connection; one of another authority ends the handshake."""
    devices.cert_pem.write_to_path(tmp_path / "devices.pem")
    context = ssl_context(*files, client_ca=tmp_path / "devices.pem", client_required=required)
    issued = devices.issue_cert("sensor-7.example", common_name="sensor-7")
    async with running(tls=(context, showing(trusting, issued))) as port:
        await port.works()
        assert [(hello.certificate or "").split(",")[0] for hello in port.hellos] == ["CN=sensor-7"]
    foreign = OTHER.issue_cert("sensor-7.example", common_name="sensor-7")
    async with running(tls=(context, showing(trusting, foreign))) as port:
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await port.works()
        assert port.hellos == []


def test_a_certificate_without_a_subject() -> None:
    """As workloads have them: its alternative names are its name (RFC 5280 section 4.2.1.6)."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://example/orders")]), True
        )
        .sign(key, hashes.SHA256())
    )
    assert certified(built.public_bytes(serialization.Encoding.DER)) == "spiffe://example/orders"


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
    with pytest.raises(ConfigError, match=f"server.tls_client_ca: {empty}"):
        ssl_context(certificate, key, client_ca=empty)
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    assert ssl_context(both, None).minimum_version == ssl.TLSVersion.TLSv1_2


def encrypted_pem(pem: bytes) -> bytes:
    return serialization.load_pem_private_key(pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
