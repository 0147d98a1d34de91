"""The request `request`: ask a service of the tenant, and pass its answer on.

A service is whoever answers on `rpc.<tenant>.<method>`, for example by the NATS services API (ADR-32,
https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-32.md). A request is sent once.
It is `unavailable` only if no service can have received it; otherwise, without an answer, it is `timeout`.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar

import attrs
import msgspec
import trio

from broker import limits, subjects
from broker.errors import AnswerTooLarge, BadAnswer, BadMessage
from broker.features.port import Feature, refusal, signed
from broker.session.requests import Page, Request
from broker.wire import events, traces
from broker.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.bus.base import Bus
    from broker.metrics.meters import Histogram
    from broker.session.requests import Asker, Caller, Requests, Terms
    from broker.subjects import Names
    from broker.tracing import Tracing

ID = re.compile(r"[!-~]{1,64}\Z")  # the value of a header
USUAL_MS, LONGEST_MS = 5000, 30_000  # to answer


@attrs.frozen(kw_only=True)
class Question:
    """Ask `method`, with `body` as JSON. `traceparent` is well-formed."""

    method: str
    body: bytes
    seconds: float
    id: str | None = None
    traceparent: str | None = None


@attrs.define(eq=False)
class Calls(Feature):
    """Asks services for clients. `seconds` counts how long answers take."""

    adds: ClassVar[tuple[str, ...]] = ("request",)
    bus: Bus
    names: Names
    seconds: Histogram
    tracing: Tracing | None = None

    def requests(self) -> Requests:
        return (
            Request(
                message=m.Ask,
                check=check,
                perform=self.perform,
                replies=(m.Answered,),
                costs=(limits.CALLS,),
                waits=True,
                page=Page(
                    path="/request",
                    about="Ask a service without a connection.",
                    example='{"method": …, "data": …}',
                    status=200,
                    perform=self.ask,
                ),
            ),
        )

    async def perform(self, caller: Caller, question: Question, _: str | None) -> m.Answered:
        return await self.ask(caller, question)

    async def ask(self, asker: Asker, question: Question) -> m.Answered:
        """Return the answer of the service.

        Raises `Unavailable`, `Timeout`, `Rejected`, `BadAnswer` and `TooLarge`.
        """
        principal = asker.attach()
        headers = signed(asker, principal, question.traceparent)
        if question.id is not None:
            headers["Broker-Request"] = question.id
        tracing = self.tracing
        with (
            tracing.asking(headers, tenant=principal.tenant, method=question.method)
            if tracing is not None
            else nullcontext()
        ):
            began = trio.current_time()
            subject = self.names.method(principal.tenant, question.method)
            fields, body = await self.bus.request(
                subject, question.body, headers=headers, seconds=question.seconds
            )
            self.seconds.observe(trio.current_time() - began)
            return answer(question.method, fields, body, asker.session.limits.message_bytes)


def check(terms: Terms, message: m.Ask) -> Question:
    """Return the question to ask. Raise if the client may not ask it."""
    method = subjects.parse_method(message.method)
    terms.client().check_request(method)
    if message.id is not None and not ID.match(message.id):
        raise BadMessage("payload.id: 1 to 64 visible characters of ASCII")
    milliseconds = USUAL_MS if message.timeout_ms is None else message.timeout_ms
    if not 1 <= milliseconds <= LONGEST_MS:
        raise BadMessage(f"payload.timeout_ms: 1 to {LONGEST_MS}")
    if events.has_huge_integer(message.data):
        raise BadMessage("payload.data: an integer of more than 64 bits; send it as a string")
    return Question(
        method=method,
        body=msgspec.json.encode(message.data),
        seconds=milliseconds / 1000,
        id=message.id,
        traceparent=traces.accepted(message.traceparent),
    )


def answer(method: str, headers: Mapping[str, str], body: bytes, most_bytes: int) -> m.Answered:
    """Return the answer of a service as the reply to the client.

    An empty body is `null`. Raises `Rejected` where the headers have an error of the service, `TooLarge` for
    more than `most_bytes`, and `BadAnswer` for other than JSON.
    """
    if error := refusal(headers):
        raise error
    if len(body) > most_bytes:
        raise AnswerTooLarge(f"{method}: an answer of {len(body)} bytes; the limit is {most_bytes}")
    if body and (fault := events.not_json(body)):
        raise BadAnswer(f"{method}: the answer of the service is not JSON: {fault}")
    return m.Answered(data=msgspec.Raw(body or b"null"))
