"""The proxies that operators really put in front, where they are installed: haproxy and nginx."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from broker.config import Server
from broker.links.tls import ssl_context
from tests.support.outer_proxies import haproxy, needs_haproxy, needs_nginx, nginx
from tests.web.harness import Client, head, running

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

# What an operator sets, so that the broker knows the client's address and its own name.
FORWARDED = """
proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
proxy_set_header X-Forwarded-Host $http_host;
"""


@asynccontextmanager
async def through(front: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Client, str]]:
    """A client of the proxy, at another address than that, which is given too."""
    tcp = await trio.open_tcp_stream("127.0.0.1", front, local_address="127.0.0.9")
    host, port = tcp.socket.getsockname()
    stream: trio.abc.Stream = tcp
    if tls is not None:
        stream = trio.SSLStream(tcp, tls, server_hostname="localhost", https_compatible=True)
    try:
        yield Client(stream), f"{host}:{port}"
    finally:
        await trio.aclose_forcefully(stream)


@needs_haproxy
@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2 proxy-v2-options crc32c"])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_haproxy(
    tmp_path: Path, files: tuple[Path, Path], trusting: ssl.SSLContext, option: str, encrypted: bool
) -> None:
    """haproxy for TCP, both versions, with an extension, TLS passed through: the client is seen."""
    server = Server(trusted_proxies=("127.0.0.1",), proxy_protocol=True)
    tls = (ssl_context(*files), trusting) if encrypted else None
    async with running(server=server, tls=tls) as port:
        async with (
            haproxy(tmp_path, port.address[1], mode="tcp", option=option) as front,
            through(front, port.context) as (client, address),
        ):
            await client.upgrade(head(x_forwarded_for="203.0.113.9"))
        assert await port.peers() == [address]


@needs_nginx
async def test_nginx(tmp_path: Path) -> None:
    """nginx for HTTP: the client is seen, whatever it says that it is; its page gets in, another does not."""
    async with (
        running(server=Server(trusted_proxies=("127.0.0.1",))) as port,
        nginx(tmp_path, port.address[1], location=FORWARDED) as front,
    ):
        async with through(front) as (client, _):
            own = head(host="chat.example", origin="https://chat.example", x_forwarded_for="203.0.113.9")
            await client.upgrade(own)
        assert await port.peers() == ["127.0.0.9:0"]
        async with through(front) as (client, _):
            await client.send(head(host="chat.example", origin="https://evil.example"))
            assert b" 403 " in (await client.stream.receive_some())[:20]
