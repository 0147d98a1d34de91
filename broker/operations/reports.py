"""Requests and answers of the admin API.

Their fields are its schema: msgspec validates requests by the annotations, and the OpenAPI document is
generated from them. Times are RFC 3339 in UTC, durations seconds, positions as clients have them.
"""

# Without `from __future__ import annotations`: msgspec reads these annotations at run time.

from typing import Annotated, Any, Literal

import attrs
import msgspec

from broker.config import Level

Size = Annotated[int, msgspec.Meta(ge=1, le=1000, description="How many at most.")]
Reason = Annotated[str, msgspec.Meta(max_length=120, description="Sent to the client in the Close frame.")]
Code = Annotated[
    Literal[1012, 4001, 4002, 4008, 4009, 4010, 4029, 4500, 4501, 4503, 4510],
    msgspec.Meta(description="Close code: below 4500 the client reconnects, from 4500 on it does not."),
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
    """The lowest level that is logged, until the next reload or restart."""

    level: Level


Configuration = dict[str, dict[str, Any]]  # section → key → value; what is not set is left out


# --- connections -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class ConnectionFilter:
    """A filter of connections: all given fields must match. `address` is without the port."""

    tenant: str | None = None
    user: str | None = None
    transport: str | None = None
    address: str | None = None
    behind: bool | None = None
    limit: Size = 100
    cursor: Cursor = ""


@attrs.frozen(kw_only=True)
class ConnectionSummary:
    """One connection. `lag` is in sequences of the stream; `unsent_bytes` are queued for its client."""

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
    """Connections in the order of ids; `next` is the cursor of the next page, null on the last one."""

    connections: list[ConnectionSummary]
    next: str | None


@attrs.frozen(kw_only=True)
class SubscriptionReport:
    """One subscription.

    `deny` is excluded from it; `filter` is JSON; `every_ms` is its pace; `catch_up` is the number of the
    catch-up that feeds it.
    """

    channel: str
    deny: list[str]
    filter: str | None
    every_ms: int | None
    lag: str
    live: bool
    catch_up: int | None
    durable: str | None


@attrs.frozen(kw_only=True)
class CatchUpReport:
    """A start in the past beside the live flow, and its progress."""

    number: int
    position: str
    snapshot: bool
    channels: list[str]


@attrs.frozen(kw_only=True)
class DurableReport:
    """A durable name: the position that the client has `acknowledged`, and the one `stored` in NATS."""

    name: str
    channels: list[str]
    acknowledged: str
    stored: str


@attrs.frozen(kw_only=True)
class PrincipalReport:
    """The permissions of the token. `private` is the prefix of the user's own channels."""

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
    """One connection with all details.

    `certificate` is the name in a verified TLS certificate of the client. `position` is its live position P,
    `head` the tenant's newest; `heard` is when the client last answered a heartbeat, `progress` when some of
    its unsent bytes were last written. `resuming`: it lags because it started in the past. `bad_messages` and
    `refusals` count the last minute.
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
    """How to end one connection."""

    code: Code = 1012
    reason: Reason = "disconnected by an operator"


@attrs.frozen(kw_only=True)
class Disconnect(Farewell):
    """Whose connections to end, and how: all of a tenant, or of one of its users."""

    tenant: str
    user: str | None = None


@attrs.frozen(kw_only=True)
class Disconnected:
    """The number of connections that were ended."""

    disconnected: int


# --- tenants ---------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class TenantSummary:
    """A tenant that has clients on this broker, or had some within the last minute."""

    tenant: str
    connections: int
    behind: int
    position: str
    restarts: int
    resting: bool


@attrs.frozen(kw_only=True)
class TenantList:
    """The tenants, in the order of names."""

    tenants: list[TenantSummary]


@attrs.frozen(kw_only=True)
class RingReport:
    """The recent events in memory: all stored ones after `since`."""

    events: int
    bytes: int
    since: str


@attrs.frozen(kw_only=True)
class InboxReport:
    """Events that have arrived and are not fanned out yet.

    `lost`: too many, they are read from the stream.
    """

    events: int
    bytes: int
    lost: bool


@attrs.frozen(kw_only=True)
class TenantReport(TenantSummary):
    """One tenant with all details.

    `topics` are its distinct subscriptions; it rests after too many crashes.
    """

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
    """Where it was stored; a live event has no position, and a `duplicate` that of the first copy."""

    position: str | None
    duplicate: bool


@attrs.frozen(kw_only=True)
class HistoryFilter:
    """Which stored events of a tenant: since a time, after a position, or the newest.

    `last` is the number of the newest, by default `limit`.
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


# --- documents ---------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class DocumentFilter:
    """Which documents of a tenant."""

    tenant: str
    channel: str = ">"
    limit: Size = 100
    cursor: PageCursor | None = None


@attrs.frozen(kw_only=True)
class DocumentReport:
    """A document. `publisher` wrote it, null for a service; `invalid` says why it is none, and then the
    `value` is null.
    """

    channel: str
    revision: str
    time: str
    publisher: str | None
    size: int
    invalid: str | None
    value: msgspec.Raw


@attrs.frozen(kw_only=True)
class DocumentPage:
    """Documents, those changed last at the end. `next` is the cursor of the next page, null at the end."""

    documents: list[DocumentReport]
    next: int | None


@attrs.frozen(kw_only=True)
class PutDocument:
    """What a document is to be. With `revision` only if nothing has changed since."""

    value: msgspec.Raw
    revision: str | None = None


@attrs.frozen(kw_only=True)
class DocumentRevision:
    """The revision since which nothing may have changed, if that matters."""

    revision: str | None = None


@attrs.frozen(kw_only=True)
class DocumentWritten:
    """The revision that was written."""

    revision: str


# --- dead letters ----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class LetterSelection:
    """A filter of dead letters: all given fields must match."""

    tenant: str | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class LetterFilter(LetterSelection):
    """A filter of dead letters, and the cursor of a page."""

    limit: Size = 100
    cursor: PageCursor | None = None


@attrs.frozen(kw_only=True)
class LetterSummary:
    """A dead letter. `stored_sequence` is the sequence of the message in the event stream."""

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
    """A dead letter with its body, as text or else in base64; `fault`: why a replay needs another."""

    headers: dict[str, str]
    body: str | None
    body_base64: str | None
    fault: str | None


@attrs.frozen(kw_only=True)
class Replay:
    """A replay: unchanged, or with another event."""

    event: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@attrs.frozen(kw_only=True)
class Replayed:
    """A dead letter that was published as an event and deleted."""

    tenant: str
    channel: str
    position: str
    duplicate: bool


@attrs.frozen(kw_only=True)
class Deleted:
    """The number of dead letters that were deleted."""

    deleted: int


# --- who is kept out -------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class BanSelection:
    """Whose tokens: one by its id, those of a user, or all of a tenant.

    The tenant `*` stands for monitoring tokens.
    """

    tenant: str
    user: BanName | None = None
    token_id: BanName | None = None


@attrs.frozen(kw_only=True)
class Revoke(BanSelection):
    """A revocation. Without `until` it lasts until every present token has expired.

    A revoked user or tenant may return with a token that is issued later.
    """

    until: str | None = None
    reason: Reason = ""


@attrs.frozen(kw_only=True)
class Suspend:
    """A suspension: all tokens of the tenant are refused; without `until` until it is lifted."""

    until: str | None = None
    reason: Reason = ""


@attrs.frozen(kw_only=True)
class BanReport:
    """A revocation or suspension, since when and until when: null means until it is lifted."""

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
    """The revocations and suspensions in force, newest first."""

    revocations: list[BanReport]
