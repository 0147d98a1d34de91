"""The last file descriptors, which are not for clients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.errors import Unavailable
from broker.http.refusals import from_error
from broker.http.responses import Refused

if TYPE_CHECKING:
    from broker.descriptors import Descriptors
    from broker.links.tcp import Link

QUIET_SECONDS = 60.0  # without a refusal; then the next one is logged again

log = structlog.get_logger()


@attrs.define(eq=False)
class Headroom:
    """Refuses clients once their sockets take descriptors from the reserve."""

    descriptors: Descriptors
    latest: float = attrs.field(init=False, default=-math.inf)  # when a client was refused

    def check(self, link: Link) -> None:
        """Raises `Refused` (503) where the link's descriptor is in the reserve."""
        if link.raw.fileno() < self.descriptors.crowded:
            return
        before, self.latest = self.latest, trio.current_time()
        if self.latest > before + QUIET_SECONDS:
            log.warning(
                "descriptors_short",
                limit=self.descriptors.limit,
                next="raise LimitNOFILE= of the service, or lower limits.connections",
            )
        full = Unavailable("no capacity left on this broker; another one may have some", retry_after=5.0)
        raise Refused.by(from_error(full))
