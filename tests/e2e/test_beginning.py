"""What is in the way at the start is one sentence: what, where, and what to do next. Never a traceback."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.command import broker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.command import Result

TEMPLATE = """
[server]
listen = "{listen}"
admin_listen = "127.0.0.1:0"
data_dir = "{data_dir}"
{server}
[nats]
urls = {urls}
[stream]
max_bytes = "64MiB"
[[auth.keys]]
name = "main"
secret_file = "{secret}"
tenants = ["acme"]
"""

SETPRIV = shutil.which("setpriv")
# Root reads and writes everything, but not without its capabilities.
LIKE_OTHERS = () if os.geteuid() else (SETPRIV or "", "--bounding-set=-all", "--inh-caps=-all")
as_others = pytest.mark.skipif(LIKE_OTHERS[:1] == ("",), reason="root needs setpriv to do without its rights")


def write(
    directory: Path,
    *,
    listen: str = "127.0.0.1:0",
    data_dir: str = "state",
    server: str = "",
    secret: str = "secret",
    embedded: bool = False,
) -> Path:
    (directory / "secret").touch(mode=0o600)
    (directory / "secret").write_text("0123456789abcdef" * 4)
    file = directory / "broker.toml"
    urls = "[]" if embedded else '["nats://127.0.0.1:1"]'
    file.write_text(
        TEMPLATE.format(listen=listen, data_dir=data_dir, server=server, secret=secret, urls=urls)
    )
    return file


def check(result: Result, *words: str) -> None:
    """One sentence with these words on standard error, and exit code 1."""
    assert result.code == 1, result
    assert result.out == ""
    assert "Traceback" not in result.err, result.err
    said = [line for line in result.err.splitlines() if not line.startswith("{")]  # the log
    assert len(said) == 1, result.err
    for word in words:
        assert word in said[0], said[0]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_a_port_that_is_taken(tmp_path: Path, taken: int) -> None:
    file = write(tmp_path, listen=f"127.0.0.1:{taken}")
    check(await broker("serve", "--config", file), "server.listen", str(taken), "in use", "another port")


async def test_a_host_that_nobody_knows(tmp_path: Path) -> None:
    file = write(tmp_path, listen="no-such-host.invalid:8080")
    check(await broker("serve", "--config", file), "server.listen", "no-such-host.invalid", "address")


async def test_an_address_of_another_machine(tmp_path: Path) -> None:
    file = write(tmp_path, listen="192.0.2.7:8080", server="allow_insecure = true")
    result = await broker("serve", "--config", file)
    assert "Traceback" not in result.err
    assert result.code == 1


@pytest.mark.parametrize("command", ["serve", "dev"])
async def test_a_data_directory_that_is_a_file(tmp_path: Path, command: str) -> None:
    (tmp_path / "state").write_text("not a directory")
    if command == "serve":
        result = await broker("serve", "--config", write(tmp_path))
    else:
        result = await broker("dev", BROKER_SERVER__DATA_DIR=str(tmp_path / "state"))
    check(result, "server.data_dir", str(tmp_path / "state"), "--data-dir")


@as_others
async def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o500)
    said = ("server.data_dir", str(tmp_path / "state"), "Permission denied", "--data-dir")
    check(await broker("serve", "--config", write(tmp_path), prefix=LIKE_OTHERS), *said)
    check(await broker("dev", "--data-dir", tmp_path / "state", prefix=LIKE_OTHERS), *said)


@as_others
@pytest.mark.parametrize("key", ["secret_file", "admin_token_file", "tls_certificate"])
async def test_a_file_that_may_not_be_read(tmp_path: Path, key: str) -> None:
    """Keys, certificates and tokens."""
    unreadable = tmp_path / "unreadable"
    match key:
        case "secret_file":
            file = write(tmp_path, secret="unreadable")
        case "tls_certificate":
            file = write(tmp_path, server='tls_certificate = "unreadable"\ntls_key = "secret"')
        case _:
            file = write(tmp_path, server=f'{key} = "unreadable"')
    unreadable.touch()
    unreadable.chmod(0)
    result = await broker("serve", "--config", file, prefix=LIKE_OTHERS)
    check(result, key, str(unreadable), "Permission denied", "chgrp", "chmod g+r")


async def test_a_store_that_is_locked(tmp_path: Path) -> None:
    """By a broker that runs."""
    (tmp_path / "state" / "nats").mkdir(parents=True)
    with (tmp_path / "state" / "nats" / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        print(os.getpid(), file=lock, flush=True)
        file = write(tmp_path, embedded=True)
        check(
            await broker("serve", "--config", file),
            "in use by another broker",
            str(os.getpid()),
            "--data-dir",
        )
