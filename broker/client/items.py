"""What a session hands to the application, and how it ends."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs
import msgspec

from broker.errors import BrokerError

Payload: TypeAlias = "dict[str, Any]"


@attrs.frozen(kw_only=True)
class Event:
    """An event; `data` is its JSON as it came, "null" for a tombstone. `position` when it is stored."""

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
    """Events of these channels will not come: what is shown of them has to be loaded anew from its source.

    `reason`: `trimmed`, `reset`, `limit`, `lag` or `source`, as the protocol has it. They lie after the
    position `start`, up to `end`, and are `count` many, as far as that is known.
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
    """The connection is gone, or could not be had, and is tried again after so many seconds.

    `cause` is what the token function raised, where that was the reason.
    """

    reason: str
    after: float
    cause: BaseException | None = attrs.field(default=None, eq=False)


Item: TypeAlias = Event | Gap | Message | Reconnecting


@attrs.frozen(kw_only=True)
class Published:
    """The stream has the event at `position`; a live event has none.

    `duplicate`: it was there already, by an earlier try of this publish whose answer was lost.
    """

    position: str | None
    duplicate: bool


class SessionEnded(BrokerError):
    """The broker will not have us back before something changes, or the session was stopped.

    `closed_with` is the WebSocket close code, or `status` that of HTTP, as far as it came.
    """

    def __init__(self, message: str, *, closed_with: int | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.closed_with = closed_with
        self.status = status


class UnknownOutcome(BrokerError):
    """It cannot be known any more whether an event was sent or stored, and another try might double it.

    The answer was lost, and the event is a live one, or the time is over for which the stream compares ids.
    Look whether it arrived before you send it again, as another event. `event_id` is the id that it had.
    """

    code = "unknown_outcome"

    def __init__(self, message: str, *, event_id: str) -> None:
        super().__init__(f"perhaps it was sent: {message}")
        self.event_id = event_id


class Duplicate(BrokerError):
    """Not stored: under this id another event was published before, which lies at `position`.

    No try of this publish can have been that. Whoever repeats one of an earlier process under its id, on
    purpose, finds here that it had arrived.
    """

    code = "duplicate"

    def __init__(self, message: str, *, event_id: str, position: str | None) -> None:
        super().__init__(message)
        self.event_id = event_id
        self.position = position


@attrs.frozen
class Lost:
    """This connection is over, another may do: at the earliest after so many seconds."""

    reason: str
    after: float = 0.0
    cause: BaseException | None = attrs.field(default=None, eq=False)
