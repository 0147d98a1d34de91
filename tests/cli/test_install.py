"""systemd/install: what is copied where, as root and for a package."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = {"broker.service", "broker.socket", "broker@.service", "nats-server.service"}


def install(root: Path, **variables: str) -> None:
    subprocess.run(
        [ROOT / "systemd" / "install"], check=True, env={**os.environ, "DESTDIR": str(root), **variables}
    )


def test_by_hand(tmp_path: Path) -> None:
    """Units, users, directories, a first configuration that others cannot read, and all examples."""
    install(tmp_path)
    assert {file.name for file in (tmp_path / "etc/systemd/system").iterdir()} == UNITS
    for kind in ("sysusers", "tmpfiles"):
        copy = tmp_path / "etc" / f"{kind}.d" / "broker.conf"
        assert copy.read_text() == (ROOT / "systemd" / f"{kind}.conf").read_text()
    unit = (tmp_path / "etc/systemd/system/broker.service").read_text()
    documented = re.search(r"^Documentation=file:/(\S+)", unit, re.MULTILINE)
    assert documented
    assert (tmp_path / documented[1]).exists()
    configuration = tmp_path / "etc/broker/broker.toml"
    assert configuration.read_text() == (ROOT / "config/broker.toml").read_text()
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o640
    examples = tmp_path / "usr/local/share/doc/broker/config"
    shown = {file.relative_to(examples) for file in examples.rglob("*") if file.is_file()}
    config = ROOT / "config"
    assert shown == {file.relative_to(config) for file in config.rglob("*") if file.is_file()}
    pages = {file.name for file in (examples.parent / "broker" / "docs").iterdir()}
    assert pages == {file.name for file in ROOT.glob("broker/docs/*.md")}


def test_a_configuration_stays(tmp_path: Path) -> None:
    """An upgrade replaces units and leaves what the operator wrote."""
    install(tmp_path)
    configuration = tmp_path / "etc/broker/broker.toml"
    configuration.write_text("mine")
    unit = tmp_path / "etc/systemd/system/broker.service"
    unit.write_text("old")
    install(tmp_path)
    assert configuration.read_text() == "mine"
    assert unit.read_text() == (ROOT / "systemd/broker.service").read_text()


def test_for_a_package(tmp_path: Path) -> None:
    """A package's own places, also for the programs in the units; nothing lands anywhere else."""
    install(tmp_path, LIBDIR="/usr/lib", BINDIR="/usr/bin", DOCDIR="/usr/share/doc/broker")
    units = tmp_path / "usr/lib/systemd/system"
    assert {file.name for file in units.iterdir()} == UNITS
    programs = re.findall(r"^ExecStart=(\S+)", "".join(f.read_text() for f in units.iterdir()), re.MULTILINE)
    assert set(programs) == {"/usr/bin/broker", "/usr/bin/nats-server"}
    documented = re.search(r"^Documentation=file:(\S+)", (units / "broker.service").read_text(), re.MULTILINE)
    assert documented
    assert documented[1].startswith("/usr/share/doc/broker/")
    assert (tmp_path / documented[1].removeprefix("/")).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"etc", "usr"}
    assert {path.name for path in (tmp_path / "etc").iterdir()} == {"broker"}


@pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None or os.getuid() != 0, reason="needs systemd, and root"
)
def test_users_and_directories(tmp_path: Path) -> None:
    """systemd makes the users and the directories, and gives the configuration to the broker's group."""
    install(tmp_path)
    for tool in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        made = subprocess.run([*tool, f"--root={tmp_path}"], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
    passwd = (tmp_path / "etc/passwd").read_text()
    users = {line.split(":")[0]: line.split(":") for line in passwd.splitlines()}
    assert {"broker", "nats"} <= users.keys()
    modes = {"broker": 0o750, "broker/private": 0o700, "broker/broker.toml": 0o640, "nats": 0o750}
    for path, mode in modes.items():
        assert stat.S_IMODE((tmp_path / "etc" / path).stat().st_mode) == mode
    assert (tmp_path / "etc/broker/broker.toml").stat().st_gid == int(users["broker"][3])


def test_what_the_documentation_names_exists() -> None:
    """Every file of ours that the README or a page copies or names."""
    text = "".join(path.read_text() for path in (ROOT / "README.md", *ROOT.glob("broker/docs/*.md")))
    named = set(re.findall(r"(?<![/\w-])((?:systemd|config|broker|tests)/[\w./@-]*\w/?)", text))
    assert {"systemd/install", "config/broker.toml", "config/nats/nats.conf"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []
