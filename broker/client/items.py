"""The items that a session yields, and its exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
import msgspec

from broker.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

Payload: TypeAlias = "dict[str, Any]"


@attrs.frozen(kw_only=True)
class Event:
    """An event; `data` is its JSON as received, "null" for a tombstone. Stored events have a `position`."""

    channel: str
    data: bytes
    position: str | None
    publisher: dict[str, Any] | None
    catch_up: int | None

    @property
    def value(self) -> Any:
        """The decoded JSON."""
        return msgspec.json.decode(self.data)


@attrs.frozen(kw_only=True)
class Gap:
    """Events of these channels are lost: the application must reload their state from its source.

    `reason`: `trimmed`, `reset`, `limit`, `lag` or `source`, see the protocol. They are the `count` events
    after the position `start` up to `end`, as far as known.
    """

    channels: tuple[str, ...]
    reason: str
    start: str | None
    end: str | None
    count: int | None
    catch_up: int | None


@attrs.frozen(kw_only=True)
class Message:
    """Any other message of the broker."""

    type: str
    payload: Payload
    message_id: str | None


@attrs.frozen(kw_only=True)
class Reconnecting:
    """The connection was lost or could not be opened; the next attempt follows `after` so many seconds.

    `cause` is the exception of the token function, if that was the reason.
    """

    reason: str
    after: float
    cause: BaseException | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True)
class PastEvent:
    """An event of a `Page`; `value` is its JSON, decoded, and `stored_at` when it was stored (RFC 3339)."""

    channel: str
    value: Any
    position: str
    stored_at: str
    publisher: dict[str, Any] | None


@attrs.frozen(kw_only=True)
class Page:
    """Stored events in stream order, read back from `channels`, those that are allowed.

    Everything from the position `first` to `last` (inclusive) was looked at; a subscription with the
    `position` `last` of the newest page joins exactly. `more`: there may be further events in the direction
    of reading. Not `recovered`: the position asked for is not kept any more, or of another stream.
    """

    channels: tuple[str, ...]
    events: tuple[PastEvent, ...]
    first: str
    last: str
    more: bool
    recovered: bool
    read: Callable[..., Awaitable[Page]] = attrs.field(repr=False, eq=False)

    async def older(self) -> Page:
        """Return the page before this one. Raises as `Session.history` does."""
        return await self.read(before=self.first)

    async def newer(self) -> Page:
        """Return the page after this one. Raises as `Session.history` does."""
        return await self.read(after=self.last)


@attrs.frozen(kw_only=True)
class DocumentChanged:
    """Of a document there is another `value` to show: somebody has changed it, or a change was taken back.

    `invalid` says why what a service has stored there is no document.
    """

    channel: str
    value: Payload | None
    invalid: str | None = None


@attrs.frozen(kw_only=True)
class DocumentConflict:
    """Somebody else has changed what a change replaces: the patch `mine` came to nothing.

    `theirs` is what is there, by JSON Pointer (None for nothing). What of the change is not in conflict is
    sent again without asking; but with `add` it is one. `error` is what the broker has said.
    """

    channel: str
    mine: Payload | None
    theirs: Mapping[str, Any]
    error: BrokerError
    add: Mapping[str, float] = attrs.field(factory=dict)
    edit: Callable[[], None] = attrs.field(repr=False, eq=False)

    @property
    def paths(self) -> tuple[str, ...]:
        """What is in conflict, as JSON Pointers."""
        return tuple(self.theirs)

    def keep(self, which: Literal["mine", "theirs"]) -> None:
        """Keep `theirs`, as is shown now, or change it to `mine` once more."""
        if which == "mine":
            self.edit()


@attrs.frozen(kw_only=True)
class DocumentRejected:
    """The broker or a service has refused the patch `mine`, for the reason in `error`; it is taken back."""

    channel: str
    mine: Payload | None
    error: BrokerError
    add: Mapping[str, float] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class DocumentLost:
    """Changes that were confirmed are gone: another write, which did not see them, took their place.

    `paths` has what is there now, at `revision`, by JSON Pointer. `ids` are those of the changes.
    """

    channel: str
    ids: tuple[str, ...]
    revision: str
    paths: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Member:
    """A session of a user who is present, since a time. `info` is from its token, `state` what it has said.

    `away`: its page is "hidden", or its connection "lost".
    """

    user: str
    session: str
    since: str
    info: Any = None
    state: Any = None
    away: Literal["hidden", "lost"] | None = None


@attrs.frozen(kw_only=True)
class PresenceChanged:
    """Users who have come, or gone, since the change before, or of whose sessions something is different.

    Without any, it is the numbers, `stale` or `detail` of the room that have changed.
    """

    joined: tuple[str, ...]
    left: tuple[str, ...]
    updated: tuple[str, ...]


News: TypeAlias = DocumentChanged | DocumentConflict | DocumentRejected | DocumentLost
Item: TypeAlias = Event | Gap | Message | Reconnecting


@attrs.frozen(kw_only=True)
class Published:
    """The event is stored at `position`; a live event has none.

    `duplicate`: it was stored by an earlier attempt of this publish, whose answer was lost.
    """

    position: str | None
    duplicate: bool


class SessionEnded(BrokerError):
    """The broker refuses to reconnect before something changes, or the session was stopped.

    `closed_with` is the WebSocket close code, `status` the HTTP status, if there was one.
    """

    def __init__(self, message: str, *, closed_with: int | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.closed_with = closed_with
        self.status = status


class UnknownOutcome(BrokerError):
    """It is not known whether an event was sent or stored, and a retry might duplicate it.

    The answer was lost, and the event is a live one, or the duplicate window of the stream has passed. Check
    whether it arrived before sending it again as a new event. `event_id` is the id that it had.
    """

    code = "unknown_outcome"

    def __init__(self, message: str, *, event_id: str) -> None:
        super().__init__(f"perhaps it was sent: {message}")
        self.event_id = event_id


class Duplicate(BrokerError):
    """Not stored: another event with this id was published before, and is stored at `position`.

    It was not an attempt of this publish. A process that deliberately repeats a publish of an earlier process
    under its id learns here that it had been stored.
    """

    code = "duplicate"

    def __init__(self, message: str, *, event_id: str, position: str | None) -> None:
        super().__init__(message)
        self.event_id = event_id
        self.position = position


@attrs.frozen
class Lost:
    """This connection has ended; the next may be opened `after` so many seconds at the earliest."""

    reason: str
    after: float = 0.0
    cause: BaseException | None = attrs.field(default=None, eq=False)
