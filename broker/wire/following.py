"""Documents that a client follows by requests alone: it has one position, for them and for the events.

With it goes what it is the position of. Who comes back with another list, or with other rights, would never
get the documents that these add, since nothing has changed of them.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from broker import subjects

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.wire import messages

BOTH = "~"  # between the parts of such a position, of which each may be empty
NEVER = "0-0"  # a position of no stream: of what the client has, nothing need be left


def composed(events: str | None, documents: str) -> str:
    """Return the position in the events and the documents together."""
    return f"{events or ''}{BOTH}{documents}"


def taken_apart(position: str) -> tuple[str, str | None]:
    """Return the positions in the events and in the documents; None if it was told without documents."""
    events, both, documents = position.partition(BOTH)
    return events, documents if both else None


class Following:
    """The documents of one `state.open`, and how far they have been sent.

    `rights` is what the client was told of its token, and `stood` where it stands in documents, as `place`
    has said; None if it has none of them yet. `position` is "" until all of them have been sent: a client
    that comes back before that has to get all of them.
    """

    __slots__ = ("channels", "every_ms", "partial", "position", "ready", "scope", "wish")

    def __init__(
        self, channels: Iterable[str], every_ms: int | None, rights: messages.Authenticated, stood: str | None
    ) -> None:
        user = rights.private.split(".")[1]
        self.channels = {subjects.expand_me(each, user) for each in channels}
        self.every_ms = every_ms
        self.scope = scope(self.channels, rights)
        self.partial = False  # some were refused, and may be allowed another time
        self.ready = False
        self.wish: dict[str, Any] = {"channel": list(channels)}
        if every_ms is not None:
            self.wish["every_ms"] = every_ms
        self.position = ""
        if stood is not None:
            position, named, of = stood.partition(BOTH)
            self.position = "" if named and of != self.scope else position
            self.wish["position"] = self.position or NEVER

    def as_asked(self, other: Following) -> bool:
        """Return whether another one asks for the same."""
        return (self.scope, self.every_ms) == (other.scope, other.every_ms)

    @property
    def place(self) -> str:
        """Return where the client stands: "" where all documents are to be sent to it again."""
        return f"{self.position}{BOTH}{self.scope}" if self.position and not self.partial else ""

    def opened(self, *, recovered: bool, partial: bool) -> None:
        """Note that they come, and from where on."""
        self.ready, self.partial = False, self.partial or partial
        if not recovered:
            self.position = ""

    def told(self, position: str | None) -> None:
        """Note that all have come."""
        self.ready, self.position = True, position or ""


def scope(channels: Iterable[str], rights: messages.Authenticated) -> str:
    """Return what tells lists of documents apart, and the rights with which they were opened."""
    allowed = (sorted(set(rights.permissions.get(each, ()))) for each in ("subscribe", "deny"))
    text = msgspec.json.encode((rights.tenant, sorted(set(channels)), *allowed))
    return hashlib.blake2b(text, digest_size=8).hexdigest()
