"""haproxy and nginx as children of a test, where they are installed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.ports import held_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECONDS = 45
EXAMPLES = Path(__file__).parents[2] / "config" / "proxy"
HAPROXY, NGINX = (shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("haproxy", "nginx"))
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

# `{front}` and `{back}` are ports on loopback, `{directory}` is the test's own.
HAPROXY_CONF = """
defaults
  mode {mode}
  timeout connect 5s
  timeout client {seconds}s
  timeout server {seconds}s
  {defaults}
frontend front
  bind 127.0.0.1:{front}
  default_backend broker
backend broker
  server broker 127.0.0.1:{back} {option}
"""
NGINX_HEAD = """
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
"""
NGINX_CONF = f"""{NGINX_HEAD}
  {{http}}
  server {{{{
    listen 127.0.0.1:{{front}};
    location / {{{{
      proxy_pass http://127.0.0.1:{{back}};
      {{upgrading}}
      {{location}}
    }}}}
  }}}}
}}}}
"""


# What a WebSocket needs of nginx, which speaks HTTP/1.0 to those behind it.
UPGRADING = """
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "Upgrade";
"""


@asynccontextmanager
async def haproxy(
    directory: Path, back: int | None, *, mode: str, seconds: int = 30, defaults: str = "", option: str = ""
) -> AsyncIterator[int]:
    """Before a port; its own. `mode` is tcp or http, `seconds` how long it bears silence."""
    command = [HAPROXY, "-db", "-q", "-f"]
    values = {"mode": mode, "seconds": seconds, "defaults": defaults, "option": option}
    async with proxied(directory, command, HAPROXY_CONF, back=back, **values) as front:
        yield front


@asynccontextmanager
async def nginx(
    directory: Path, back: int | None, *, http: str = "", location: str = "", upgrading: str = UPGRADING
) -> AsyncIterator[int]:
    """Before a port; its own."""
    command = [NGINX, "-p", str(directory), "-c"]
    values = {"http": http, "location": location, "upgrading": upgrading}
    async with proxied(directory, command, NGINX_CONF, back=back, **values) as front:
        yield front


@asynccontextmanager
async def example(directory: Path, back: int | None, name: str) -> AsyncIterator[int]:
    """A proxy as the example of that name in config/proxy, without its TLS, before a port; its own."""
    text = (EXAMPLES / name).read_text().replace("127.0.0.1:8080", f"127.0.0.1:{back}")
    text = re.sub(r"^ +ssl_certificate.*\n", "", text, flags=re.MULTILINE)
    text = text.replace("{", "{{").replace("}", "}}")
    if name.startswith("nginx"):
        command = [NGINX, "-p", str(directory), "-c"]
        text = text.replace("listen 443 ssl;", "listen 127.0.0.1:{front};")
        text = NGINX_HEAD + text + "}}"
    else:
        command = [HAPROXY, "-db", "-q", "-f"]
        text = text.replace("bind :443 ssl crt /etc/haproxy/tls/", "bind 127.0.0.1:{front}")
    assert "{front}" in text
    async with proxied(directory, command, text) as front:
        yield front


@asynccontextmanager
async def proxied(
    directory: Path, command: list[str | None], text: str, **values: object
) -> AsyncIterator[int]:
    """A proxy as a child for the length of a block; the port at which it is reached."""
    async with AsyncExitStack() as stack:
        [front] = stack.enter_context(held_ports())
        (directory / "conf").write_text(text.format(front=front, directory=directory, **values))
        full = [part for part in command if part] + [str(directory / "conf")]
        nursery = await stack.enter_async_context(trio.open_nursery())
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
