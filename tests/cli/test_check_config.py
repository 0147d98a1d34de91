from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from click.testing import CliRunner, Result

from broker.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
[stream]
max_bytes = "1GiB"
[[auth.keys]]
name = "main"
secret_file = "secret"
tenants = ["acme"]
"""


def check(directory: Path, text: str, **variables: str) -> Result:
    secret = directory / "secret"
    secret.touch(mode=0o600)
    secret.write_text("0123456789abcdef" * 4)
    (directory / "broker.toml").write_text(text)
    return CliRunner().invoke(main, ["check-config", str(directory / "broker.toml")], env=variables)


def test_a_good_file_is_printed_as_it_takes_effect(tmp_path: Path) -> None:
    """Exit code 0, and TOML with the file, the environment and the defaults together."""
    result = check(tmp_path, GOOD, BROKER_LIMITS__CONNECTIONS="20_000")
    assert result.exit_code == 0
    assert not result.stderr
    effective = tomllib.loads(result.stdout)
    assert effective["stream"]["max_bytes"] == 1 << 30
    assert effective["limits"]["connections"] == 20_000
    assert effective["limits"]["connections_per_user"] == 10
    assert effective["auth"]["keys"][0]["secret_file"] == str(tmp_path / "secret")


def test_a_key_set_of_everybody(tmp_path: Path) -> None:
    """An address without issuer and audience is a fault that says what to write instead."""
    entry = GOOD.replace(
        'secret_file = "secret"', 'jwks_url = "https://id.example/jwks"\nalgorithms = ["RS256"]'
    )
    result = check(tmp_path, entry)
    assert result.exit_code == 1
    assert "auth.keys.0.audience: it or issuer is required beside jwks_url" in result.stderr
    assert check(tmp_path, f'{entry}audience = "*"\n').exit_code == 0


def test_no_secret_is_printed(tmp_path: Path) -> None:
    """A secret from the environment does not come out again."""
    secret = "fedcba9876543210" * 4
    keys = f'[{{name = "main", secret = "{secret}", tenants = ["*"]}}]'
    result = check(tmp_path, '[stream]\nmax_bytes = "1GiB"\n', BROKER_AUTH__KEYS=keys)
    assert result.exit_code == 0
    assert secret not in result.output


def test_every_fault_a_line(tmp_path: Path) -> None:
    """Exit code 1, nothing on standard output, and faults of values, keys, patterns and files at once."""
    result = check(
        tmp_path,
        """
        [limits]
        connexions = 5
        [permissions]
        subscribe = ["a..b"]
        [[auth.keys]]
        name = "main"
        secret_file = "absent"
        tenants = ["*"]
        """,
        BROKER_LOG__LEVEL="loud",
    )
    assert result.exit_code == 1
    assert not result.stdout
    faults = result.stderr.splitlines()
    assert sorted(fault.partition(":")[0] for fault in faults) == [
        "BROKER_LOG__LEVEL",
        "auth.keys.0.secret_file",
        "limits.connexions",
        "permissions.subscribe.0",
        "stream.max_bytes",
    ]


def test_the_admin_token(tmp_path: Path) -> None:
    """A file that holds no token, or is not there, is one fault by its key; what it holds is not shown."""
    for name, fault in (("short", "is not a token"), ("absent", "cannot be read")):
        (tmp_path / "short").touch(mode=0o600)
        (tmp_path / "short").write_text("a pass-phrase")
        result = check(tmp_path, GOOD, BROKER_SERVER__ADMIN_TOKEN_FILE=str(tmp_path / name))
        assert result.exit_code == 1
        assert fault in result.stderr
        assert result.stderr.count("\n") == 1
        assert "pass-phrase" not in result.stderr


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there is a fault, not a traceback."""
    result = CliRunner().invoke(main, ["check-config", str(tmp_path / "absent.toml")])
    assert result.exit_code == 1
    assert "absent.toml: cannot be read" in result.stderr
