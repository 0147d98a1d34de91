"""Parsing of the broker's messages, with care: something on the way may answer in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from broker.client.items import Gap, Page, PastEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from broker.client.items import Payload


class Nonsense(Exception):
    """A message that no broker sends. The connection is replaced."""


class Envelope(msgspec.Struct, rename={"message_id": "messageId"}):
    type: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    message_id: str | None = None


class Delivery(msgspec.Struct):
    channel: str
    event: msgspec.Raw
    position: str | None = None
    publisher: dict[str, Any] | None = None
    catch_up: int | None = None
    paced: bool = False


class Refused(msgspec.Struct):
    channel: str
    code: str = ""


class Past(msgspec.Struct):
    channel: str
    position: str
    stored_at: str
    event: Any
    publisher: dict[str, Any] | None = None


class Contradiction(msgspec.Struct):
    channel: str
    revision: str
    paths: dict[str, Any]


class Author(msgspec.Struct):
    id: str = ""


class Departed(msgspec.Struct):
    user: str
    session: str


class Present(msgspec.Struct):
    user: str
    session: str
    since: str
    away: str | None = None


class Fields(msgspec.Struct):
    """The fields that are used, of all messages, with their types."""

    channel: str | list[str] = ()  # type: ignore[assignment]
    refused: list[Refused] = ()  # type: ignore[assignment]
    position: str | None = None
    catch_up: int | None = None
    start: str | None = msgspec.field(default=None, name="from")
    end: str | None = msgspec.field(default=None, name="to")
    count: int | None = None
    reason: str = ""
    code: str = ""
    message: str = ""
    state: str = ""
    retryable: bool = False
    duplicate: bool | None = None
    live: bool = True
    private: str | None = None
    durable: str | None = None
    heartbeat_seconds: float = 25.0
    retry_after_ms: float | None = None
    reconnect_after_ms: float | None = None
    limits: dict[str, Any] = {}
    status: int | None = None
    events: list[Past] = ()  # type: ignore[assignment]
    first: str = ""
    last: str = ""
    more: bool = False
    recovered: bool = True
    revision: str = ""
    value: dict[str, Any] | None = None
    patch: dict[str, Any] = {}
    invalid: str = ""
    by: list[Author] = ()  # type: ignore[assignment]
    revisions: dict[str, str] = {}
    ids: list[str] = ()  # type: ignore[assignment]
    paths: dict[str, Any] = {}
    conflict: list[Contradiction] = ()  # type: ignore[assignment]
    set: list[Present] = ()  # type: ignore[assignment]
    gone: list[Departed] = ()  # type: ignore[assignment]
    users: int = 0
    sessions: int = 0
    whole: bool = False
    complete: bool = False
    detail: Literal["full", "count"] = "full"


REQUIRED: Mapping[str, tuple[str, ...]] = {
    "subscribed": ("channel",),
    "unsubscribed": ("channel",),
    "gap": ("channel",),
    "reply": ("data",),
    "history": ("channel", "events", "first", "last", "more", "recovered"),
    "state": ("channel", "revision", "position"),
    "state.opened": ("channel", "position", "recovered"),
    "state.ready": ("channel", "position"),
    "state.closed": ("channel",),
    "state.changed": ("id", "revisions"),
    "state.lost": ("channel", "ids", "revision", "paths"),
    "presence": ("channel", "position", "set", "gone", "users", "sessions"),
    "presence.entered": ("channel",),
    "presence.updated": ("channel",),
    "presence.left": ("channel",),
    "presence.watched": ("channel", "detail"),
    "presence.unwatched": ("channel",),
    "error": ("code",),
}
KNOWN = {
    "connection.established", "connection.authenticated", "connection.expiring", "connection.draining",
    "subscribed", "subscription.live", "unsubscribed", "gap", "source", "published", "acknowledged", "reply",
    "history", "state", "state.opened", "state.ready", "state.closed", "state.changed", "state.lost", "pong",
    "presence", "presence.entered", "presence.updated", "presence.left", "presence.watched",
    "presence.unwatched", "error",
}  # fmt: skip


def read(text: str | bytes) -> tuple[Envelope, Delivery | Payload]:
    """Decode a message. Raises `Nonsense`."""
    if not isinstance(text, str):
        raise Nonsense("a frame that is not text")
    try:
        envelope = msgspec.json.decode(text, type=Envelope)
        if envelope.type == "event":
            return envelope, msgspec.json.decode(envelope.payload, type=Delivery)
        payload = msgspec.json.decode(envelope.payload, type=dict[str, Any])
        if envelope.type in KNOWN:
            msgspec.convert(payload, Fields)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Nonsense(str(error)) from None
    for name in REQUIRED.get(envelope.type, ()):
        if name not in payload:
            raise Nonsense(f"{envelope.type} without {name}")
    return envelope, payload


def gap(payload: Mapping[str, Any]) -> Gap:
    channel = payload.get("channel", ())
    return Gap(
        channels=(channel,) if isinstance(channel, str) else tuple(channel),
        reason=payload.get("reason", ""),
        start=payload.get("from"),
        end=payload.get("to"),
        count=payload.get("count"),
        catch_up=payload.get("catch_up"),
    )


def page(payload: Mapping[str, Any], read: Callable[..., Awaitable[Page]]) -> Page:
    """Return a `history` of the broker; `read` reads another page of the same channels."""
    channel = payload["channel"]
    return Page(
        channels=(channel,) if isinstance(channel, str) else tuple(channel),
        events=tuple(
            PastEvent(
                channel=each["channel"],
                value=each["event"],
                position=each["position"],
                stored_at=each["stored_at"],
                publisher=each.get("publisher"),
            )
            for each in payload["events"]
        ),
        first=payload["first"],
        last=payload["last"],
        more=payload["more"],
        recovered=payload["recovered"],
        read=read,
    )


def title(body: bytes) -> str:
    """Return the title in an `application/problem+json` body (RFC 9457), for a message."""
    said = None
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
        said = problem.get("detail") or problem.get("title")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    return f": {said[:200]}" if isinstance(said, str) else ""
