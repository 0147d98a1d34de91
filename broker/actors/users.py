"""What a user has in use, over all of its connections to this broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from broker.errors import TooManyConnections
from broker.limits import Quota, TokenBucket

if TYPE_CHECKING:
    from broker.config import Limits


@attrs.define(eq=False)
class Users:
    """Counts the connections of each user and holds the bucket for its messages."""

    limits: Limits
    connections: Quota = attrs.field(init=False)
    buckets: dict[tuple[str, str], TokenBucket] = attrs.Factory(dict)

    def __attrs_post_init__(self) -> None:
        self.connections = Quota(self.limits.connections_per_user)

    def claim(self, user: tuple[str, str], now: float) -> TokenBucket:
        """Counts a connection of a user (tenant and name); the bucket that all of them share.

        Raises `TooManyConnections`. `release` gives it back.
        """
        if not self.connections.acquire(user):
            raise TooManyConnections(
                f"{user[1]}: has {self.connections.limit} connections already; close one before the next",
                retry_after=5.0,
            )
        bucket = self.buckets.get(user)
        if bucket is None:
            bucket = self.buckets[user] = TokenBucket(
                rate=self.limits.messages_per_minute / 60, burst=self.limits.messages_burst, now=now
            )
        return bucket

    def adopt(self, limits: Limits) -> None:
        """Goes on with other limits; who has more connections than that keeps them."""
        self.limits = limits
        self.connections.limit = limits.connections_per_user
        for bucket in self.buckets.values():
            bucket.adopt(rate=limits.messages_per_minute / 60, burst=limits.messages_burst)

    def release(self, user: tuple[str, str]) -> None:
        self.connections.release(user)

    def tidy(self, now: float) -> None:
        """Forgets the buckets that say nothing any more."""
        for user, bucket in list(self.buckets.items()):
            if bucket.full(now) and not self.connections.held[user]:
                del self.buckets[user]
