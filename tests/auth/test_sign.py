"""Tokens that the broker makes itself, for `broker token` and for development."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest

from broker import config
from broker.auth.keys import Keys
from broker.auth.tokens import Verifier, sign
from broker.errors import ConfigError, TokenInvalid
from tests.auth.forge import KEY, NOW

if TYPE_CHECKING:
    from pathlib import Path

ALL = attrs.evolve(KEY, tenants=("*",), monitoring=True)


def believer(auth: config.Auth) -> Verifier:
    return Verifier(auth, config.Limits(), config.Permissions(), Keys.load(auth))


@pytest.mark.parametrize("path", ["tenant", "app.tenant", "a.b.c", "https://broker.example/tenant"])
@pytest.mark.parametrize("algorithm", ["HS256", "HS512"])
async def test_round_trip(path: str, algorithm: str) -> None:
    """What is signed is believed, with everything that was asked for, wherever the tenant stands."""
    key = attrs.evolve(KEY, issuer="me", audience="broker", algorithms=(algorithm,))
    auth = config.Auth(keys=(key,), tenant_claim=path, type=("at+jwt",))
    token = sign(auth, tenant="acme", user="ä b", now=NOW, ttl=60, subscribe=["a.>"], deny=["a.{user}"])
    found = await believer(auth).verify(token, now=NOW)
    assert (found.tenant, found.user, found.expires_at) == ("acme", "ä b", NOW + 60)
    assert (found.subscribe, found.publish, found.deny) == (("a.>",), (), ("a.ä%20b",))


async def test_defaults_hold() -> None:
    """Without any pattern the token leaves the permissions to the broker's defaults."""
    auth = config.Auth(keys=(KEY,))
    found = await believer(auth).verify(sign(auth, tenant="acme", user="u", now=NOW, ttl=60), now=NOW)
    assert found.subscribe == (">", "live.>")


async def test_monitoring() -> None:
    """The tenant `*` makes a monitoring token."""
    auth = config.Auth(keys=(KEY, attrs.evolve(ALL, name="all", secret="m" * 32)))
    token = sign(auth, tenant="*", user="ops", now=NOW, ttl=60)
    found = await believer(auth).verify(token, now=NOW, tenant="globex")
    assert (found.tenant, found.monitoring) == ("globex", True)


async def test_choice_of_the_key(tmp_path: Path) -> None:
    """The first secret that may sign for the tenant signs; one from a file as well."""
    path = tmp_path / "secret"
    path.write_text("f" * 32 + "\n")
    path.chmod(0o600)
    filed = config.Key(name="filed", secret_file=path, tenants=("globex",))
    auth = config.Auth(keys=(KEY, filed))
    token = sign(auth, tenant="globex", user="u", now=NOW, ttl=60)
    assert (await believer(auth).verify(token, now=NOW)).tenant == "globex"


def test_no_key() -> None:
    """Without a secret that may sign for the tenant there is no token, and the reason is told."""
    for keys, tenant in [((KEY,), "globex"), ((KEY,), "*"), ((), "acme")]:
        with pytest.raises(ConfigError, match="no secret among them may sign"):
            sign(config.Auth(keys=keys), tenant=tenant, user="u", now=NOW, ttl=60)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tenant": "_all"}, "tenant: '_all' is not a tenant name"),
        ({"tenant": "a.b"}, "tenant: 'a.b' is not a tenant name"),
        ({"user": ""}, "sub: "),
        ({"user": "\ud800"}, "sub: "),
        ({"publish": ["a", "b..c"]}, "publish: 'b..c': token 2"),
    ],
)
def test_no_token_that_would_be_refused(changes: dict[str, Any], told: str) -> None:
    """A token that the broker would not believe is not made."""
    wanted = {"tenant": "acme", "user": "u", "now": NOW, "ttl": 60, **changes}
    with pytest.raises(TokenInvalid) as caught:
        sign(config.Auth(keys=(ALL,)), **wanted)
    assert caught.value.message.startswith(told)
