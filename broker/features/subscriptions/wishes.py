"""What a client wishes to subscribe to or unsubscribe from, checked against its token and limits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs

from broker import errors, filters, subjects
from broker.errors import BrokerError
from broker.eventlog.lanes import TICK_MS
from broker.wire import durables, positions
from broker.wire import messages as m
from broker.wire.starts import After, Last, Since, Snapshot
from broker.wire.times import parse_time

if TYPE_CHECKING:
    from broker.filters import Filter
    from broker.permissions import Principal
    from broker.session.requests import Terms
    from broker.wire.starts import Start

LEAST_MS, MOST_MS = 100, 60_000  # of `every_ms`
MAX_SHOWN = 256  # characters of a refused channel in the reply


@attrs.frozen(kw_only=True)
class Join:
    """Begin or restart subscriptions: each pattern, with the denied patterns to leave out.

    `filter` and `every_ms` say what comes of that, and at which pace. `listed`: the client sent a list, and
    is answered with lists.
    """

    patterns: dict[str, tuple[str, ...]]
    refused: list[m.Refused]
    start: Start | None
    durable: str | None
    lag: m.Lag | None
    filter: Filter | None
    every_ms: int | None
    listed: bool


@attrs.frozen(kw_only=True)
class Leave:
    """End subscriptions, and reply with `channel`."""

    patterns: list[str]
    channel: m.OneOrMany


def check_subscribe(terms: Terms, message: m.Subscribe) -> Join:
    """Return the subscriptions that are allowed; from here on they count against the limits.

    Raise the first refusal if none is allowed.
    """
    principal = terms.client()
    if terms.draining:
        raise errors.Unavailable("subscribe: this broker is about to stop; reconnect first")
    start = start_of(message, terms.limits.last_events)
    wanted = filter_of(message)
    every_ms = pace_of(message)
    if message.durable is not None:
        durables.check_name(message.durable)
    most = terms.limits.subscriptions_per_connection
    texts = message.channel if isinstance(message.channel, list) else [message.channel]
    if len(texts) > most:  # one error, since a list of refusals would be longer than the request
        raise errors.TooManySubscriptions(f"{len(texts)} in one list; a connection has at most {most}")
    held = set(terms.standing.subscriptions())
    filtered = terms.standing.filtered()
    accepted: dict[str, tuple[str, ...]] = {}
    refused: list[m.Refused] = []
    first: BrokerError | None = None
    for text in texts:
        try:
            pattern, deny = check_pattern(text, principal, message.lag)
            if wanted is not None:
                check_filtered(pattern, filtered, terms.limits.filters_per_connection)
            if pattern not in held:
                terms.reserve(text, most - len(held))
                held.add(pattern)
            accepted[pattern] = deny
            if wanted is not None:
                filtered.add(pattern)
        except BrokerError as error:
            first = first or error
            refused.append(m.Refused(channel=text[:MAX_SHOWN], code=error.code, message=error.message))
    if first and not accepted:
        raise first
    return Join(
        patterns=accepted,
        refused=refused,
        start=start,
        durable=message.durable,
        lag=message.lag,
        filter=wanted,
        every_ms=every_ms,
        listed=isinstance(message.channel, list),
    )


def filter_of(message: m.Subscribe) -> Filter | None:
    """Return the filter of a subscribe."""
    if message.filter is None:
        return None
    if message.snapshot:  # a row that no longer passes would stay for ever
        raise errors.BadMessage("payload: snapshot and filter exclude each other")
    return filters.parse(message.filter, "payload.filter")


def pace_of(message: m.Subscribe) -> int | None:
    """Return the pace of a subscribe, rounded up to the ticks that all share."""
    if message.every_ms is None:
        return None
    if not LEAST_MS <= message.every_ms <= MOST_MS:
        raise errors.BadMessage(f"payload.every_ms: must be {LEAST_MS} to {MOST_MS}")
    return math.ceil(message.every_ms / TICK_MS) * TICK_MS


def check_filtered(pattern: str, filtered: set[str], most: int) -> None:
    """Raise `TooManyFilters` if a subscription would be one too many beside those that have a filter."""
    if pattern not in filtered and len(filtered) >= most:
        raise errors.TooManyFilters(f"{pattern}: the connection has its {most} subscriptions with a filter")


def check_pattern(text: str, principal: Principal, lag: m.Lag | None) -> tuple[str, tuple[str, ...]]:
    """Return the pattern that `text` stands for, and the patterns that the token denies within it."""
    pattern = subjects.parse_pattern(subjects.expand_me(text, principal.encoded_user))
    if lag == "replay" and subjects.is_live(pattern):
        raise errors.BadMessage(f"{pattern}: a live channel is not stored and cannot take lag 'replay'")
    return pattern, principal.check_subscribe(pattern)


def start_of(message: m.Subscribe, most: int) -> Start | None:
    """Return where a subscription starts; None: from now. `most` is the limit of `last`."""
    given: dict[str, Any] = {
        "position": message.position,
        "since": message.since,
        "last": message.last,
        "snapshot": message.snapshot or None,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise errors.BadMessage(f"payload: {' and '.join(names)} exclude each other")
    if message.position is not None:
        return After(positions.parse(message.position))
    if message.since is not None:
        return Since(parse_time(message.since))
    if message.last is not None:
        if not 1 <= message.last <= most:
            raise errors.BadMessage(f"payload.last: must be 1 to {most}")
        return Last(message.last)
    return Snapshot() if message.snapshot else None


def check_unsubscribe(terms: Terms, message: m.Unsubscribe) -> Leave:
    """Return the subscriptions to end. Raise `NotSubscribed` unless all of them exist."""
    principal, standing = terms.client(), terms.standing.subscriptions()
    texts = message.channel if isinstance(message.channel, list) else [message.channel]
    patterns = [subjects.expand_me(text, principal.encoded_user) for text in texts]
    for pattern in patterns:
        if pattern not in standing:
            raise errors.NotSubscribed(f"{subjects.shown(pattern)}: there is no such subscription")
    channel = patterns if isinstance(message.channel, list) else patterns[0]
    return Leave(patterns=patterns, channel=channel)
