"""The port by which a feature meets the rest of the broker.

A feature is one object for the process. The supervisor has a list of all features and tells each of what
concerns it; its requests are lines of every session's table. No feature knows another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from broker.parts import Part

if TYPE_CHECKING:
    from broker.bus.base import Record
    from broker.flow.client import Who
    from broker.permissions import Principal
    from broker.session.requests import Caller, Request


@attrs.frozen(kw_only=True)
class Letter:
    """A record and why it is no event: `reason` is a word, `detail` a sentence.

    `tenant` and `channel` are what its subject says, which may be neither.
    """

    record: Record
    tenant: str
    channel: str
    incarnation: str
    reason: str
    detail: str


@attrs.frozen(kw_only=True)
class Ended:
    """One connection that is gone.

    `seconds` is how long it lasted. `by` is "broker", "operator" or "client", or "link" for one that just
    went away (1006). `messages` counts what the client sent. `position` is the newest that it was given:
    where it would resume. Without a token there is no tenant and no user.
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
    """What the broker does for clients beside the flow; a hook does nothing unless a feature says otherwise.

    Whatever is called with a client runs within that connection's boundary.
    """

    def requests(self) -> tuple[Request[Any, Any], ...]:
        """Return what clients may ask of it."""
        return ()

    def trouble(self) -> str | None:
        """Return why nobody can be let in yet."""
        return None

    def check(self, principal: Principal) -> None:
        """Raise `TokenRevoked` for a client that is kept out."""

    def authenticated(self, caller: Caller, principal: Principal, *, renewed: bool) -> None:
        """Hear that a client has presented a good token, its first or another one."""

    def rights_changed(self, caller: Caller) -> None:
        """Go on with what a client's token allows now."""

    def detach(self, caller: Caller) -> None:
        """Give back all that is held for a client, which is about to end. It is told nothing any more."""

    def refused(self, who: Who, *, code: str, message: str | None, channel: str | None) -> None:
        """Hear that a client was refused what it may not do, or its token."""

    def ended(self, ended: Ended) -> None:
        """Hear of the end of a connection."""

    def rejected(self, letter: Letter) -> None:
        """Take a message of a service that is no event."""
