"""Tokens from the client's side, without I/O."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from broker.client.tokens import RENEW_SECONDS, SOON_SECONDS, Credentials, life, looked_at
from broker.errors import CloseCode

NOW = 1_800_000_000.0


def token(**claims: Any) -> str:
    return f"e30.{urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.c2ln"


@pytest.mark.parametrize(
    "given",
    [
        "", "a", "a.b", "a.b.c.d", "a..c", ".b.c", "a.b.", "a b.c.d", "a.b.c\nd.e.f", "ä.b.c", "a.b.c=",
        "a.b.\ud83d", "<html>.b.c", '"a.b.c"', None, b"a.b.c", 7,
    ],
)  # fmt: skip
def test_what_is_no_token(given: Any) -> None:
    """Three base64url parts and nothing else; what it was is not repeated."""
    with pytest.raises(ValueError, match="token") as refused:
        looked_at(given)
    assert not isinstance(given, str) or len(given) < 2 or given not in str(refused.value)


def test_white_space_around_it() -> None:
    """A line end comes from many a file and command."""
    assert looked_at(" a-_.b.c\r\n") == "a-_.b.c"


@pytest.mark.parametrize(
    ("claims", "seconds"),
    [
        ({"iat": NOW, "exp": NOW + 60}, 60.0),
        ({"nbf": NOW, "exp": NOW + 60}, 60.0),
        ({"iat": NOW + 1, "nbf": NOW, "exp": NOW + 60}, 59.0),
        ({"exp": NOW}, None),
        ({"iat": NOW}, None),
        ({"iat": NOW, "exp": NOW}, None),
        ({"iat": "now", "exp": NOW}, None),
    ],
)
def test_how_long_it_lives(claims: dict[str, Any], seconds: float | None) -> None:
    """By its own times alone, so that no clock of ours has a part in it."""
    assert life(token(**claims)) == seconds


@pytest.mark.parametrize("middle", ["a", "!", "bm8", "W10"])
def test_a_token_that_cannot_be_read(middle: str) -> None:
    """Then nothing is known of its life."""
    assert life(f"e30.{middle}.c2ln") is None


@pytest.mark.parametrize(
    ("seconds", "wall", "due"),
    [
        (60.0, NOW, 30.0),
        (60.0, NOW + 40.0, RENEW_SECONDS / 1.5),  # it has 20 s left: half of that
        (60.0, NOW - 7200.0, 30.0),
        (60.0, NOW + 7200.0, 30.0),
        (86400.0, NOW + 86340.0, 30.0),
        (86400.0, NOW - 7200.0, SOON_SECONDS),
        (86400.0, NOW + 10.0, SOON_SECONDS),
    ],
)
def test_when_it_is_renewed(seconds: float, wall: float, due: float) -> None:
    """When the broker wants it: at half of its life, or of what is left of it; soon whatever a clock says."""
    credentials = Credentials(renewable=True, wall=lambda: wall)
    credentials.presented(token(iat=NOW, exp=NOW + seconds), 1000.0)
    assert credentials.renew_at(1000.0) == pytest.approx(1000.0 + due)
    assert credentials.renew_at(1000.0 + seconds / 2) <= 1000.0 + seconds / 2 + SOON_SECONDS


def test_one_renewal_after_the_other() -> None:
    """Where nothing is known of a token's life the first renewal is at once, and the next in its time."""
    credentials = Credentials(renewable=True, wall=lambda: NOW)
    credentials.presented("a.b.c", 1000.0)
    assert credentials.renew_at(1000.0) == 1000.0
    credentials.presented("d.e.f", 1000.0)
    credentials.renewed = 1000.0
    assert credentials.renew_at(1001.0) == 1000.0 + RENEW_SECONDS


@pytest.mark.parametrize("code", [4500, 4501, 4503, 4502, 4999])
def test_the_same_token_twice(code: int) -> None:
    """Only that is final: not another token, nor one that was good in between."""
    credentials = Credentials(renewable=True)
    credentials.presented("a.b.c", 0.0)
    assert not credentials.is_final(code)
    credentials.presented("d.e.f", 1.0)
    assert not credentials.is_final(code)
    credentials.accepted()
    assert not credentials.is_final(code)
    assert credentials.is_final(code)


@pytest.mark.parametrize("code", [1000, 1006, 1009, 1012, 3000, 4001, 4008, 4029, 4300, 4510, 5000])
def test_what_says_nothing_about_a_token(code: int) -> None:
    """However often it comes, it is no reason to end."""
    credentials = Credentials(renewable=False)
    credentials.presented("a.b.c", 0.0)
    assert not any(credentials.is_final(code) for _ in range(5))


@pytest.mark.parametrize(
    ("renewable", "wall", "final"),
    [(False, NOW + 1, True), (False, NOW - 7200, False), (True, NOW + 1, False)],
)
def test_one_that_has_run_out(renewable: bool, wall: float, final: bool) -> None:
    """Where there is no other, and two clocks agree: the broker's may be hours ahead, and be set right."""
    credentials = Credentials(renewable=renewable, wall=lambda: wall)
    credentials.presented(token(iat=NOW - 60, exp=NOW), 0.0)
    assert not credentials.is_final(CloseCode.TOKEN_EXPIRED)
    assert credentials.is_final(CloseCode.TOKEN_EXPIRED) is final
