"""What `broker dev` decides and prints; that it runs is shown end to end."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from broker.app import Running
from broker.cli import dev, local
from broker.config import default_data_dir
from broker.errors import Unavailable


def test_it_runs_with_everything_allowed(tmp_path: Path) -> None:
    """One key for every tenant, everything but others' private channels allowed, a bounded stream."""
    settings = local.development(tmp_path, {})
    (key,) = settings.auth.keys
    assert (key.name, key.tenants, key.monitoring) == ("dev", ("*",), True)
    assert key.secret_file == tmp_path / "dev.key"
    assert settings.permissions.subscribe == settings.permissions.publish == (">", "live.>")
    assert settings.permissions.request == (">",)
    assert settings.stream.max_bytes == 1 << 30
    assert settings.server.listen.startswith("127.0.0.1:")
    assert settings.nats.urls == ()


def test_the_environment_wins(tmp_path: Path) -> None:
    """Every key can be set, also those that dev chooses itself."""
    environ = {"BROKER_STREAM__MAX_BYTES": "1MiB", "BROKER_SERVER__LISTEN": "127.0.0.1:9"}
    settings = local.development(tmp_path, environ, listen="127.0.0.1:8080")
    assert settings.stream.max_bytes == 1 << 20
    assert settings.server.listen == "127.0.0.1:9"


def test_where_its_state_is(tmp_path: Path) -> None:
    """The option, else the environment, else the platform's place."""
    environ = {"BROKER_SERVER__DATA_DIR": "/somewhere"}
    assert local.find_data_dir(tmp_path, environ) == tmp_path
    assert local.find_data_dir(None, environ) == Path("/somewhere")
    assert local.find_data_dir(None, {}) == default_data_dir()


def test_a_usual_port_that_is_taken(held: list[int]) -> None:
    """The usual port when nobody has it, else any free one."""
    [port] = held
    with socket.create_server(("127.0.0.1", port)):
        assert dev.preferred(port) == "127.0.0.1:0"
    assert dev.preferred(port) == f"127.0.0.1:{port}"


def test_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Away from a terminal: plain lines that are not wrapped, with addresses, token and what to try."""
    local.make_key(tmp_path)
    running = Running(
        pid=1,
        http="http://127.0.0.1:8080",
        ws="ws://127.0.0.1:8080/ws",
        admin="http://127.0.0.1:8081",
        nats="nats://broker:secret@127.0.0.1:4333",
    )
    dev.show(local.development(tmp_path, {}), " --data-dir x", running)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    values = {words[0]: words[1] for words in lines if len(words) == 2}
    assert values["Docs"] == "http://127.0.0.1:8080/docs"
    assert values["WebSocket"] == "ws://127.0.0.1:8080/ws"
    assert values["HTTP"] == "http://127.0.0.1:8080"
    assert values["Admin"] == "http://127.0.0.1:8081"
    assert values["NATS"] == "nats://broker:secret@127.0.0.1:4333  (instead of 4222)"
    assert values["Token"].count(".") == 2
    tried = [words[1] for words in lines if words[0] == "broker"]
    assert tried == [
        "tail 'orders.>' --data-dir x",
        'publish orders.7 \'{"state":"new"}\' --data-dir x',
        "request demo.echo '[1, 2]' --data-dir x",
        "admin connections --data-dir x",
    ]


def test_a_running_broker(tmp_path: Path) -> None:
    """Where none is ready, or its addresses are not ours to read, the way to another is named."""
    with pytest.raises(Unavailable, match=r"no broker is ready on .*--data-dir .*/var/lib/broker"):
        local.running(tmp_path, "admin")
    (tmp_path / local.RUNNING_FILE).write_text('{"admin": "http://127.0.0.1:1"}')
    assert local.running(tmp_path, "admin") == "http://127.0.0.1:1"


def test_addresses_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have passwords in them; that they cannot be read does not mean that there is no broker."""

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(
        Unavailable, match=r"broker\.json cannot be read: Permission denied; be root or the user"
    ):
        local.running(tmp_path, "admin")
