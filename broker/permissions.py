"""Who a client is and what it may do: the patterns of its token against what it asks for."""

from __future__ import annotations

import attrs

from broker import subjects
from broker.errors import Forbidden


@attrs.frozen(kw_only=True)
class Principal:
    """A verified token: one user of one tenant, until `expires_at` (Unix seconds).

    `issued_at` too, where the token says. The patterns have no placeholders left. `room` is the encoded
    user, the token of its private channels. A monitoring principal only subscribes. `signer` is the key
    behind the token, as `auth` knows it; `standard`: the token said nothing of permissions, so these are the
    configuration's.
    """

    tenant: str
    user: str
    room: str
    expires_at: float
    subscribe: tuple[str, ...]
    publish: tuple[str, ...]
    deny: tuple[str, ...] = ()
    monitoring: bool = False
    token_id: str | None = None
    issued_at: float | None = None
    signer: object = attrs.field(default=None, repr=False)
    standard: bool = False

    def check_subscribe(self, pattern: str) -> tuple[str, ...]:
        """The denied patterns that reach into `pattern`; what they match is left out of it.

        Raises `Forbidden` when `pattern` does not lie within one allowed pattern, or wholly within
        a denied one.
        """
        allowed = (*self.subscribe, *self.own)
        if not any(subjects.covers(outer, pattern) for outer in allowed):
            raise Forbidden(f"{pattern}: not within a pattern that the token allows to subscribe")
        if any(subjects.covers(outer, pattern) for outer in self.deny):
            raise Forbidden(f"{pattern}: denied by the token")
        return tuple(outer for outer in self.deny if subjects.overlaps(outer, pattern))

    def check_publish(self, channel: str) -> None:
        """Raises `Forbidden` unless `channel` may be published into."""
        if self.monitoring:
            raise Forbidden("a monitoring token may only subscribe")
        allowed = (*self.publish, *self.own)
        if not any(subjects.covers(outer, channel) for outer in allowed):
            raise Forbidden(f"{channel}: not within a pattern that the token allows to publish")
        if any(subjects.covers(outer, channel) for outer in self.deny):
            raise Forbidden(f"{channel}: denied by the token")

    @property
    def private(self) -> str:
        """The prefix of the user's own private channels."""
        return f"users.{self.room}"

    @property
    def own(self) -> tuple[str, str]:
        return f"{self.private}.>", f"live.{self.private}.>"
