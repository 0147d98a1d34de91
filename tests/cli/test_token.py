from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING

import jwt
import pytest
from click.testing import CliRunner, Result

from broker.__main__ import main
from broker.auth.keys import Keys
from broker.auth.tokens import Verifier
from broker.cli import local

if TYPE_CHECKING:
    from pathlib import Path

    from broker.permissions import Principal


def sign(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["token", *map(str, arguments)])


async def verified(data_dir: Path, token: str, tenant: str | None = None) -> Principal:
    settings = local.development(data_dir, {})
    verifier = Verifier(settings.auth, settings.limits, settings.permissions, Keys.load(settings.auth))
    return await verifier.verify(token, now=time.time(), tenant=tenant)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory as `broker dev` leaves it."""
    local.make_key(tmp_path / "state")
    return tmp_path / "state"


async def test_a_token_alone_that_the_broker_believes(data_dir: Path) -> None:
    """Standard output is the token and a line break; it says tenant and user and allows what dev allows."""
    result = sign("--data-dir", data_dir)
    assert result.exit_code == 0
    assert not result.stderr
    (token,) = result.stdout.splitlines()
    principal = await verified(data_dir, token)
    assert (principal.tenant, principal.user) == ("dev", "dev")
    assert principal.subscribe == principal.publish == (">", "live.>")
    assert principal.request == (">",)
    assert 3500 < principal.expires_at - time.time() <= 3600


async def test_what_it_may_do(data_dir: Path) -> None:
    """Patterns are as given, and a list that is not given is empty once another is."""
    result = sign(
        *("--data-dir", data_dir, "--tenant", "acme", "--user", "al.ice", "--ttl", "90s"),
        *("--subscribe", "orders.>", "--subscribe", "{user}.x", "--deny", "orders.secret"),
        *("--request", "orders.*", "--request", "shop.>"),
    )
    principal = await verified(data_dir, result.stdout.strip())
    assert (principal.tenant, principal.user) == ("acme", "al.ice")
    assert principal.subscribe == ("orders.>", "al%2Eice.x")
    assert principal.publish == ()
    assert principal.request == ("orders.*", "shop.>")
    assert principal.deny == ("orders.secret",)
    assert principal.expires_at - time.time() <= 90


async def test_monitoring(data_dir: Path) -> None:
    """A monitoring token takes the tenant that is asked for, and publishes nothing."""
    principal = await verified(data_dir, sign("--data-dir", data_dir, "--monitoring").stdout.strip(), "acme")
    assert principal.monitoring
    assert (principal.tenant, principal.publish) == ("acme", ())


def test_longer_than_the_broker_believes(data_dir: Path) -> None:
    """A life above the limit is the command used wrongly, not a token that will be refused."""
    result = sign("--data-dir", data_dir, "--ttl", "25h")
    assert result.exit_code == 2
    assert "86400 s" in result.stderr


def test_no_key_yet(tmp_path: Path) -> None:
    """Without a data directory of a broker it says how to come by one, and makes none itself."""
    result = sign("--data-dir", tmp_path / "state")
    assert result.exit_code == 1
    assert "start `broker dev`" in result.stderr
    assert "`broker token --config FILE`" in result.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("arguments", "kid"), [((), "first"), (("--key", "second"), "second")])
def test_a_key_of_a_configuration(tmp_path: Path, arguments: tuple[str, ...], kid: str) -> None:
    """With a configuration its first secret signs, or the one that is named."""
    (tmp_path / "broker.toml").write_text(
        f"""
        [[auth.keys]]
        name = "public"
        algorithms = ["EdDSA"]
        pem_file = "absent.pem"
        tenants = ["*"]
        [[auth.keys]]
        name = "first"
        secret = "{"0123456789abcdef" * 2}"
        tenants = ["*"]
        [[auth.keys]]
        name = "second"
        secret = "{"fedcba9876543210" * 2}"
        tenants = ["*"]
        """
    )
    result = sign("--config", tmp_path / "broker.toml", *arguments)
    assert jwt.get_unverified_header(result.stdout.strip())["kid"] == kid


def test_a_key_that_is_not_there(data_dir: Path) -> None:
    """Another key's name is answered by the names that there are."""
    result = sign("--data-dir", data_dir, "--key", "main")
    assert result.exit_code == 2
    assert "there is no key 'main'; there are: dev" in result.stderr


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    """The key of a data directory is random, stays the same, and nobody else may read it."""
    for name in ("one", "other"):
        local.make_key(tmp_path / name)
    key = tmp_path / "one" / local.KEY_FILE
    before = key.read_text()
    local.make_key(tmp_path / "one")
    assert key.read_text() == before
    assert before != (tmp_path / "other" / local.KEY_FILE).read_text()
    assert len(bytes.fromhex(before)) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
