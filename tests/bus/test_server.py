"""The embedded nats-server: its address, its lock, its life and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.bus import server
from broker.bus.server import EmbeddedServer, ServerError, is_alive
from tests.support.bus import ready_bus
from tests.support.rawnats import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# What a broker does with it, and no more: run it in the main thread, say where it is.
PARENT = """
import sys
from pathlib import Path
import trio
from broker.bus.server import EmbeddedServer

async def main():
    server = EmbeddedServer(directory=Path(sys.argv[1]), port=-1)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(server.run)
        print(server.process.pid, address, flush=True)

trio.run(main)
"""


@asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[tuple[EmbeddedServer, str]]:
    server = EmbeddedServer(directory=directory, **{"port": -1, **options})
    async with trio.open_nursery() as nursery:
        address = await nursery.start(server.run)
        yield server, address
        nursery.cancel_scope.cancel()


async def until_gone(pid: int) -> None:
    with trio.fail_after(45):
        while is_alive(str(pid)):
            await trio.sleep(0.01)


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


async def test_it_takes_connections_with_its_credentials_alone(tmp_path: Path) -> None:
    """Started means reachable, with the user and password of the address; without them nothing goes."""
    async with running(tmp_path) as (_, address):
        async with ready_bus(address) as (bus, _):
            assert (await bus.publish("events.acme.a", b"1")).sequence == 1
        stream = await trio.open_tcp_stream("127.0.0.1", port(address))
        async with stream:
            await stream.send_all(b'CONNECT {"verbose":false}\r\nPING\r\n')
            answer = b"".join([data async for data in stream])
            assert b"Authorization Violation" in answer


async def test_it_listens_on_loopback_alone(tmp_path: Path) -> None:
    """One listener, on 127.0.0.1: no monitoring, no cluster, no other address."""
    async with running(tmp_path) as (server, _):
        assert server.process is not None
        ports = tmp_path / f"nats-server_{server.process.pid}.ports"
        listening = json.loads(ports.read_text())
        assert list(listening) == ["nats"]
        assert all(url.startswith("nats://127.0.0.1:") for url in listening["nats"])


async def test_secrets_are_in_a_private_file_alone(tmp_path: Path) -> None:
    """The password is neither on the command line nor readable by others; syncing is on."""
    async with running(tmp_path) as (server, address):
        password = address.split(":")[2].split("@")[0]
        assert len(password) >= 32
        assert server.process is not None
        with open(f"/proc/{server.process.pid}/cmdline") as line:  # noqa: ASYNC230
            assert password not in line.read()
        assert server.file.stat().st_mode & 0o777 == 0o600
        settings = json.loads(server.file.read_text())
        assert settings["jetstream"]["sync_interval"] == "always"


async def test_large_events_pass(tmp_path: Path) -> None:
    """The server's limit leaves room for the configured event and its headers."""
    async with running(tmp_path, event_bytes=3_000_000) as (_, address), ready_bus(address) as (bus, _):
        assert (await bus.publish("events.acme.a", bytes(3_100_000))).sequence == 1


async def test_it_comes_back_after_a_crash(tmp_path: Path) -> None:
    """Killed, it is started again with the same address and store, and the bus goes on."""
    async with running(tmp_path) as (server, address), ready_bus(address) as (bus, sink):
        await bus.publish("events.acme.a", b"1")
        assert server.process is not None
        server.process.kill()
        await sink.until(lambda: sink.interruptions == 1 and sink.up)
        assert (await bus.publish("events.acme.a", b"2")).sequence == 2
        assert server.restarts == 1


async def test_the_address_survives_the_broker(tmp_path: Path) -> None:
    """Stopped and started again it has the same port, user, password and store."""
    async with running(tmp_path) as (server, first):
        async with ready_bus(first) as (bus, _):
            await bus.publish("events.acme.a", b"1")
        process = server.process
    assert process is not None
    assert process.returncode is not None
    async with running(tmp_path) as (_, second):
        assert second == first
        async with ready_bus(second) as (bus, _):
            assert (await bus.state()).last == 1


async def test_the_wanted_port_when_it_is_free_else_another(tmp_path: Path, held: list[int]) -> None:
    """The well-known port is used when nobody has it; a port that is taken is no reason not to start."""
    [wanted] = held
    with socket.create_server(("127.0.0.1", wanted)):
        async with running(tmp_path / "a", port=wanted) as (_, address):
            assert port(address) != wanted
            kept = address
    async with running(tmp_path / "a", port=wanted) as (_, address):
        assert address == kept
    async with running(tmp_path / "b", port=wanted) as (_, address):
        assert port(address) == wanted


async def test_one_port_wanted_by_many_at_once(tmp_path: Path, held: list[int]) -> None:
    """Each finds it free when it starts; one gets it, and the others another one each."""
    [wanted] = held
    ports = []
    done = trio.Event()

    async def run(name: str) -> None:
        async with running(tmp_path / name, port=wanted) as (_, address):
            ports.append(port(address))
            await done.wait()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in "abcd":
                nursery.start_soon(run, name)
            while len(ports) < 4:
                await trio.sleep(0.01)
            done.set()
    assert len(set(ports)) == 4
    assert wanted in ports


async def test_a_store_has_one_broker(tmp_path: Path) -> None:
    """A second one on the same directory is refused, and told who has it."""
    async with running(tmp_path):
        with pytest.RaisesGroup(pytest.RaisesExc(ServerError, match=rf"in use .*\(pid {os.getpid()}\)")):
            async with running(tmp_path):
                pass
    async with running(tmp_path):
        pass


async def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """kill -9 of the broker ends the server too, and the next broker has its store and address at once."""
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    parent = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    line = b""
    with trio.fail_after(30):
        while not line.endswith(b"\n"):
            line += await parent.stdout.receive_some()
    pid, address = line.decode().split()
    assert is_alive(pid)
    async with connect(address):
        pass
    parent.kill()
    await parent.wait()
    async with running(tmp_path) as (_, again):
        assert again == address
    await until_gone(int(pid))


async def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The sentence holds the server's own last words."""
    (tmp_path / "store").write_text("a file where the store should be")
    with pytest.RaisesGroup(pytest.RaisesExc(ServerError, match="does not start: Can't start JetStream")):
        async with running(tmp_path):
            pass


async def test_a_configuration_that_is_spoilt_is_not_overwritten(tmp_path: Path) -> None:
    """The credentials that publishers hold are not thrown away in silence."""
    (tmp_path / "nats-server.json").write_text("{")
    with pytest.RaisesGroup(pytest.RaisesExc(ServerError, match=r"nats-server\.json cannot be read")):
        async with running(tmp_path):
            pass
    assert (tmp_path / "nats-server.json").read_text() == "{"


async def test_a_server_that_hangs_is_killed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM finds no ear in a stopped process: after the grace it is killed, and the broker ends."""
    monkeypatch.setattr("broker.bus.server.STOP_SECONDS", 0.2)
    async with running(tmp_path) as (server, _):
        process = server.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
    assert process.returncode == -signal.SIGKILL


async def test_a_program_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found as nats-server cannot be run: the system's words, and no traceback of who tried."""
    program = tmp_path / "nats-server"
    program.write_bytes(b"\x7fELF, but no more")
    program.chmod(0o755)
    monkeypatch.setattr(server, "find_binary", lambda: str(program))
    with pytest.RaisesGroup(
        pytest.RaisesExc(ServerError, match=r"does not start: .*nats-server: Exec format error")
    ):
        async with trio.open_nursery() as nursery:
            await nursery.start(EmbeddedServer(directory=tmp_path / "nats", port=0).run)
