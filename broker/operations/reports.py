"""What an operator asks with and is shown: the values of the admin API.

Their fields are its schema: msgspec holds requests to the annotations, and the OpenAPI document is made of
them. Times are RFC 3339 in UTC, durations seconds, positions the clients' own.
"""

# Without `from __future__ import annotations`: msgspec reads these annotations at run time.

from typing import Annotated, Any, Literal

import attrs
import msgspec

from broker.config import Level

Size = Annotated[int, msgspec.Meta(ge=1, le=1000, description="How many at most.")]
Reason = Annotated[str, msgspec.Meta(max_length=120, description="Told to the client in the Close frame.")]
Code = Annotated[
    Literal[1012, 4001, 4002, 4008, 4009, 4010, 4029, 4500, 4501, 4503, 4510],
    msgspec.Meta(description="Close code: below 4500 the client comes back, from 4500 on it stays away."),
]
Cursor = Annotated[str, msgspec.Meta(description="`next` of the page before.")]
PageCursor = Annotated[int, msgspec.Meta(ge=1, description="`next` of the page before.")]
EventId = Annotated[
    str, msgspec.Meta(pattern=r"^[!-~]{1,64}(?!\n)$", description="Compared within the tenant.")
]
BanName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


# --- this process ----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Readiness:
    """Whether an event can travel from a publisher through the stream to this broker, and why not."""

    ready: bool
    reasons: list[str]
    connected: bool
    draining: bool


@attrs.frozen(kw_only=True)
class LogLevel:
    """From which level on events are logged, until the next reload or restart."""

    level: Level


Configuration = dict[str, dict[str, Any]]  # section → key → value; what is not set is left out


# --- connections -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class ConnectionFilter:
    """Which connections: all that is given must hold. `address` is without the port."""

    tenant: str | None = None
    user: str | None = None
    transport: str | None = None
    address: str | None = None
    behind: bool | None = None
    limit: Size = 100
    cursor: Cursor = ""


@attrs.frozen(kw_only=True)
class ConnectionSummary:
    """One connection. `lag` is how many positions of the stream it is behind; `unsent_bytes` is what it holds
    for its client.
    """

    id: str
    tenant: str | None
    user: str | None
    address: str
    transport: str
    since: str
    subscriptions: int
    behind: bool
    lag: int
    unsent_bytes: int


@attrs.frozen(kw_only=True)
class ConnectionPage:
    """Connections by id; `next` is the cursor of the next page, null on the last one."""

    connections: list[ConnectionSummary]
    next: str | None


@attrs.frozen(kw_only=True)
class SubscriptionReport:
    """One subscription. `deny` is left out of it; `catch_up` is the number of the one that still feeds it."""

    channel: str
    deny: list[str]
    lag: str
    live: bool
    catch_up: int | None
    durable: str | None


@attrs.frozen(kw_only=True)
class CatchUpReport:
    """A start in the past beside the live flow, and how far it has come."""

    number: int
    position: str
    snapshot: bool
    channels: list[str]


@attrs.frozen(kw_only=True)
class DurableReport:
    """A durable name that it holds: up to where the client has `acknowledged`, and what NATS has `stored`."""

    name: str
    channels: list[str]
    acknowledged: str
    stored: str


@attrs.frozen(kw_only=True)
class PrincipalReport:
    """What the token says. `private` is the prefix of the user's own channels."""

    tenant: str
    user: str
    private: str
    token_id: str | None
    expires_at: str
    monitoring: bool
    subscribe: list[str]
    publish: list[str]
    deny: list[str]


@attrs.frozen(kw_only=True)
class ConnectionReport(ConnectionSummary):
    """One connection in full.

    `certificate` is the name in a verified one that the client has shown by TLS. `position` is its live
    position P, `head` the tenant's; `heard` is when the client last answered a heartbeat, `progress` when the
    link of a connection with unsent bytes last took some. `resuming`: it is behind because it started in the
    past. `bad_messages` and `refusals` are those of the last minute.
    """

    principal: PrincipalReport | None
    certificate: str | None
    position: str | None
    head: str | None
    resuming: bool
    unsent_replies: int
    heard: str
    progress: str | None
    closing: bool
    channels: list[SubscriptionReport]
    catch_ups: list[CatchUpReport]
    durables: list[DurableReport]
    bad_messages: int
    refusals: int


@attrs.frozen(kw_only=True)
class Farewell:
    """How one connection is ended."""

    code: Code = 1012
    reason: Reason = "disconnected by an operator"


@attrs.frozen(kw_only=True)
class Disconnect(Farewell):
    """Whose connections are ended, and how: all of a tenant, or of one user of it."""

    tenant: str
    user: str | None = None


@attrs.frozen(kw_only=True)
class Disconnected:
    """How many connections were ended."""

    disconnected: int


# --- tenants ---------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class TenantSummary:
    """A tenant that has clients here, or had some a moment ago."""

    tenant: str
    connections: int
    behind: int
    position: str
    restarts: int
    resting: bool


@attrs.frozen(kw_only=True)
class TenantList:
    """The tenants by name."""

    tenants: list[TenantSummary]


@attrs.frozen(kw_only=True)
class RingReport:
    """The recent events in memory: all stored ones after `since`."""

    events: int
    bytes: int
    since: str


@attrs.frozen(kw_only=True)
class InboxReport:
    """What has arrived and is not fanned out yet. `lost`: it was too much, and is read from the stream."""

    events: int
    bytes: int
    lost: bool


@attrs.frozen(kw_only=True)
class TenantReport(TenantSummary):
    """One tenant in full. `topics` are the different subscriptions; it rests after too many crashes."""

    users: int
    topics: int
    catch_ups: int
    rests_seconds: float
    ring: RingReport
    inbox: InboxReport


# --- events ----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Publish:
    """An event as a service publishes it; the tenant `_all` is every tenant. The same `id` is stored once."""

    tenant: str
    channel: str
    event: msgspec.Raw
    id: EventId | None = None


@attrs.frozen(kw_only=True)
class Published:
    """Where it was stored; a live event has no position. A `duplicate` stands where it was stored first."""

    position: str | None
    duplicate: bool


@attrs.frozen(kw_only=True)
class HistoryFilter:
    """What of a tenant's stored events: from a time or after a position on, or the newest.

    `last` is how many of the newest; without any start as many as `limit`.
    """

    tenant: str
    channel: str = ">"
    since: str | None = None
    after: str | None = None
    last: Size | None = None
    limit: Size = 100


@attrs.frozen(kw_only=True)
class StoredEvent:
    """An event as clients get it. `tenant` is `_all` for a broadcast, `time` is when NATS stored it."""

    tenant: str
    channel: str
    position: str
    time: str
    publisher: str | None
    event: msgspec.Raw


@attrs.frozen(kw_only=True)
class HistoryPage:
    """Events, oldest first. More come `after` the position `next`, null at the end. `oldest` is the
    first that is kept.
    """

    events: list[StoredEvent]
    next: str | None
    oldest: str


# --- dead letters ----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class LetterSelection:
    """Which dead letters: all that is given must hold."""

    tenant: str | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class LetterFilter(LetterSelection):
    """Which dead letters, and where a page begins."""

    limit: Size = 100
    cursor: PageCursor | None = None


@attrs.frozen(kw_only=True)
class LetterSummary:
    """A dead letter. `stored_sequence` is where the message stood, or stands, in the stream of the events."""

    sequence: int
    time: str
    subject: str
    reason: str
    detail: str
    stored_sequence: int
    size: int


@attrs.frozen(kw_only=True)
class LetterPage:
    """Dead letters, newest first; `next` is the cursor of the next page, null on the last one."""

    letters: list[LetterSummary]
    next: int | None


@attrs.frozen(kw_only=True)
class LetterReport(LetterSummary):
    """A dead letter in full: its body as text, or in base64 where it is none; `fault` is why it cannot be
    replayed as it is.
    """

    headers: dict[str, str]
    body: str | None
    body_base64: str | None
    fault: str | None


@attrs.frozen(kw_only=True)
class Replay:
    """A replay: as it is, or with another event."""

    event: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@attrs.frozen(kw_only=True)
class Replayed:
    """A dead letter that became an event, and is gone."""

    tenant: str
    channel: str
    position: str
    duplicate: bool


@attrs.frozen(kw_only=True)
class Deleted:
    """How many dead letters were taken out."""

    deleted: int


# --- who is kept out -------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class BanSelection:
    """The tokens that are meant: one by its id, those of a user, or all of a tenant.

    The tenant `*` stands for monitoring tokens.
    """

    tenant: str
    user: BanName | None = None
    token_id: BanName | None = None


@attrs.frozen(kw_only=True)
class Revoke(BanSelection):
    """A revocation. Without `until` it holds as long as any token that is out there can.

    A revoked user or tenant may come back with a token that was issued later, a revoked token id may not.
    """

    until: str | None = None
    reason: Reason = ""


@attrs.frozen(kw_only=True)
class Suspend:
    """A suspension: nobody of the tenant comes in, whatever the token; without `until` until it is lifted."""

    until: str | None = None
    reason: Reason = ""


@attrs.frozen(kw_only=True)
class BanReport:
    """Who is kept out, since when, and until when: null for until it is lifted."""

    kind: Literal["token", "user", "tenant", "suspension"]
    tenant: str
    user: str | None
    token_id: str | None
    since: str
    until: str | None
    reason: str


@attrs.frozen(kw_only=True)
class BanFilter:
    """Whose revocations and suspensions."""

    tenant: str | None = None


@attrs.frozen(kw_only=True)
class BanList:
    """The revocations and suspensions that hold, newest first."""

    revocations: list[BanReport]
