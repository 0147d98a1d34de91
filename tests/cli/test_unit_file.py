"""The units for systemd, held against systemd's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from broker import config
from broker.bus import bridge, server

UNITS = Path(__file__).parents[2] / "systemd"
PROGRAMS = re.compile(r"/opt/broker/bin/(broker|nats-server)\b")
MOST_EXPOSED = 1.5  # of 10

systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@systemd
@pytest.mark.parametrize(
    "unit", ["broker.service", "broker.socket", "broker@1.service", "nats-server.service"]
)
def test_systemd_accepts_the_unit(unit: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing, once the programs are some that exist on this machine."""
    for file in [*UNITS.glob("*.service"), *UNITS.glob("*.socket")]:
        (tmp_path / file.name).write_text(PROGRAMS.sub(sys.executable, file.read_text()))
    result = analyze("verify", tmp_path / unit)
    assert (result.returncode, result.stderr) == (0, "")


@systemd
@pytest.mark.parametrize("unit", ["broker.service", "broker@.service", "nats-server.service"])
def test_the_unit_is_hardened(unit: str) -> None:
    """`systemd-analyze security` sees little exposure."""
    result = analyze("security", "--offline=true", UNITS / unit)
    level = re.search(r"exposure level for \S+: ([0-9.]+)", result.stdout)
    assert level, result.stderr
    assert float(level[1]) <= MOST_EXPOSED


def test_instances_differ_only_where_they_must() -> None:
    """One service and that of several processes are the same but for port, directory and name."""
    one, several = ((UNITS / name).read_text().splitlines() for name in ("broker.service", "broker@.service"))
    only = [line for line in several if line not in one and not line.startswith("#")]
    keys = {line.partition("=")[0] for line in only}
    assert keys == {"Description", "After", "ExecStart", "Environment", "StateDirectory"}


def setting(unit: str, key: str) -> str:
    """What a unit says for a key."""
    (value,) = re.findall(rf"^{key}=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)
    return str(value)


@pytest.mark.parametrize("unit", ["broker.service", "broker@.service"])
def test_systemd_waits_for_the_drain(unit: str) -> None:
    """Connections, a nats-server of its own and NATS have the time to end before systemd kills."""
    needed = config.Drain().grace_seconds + server.STOP_SECONDS + bridge.CLOSE_SECONDS
    assert needed < float(setting(unit, "TimeoutStopSec"))


def test_systemd_waits_for_the_lame_duck() -> None:
    """nats-server has the time that its configuration gives to clients."""
    text = (UNITS.parent / "config" / "nats" / "nats.conf").read_text()
    spans = [float(span) for span in re.findall(r"^lame_duck_\w+: (\d+)s$", text, re.MULTILINE)]
    assert len(spans) == 2
    assert sum(spans) < float(setting("nats-server.service", "TimeoutStopSec"))


def test_what_is_copied_where(tmp_path: Path) -> None:
    """The README's list of copies works, leaves out no unit, and has what the units name."""
    readme = (UNITS.parent / "README.md").read_text()
    commands = re.findall(r"^install (.*?)(?: +#.*| &&.*)?$", readme, re.MULTILINE)
    for command in commands:
        words = re.sub(r" -g \w+", "", command).split(" ")
        words = [str(tmp_path / word[1:]) if word.startswith("/") else word for word in words]
        subprocess.run(["install", *words], cwd=UNITS.parent, check=True)
    copied = {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()}
    assert {file.name for file in UNITS.iterdir()} == {
        file.name if file.parts[1:3] == ("lib", "systemd") else f"{file.parent.name.removesuffix('.d')}.conf"
        for file in copied
        if file.parts[0] == "usr"
    }
    named = {
        Path(path[1:])
        for unit in UNITS.glob("*.service")
        for path in re.findall(r"(?<=[ =])/etc/\S+", setting(unit.name, "ExecStart"))
    }
    assert named == {Path("etc/broker/broker.toml"), Path("etc/nats/nats.conf")}
    assert named < copied
    included = re.findall(r'^include "(.*)"', (tmp_path / "etc/nats/nats.conf").read_text(), re.MULTILINE)
    assert {Path("etc/nats") / name for name in included} < copied
