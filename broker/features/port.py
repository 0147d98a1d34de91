"""The port between a feature and the rest of the broker.

A feature is one object per process. The supervisor has a list of all features and notifies each; a feature's
requests are lines in every session's table. No feature knows another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

import attrs

from broker.errors import Rejected
from broker.parts import Part
from broker.wire import events, traces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.bus.base import Record
    from broker.flow.client import Who
    from broker.permissions import Principal
    from broker.session.requests import Asker, Caller, Requests

WORDS_MOST = 4096  # characters of a service's error that are passed on
ERROR, ERROR_CODE = "nats-service-error", "nats-service-error-code"


def signed(asker: Asker, principal: Principal, traceparent: str | None) -> dict[str, str]:
    """Return the headers that tell services which client a message is from. Clients cannot set them."""
    headers = {events.PUBLISHER: principal.encoded_user, events.CONNECTION: asker.id}
    return headers if traceparent is None else headers | {traces.PARENT: traceparent}


def refusal(headers: Mapping[str, str]) -> Rejected | None:
    """Return the error of a service that is in the headers of its answer, as ADR-32 of NATS has it."""
    fields = {name.lower(): value for name, value in headers.items()}
    if ERROR not in fields and ERROR_CODE not in fields:
        return None
    code = fields.get(ERROR_CODE, "")
    said = fields.get(ERROR) or " ".join(("the service refuses the request:", code or "it says no more"))
    return Rejected(readable(said), status=int(code) if re.fullmatch(r"[0-9]{1,9}", code) else None)


def readable(text: str) -> str:
    """Return a header's text without bytes that are not UTF-8, and cut where it is very long."""
    known = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return known if len(known) <= WORDS_MOST else known[: WORDS_MOST - 1] + "…"


@attrs.frozen(kw_only=True)
class Letter:
    """A record that is not an event, and why: `reason` is a word, `detail` a sentence.

    `tenant` and `channel` are taken from its subject, and may be invalid.
    """

    record: Record
    tenant: str
    channel: str
    incarnation: str
    reason: str
    detail: str


@attrs.frozen(kw_only=True)
class Ended:
    """The record of a connection that has ended.

    `seconds` is its duration. `by` is "broker", "operator" or "client", or "link" if it was lost (1006).
    `messages` counts messages from the client. `position` is the newest one sent to it, from which it would
    resume. Without a token there is no tenant and no user.
    """

    connection: str
    tenant: str | None
    user: str | None
    peer: str
    transport: str
    opened: str
    ended: str
    seconds: float
    code: int
    by: str
    reason: str
    messages: int
    position: str | None


class Feature(Part):
    """A service for clients besides the event flow. Every hook does nothing unless a feature overrides it.

    A hook that takes a client runs within the boundary of that connection. What it `adds` is named in
    `connection.established.features`: nothing that every broker has.
    """

    adds: ClassVar[tuple[str, ...]] = ()

    def requests(self) -> Requests:
        """Return the requests that it adds."""
        return ()

    def trouble(self) -> str | None:
        """Return why no client can be admitted yet; None when clients can."""
        return None

    def check(self, principal: Principal) -> None:
        """Raise `TokenRevoked` for a client that is banned."""

    def authenticated(self, caller: Caller, principal: Principal, *, renewed: bool) -> None:
        """Note that a client has presented a valid token, its first or (`renewed`) another one."""

    def rights_changed(self, caller: Caller) -> None:
        """Apply what a client's token allows now."""

    def silent(self, caller: Caller, *, late: bool) -> None:
        """Note that the answer of a client to a ping is late, or has come after all."""

    def detach(self, caller: Caller) -> None:
        """Give back all that is held for a client that is about to end; nothing more is sent to it."""

    def refused(self, who: Who, *, code: str, message: str | None, channel: str | None) -> None:
        """Note that a client's request or token was refused with this error."""

    def ended(self, ended: Ended) -> None:
        """Note the end of a connection."""

    def document_changed(self, who: Who, *, channel: str, id: str, revision: str, deleted: bool) -> None:  # noqa: A002
        """Note that a client has changed a document."""

    def rejected(self, letter: Letter) -> None:
        """Take a message of a service that is not an event."""
