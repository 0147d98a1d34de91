"""The proxies that operators really put in front, where they are installed: haproxy and nginx."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from broker.config import Server
from broker.web.links import ssl_context
from tests.web.harness import SECONDS, Client, head, running

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

HAPROXY, NGINX = (shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("haproxy", "nginx"))
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

# `{front}` and `{back}` are ports on loopback, `{directory}` is the test's own.
HAPROXY_TCP = """
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend front
  bind 127.0.0.1:{front}
  default_backend broker
backend broker
  server broker 127.0.0.1:{back} {option}
"""
NGINX_HTTP = """
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  server {{
    listen 127.0.0.1:{front};
    location / {{
      proxy_pass http://127.0.0.1:{back};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "Upgrade";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Host $http_host;
    }}
  }}
}}
"""


@asynccontextmanager
async def proxied(
    directory: Path, command: list[str | None], text: str, **values: object
) -> AsyncIterator[int]:
    """A proxy as a child for the length of a block; the port at which it is reached."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        front = held.getsockname()[1]
    (directory / "conf").write_text(text.format(front=front, directory=directory, **values))
    full = [part for part in command if part] + [str(directory / "conf")]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, full, check=False, stderr=subprocess.DEVNULL)
        process: trio.Process = await nursery.start(run)
        try:
            with trio.fail_after(SECONDS):
                while True:
                    try:
                        await (await trio.open_tcp_stream("127.0.0.1", front)).aclose()
                        break
                    except OSError:
                        assert process.returncode is None
                        await trio.sleep(0.01)
            yield front
        finally:
            process.send_signal(signal.SIGTERM)


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
        command = [HAPROXY, "-db", "-q", "-f"]
        async with (
            proxied(tmp_path, command, HAPROXY_TCP, back=port.address[1], option=option) as front,
            through(front, port.context) as (client, address),
        ):
            await client.upgrade(head(x_forwarded_for="203.0.113.9"))
        assert await port.peers() == [address]


@needs_nginx
async def test_nginx(tmp_path: Path) -> None:
    """nginx for HTTP: the client is seen, whatever it says that it is; its page gets in, another does not."""
    async with running(server=Server(trusted_proxies=("127.0.0.1",))) as port:
        command = [NGINX, "-p", str(tmp_path), "-c"]
        async with proxied(tmp_path, command, NGINX_HTTP, back=port.address[1]) as front:
            async with through(front) as (client, _):
                own = head(host="chat.example", origin="https://chat.example", x_forwarded_for="203.0.113.9")
                await client.upgrade(own)
            assert await port.peers() == ["127.0.0.9:0"]
            async with through(front) as (client, _):
                await client.send(head(host="chat.example", origin="https://evil.example"))
                assert b" 403 " in (await client.stream.receive_some())[:20]
