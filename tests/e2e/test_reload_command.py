"""`broker reload`, which `systemctl reload` runs: it waits, and its exit code is the verdict."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support import command
from tests.support.notified import manager

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer

TEMPLATE = """
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
data_dir = "state"
[nats]
urls = ["{nats}"]
[stream]
max_bytes = "64MiB"
[log]
format = "json"
[limits]
{limits}
[[auth.keys]]
name = "main"
secret_file = "{secret}"
tenants = ["acme"]
"""


@pytest.fixture
def file(tmp_path: Path, nats: NatsServer) -> Path:
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    write(tmp_path / "broker.toml", nats)
    return tmp_path / "broker.toml"


def write(file: Path, nats: NatsServer, limits: str = "", secret: str = "secret") -> None:
    file.write_text(TEMPLATE.format(nats=nats.url, limits=limits, secret=secret))


async def reload(directory: Path) -> command.Result:
    result = await command.broker("reload", "--data-dir", directory / "state")
    assert "Traceback" not in result.err
    return result


async def test_the_verdict(tmp_path: Path, file: Path, nats: NatsServer) -> None:
    """In force, or refused with the reason for as long as the fault lasts; each reload has its own."""
    with manager(tmp_path) as told:
        async with command.start("serve", "--config", file, NOTIFY_SOCKET=told.address):
            await told.until("READY")
            result = await reload(tmp_path)
            assert (result.code, result.out) == (0, "in force: nothing has changed\n")

            write(file, nats, "connections = 77")
            result = await reload(tmp_path)
            assert (result.code, result.out) == (0, "in force: limits.connections\n")

            for broken, words in (
                (lambda: write(file, nats, "conections = 5"), "limits.conections"),
                (lambda: write(file, nats, "connections = 78", secret="none"), "secret_file"),
                (lambda: file.write_bytes(b"\xff\xfe"), str(file)),
                (file.unlink, str(file)),
            ):
                broken()
                for _ in range(2):
                    result = await reload(tmp_path)
                    assert result.code == 1
                    assert result.out == ""
                    assert words in result.err, result.err
                    assert "the previous one stays in force" in result.err

            write(file, nats, 'connections = 79\nevent_bytes = "32KiB"')
            result = await reload(tmp_path)
            assert result.code == 0
            assert "limits.connections" in result.out
            said = [await told.next() for _ in range(2)]  # systemd is told, too, before the command ends
            assert [*said[0], *said[1]][:1] == ["RELOADING"]
            verdict = json.loads((tmp_path / "state" / "reload.json").read_text())
            assert verdict["faults"] == []


async def test_nobody_to_tell(tmp_path: Path, file: Path) -> None:
    """No broker, or one that has died since: a sentence, and exit code 1."""
    result = await reload(tmp_path)
    assert result.code == 1
    assert "no broker is ready" in result.err
    assert "--data-dir" in result.err
    with manager(tmp_path) as told:
        async with command.start("serve", "--config", file, NOTIFY_SOCKET=told.address) as running:
            await told.until("READY")
            assert (await reload(tmp_path)).code == 0
            running.process.kill()
            await running.process.wait()
            result = await reload(tmp_path)
    assert result.code == 1
    assert "No such process" in result.err
