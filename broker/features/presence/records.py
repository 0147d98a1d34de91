"""A member as it is stored in NATS and as it is shown. No I/O."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from broker import subjects
from broker.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Mapping

EPOCH, INSTANCE, CONNECTION, TTL = "Broker-Epoch", "Broker-Instance", "Broker-Connection", "Nats-TTL"
LARGEST = 4096  # two states, `info` and names
GONE_SECONDS = 60  # for which a leave can be seen in the stream

Away = Literal["hidden", "lost"]


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a member's message.

    A `state` with `until` (Unix time, ms) holds until then, and after that `base` (if it is there) does.
    """

    user: str
    session: str
    since: str
    info: Raw | UnsetType = UNSET
    state: Raw | UnsetType = UNSET
    base: Raw | UnsetType = UNSET
    until: int | UnsetType = UNSET
    away: Away | UnsetType = UNSET


def understood(key: str, body: bytes) -> Stored | None:
    """Return what the message of a key says; None for one that no broker has written, and for a leave."""
    if len(body) > LARGEST:
        return None
    try:
        body.decode()  # of what is passed on as it is, msgspec does not look at the text
        stored = msgspec.json.decode(body, type=Stored)
        fits = key.endswith(f".{subjects.encode_user(stored.user)}.{stored.session}")
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return stored if fits else None


def life(headers: Mapping[str, str] | None) -> float:
    """Return for how many seconds a message that a broker has written lives."""
    text = field(headers, TTL).removesuffix("s")
    return float(text) if text.isascii() and text.isdecimal() else inf


def shown(stored: Stored, *, lost: bool, now: float) -> bytes:
    """Return a member as clients see it at a Unix time; one that is lost does nothing for a while."""
    state = stored.state
    if stored.until is not UNSET and (lost or stored.until <= now * 1000):
        state = stored.base
    return msgspec.json.encode(
        m.Member(
            user=stored.user,
            session=stored.session,
            since=stored.since,
            info=stored.info,
            state=state,
            away="lost" if lost else stored.away,
        )
    )


def field(headers: Mapping[str, str] | None, name: str) -> str:
    return "" if headers is None else headers.get(name, "")
