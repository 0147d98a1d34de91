"""Who a client is and what it may do: the patterns of its token against what it asks for."""

from __future__ import annotations

import attrs

from broker import subjects
from broker.errors import Forbidden


@attrs.frozen(kw_only=True)
class Verdict:
    """What decides about a channel or pattern, and so why.

    `within` is the first of the `allowing` patterns that holds all of it, `denied` the first denied pattern
    that does; `left_out` are the denied ones that reach into it.
    """

    allowing: tuple[str, ...]
    within: str | None
    denied: str | None
    left_out: tuple[str, ...]

    @property
    def allowed(self) -> bool:
        return self.within is not None and self.denied is None


def weigh(pattern: str, allowing: tuple[str, ...], denying: tuple[str, ...]) -> Verdict:
    return Verdict(
        allowing=allowing,
        within=next((outer for outer in allowing if subjects.covers(outer, pattern)), None),
        denied=next((outer for outer in denying if subjects.covers(outer, pattern)), None),
        left_out=tuple(outer for outer in denying if subjects.overlaps(outer, pattern)),
    )


@attrs.frozen(kw_only=True)
class Principal:
    """A verified token: one user of one tenant, until `expires_at` (Unix seconds).

    That is by the clock of the moment at which it was verified, from which on it is good for `life` seconds;
    clocks may be put right meanwhile. `issued_at` is in Unix seconds too, where the token says. The patterns
    have no placeholders left. `room` is the encoded user, the token of its private channels. A monitoring
    principal only subscribes. `signer` is the key behind the token, as `auth` knows it; `standard`: the token
    said nothing of permissions, so these are the configuration's.
    """

    tenant: str
    user: str
    room: str
    expires_at: float
    life: float
    subscribe: tuple[str, ...]
    publish: tuple[str, ...]
    deny: tuple[str, ...] = ()
    monitoring: bool = False
    token_id: str | None = None
    issued_at: float | None = None
    signer: object = attrs.field(default=None, repr=False)
    standard: bool = False

    def check_subscribe(self, pattern: str) -> tuple[str, ...]:
        """Return the denied patterns that reach into `pattern`; what they match is left out of it.

        Raises `Forbidden` when `pattern` does not lie within one allowed pattern, or wholly within
        a denied one.
        """
        verdict = self.subscribing(pattern)
        if verdict.within is None:
            raise Forbidden(f"{pattern}: not within a pattern that the token allows to subscribe")
        if verdict.denied is not None:
            raise Forbidden(f"{pattern}: denied by the token")
        return verdict.left_out

    def check_publish(self, channel: str) -> None:
        """Raise `Forbidden` unless `channel` may be published into."""
        if self.monitoring:
            raise Forbidden("a monitoring token may only subscribe")
        verdict = self.publishing(channel)
        if verdict.within is None:
            raise Forbidden(f"{channel}: not within a pattern that the token allows to publish")
        if verdict.denied is not None:
            raise Forbidden(f"{channel}: denied by the token")

    def subscribing(self, pattern: str) -> Verdict:
        """Return what decides about a subscription to `pattern`."""
        return weigh(pattern, (*self.subscribe, *self.own), self.deny)

    def publishing(self, channel: str) -> Verdict:
        """Return what decides about publishing into `channel`."""
        return weigh(channel, () if self.monitoring else (*self.publish, *self.own), self.deny)

    @property
    def private(self) -> str:
        """The prefix of the user's own private channels."""
        return f"users.{self.room}"

    @property
    def own(self) -> tuple[str, str]:
        return f"{self.private}.>", f"live.{self.private}.>"
