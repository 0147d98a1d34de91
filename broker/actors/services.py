"""What every connection needs of the rest of the broker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs

from broker.errors import TokenRevoked

if TYPE_CHECKING:
    import trio

    from broker.actors.budgets import Budgets
    from broker.actors.intake import Intake
    from broker.actors.live import LiveSubjects
    from broker.actors.places import Places
    from broker.actors.tenants import Tenants
    from broker.actors.wheel import Wheel
    from broker.auth.tokens import Verifier
    from broker.bus.base import Bus
    from broker.config import Config
    from broker.eventlog.starts import Starts
    from broker.features.audit import Audit
    from broker.features.control import Control
    from broker.features.cursors import Cursors
    from broker.metrics.meters import Meters
    from broker.permissions import Principal
    from broker.subjects import Names
    from broker.tracing import Tracing


@attrs.define(eq=False, kw_only=True)
class Services:
    """Shared by all connections. `nursery` is where their sending tasks run."""

    config: Config
    bus: Bus
    names: Names
    verifier: Verifier
    intake: Intake
    tenants: Tenants
    budgets: Budgets
    places: Places
    live_subjects: LiveSubjects
    starts: Starts
    cursors: Cursors
    audit: Audit
    control: Control
    wheel: Wheel
    meters: Meters
    tracing: Tracing | None = None
    duplicate_window: float = attrs.field(init=False)  # of the stream as it is, in seconds
    nursery: trio.Nursery = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.duplicate_window = self.config.stream.duplicate_window  # until the stream has been seen

    async def verify(self, token: str, tenant: str | None) -> Principal:
        """Whose token it is, by the configuration in force at the end. Raises as `Verifier.verify`."""
        verifier = None
        while verifier is not self.verifier:  # another configuration while it waited: what that says
            verifier = self.verifier
            principal = await verifier.verify(token, now=time.time(), tenant=tenant)
        return principal

    def check(self, principal: Principal) -> None:
        """Raises `TokenRevoked` for a client that is kept out."""
        self.control.check(principal)
        if self.budgets.suspended(principal.tenant) and not principal.monitoring:
            raise TokenRevoked("this tenant is suspended")
