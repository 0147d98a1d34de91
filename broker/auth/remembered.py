"""Tokens that were verified lately: a client that comes back with the same one costs a digest.

A reconnect storm brings thousands of them, and each poll and post has one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.permissions import Principal

KEPT = 16384  # about 1 KiB each

Question: TypeAlias = "tuple[bytes, str | None]"  # the token's SHA-256, and the tenant that was asked for


@attrs.define(eq=False)
class Remembered:
    """The principals of at most `limit` tokens, those used least recently dropped first.

    An answer holds for the same question, under the same `keys`, from its verification until it expires.
    Neither tokens nor refusals are kept. Whether a token was revoked since is for others to decide.
    """

    limit: int = KEPT
    keys: Sequence[object] = ()
    answers: dict[Question, tuple[Principal, float]] = attrs.Factory(dict)  # and when it was verified

    def find(self, token: str, tenant: str | None, *, now: float, keys: Sequence[object]) -> Principal | None:
        """Return the principal of a token at the Unix time `now`; None where it has to be verified."""
        self.hold_to(keys)
        question = hashed(token), tenant
        principal, since = self.answers.pop(question, (None, 0.0))
        # Before `since` the clock has been set back, and the token may not be valid yet.
        if principal is None or not since <= now < principal.expires_at:
            return None
        self.answers[question] = principal, since
        return attrs.evolve(principal, life=principal.expires_at - now)

    def add(
        self, token: str, tenant: str | None, principal: Principal, *, now: float, keys: Sequence[object]
    ) -> None:
        """Remember what a token was found to be at the time `now`, by these keys."""
        self.hold_to(keys)
        if len(self.answers) >= self.limit:
            del self.answers[next(iter(self.answers))]
        self.answers[hashed(token), tenant] = principal, now

    def hold_to(self, keys: Sequence[object]) -> None:
        """Forget everything once one of the key sets is another one."""
        if len(keys) != len(self.keys) or any(a is not b for a, b in zip(keys, self.keys, strict=True)):
            self.keys = keys
            self.answers.clear()


def hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("ascii")).digest()
