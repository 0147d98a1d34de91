"""Every message of the protocol, as a frozen value: one union per direction.

The field names are those on the wire; `codec` goes between the two. A field that is `UNSET` is not sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import attrs
from msgspec import UNSET, UnsetType

if TYPE_CHECKING:
    from collections.abc import Iterable

Lag = Literal["replay", "latest", "drop", "close"]
GapReason = Literal["trimmed", "reset", "limit", "lag", "source"]
OneOrMany: TypeAlias = str | list[str]


def named(channels: Iterable[str]) -> OneOrMany:
    """Channels that the broker names unasked: one as itself, more as a list."""
    listed = list(channels)
    return listed[0] if len(listed) == 1 else listed


# --- client to server ------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Authenticate:
    """Presents a token, or renews the one in use."""

    type: ClassVar[str] = "authenticate"
    token: str
    tenant: str | None = None


@attrs.frozen(kw_only=True)
class Subscribe:
    """Asks for the events of channels and patterns, from now or from a start; at most one start."""

    type: ClassVar[str] = "subscribe"
    channel: OneOrMany
    position: str | None = None
    since: str | None = None
    last: int | None = None
    snapshot: bool | None = None
    durable: str | None = None
    lag: Lag | None = None


@attrs.frozen(kw_only=True)
class Unsubscribe:
    type: ClassVar[str] = "unsubscribe"
    channel: OneOrMany


@attrs.frozen(kw_only=True)
class Acknowledge:
    """Says up to where a durable subscription has been dealt with."""

    type: ClassVar[str] = "acknowledge"
    durable: str
    position: str


@attrs.frozen(kw_only=True)
class Publish:
    """Publishes any JSON value; `id` makes a retry harmless, `traceparent` continues a trace."""

    type: ClassVar[str] = "publish"
    channel: str
    event: Any
    id: str | None = None
    traceparent: str | None = None


@attrs.frozen(kw_only=True)
class Ping:
    type: ClassVar[str] = "ping"


ClientMessage: TypeAlias = Authenticate | Subscribe | Unsubscribe | Acknowledge | Publish | Ping
CLIENT_MESSAGES: dict[str, type[ClientMessage]] = {
    message.type: message for message in (Authenticate, Subscribe, Unsubscribe, Acknowledge, Publish, Ping)
}


# --- server to client ------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Established:
    """The first message of a connection."""

    type: ClassVar[str] = "connection.established"
    connection_id: str
    protocol: str
    features: list[str]
    heartbeat_seconds: float
    limits: dict[str, float]


@attrs.frozen(kw_only=True)
class Authenticated:
    type: ClassVar[str] = "connection.authenticated"
    tenant: str
    user: str
    private: str
    expires_at: str
    permissions: dict[str, list[str]]


@attrs.frozen(kw_only=True)
class Expiring:
    type: ClassVar[str] = "connection.expiring"
    expires_at: str


@attrs.frozen(kw_only=True)
class Draining:
    type: ClassVar[str] = "connection.draining"
    reconnect_after_ms: int
    position: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class Refused:
    channel: str
    code: str
    message: str


@attrs.frozen(kw_only=True)
class Subscribed:
    type: ClassVar[str] = "subscribed"
    channel: list[str]
    refused: list[Refused]
    position: str
    recovered: bool
    live: bool
    catch_up: int | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class SubscriptionLive:
    type: ClassVar[str] = "subscription.live"
    channel: OneOrMany
    position: str
    catch_up: int | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class Unsubscribed:
    type: ClassVar[str] = "unsubscribed"
    channel: OneOrMany
    code: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class Gap:
    type: ClassVar[str] = "gap"
    channel: OneOrMany
    reason: GapReason
    start: str | UnsetType = attrs.field(default=UNSET, metadata={"wire": "from"})
    end: str | UnsetType = attrs.field(default=UNSET, metadata={"wire": "to"})
    count: int | UnsetType = UNSET
    catch_up: int | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class Source:
    type: ClassVar[str] = "source"
    state: Literal["interrupted", "restored"]


@attrs.frozen(kw_only=True)
class Published:
    type: ClassVar[str] = "published"
    id: str | UnsetType = UNSET
    position: str | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class Acknowledged:
    """An acknowledgement is stored."""

    type: ClassVar[str] = "acknowledged"
    durable: str
    position: str


@attrs.frozen(kw_only=True)
class Pong:
    type: ClassVar[str] = "pong"
    position: str | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class Error:
    type: ClassVar[str] = "error"
    code: str
    message: str
    retryable: bool
    retry_after_ms: int | UnsetType = UNSET


ServerMessage: TypeAlias = (
    Established
    | Authenticated
    | Expiring
    | Draining
    | Subscribed
    | SubscriptionLive
    | Unsubscribed
    | Gap
    | Source
    | Published
    | Acknowledged
    | Pong
    | Error
)
