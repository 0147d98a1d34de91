"""The identity of a client and its permissions: the patterns of its token, matched against its requests."""

from __future__ import annotations

import attrs

from broker import subjects
from broker.errors import Forbidden


@attrs.frozen(kw_only=True)
class Verdict:
    """The patterns that decide on a channel or pattern, and so the reason for the decision.

    `within` is the first of the `allowing` patterns that covers it, `denied` the first denied pattern that
    covers it; `left_out` are the denied patterns that overlap it.
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
    """The holder of a verified token: one user of one tenant, until `expires_at` (Unix seconds).

    `expires_at` is by the clock at the time of verification, from which the token is valid for `life`
    seconds; the clock may be set meanwhile. `issued_at` is in Unix seconds too, if the token states it.
    Placeholders in the patterns are filled in. `encoded_user` is a token of its private channels. A
    monitoring principal may only subscribe. `signer` is the key that verified the token, an object of `auth`.
    `standard`: the token states no permissions, so these are the configured defaults.
    """

    tenant: str
    user: str
    encoded_user: str
    expires_at: float
    life: float
    subscribe: tuple[str, ...]
    publish: tuple[str, ...]
    request: tuple[str, ...] = ()
    change: tuple[str, ...] = ()
    presence: tuple[str, ...] = ()
    observe: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    monitoring: bool = False
    info: bytes | None = None  # JSON that others see where the user is present
    token_id: str | None = None
    issued_at: float | None = None
    signer: object = attrs.field(default=None, repr=False)
    standard: bool = False

    def check_subscribe(self, pattern: str) -> tuple[str, ...]:
        """Return the denied patterns that overlap `pattern`; what they match is left out of it.

        Raises `Forbidden` when `pattern` does not lie within one allowed pattern, or lies wholly within a
        denied one.
        """
        verdict = self.subscribing(pattern)
        if verdict.within is None:
            raise Forbidden(f"{pattern}: not within a pattern that the token may subscribe to")
        if verdict.denied is not None:
            raise Forbidden(f"{pattern}: denied by the token")
        return verdict.left_out

    def check_publish(self, channel: str) -> None:
        """Raise `Forbidden` unless the client may publish to `channel`."""
        if self.monitoring:
            raise Forbidden("a monitoring token may only subscribe")
        verdict = self.publishing(channel)
        if verdict.within is None:
            raise Forbidden(f"{channel}: not within a pattern that the token may publish to")
        if verdict.denied is not None:
            raise Forbidden(f"{channel}: denied by the token")

    def check_request(self, method: str) -> None:
        """Raise `Forbidden` unless the client may send requests to `method`."""
        self.check_listed("request", method, weigh(method, self.request, self.deny))

    def check_change(self, channel: str) -> None:
        """Raise `Forbidden` unless the client may change the document `channel`."""
        self.check_listed("change", channel, self.changing(channel))

    def check_enter(self, channel: str) -> None:
        """Raise `Forbidden` unless the client may be present in `channel`."""
        self.check_subscribe(channel)
        listed = weigh(channel, (*self.presence, *self.own), self.deny)
        self.check_listed("presence", channel, listed)

    def check_watch(self, channel: str) -> None:
        """Raise `Forbidden` unless the client may see who is present in `channel`."""
        if not weigh(channel, self.observe, self.deny).allowed:
            self.check_subscribe(channel)

    def check_listed(self, name: str, channel: str, verdict: Verdict) -> None:
        if self.monitoring:
            raise Forbidden("a monitoring token may only subscribe")
        if verdict.within is None:
            raise Forbidden(f"{channel}: not within a pattern of permissions.{name} in the token")
        if verdict.denied is not None:
            raise Forbidden(f"{channel}: denied by the token")

    def subscribing(self, pattern: str) -> Verdict:
        """Return the verdict on a subscription to `pattern`."""
        return weigh(pattern, (*self.subscribe, *self.own), self.deny)

    def publishing(self, channel: str) -> Verdict:
        """Return the verdict on publishing to `channel`."""
        return weigh(channel, () if self.monitoring else (*self.publish, *self.own), self.deny)

    def changing(self, channel: str) -> Verdict:
        """Return the verdict on changing the document `channel`."""
        return weigh(channel, () if self.monitoring else self.change, self.deny)

    @property
    def private(self) -> str:
        """Return the prefix of the user's own private channels."""
        return f"users.{self.encoded_user}"

    @property
    def own(self) -> tuple[str, str]:
        return f"{self.private}.>", f"live.{self.private}.>"
