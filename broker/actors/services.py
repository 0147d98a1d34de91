"""What all connections share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs

from broker.errors import TokenRevoked
from broker.parts import Part

if TYPE_CHECKING:
    import trio

    from broker.actors.budgets import Budgets
    from broker.actors.places import Places
    from broker.actors.tenants import Tenants
    from broker.actors.wheel import Wheel
    from broker.auth.tokens import Verifier
    from broker.bus.base import StreamState
    from broker.config import Config
    from broker.features.port import Feature
    from broker.metrics.meters import Meters
    from broker.permissions import Principal
    from broker.session.requests import Table


@attrs.define(eq=False, repr=False, kw_only=True)
class Services(Part):
    """Shared by all connections. `nursery` runs their sending tasks."""

    config: Config
    verifier: Verifier
    tenants: Tenants
    budgets: Budgets
    places: Places
    features: tuple[Feature, ...]
    table: Table
    wheel: Wheel
    meters: Meters
    feature_names: tuple[str, ...] = attrs.field(init=False)  # as clients are told
    duplicate_window: float = attrs.field(init=False)  # of the existing stream, in seconds
    nursery: trio.Nursery = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.feature_names = tuple(name for each in self.features for name in each.adds)
        self.duplicate_window = self.config.stream.duplicate_window  # until the stream has been seen

    def up(self, state: StreamState) -> None:
        if state.duplicate_window is not None:
            self.duplicate_window = state.duplicate_window

    def settings_changed(self, config: Config) -> None:
        self.config = config

    async def verify(self, token: str, tenant: str | None) -> Principal:
        """Return the principal of a token, under the configuration in force at the end.

        Raise as `Verifier.verify`.
        """
        verifier = None
        while verifier is not self.verifier:  # reloaded meanwhile: verify again
            verifier = self.verifier
            principal = await verifier.verify(token, now=time.time(), tenant=tenant)
        return principal

    def trouble(self) -> str | None:
        """Return why no client can be admitted yet; None when clients can."""
        return next((trouble for each in self.features if (trouble := each.trouble())), None)

    def check(self, principal: Principal) -> None:
        """Raise `TokenRevoked` for a client that is banned."""
        for feature in self.features:
            feature.check(principal)
        if self.budgets.suspended(principal.tenant) and not principal.monitoring:
            raise TokenRevoked("this tenant is suspended")
