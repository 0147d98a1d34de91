"""The admin API: which request is answered by what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.actors import reports
from broker.web.router import Route

if TYPE_CHECKING:
    from broker.actors.operations import Operations


def routes(do: Operations) -> list[Route]:
    """Everything that can be asked of this broker."""
    return [
        Route(
            method="GET",
            path="/api/v1/readiness",
            summary="Whether an event can travel, and why not",
            handle=do.readiness,
            answer=reports.Readiness,
        ),
    ]
