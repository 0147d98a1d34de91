"""Tokens on the client's side: their form, their lifetime, and when a refusal ends the session.

Only the broker can judge a token. An error page from the token's source instead of a token does not end the
session, and a single refusal may be a mistake.
"""

from __future__ import annotations

import re
import time
from base64 import urlsafe_b64decode
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from broker.errors import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")  # RFC 7515, section 7.1
RENEW_SECONDS = 15.0  # at least between two renewals, or half of a shorter life
SOON_SECONDS = 30.0  # after the broker requests a new token, it gets one within this time


class Claims(msgspec.Struct):
    exp: float | None = None
    iat: float | None = None
    nbf: float | None = None


def looked_at(token: Any) -> str:
    """Return the token stripped of white space. Raises `ValueError` when it cannot be a token.

    The message does not repeat the value: it may be a secret.
    """
    if not isinstance(token, str):
        raise ValueError(f"the token is of type {type(token).__name__}, not a string")
    trimmed = token.strip()
    if not TOKEN.match(trimmed):
        raise ValueError(f"not a token: {len(token)} characters that are not three base64url parts with dots")
    return trimmed


def claims(token: str) -> Claims:
    """Return the times in a token's claims; none when they cannot be read."""
    part = token.split(".")[1]
    with suppress(ValueError, msgspec.DecodeError):
        return msgspec.json.decode(urlsafe_b64decode(part + "=" * (-len(part) % 4)), type=Claims)
    return Claims()


def life(token: str) -> float | None:
    """Return the seconds that a new token is good for, by its own times and so by one clock."""
    found = claims(token)
    begin = found.iat if found.iat is not None else found.nbf
    if found.exp is None or begin is None or found.exp <= begin:
        return None
    return found.exp - begin


@attrs.define(eq=False, kw_only=True)
class Credentials:
    """The token that was sent last. `renewable`: it can be replaced."""

    renewable: bool
    wall: Callable[[], float] = time.time
    token: str = ""
    since: float = -inf  # when it was obtained, on the monotonic clock
    renewed: float = -inf  # when a renewal was last sent on a connection
    refused: str | None = None  # the token that was refused since the last success

    def presented(self, token: str, now: float) -> None:
        if token != self.token:
            self.token, self.since = token, now

    def accepted(self) -> None:
        self.refused = None

    def renew_at(self, now: float) -> float:
        """Return when to request another token, once the broker wants it: after half of this one's life.

        Otherwise a source of one-minute tokens would be called continuously. Our clock is used only if by it
        the token is valid.
        """
        lives = life(self.token)
        if lives is None:
            return max(now, self.renewed + RENEW_SECONDS)
        half, left = self.since + lives / 2, (claims(self.token).exp or 0.0) - self.wall()
        if 0 < left <= lives:  # it was issued some time ago
            half = min(half, now + left / 2)
        return max(now, min(half, now + SOON_SECONDS), self.renewed + min(RENEW_SECONDS, lives / 2))

    def is_final(self, code: int) -> bool:
        """Return whether a close ends the session: it refuses the same token as before."""
        if code == CloseCode.TOKEN_EXPIRED:
            if self.renewable or not self.expired:
                return False
        elif not 4500 <= code <= 4999 or code == CloseCode.PROTOCOL_VIOLATION:
            return False
        again, self.refused = self.refused == self.token, self.token
        return again

    @property
    def expired(self) -> bool:
        """Whether the token has expired by our clock too: the broker's may be wrong."""
        exp = claims(self.token).exp
        return exp is None or exp <= self.wall()
