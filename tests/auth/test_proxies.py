"""The way to a key set through the proxy of the environment: real TLS inside a real CONNECT tunnel."""

from __future__ import annotations

import base64
import ssl
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs
import pytest
import trio
import trustme
from structlog.testing import capture_logs

from broker.auth import fetching
from broker.errors import Unavailable
from tests.auth.forge import NOW, jwk
from tests.auth.issuer import Issuer, key_set
from tests.auth.test_jwks import remote, started, token

if TYPE_CHECKING:
    from pathlib import Path

HOST = "id.example"  # which only the proxy can find
ADDRESS = "2001:db8::1"
PASSWORD = "s3cr3t"
URL = f"https://{HOST}/jwks"


@attrs.define(eq=False)
class ConnectProxy:
    """Opens each tunnel to the issuer, whatever host is asked for; or answers with `status` instead."""

    target: int
    status: str = "200 OK"
    port: int = 0
    heads: list[bytes] = attrs.field(factory=list)

    async def serve(self, stream: trio.abc.Stream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some(4096)
            if not data:
                return
            head += bytes(data)
        self.heads.append(head)
        await stream.send_all(f"HTTP/1.1 {self.status}\r\n\r\n".encode())
        if not self.status.startswith("200"):
            await stream.aclose()
            return
        async with await trio.open_tcp_stream("127.0.0.1", self.target) as there, trio.open_nursery() as both:

            async def pass_on(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
                try:
                    while data := await source.receive_some(65536):
                        await sink.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                both.cancel_scope.cancel()

            both.start_soon(pass_on, stream, there)
            both.start_soon(pass_on, there, stream)
        await trio.aclose_forcefully(stream)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """The one that this system believes."""
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
async def issuer(nursery: trio.Nursery, authority: trustme.CA) -> Issuer:
    """An issuer with one RSA key, and a certificate for a name that nobody resolves."""
    made = Issuer(key_set(jwk("RS256", kid="a")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, ADDRESS).configure_cert(context)
    serve = partial(trio.serve_ssl_over_tcp, made.serve, 0, context, host="127.0.0.1")
    (listener,) = await nursery.start(serve)
    made.port = listener.transport_listener.socket.getsockname()[1]
    return made


@pytest.fixture
async def proxy(nursery: trio.Nursery, issuer: Issuer) -> ConnectProxy:
    made = ConnectProxy(issuer.port)
    (listener,) = await nursery.start(partial(trio.serve_tcp, made.serve, 0, host="127.0.0.1"))
    made.port = listener.socket.getsockname()[1]
    return made


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "spelled", ["http://127.0.0.1:{}", "127.0.0.1:{}", "http://u%40x:s3cr3t@127.0.0.1:{}"]
)
async def test_through_a_proxy(
    nursery: trio.Nursery,
    issuer: Issuer,
    proxy: ConnectProxy,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    spelled: str,
) -> None:
    """The issuer is reached by a tunnel, with its own certificate; a user is shown to the proxy alone."""
    monkeypatch.setenv(name, spelled.format(proxy.port))
    verifier = await started(URL, nursery)
    assert (await verifier.verify(token(), now=NOW)).user == "alice"
    (head,) = proxy.heads
    assert head.count(b"User-Agent: nats-websocket-broker/") == 1
    assert head.startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n".encode())
    shown = base64.b64encode(f"u@x:{PASSWORD}".encode())
    assert (b"Proxy-Authorization: Basic " + shown in head) == ("@" in spelled)
    assert b"Proxy-Authorization" not in issuer.requests[0]


async def test_through_a_proxy_over_tls(
    nursery: trio.Nursery, issuer: Issuer, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is itself spoken to over TLS shows a certificate of its own, and the issuer its own."""
    proxy = ConnectProxy(issuer.port)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    serve = partial(trio.serve_ssl_over_tcp, proxy.serve, 0, context, host="127.0.0.1")
    (listener,) = await nursery.start(serve)
    port = listener.transport_listener.socket.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"https://127.0.0.1:{port}")
    verifier = await started(URL, nursery)
    assert (await verifier.verify(token(), now=NOW)).user == "alice"
    assert len(proxy.heads) == len(issuer.requests) == 1


async def test_an_ipv6_address_through_a_proxy(
    nursery: trio.Nursery, issuer: Issuer, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in brackets in the CONNECT (RFC 9110 section 9.3.6), and bare in the certificate."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    verifier = await started(f"https://[{ADDRESS}]:8443/jwks", nursery)
    assert (await verifier.verify(token(), now=NOW)).user == "alice"
    assert proxy.heads[0].startswith(f"CONNECT [{ADDRESS}]:8443 HTTP/1.1\r\n".encode())
    assert f"\r\nHost: [{ADDRESS}]:8443\r\n".encode() in issuer.requests[0]


@pytest.mark.parametrize(
    ("url", "exempt", "through"),
    [
        ("https://id.example/jwks", "", True),
        ("https://id.example/jwks", "other.example,example", False),
        ("https://id.example/jwks", ".example", False),
        ("https://id.example/jwks", "id.example:443", False),
        ("https://id.example/jwks", "id.example:8443", True),
        ("https://id.example/jwks", "*", False),
        ("https://id.example.com/jwks", "id.example", True),
        ("https://localhost/jwks", "", False),
        ("https://127.0.0.1:8443/jwks", "", False),
        ("http://127.0.0.1/jwks", "", False),
    ],
)
def test_who_needs_no_proxy(
    monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, url: str, exempt: str, through: bool
) -> None:
    """NO_PROXY names hosts and domains, as curl reads it; what is on this machine never needs one."""
    del authority
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", exempt)
    assert bool(fetching.proxy_for(urlsplit(url))) is through


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "503 Busy", "301 Elsewhere"])
async def test_a_proxy_that_refuses(
    nursery: trio.Nursery, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """The fault says what the proxy answered; its password is in no log line and no message."""
    proxy.status = status
    monkeypatch.setenv("HTTPS_PROXY", f"http://u:{PASSWORD}@127.0.0.1:{proxy.port}")
    with capture_logs() as logs:
        verifier = await started(URL, nursery)
        with pytest.raises(Unavailable) as caught:
            await verifier.verify(token(), now=NOW)
    assert remote(verifier).fault == f"the proxy of HTTPS_PROXY answered {status[:3]} instead of 200"
    assert "jwks_failed" in [each["event"] for each in logs]
    assert PASSWORD not in f"{logs} {caught.value.message}"


BAD = [
    "socks5://u:s3cr3t@proxy:1080",
    "http://u:s3cr3t@:1",
    "http://u:s3cr3t@h:99999",
    "http://u:s3cr3t@[::1",
]


@pytest.mark.parametrize("spelled", BAD)
async def test_no_proxy_at_all(
    nursery: trio.Nursery, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    """One that cannot be used is a fault of each fetch, which does not repeat it, and never gone around."""
    del authority
    monkeypatch.setenv("HTTPS_PROXY", spelled)
    with capture_logs() as logs:
        verifier = await started(URL, nursery)
    assert (remote(verifier).fault or "").startswith("HTTPS_PROXY is not http://")
    assert PASSWORD not in str(logs)


async def test_a_proxy_that_is_down(
    nursery: trio.Nursery, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said that it is the proxy, and not the issuer, that nobody reaches."""
    del authority
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTPS_PROXY", f"http://u:{PASSWORD}@127.0.0.1:{unused.getsockname()[1]}")
        verifier = await started(URL, nursery)
    assert (remote(verifier).fault or "").startswith("the proxy of HTTPS_PROXY cannot be reached: ")
    assert PASSWORD not in (remote(verifier).fault or "")
