"""The routes of the admin API for diagnosis: explain, trace, closes, audit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from broker.actors import following
from broker.features.explain import Explanation
from broker.operations import diagnosis
from broker.web.api import V1
from broker.web.router import Endpoint
from broker.web.streaming import MEDIA_TYPE, Lines

if TYPE_CHECKING:
    from broker.operations.diagnosis import Diagnosis


def routes(do: Diagnosis) -> list[Endpoint]:
    """Return the routes about tokens, events and connections of this broker process."""

    def trace(wish: diagnosis.TraceWish) -> Lines:
        return Lines(partial(do.trace, wish))

    return [
        Endpoint(
            method="POST",
            path=f"{V1}/explain",
            summary="Explain step by step what a token may do with a channel, and why",
            handle=do.explain,
            body=diagnosis.Question,
            answer=Explanation,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/trace",
            summary="Follow the next events: one line of JSON for each step of an event",
            handle=trace,
            query=diagnosis.TraceWish,
            answer=following.Traced,
            media_type=MEDIA_TYPE,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/closes",
            summary="List the latest closes of connections, with their reasons",
            handle=do.closes,
            query=diagnosis.CloseFilter,
            answer=diagnosis.CloseList,
        ),
        Endpoint(
            method="GET",
            path=f"{V1}/audit",
            summary="List the audit trail of all brokers",
            handle=do.audit,
            query=diagnosis.AuditFilter,
            answer=diagnosis.AuditPage,
        ),
    ]
