"""What an operator asks the running broker, and has it do: the façade that the admin API stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from broker.actors.reports import Readiness

if TYPE_CHECKING:
    from broker.actors.supervisor import Supervisor


@attrs.define(eq=False)
class Operations:
    """Looks at the actors and acts on them. Everything is about this broker process alone."""

    supervisor: Supervisor

    def readiness(self) -> Readiness:
        reason = self.supervisor.not_ready()
        return Readiness(
            ready=reason is None,
            reasons=[] if reason is None else [reason],
            connected=self.supervisor.connected,
            draining=self.supervisor.draining,
        )
