"""A member as it is stored in NATS and as it is shown. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from broker.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Mapping

EPOCH, INSTANCE, CONNECTION, TTL = "Broker-Epoch", "Broker-Instance", "Broker-Connection", "Nats-TTL"
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


def understood(body: bytes) -> Stored | None:
    """Return what a message says; None for one that no broker has written, and for a leave."""
    try:
        return msgspec.json.decode(body, type=Stored)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


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
