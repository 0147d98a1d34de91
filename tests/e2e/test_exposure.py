"""A plain port on other addresses than loopback, on the command line and by sockets that are passed."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio

from broker.config import Server
from broker.errors import ConfigError
from broker.web.listeners import open_ports
from tests.support import command

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer

# As systemd passes a socket: from descriptor 3 on.
PASSED = 'exec 3<&"$1"; export LISTEN_PID=$$ LISTEN_FDS=1; shift; exec "$@"'


@pytest.fixture
def arguments(tmp_path: Path, nats: NatsServer) -> tuple[str, ...]:
    """`broker serve` that lacks nothing but a place to listen on."""
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    file = tmp_path / "broker.toml"
    file.write_text(
        f'nats.urls = ["{nats.url}"]\nstream.max_bytes = "64MiB"\nserver.data_dir = "state"\n'
        '[[auth.keys]]\nname = "main"\nsecret_file = "secret"\ntenants = ["acme"]\n'
    )
    return "serve", "--config", str(file)


@pytest.mark.parametrize(
    ("option", "key", "ways"),
    [
        ("--listen", "server.listen", ("server.tls_certificate", "server.plain = true")),
        ("--admin-listen", "server.admin_listen", ("loopback", "server.admin_plain = true")),
    ],
)
async def test_refused(arguments: tuple[str, ...], option: str, key: str, ways: tuple[str, str]) -> None:
    """Every interface without TLS is refused, with both ways out, before a client could have connected."""
    places = {"--listen": "127.0.0.1:0", "--admin-listen": "127.0.0.1:0", option: "0.0.0.0:0"}
    words = [word for pair in places.items() for word in pair]
    result = await command.broker(*arguments, *words)
    assert result.code == 1
    said = result.err.splitlines()[-1]
    assert said.startswith(f"{key}: ")
    assert all(way in said for way in ways)


async def test_check_config_says_so_too(arguments: tuple[str, ...]) -> None:
    """Both ports, at once."""
    result = await command.broker(
        "check-config",
        arguments[-1],
        BROKER_SERVER__LISTEN="0.0.0.0:80",
        BROKER_SERVER__ADMIN_LISTEN="10.0.0.5:81",
    )
    assert result.code == 1
    keys = [line.split(":")[0] for line in result.err.splitlines()]
    assert keys == ["server.listen", "server.admin_listen"]


async def test_passed_sockets(arguments: tuple[str, ...]) -> None:
    """A socket of systemd's on every interface is refused like one of our own."""
    with socket.create_server(("0.0.0.0", 0)) as public:
        words = [*command.COMMAND, *arguments, "--admin-listen", "127.0.0.1:0"]
        with trio.fail_after(command.PATIENCE_SECONDS):
            result = await trio.run_process(
                ["bash", "-c", PASSED, "pass", str(public.fileno()), *words],
                env=command.environment(LISTEN_FDNAMES="public"),
                pass_fds=[public.fileno()],
                capture_stderr=True,
                check=False,
            )
    assert result.returncode == 1
    assert b"server.listen: other machines can reach 0.0.0.0" in result.stderr


async def test_forced(arguments: tuple[str, ...]) -> None:
    """Behind a proxy that ends TLS, and on a network of operators: then it listens everywhere."""
    variables = {"BROKER_SERVER__PLAIN": "true", "BROKER_SERVER__ADMIN_PLAIN": "true"}
    places = ("--listen", "0.0.0.0:0", "--admin-listen", "0.0.0.0:0")
    async with command.start(*arguments, *places, **variables) as running:
        await running.until("ready", "stderr")


async def test_nothing_stays_open(held: list[int]) -> None:
    """What is refused listens no more, neither of the ports: pytest would find a socket that is left."""
    [port] = held
    with pytest.raises(ConfigError):
        await open_ports(Server(listen=f"127.0.0.1:{port}", admin_listen="0.0.0.0:0"), {})
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
