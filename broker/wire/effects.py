"""What a message of a client comes to: values that say what is to be done, in order.

`Session` makes them, the connection actor carries them out and tells the session what came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from datetime import datetime

    from broker.errors import CloseCode
    from broker.wire import messages as m
    from broker.wire import positions

# --- where a subscription starts, when not from now ------------------------------------------------


@attrs.frozen
class After:
    """After a position that the client has seen."""

    position: positions.Position


@attrs.frozen
class Since:
    """From the first event stored at or after a time."""

    time: datetime


@attrs.frozen
class Last:
    """From the newest `count` events on."""

    count: int


@attrs.frozen
class Snapshot:
    """From the newest event of each channel on."""


Start: TypeAlias = After | Since | Last | Snapshot


# --- effects ---------------------------------------------------------------------------------------


@attrs.frozen
class Reply:
    """Send a message."""

    message: m.ServerMessage
    message_id: str | None = None


@attrs.frozen
class Close:
    """Send what is to be sent, then close with this code."""

    code: CloseCode
    reason: str


@attrs.frozen(kw_only=True)
class Verify:
    """Verify a token; then call `authenticated` or `failed`."""

    token: str
    tenant: str | None
    message_id: str | None


@attrs.frozen(kw_only=True)
class Join:
    """Begin or restart subscriptions: each pattern with what is left out of it.

    `listed`: the client sent a list, and is answered with lists.
    """

    patterns: dict[str, tuple[str, ...]]
    refused: list[m.Refused]
    start: Start | None
    durable: str | None
    lag: m.Lag | None
    listed: bool
    message_id: str | None


@attrs.frozen(kw_only=True)
class Leave:
    """End subscriptions, and say so with `channel`."""

    patterns: list[str]
    channel: m.OneOrMany
    message_id: str | None = None
    code: str | None = None


@attrs.frozen(kw_only=True)
class Retune:
    """Leave other channels out of a subscription from now on."""

    pattern: str
    deny: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Send:
    """Publish `body` into `channel`. `traceparent` is well-formed."""

    channel: str
    body: bytes
    id: str | None
    message_id: str | None
    traceparent: str | None = None


@attrs.frozen(kw_only=True)
class Acknowledge:
    """Note up to where a durable subscription has been dealt with."""

    durable: str
    position: positions.Position
    message_id: str | None


@attrs.frozen
class Answer:
    """Answer a ping with the live position."""

    message_id: str | None


Effect: TypeAlias = Reply | Close | Verify | Join | Leave | Retune | Send | Acknowledge | Answer
