"""What a client wishes to do about presence, checked against its token and the limits. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
from msgspec import UNSET, UnsetType

from broker import subjects
from broker.errors import BadMessage, Unavailable
from broker.wire import positions

if TYPE_CHECKING:
    from broker.session.requests import Terms
    from broker.wire import messages as m
    from broker.wire.positions import Position

SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
STATE_BYTES = 1024
SHORTEST_MS, LONGEST_MS = 100, 60_000


@attrs.frozen(kw_only=True)
class Enter:
    channel: str
    session: str
    state: bytes | None
    away: bool


@attrs.frozen(kw_only=True)
class Update:
    """Another state or `away`, where they are not `UNSET`; a state with `seconds` holds for these."""

    channel: str
    state: bytes | UnsetType | None
    away: bool | UnsetType
    seconds: float | None


@attrs.frozen(kw_only=True)
class Watching:
    channel: str
    position: Position | None


def check_enter(terms: Terms, message: m.PresenceEnter) -> Enter:
    principal = terms.client()
    if terms.draining:
        raise Unavailable("presence.enter: this broker is about to stop; reconnect first")
    if not SESSION.match(message.session):
        raise BadMessage("payload.session: 1 to 64 of A-Z a-z 0-9 _ -")
    channel = named(message.channel, principal.encoded_user)
    principal.check_enter(channel)
    return Enter(
        channel=channel,
        session=message.session,
        state=encoded(message.state) or None,
        away=bool(message.away),
    )


def check_update(terms: Terms, message: m.PresenceUpdate) -> Update:
    channel = named(message.channel, terms.client().encoded_user)
    if message.for_ms is not None:
        if message.state is UNSET:
            raise BadMessage("payload.for_ms: for how long a `state` holds, which is missing")
        if not SHORTEST_MS <= message.for_ms <= LONGEST_MS:
            raise BadMessage(f"payload.for_ms: must be {SHORTEST_MS} to {LONGEST_MS}")
    return Update(
        channel=channel,
        state=encoded(message.state),
        away=UNSET if message.away is UNSET else bool(message.away),
        seconds=None if message.for_ms is None else message.for_ms / 1000,
    )


def check_watch(terms: Terms, message: m.PresenceWatch) -> Watching:
    principal = terms.client()
    if terms.draining:
        raise Unavailable("presence.watch: this broker is about to stop; reconnect first")
    channel = named(message.channel, principal.encoded_user)
    principal.check_watch(channel)
    return Watching(
        channel=channel,
        position=None if message.position is None else positions.parse(message.position),
    )


def check_channel(terms: Terms, message: m.PresenceLeave | m.PresenceUnwatch) -> str:
    """Return the full name of the channel."""
    return named(message.channel, terms.client().encoded_user)


def named(text: str, user: str) -> str:
    return subjects.parse_channel(subjects.expand_me(text, user))


def encoded(state: Any) -> bytes | UnsetType | None:
    """Return a state as JSON; None for null, which is no state."""
    if state is UNSET or state is None:
        found: UnsetType | None = state
        return found
    data = msgspec.json.encode(state)
    if len(data) > STATE_BYTES:
        raise BadMessage(f"payload.state: {len(data)} bytes; at most {STATE_BYTES}")
    return data
