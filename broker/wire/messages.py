"""Every message of the protocol, as a frozen value: one union per direction.

The field names are those on the wire; `codec` goes between the two. A field that is `UNSET` is not sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from msgspec import UNSET, Meta, Struct, UnsetType, field

if TYPE_CHECKING:
    from collections.abc import Iterable

Lag = Literal["replay", "latest", "drop", "close"]
GapReason = Literal["trimmed", "reset", "limit", "lag", "source"]
Hidden: TypeAlias = bool | Literal["hidden"]
OneOrMany: TypeAlias = str | Annotated[list[str], Meta(min_length=1)]


def named(channels: Iterable[str]) -> OneOrMany:
    """Return channels that the broker names by itself: one as a string, several as a list."""
    listed = list(channels)
    return listed[0] if len(listed) == 1 else listed


# --- client to server ------------------------------------------------------------------------------


class Authenticate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Present a token, or renew the one in use."""

    type: ClassVar[str] = "authenticate"
    token: str
    tenant: str | None = None


class Subscribe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Subscribe to channels and patterns, from now or from one start.

    `position`: after that position. `since`: from a time on (RFC 3339). `last`: from the newest `last` events
    on. `snapshot`: from the newest event of each channel on. `durable`: from the position acknowledged under
    that name (1 to 64 of A-Z a-z 0-9 _ -). `lag` says what may be left out while the client is slow. With a
    `filter` only the events come that pass it; with `every_ms` (100 to 60000) of each channel at most one in
    that time, the newest.
    """

    type: ClassVar[str] = "subscribe"
    channel: OneOrMany
    position: str | None = None
    since: str | None = None
    last: int | None = None
    snapshot: bool | None = None
    durable: str | None = None
    lag: Lag | None = None
    filter: dict[str, Any] | None = None
    every_ms: int | None = None


class Unsubscribe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End subscriptions, named as they were subscribed."""

    type: ClassVar[str] = "unsubscribe"
    channel: OneOrMany


class Acknowledge(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Acknowledge the events of a durable subscription, up to a position."""

    type: ClassVar[str] = "acknowledge"
    durable: str
    position: str


class Publish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Publish any JSON value; `id` makes a retry harmless, `traceparent` continues a trace.

    With `echo` false the event is not sent back to the connection that publishes it.
    """

    type: ClassVar[str] = "publish"
    channel: str
    event: Any
    id: str | None = None
    echo: bool | None = None
    traceparent: str | None = None


class Ask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask a service: `method` names it, `data` is any JSON value for it.

    It has `timeout_ms` to answer. By `id` it recognises a request that is repeated; `traceparent` continues a
    trace.
    """

    type: ClassVar[str] = "request"
    method: str
    data: Any = None
    timeout_ms: int | None = None
    id: str | None = None
    traceparent: str | None = None


class History(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read stored events of channels and patterns back, without subscribing: without a place the newest.

    `before`: the newest below that position. `after`: what follows that position. `since`: from a time on
    (RFC 3339). At most `limit` events, 50 by default; with a `filter`, of those that pass it.
    """

    type: ClassVar[str] = "history"
    channel: OneOrMany
    before: str | None = None
    after: str | None = None
    since: str | None = None
    limit: int | None = None
    filter: dict[str, Any] | None = None


class StateOpen(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Follow documents: those of channels and patterns, and each of their changes.

    With a `position` only what has changed since comes. Of each document at most one change comes within
    `every_ms` (1 to 5000; rounded up to 100, 1000 or 5000), the newest.
    """

    type: ClassVar[str] = "state.open"
    channel: OneOrMany
    position: str | None = None
    every_ms: int | None = None


class StateClose(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Follow documents no longer, named as they were opened."""

    type: ClassVar[str] = "state.close"
    channel: OneOrMany


class OneChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The change of one document of several, see `state.change`."""

    channel: str
    patch: dict[str, Any] | UnsetType | None = UNSET
    was: dict[str, Any] | UnsetType | None = UNSET
    revision: str | None = None
    add: dict[str, Any] | None = None


class Change(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change a document by a merge patch (RFC 7396); a `patch` of null deletes it.

    `was` has the values that the patch replaces, null for nothing; or `revision` has the revision since which
    nothing may have changed. `add` adds numbers to those at JSON Pointers, and needs the `revision` that it
    was made on. By `id` (`<session>-<n>`, n rising) a repetition is known. With `changes` several documents
    change, all or none.
    """

    type: ClassVar[str] = "state.change"
    id: str
    channel: str | None = None
    patch: dict[str, Any] | UnsetType | None = UNSET
    was: dict[str, Any] | UnsetType | None = UNSET
    revision: str | None = None
    add: dict[str, Any] | None = None
    changes: list[OneChange] | None = None


class PresenceEnter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Be present in a channel, in one session of this user; again: with another state.

    `session` (1 to 64 of A-Z a-z 0-9 _ -) names this page or device: the same one after a reconnect or a
    reload. `state` is any JSON of at most 1 KiB that others see; `away`: the page is hidden.
    """

    type: ClassVar[str] = "presence.enter"
    channel: str
    session: str
    state: Any = UNSET
    away: Hidden | None = None


class PresenceUpdate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say another state, or whether the page is hidden. With `for_ms` the state before holds again then."""

    type: ClassVar[str] = "presence.update"
    channel: str
    state: Any = UNSET
    away: Hidden | UnsetType | None = UNSET
    for_ms: int | None = None


class PresenceLeave(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Be present in a channel no longer."""

    type: ClassVar[str] = "presence.leave"
    channel: str


class PresenceWatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See who is present in a channel, and who comes and goes; with `position` only what has changed."""

    type: ClassVar[str] = "presence.watch"
    channel: str
    position: str | None = None


class PresenceUnwatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Follow who is present in a channel no longer."""

    type: ClassVar[str] = "presence.unwatch"
    channel: str


class Ping(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask for a sign of life and the live position."""

    type: ClassVar[str] = "ping"


ClientMessage: TypeAlias = (
    Authenticate
    | Subscribe
    | Unsubscribe
    | Acknowledge
    | Publish
    | Ask
    | History
    | StateOpen
    | StateClose
    | Change
    | PresenceEnter
    | PresenceUpdate
    | PresenceLeave
    | PresenceWatch
    | PresenceUnwatch
    | Ping
)
CLIENT_MESSAGES: dict[str, type[ClientMessage]] = {
    message.type: message for message in get_args(ClientMessage)
}


# --- server to client ------------------------------------------------------------------------------


class Established(Struct, frozen=True, kw_only=True):
    """The first message of a connection.

    `limits` has the configured limits by name, and `duplicate_window_seconds`: how long the id of a
    publication is remembered.
    """

    type: ClassVar[str] = "connection.established"
    connection_id: str
    protocol: str
    features: list[str]
    heartbeat_seconds: float
    limits: dict[str, float]


class Authenticated(Struct, frozen=True, kw_only=True):
    """The token is valid. `private` is the prefix of the user's own channels; `expires_at` is RFC 3339."""

    type: ClassVar[str] = "connection.authenticated"
    tenant: str
    user: str
    private: str
    expires_at: str
    permissions: dict[str, list[str]]


class Expiring(Struct, frozen=True, kw_only=True):
    """The token expires at `expires_at`; send `authenticate` with another one before that."""

    type: ClassVar[str] = "connection.expiring"
    expires_at: str


class Draining(Struct, frozen=True, kw_only=True):
    """This connection will be closed. Reconnect in `reconnect_after_ms`, and resume from `position`."""

    type: ClassVar[str] = "connection.draining"
    reconnect_after_ms: int
    position: str | UnsetType = UNSET


class Refused(Struct, frozen=True, kw_only=True):
    """A channel of a list that was not subscribed, and why."""

    channel: str
    code: str
    message: str


class Subscribed(Struct, frozen=True, kw_only=True):
    """The answer to `subscribe`: what was accepted and refused, by full names.

    `recovered` false: matching events may be gone, as a `gap` says. `live` false: `subscription.live`
    follows. Messages marked with this `catch_up` number belong to this subscribe alone.
    """

    type: ClassVar[str] = "subscribed"
    channel: list[str]
    refused: list[Refused]
    position: str
    recovered: bool
    live: bool
    catch_up: int | UnsetType = UNSET


class SubscriptionLive(Struct, frozen=True, kw_only=True):
    """The subscriptions have caught up: from here on events arrive as they are stored. Sent once."""

    type: ClassVar[str] = "subscription.live"
    channel: OneOrMany
    position: str
    catch_up: int | UnsetType = UNSET


class Unsubscribed(Struct, frozen=True, kw_only=True):
    """These subscriptions have ended, and none of their events follows. `code` is why, if unasked."""

    type: ClassVar[str] = "unsubscribed"
    channel: OneOrMany
    code: str | UnsetType = UNSET


class Publisher(Struct, frozen=True, kw_only=True):
    """The client that published an event; an event of a service has none.

    `id` is that of the publish, and shown to this user alone.
    """

    user: str
    id: str | UnsetType = UNSET


class Event(Struct, frozen=True, kw_only=True):
    """An event of a subscription; `null` removes the channel. Live channels have no `position`.

    One that is `paced` is for subscriptions with `every_ms` alone; it does not move the live position.

    This class describes the message; `frames.event` splices the bytes without creating an instance.
    """

    type: ClassVar[str] = "event"
    channel: str
    event: Any
    position: str | UnsetType = UNSET
    publisher: Publisher | UnsetType = UNSET
    catch_up: int | UnsetType = UNSET
    paced: bool | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET


class Gap(Struct, frozen=True, kw_only=True):
    """Events of these channels were not delivered: after `from`, up to `to`, as far as known.

    `trimmed`: no longer in the stream. `reset`: the stream was recreated. `limit`: more than is replayed.
    `lag`: left out for a slow client, by its `lag` policy. `source`: lost between NATS and the broker.
    """

    type: ClassVar[str] = "gap"
    channel: OneOrMany
    reason: GapReason
    start: str | UnsetType = field(default=UNSET, name="from")
    end: str | UnsetType = field(default=UNSET, name="to")
    count: int | UnsetType = UNSET
    catch_up: int | UnsetType = UNSET


class Source(Struct, frozen=True, kw_only=True):
    """The broker has lost or regained NATS. Connections stay."""

    type: ClassVar[str] = "source"
    state: Literal["interrupted", "restored"]


class Published(Struct, frozen=True, kw_only=True):
    """The event has been stored, or a live one passed on. A `duplicate` has the position of the first."""

    type: ClassVar[str] = "published"
    id: str | UnsetType = UNSET
    position: str | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET


class Acknowledged(Struct, frozen=True, kw_only=True):
    """The acknowledgement has been stored."""

    type: ClassVar[str] = "acknowledged"
    durable: str
    position: str


class Answered(Struct, frozen=True, kw_only=True):
    """The answer of the service that was asked: any JSON value."""

    type: ClassVar[str] = "reply"
    data: Any


class Stored(Struct, frozen=True, kw_only=True):
    """An event as `history` has it; `stored_at` is when NATS stored it (RFC 3339, to the microsecond).

    This class describes it; the bytes are spliced without creating an instance.
    """

    channel: str
    position: str
    event: Any
    stored_at: str
    publisher: Publisher | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET


class Past(Struct, frozen=True, kw_only=True):
    """A page of stored events, in stream order. `channel` is what was allowed, by full names.

    Everything from the position `first` to `last` (inclusive) was looked at. `more`: there may be further
    events, where the request looks: before `first` or after `last`. `recovered` false: events may be gone.
    """

    type: ClassVar[str] = "history"
    channel: OneOrMany
    events: list[Stored]
    first: str
    last: str
    more: bool
    recovered: bool


class StateOpened(Struct, frozen=True, kw_only=True):
    """The answer to `state.open`: what was accepted and refused, by full names. The documents follow.

    `recovered` false: all documents come; what has not come by `state.ready` is gone. Unasked, it says that
    the stream of the documents is another one, and all come again.
    """

    type: ClassVar[str] = "state.opened"
    channel: list[str]
    refused: list[Refused]
    position: str
    recovered: bool


class Author(Struct, frozen=True, kw_only=True):
    """A change of a document by a client: whose, and the `id` that it gave."""

    user: str
    id: str


class State(Struct, frozen=True, kw_only=True):
    """A document of an open: its whole `value` (null: there is none), or a change of it.

    A `patch` (a merge patch, RFC 7396) turns the value at the revision `from` into that at `revision`, and no
    other; `by` are the changes in it, of each session of a client the last. Everything of the open up to
    `position` has been sent. `invalid` says why what is stored is no document.

    This class describes the message; its bytes are spliced without creating an instance.
    """

    type: ClassVar[str] = "state"
    channel: str
    revision: str
    position: str
    value: dict[str, Any] | UnsetType | None = UNSET
    start: str | UnsetType = field(default=UNSET, name="from")
    patch: dict[str, Any] | UnsetType = UNSET
    by: list[Author] | UnsetType = UNSET
    invalid: str | UnsetType = UNSET


class StateReady(Struct, frozen=True, kw_only=True):
    """All documents of an open have been sent; from here on changes come as they are stored."""

    type: ClassVar[str] = "state.ready"
    channel: OneOrMany
    position: str


class StateClosed(Struct, frozen=True, kw_only=True):
    """These documents are followed no longer. `code` is why, if unasked."""

    type: ClassVar[str] = "state.closed"
    channel: OneOrMany
    code: str | UnsetType = UNSET


class Held(Struct, frozen=True, kw_only=True):
    """A document as `GET /state` has it."""

    channel: str
    revision: str
    value: dict[str, Any] | UnsetType | None = UNSET
    invalid: str | UnsetType = UNSET


class Documents(Struct, frozen=True, kw_only=True):
    """Documents as they are. With `recovered` they are those that have changed since the given position."""

    documents: list[Held]
    refused: list[Refused]
    position: str
    recovered: bool


class Changed(Struct, frozen=True, kw_only=True):
    """The change has been applied: `revisions` has a revision of each document that contains it."""

    type: ClassVar[str] = "state.changed"
    id: str
    revisions: dict[str, str]


class Lost(Struct, frozen=True, kw_only=True):
    """Changes that were confirmed are gone: another write, which did not see them, took their place.

    `ids` are those of this client's changes; `paths` has what is there now, at `revision`, by JSON Pointer.
    """

    type: ClassVar[str] = "state.lost"
    ids: list[str]
    channel: str
    revision: str
    paths: dict[str, Any]


class PresenceEntered(Struct, frozen=True, kw_only=True):
    """The client is present. Whoever watches sees it from `position` on."""

    type: ClassVar[str] = "presence.entered"
    channel: str
    position: str


class PresenceUpdated(Struct, frozen=True, kw_only=True):
    """The state will be seen soon: the newest one, where several follow each other quickly."""

    type: ClassVar[str] = "presence.updated"
    channel: str


class PresenceLeft(Struct, frozen=True, kw_only=True):
    """The client is present no longer. Unasked, `code` is why.

    "replaced": another connection has entered with the same session.
    """

    type: ClassVar[str] = "presence.left"
    channel: str
    code: str | UnsetType = UNSET


class PresenceWatched(Struct, frozen=True, kw_only=True):
    """The channel is watched. `recovered` false: the position is of no use any more, and all members follow.

    With `detail` "count" there are too many to show: the messages have the numbers, the client's own user and
    a sample of the others. Unasked, it says that `detail` has changed.
    """

    type: ClassVar[str] = "presence.watched"
    channel: str
    position: str
    recovered: bool
    detail: Literal["full", "count"]


class PresenceUnwatched(Struct, frozen=True, kw_only=True):
    """The channel is watched no longer. `code` is why, if unasked."""

    type: ClassVar[str] = "presence.unwatched"
    channel: str
    code: str | UnsetType = UNSET


class Member(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A session of a user in a channel, since a time. `info` is from its token, `state` from the client.

    `away`: the page is "hidden", or the connection "lost".
    """

    user: str
    session: str
    since: str
    info: Any = UNSET
    state: Any = UNSET
    away: Literal["hidden", "lost"] | UnsetType = UNSET


class Departed(Struct, frozen=True, kw_only=True):
    """A session of a user that has gone."""

    user: str
    session: str


class Presence(Struct, frozen=True, kw_only=True):
    """Who is present in a watched channel: those that have come or changed, and those that have gone.

    With `whole` all from before is void, and all members come, in one or more messages: up to the one that is
    `complete`. `users` and `sessions` are how many are present. Everything up to `position` has been sent.
    """

    type: ClassVar[str] = "presence"
    channel: str
    position: str
    set: list[Member]
    gone: list[Departed]
    users: int
    sessions: int
    whole: bool | UnsetType = UNSET
    complete: bool | UnsetType = UNSET


class Members(Struct, frozen=True, kw_only=True):
    """Who is present, as `GET /presence` has it."""

    channel: str
    position: str
    set: list[Member]
    users: int
    sessions: int
    detail: Literal["full", "count"]


class Pong(Struct, frozen=True, kw_only=True):
    """The answer to `ping`, with the live position."""

    type: ClassVar[str] = "pong"
    position: str | UnsetType = UNSET


class Contradiction(Struct, frozen=True, kw_only=True):
    """Where a document, at `revision`, is not what a change replaces: what is there, by JSON Pointer."""

    channel: str
    revision: str
    paths: dict[str, Any]


class Error(Struct, frozen=True, kw_only=True):
    """A request was refused, or the connection is about to be closed.

    `message` is for the developer. `retryable`: the same request may succeed after `retry_after_ms`.
    `status` is a service's own code for its refusal, `paths` what is wrong in a document, by JSON Pointer.
    `conflict` is what keeps a change from being applied.
    """

    type: ClassVar[str] = "error"
    code: str
    message: str
    retryable: bool
    retry_after_ms: int | UnsetType = UNSET
    status: int | UnsetType = UNSET
    paths: dict[str, str] | UnsetType = UNSET
    conflict: list[Contradiction] | UnsetType = UNSET


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
    | Answered
    | Past
    | StateOpened
    | StateReady
    | StateClosed
    | Changed
    | Lost
    | PresenceEntered
    | PresenceUpdated
    | PresenceLeft
    | PresenceWatched
    | PresenceUnwatched
    | Presence
    | Pong
    | Error
)
