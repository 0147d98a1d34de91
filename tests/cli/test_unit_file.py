"""The units for systemd, held against systemd's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from broker.app import CLOSING_SECONDS
from broker.config import Drain

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


@pytest.mark.parametrize("unit", ["broker.service", "broker@.service"])
def test_time_to_stop(unit: str) -> None:
    """systemd waits for as long as the drain and what follows it take with the default configuration."""
    match = re.search(r"^TimeoutStopSec=(\d+)$", (UNITS / unit).read_text(), re.MULTILINE)
    assert match
    assert int(match[1]) == Drain().grace_seconds + CLOSING_SECONDS


def test_time_of_a_lame_duck() -> None:
    """nats-server has the time that its configuration gives to clients."""
    text = (UNITS.parent / "config" / "nats" / "nats.conf").read_text()
    spans = [int(span) for span in re.findall(r"^lame_duck_\w+: (\d+)s$", text, re.MULTILINE)]
    match = re.search(r"^TimeoutStopSec=(\d+)$", (UNITS / "nats-server.service").read_text(), re.MULTILINE)
    assert match
    assert len(spans) == 2
    assert sum(spans) < int(match[1])


def test_instances_differ_only_where_they_must() -> None:
    """One service and that of several processes are the same but for port, directory and name."""
    one, several = ((UNITS / name).read_text().splitlines() for name in ("broker.service", "broker@.service"))
    only = [line for line in several if line not in one and not line.startswith("#")]
    keys = {line.partition("=")[0] for line in only}
    assert keys == {"Description", "After", "ExecStart", "ExecReload", "Environment", "StateDirectory"}


@pytest.mark.parametrize("unit", ["broker.service", "broker@.service", "nats-server.service"])
def test_nothing_is_given_up(unit: str) -> None:
    """Once what was wrong is mended, a service starts by itself."""
    begin, _, rest = (UNITS / unit).read_text().partition("[Service]")
    assert "StartLimitIntervalSec=0\n" in begin
    assert re.search(r"^Restart=(on-failure|always)$", rest, re.MULTILINE)
