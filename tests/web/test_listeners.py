"""Listening and accepting: addresses, no descriptors left, and the end of accepting."""

from __future__ import annotations

import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from structlog.testing import capture_logs

from broker.config import Server
from broker.errors import ConfigError
from broker.web.listeners import bind, open_listeners, open_ports
from tests.web.harness import CLOSE, TEXT, eventually, frame, running

if TYPE_CHECKING:
    from tests.web.harness import Running


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
async def test_addresses(listen: str) -> None:
    """IPv4, IPv6 in brackets and names are listened on; port 0 is a free one; the peer is told as written."""
    async with running(listen=listen) as port:
        await port.works()
        assert port.address[1] > 0
        host, _, number = port.hellos[0].peer.rpartition(":")
        assert host == ("[::1]" if port.address[0] == "::1" else "127.0.0.1")
        assert int(number) > 0


@pytest.mark.parametrize(
    "listen", ["8080", ":8080", "::1:8080", "127.0.0.1:65536", "256.0.0.1:1", "127.0.0.1:http"]
)
async def test_bad_addresses(listen: str) -> None:
    """What cannot be listened on is told under the key that it comes from."""
    with pytest.raises(ConfigError) as caught:
        await open_listeners(listen, 1, key="server.admin_listen")
    assert caught.value.faults[0].startswith("server.admin_listen: ")


async def test_address_in_use(port: Running) -> None:
    """A taken port is told; one that was ours a moment ago can be taken again."""
    taken = f"{port.address[0]}:{port.address[1]}"
    with pytest.raises(ConfigError, match="cannot listen on"):
        await open_listeners(taken, 1)
    await port.works()
    port.acceptor.cancel()
    await eventually(lambda: free(taken))


async def test_a_port_for_several() -> None:
    """With `reuse_port` two listen on one port, where without it the second one is told that it is taken."""
    (first,) = await open_listeners("127.0.0.1:0", 1, reuse_port=True)
    with first:
        address = f"127.0.0.1:{first.getsockname()[1]}"
        with pytest.raises(ConfigError, match="cannot listen on"):
            await open_listeners(address, 1)
        (second,) = await open_listeners(address, 1, reuse_port=True)
        with second:
            assert second.getsockname() == first.getsockname()


async def test_addresses_that_a_machine_does_not_have() -> None:
    """They are passed over where there are others, and told where there are none."""
    here, nowhere = (socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET, ("192.0.2.1", 0))
    (listener,) = bind([nowhere, here], 1, False)
    listener.close()
    with pytest.raises(ConfigError, match="cannot listen on 192"):
        await open_listeners("192.0.2.1:0", 1)


def free(address: str) -> bool:
    host, _, number = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(number)))
        except OSError:
            return False
        return True


async def test_no_descriptors(port: Running) -> None:
    """Without a free descriptor accepting waits, says so once, and goes on when there is one again."""
    waiting = [socket.socket() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    with capture_logs() as logs:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            for client in waiting:
                client.setblocking(False)
                await trio.socket.from_stdlib_socket(client).connect(port.address)
            await eventually(lambda: bool(logs))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in waiting:
            client.close()
        await port.works()
    assert [(each["event"], each["log_level"]) for each in logs if each["log_level"] != "debug"] == [
        ("accept_failed", "warning")
    ]


async def test_stop_accepting(port: Running) -> None:
    """Accepting ends and the port is closed, while a client that is in goes on to its own end."""
    async with port.client() as client:
        await client.upgrade()
        port.acceptor.cancel()
        await eventually(lambda: free(f"{port.address[0]}:{port.address[1]}"))
        await client.send(frame(TEXT, b"still there"))
        assert await client.event() is not None
        await client.send(frame(CLOSE, b"\x03\xe8"))
        assert await client.closed() == (1000, "")


@pytest.mark.parametrize(
    ("listen", "warned"), [("127.0.0.1:8080", False), ("127.0.0.1:9999", True), ("{}", False)]
)
async def test_an_address_beside_a_passed_socket(listen: str, warned: bool) -> None:
    """A socket that systemd passed is used; that `server.listen` says something else is not passed over."""
    with socket.create_server(("127.0.0.1", 0)) as passed, capture_logs() as logged:
        own = f"127.0.0.1:{passed.getsockname()[1]}"
        server = Server(listen=listen.format(own), admin_listen="127.0.0.1:0")
        public, admin = await open_ports(server, {"public": [passed]})
        assert public == [passed]
        admin[0].close()
    said = [line for line in logged if line["event"] == "listen_ignored"]
    assert [line["used"] for line in said] == ([[own]] if warned else [])
