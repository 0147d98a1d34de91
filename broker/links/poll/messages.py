"""The forms of a poll and of its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import attrs
import msgspec
from msgspec import UNSET, Struct, UnsetType

from broker import subjects
from broker.http import queries
from broker.http.responses import JSON, Refused, Response
from broker.links.route import any_of, schema
from broker.wire import messages, sse
from broker.wire.codec import unknown_field

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from broker.http.queries import Query

Kind = TypeVar("Kind", bound=Struct)

STARTS = ("since", "last", "snapshot", "durable")
LONGEST_WAIT, USUAL_WAIT = 60.0, 25.0  # seconds; proxies give up after 30 or 60
HEAD = Response(status=200, body=b"", media_type=JSON, framing="close")  # nothing is polled for it
# For the description: what is passed on undecoded, or is checked elsewhere.
EVENT, GAP, LIMITS = schema("Event"), schema("Gap"), schema("Established/properties/limits")
STATE = schema("State")
REFUSED = any_of("Refused", "Unsubscribed")
LAG = msgspec.Meta(extra_json_schema={"enum": list(get_args(messages.Lag))})
TRUE = msgspec.Meta(extra_json_schema={"const": True})

payload = msgspec.json.Decoder(sse.Payload)


class Message(Struct, rename="camel"):
    """A message of the session's connection."""

    type: str
    payload: msgspec.Raw
    message_id: str | None = None

    def field(self, name: str) -> Any:
        return msgspec.json.decode(self.payload).get(name)


class Poll(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A poll, with `session` and `position` of the newest answer; only the first one has a start.

    The broker waits at most `wait` seconds for an event. `tenant` is for monitoring tokens; it may be in the
    query instead. `state` has documents to follow, beside channels or alone, and `state_every_ms` is the
    `every_ms` of their `state.open`.
    """

    channels: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    state: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    tenant: str | None = None
    session: str | None = None
    position: str | None = None
    since: str | None = None
    last: int | None = None
    snapshot: bool | None = None
    durable: str | None = None
    lag: Annotated[str, LAG] | None = None
    filter: dict[str, Any] | None = None
    every_ms: int | None = None
    state_every_ms: int | None = None
    wait: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_WAIT)] = USUAL_WAIT

    @property
    def options(self) -> dict[str, Any]:
        """What a `subscribe` message has beside its channels and its start."""
        given = {"lag": self.lag or None, "filter": self.filter, "every_ms": self.every_ms}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def start(self) -> dict[str, Any]:
        """Where to begin, as in a `subscribe` message; a position, from a client that comes back."""
        names = STARTS if self.position is None else ("position",)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Leave(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The end of a `session` by a page that goes away (`leave: true`). No token is needed.

    The session's name suffices, even an old one: it is a secret. The body may be text, which is what
    `navigator.sendBeacon` sends.
    """

    session: str
    leave: Annotated[bool, TRUE]


NAMES = Poll.__struct_fields__
PARAMETERS = tuple(
    name for name in NAMES if name not in ("channels", "state", "tenant")
)  # of a query, beside `channel`


def from_query(query: Query) -> Poll:
    """Return the poll of a `GET`. Raises `Refused` (400)."""
    given: dict[str, Any] = {name: values[0] for name, values in query.items() if name in PARAMETERS}
    if "filter" in given:
        given["filter"] = queries.json_value("filter", given["filter"])
    for name, field in (("channel", "channels"), ("state", "state")):
        if query.get(name):
            given[field] = query[name]
    return converted(given, strict=False)


def from_body(body: bytes) -> Poll | Leave:
    """Return what a `POST` has. Raises `Refused` (400)."""
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise Refused(400, 'The body must be a JSON object: {"channels": […], "position": …, "wait": …}.')
    if "leave" not in given:
        return converted(given, strict=True)
    leave = read(given, Leave, strict=True)
    if not leave.leave:
        raise Refused(400, "leave: must be true, or absent.")
    return leave


def converted(given: dict[str, Any], *, strict: bool) -> Poll:
    poll = read(given, Poll, strict=strict)
    if not poll.channels and not poll.state:
        raise queries.no_channel() if not strict else Refused(400, "channels: is required, or state.")
    return poll


def read(given: dict[str, Any], kind: type[Kind], *, strict: bool) -> Kind:
    if unknown := unknown_field(given, kind.__struct_fields__):
        raise Refused(400, unknown)
    try:
        return msgspec.convert(given, type=kind, strict=strict)
    except msgspec.ValidationError as error:
        raise Refused(400, f"{error}.".replace("`$.", "`")) from None


@attrs.frozen(kw_only=True)
class Followed:
    """Documents in the answer to a poll, in their order. `ready`: all have been in this answer or before.

    `recovered` false: all come again, and those that have not come by `ready` are gone.
    """

    documents: list[Annotated[msgspec.Raw, STATE]]
    recovered: bool
    ready: bool


@attrs.frozen(kw_only=True)
class Polled:
    """The answer to a poll: payloads of events and gaps, and what to send back with the next poll.

    There is no `position` while a snapshot is in progress. `recovered` is false if events that could have
    matched are gone. `refused` has channels that are not subscribed, or no longer. With `reconnect_after_ms`
    this broker is about to stop. The first answer of a session has the `limits` of `connection.established`.
    """

    session: str
    events: list[Annotated[msgspec.Raw, EVENT]]
    gaps: list[Annotated[msgspec.Raw, GAP]]
    state: Followed | UnsetType = UNSET
    position: str | UnsetType = UNSET
    recovered: bool
    refused: list[Annotated[Any, REFUSED]] | UnsetType = UNSET
    reconnect_after_ms: int | UnsetType = UNSET
    limits: Annotated[msgspec.Raw, LIMITS] | UnsetType = UNSET


@attrs.define(eq=False)
class Gathered:
    """The content of the next answer, so far."""

    events: list[msgspec.Raw] = attrs.Factory(list)
    gaps: list[msgspec.Raw] = attrs.Factory(list)
    refused: list[Any] = attrs.Factory(list)
    documents: list[msgspec.Raw] = attrs.Factory(list)
    recovered: bool = True
    documents_recovered: bool = True

    def __bool__(self) -> bool:
        """Whether it says anything."""
        recovered = self.recovered and self.documents_recovered
        return bool(self.events or self.gaps or self.refused or self.documents) or not recovered

    @property
    def says(self) -> bool:
        """Whether it has something that a poll waits for."""
        return bool(self.events or self.gaps or self.documents) or not self.documents_recovered

    @property
    def live_alone(self) -> bool:
        """Whether it is about live channels alone. Events of stored ones move the position."""
        gaps = (channels_of(each) for each in self.gaps)
        if self.documents or not self.documents_recovered:
            return False
        return self.recovered and not self.refused and all(all(map(subjects.is_live, each)) for each in gaps)

    def restart(self) -> None:
        """Drop what a start from an earlier position will bring again: all that has a position."""
        self.events = [each for each in self.events if payload.decode(each).position is None]
        self.gaps = [each for each in self.gaps if payload.decode(each).to is None]

    def forget_documents(self) -> None:
        """Drop what has come of documents: all of it comes again, or is not wanted any more."""
        self.documents.clear()
        self.documents_recovered = True

    def keep(self, patterns: Iterable[str]) -> None:
        """Drop events of channels that the client no longer asks for."""
        self.events = [
            each
            for each in self.events
            if any(subjects.covers(pattern, *channels_of(each)) for pattern in patterns)
        ]

    @property
    def size(self) -> int:
        return sum(map(len, (*self.events, *self.documents)))


def lag(channels: Sequence[str]) -> msgspec.Raw:
    """Return a gap: live events of these channels may be lost."""
    gap = messages.Gap(channel=messages.named(channels), reason="lag")
    return msgspec.Raw(msgspec.json.encode(gap))


def channels_of(given: msgspec.Raw) -> list[str]:
    """Return the channels of an event or a gap."""
    channel = msgspec.json.decode(given)["channel"]
    return channel if isinstance(channel, list) else [channel]
