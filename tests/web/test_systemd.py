"""Socket activation and notification, with real descriptors and a real notification socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from broker import systemd
from broker.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os, socket, sys
from broker import systemd
os.environ["LISTEN_PID"] = str(os.getpid())
for name, passed in systemd.sockets(os.environ).items():
    for each in passed:
        print(name, each.getsockname()[1], each.get_inheritable())
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
"""


def test_passed_as_systemd_does() -> None:
    """A process that was given sockets from descriptor 3 on finds them by name; its children do not."""
    with socket.create_server(("127.0.0.1", 0)) as public, socket.create_server(("127.0.0.1", 0)) as admin:
        ports = [each.getsockname()[1] for each in (public, admin)]
        # The shell moves them to 3 and 4, where systemd puts them.
        command = 'exec 3<&"$0" 4<&"$1" "$2" -c "$3"'
        output = subprocess.run(
            ["bash", "-c", command, str(public.fileno()), str(admin.fileno()), sys.executable, PROGRAM],
            env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "public:admin"},
            pass_fds=(public.fileno(), admin.fileno()),
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    assert output.splitlines() == [f"public {ports[0]} False", f"admin {ports[1]} False", "[]"]


@pytest.fixture
def descriptor() -> int:
    """A listening socket as a bare descriptor."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener.detach()


def environment(**changes: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "PATH": "/bin", **changes}


def test_without_names(descriptor: int) -> None:
    """A socket without a name is the public one."""
    passed = systemd.sockets(environment(), first=descriptor)
    assert list(passed) == ["public"]
    [listener] = passed["public"]
    listener.close()


@pytest.mark.parametrize(
    "given", [{}, {"LISTEN_PID": "1"}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "-1"}, {"LISTEN_FDS": "0"}]
)
def test_not_for_us(given: dict[str, str]) -> None:
    """Without activation of this process there are no sockets; the variables are gone all the same."""
    variables = environment(**given) if given else {}
    assert systemd.sockets(variables) == {}
    assert not any(name.startswith("LISTEN_") for name in variables)


def test_refused(descriptor: int, tmp_path: Path) -> None:
    """Unknown names, wrong counts and anything but a listening TCP socket are reported."""
    for names in ("broker.socket", "public:admin"):
        with pytest.raises(ConfigError, match="LISTEN_FDNAMES"):
            systemd.sockets(environment(LISTEN_FDNAMES=names), first=descriptor)
    os.close(descriptor)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "socket"))
    unix.listen()
    for wrong in (socket.socket(), socket.socket(type=socket.SOCK_DGRAM), unix):
        with pytest.raises(ConfigError, match="not a listening TCP socket"):
            systemd.sockets(environment(), first=wrong.detach())
    with pytest.raises(ConfigError, match="Bad file descriptor"):
        systemd.sockets(environment(), first=descriptor)


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, abstract: bool) -> None:
    """What is notified arrives as one message, by path and by abstract name."""
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        variables = {"NOTIFY_SOCKET": f"@{name}" if abstract else name, "WATCHDOG_USEC": "30000000"}
        notifier = systemd.notifier(variables)
        assert variables == {}
        notifier.notify("READY=1", "STATUS=7 clients, grün")
        assert manager.recv(4096).decode() == "READY=1\nSTATUS=7 clients, grün"
        assert notifier.watchdog_seconds == 30
    notifier.notify("STOPPING=1")  # nobody listens any more, which is not our concern


@pytest.mark.parametrize("address", ["", "/", "@", "vsock:2:1234", "relative"])
def test_nobody_to_notify(address: str) -> None:
    """Without an address that we can reach nothing happens."""
    notifier = systemd.notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
    assert notifier == systemd.Notifier()
    notifier.notify("READY=1")


def test_watchdog_of_another() -> None:
    """A watchdog that is meant for another process, or none, is not ours."""
    for variables in ({"WATCHDOG_PID": "1", "WATCHDOG_USEC": "1000"}, {"WATCHDOG_USEC": "0"}, {}):
        assert systemd.notifier({"NOTIFY_SOCKET": "/run/notify", **variables}).watchdog_seconds is None
