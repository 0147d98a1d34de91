"""What a client wishes to open or close, checked against its token. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from broker import subjects
from broker.errors import BadMessage, BrokerError, Forbidden, InvalidChannel, TooManyDocuments, Unavailable
from broker.keyed.lane import SECONDS, rounded
from broker.wire import messages as m
from broker.wire import positions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from broker.features.state.rules import Rules
    from broker.keyed.collection import Key
    from broker.permissions import Principal
    from broker.session.requests import Terms
    from broker.wire.positions import Position

MAX_WILD = 64  # patterns with wildcards of a connection: it takes long to compare them
MAX_SHOWN = 256  # characters of a refused channel in the reply
LONGEST_MS = round(SECONDS[-1] * 1000)


@attrs.frozen(kw_only=True)
class Open:
    """Open documents: each pattern, with the denied patterns to leave out, in the lane of `seconds`.

    `listed`: the client sent a list, and is answered with lists.
    """

    patterns: dict[str, tuple[str, ...]]
    refused: list[m.Refused]
    position: Position | None
    seconds: float
    listed: bool

    def key(self, tenant: str) -> Key:
        return key(tenant, self.patterns)


@attrs.frozen(kw_only=True)
class Close:
    """Close documents, and reply with `channel`."""

    patterns: list[str]
    channel: m.OneOrMany


def key(tenant: str, patterns: Mapping[str, Iterable[str]]) -> Key:
    """Return what the collection of some patterns, with the denied ones, is known by."""
    denied = {each for deny in patterns.values() for each in deny}
    return tenant, tuple(sorted(patterns)), tuple(sorted(denied))


def check_open(rules: Rules, terms: Terms, message: m.StateOpen) -> Open:
    """Return what may be opened. Raise the first refusal if nothing may."""
    principal = terms.client()
    if terms.draining:
        raise Unavailable("state.open: this broker is about to stop; reconnect first")
    every_ms = 1 if message.every_ms is None else message.every_ms
    if not 1 <= every_ms <= LONGEST_MS:
        raise BadMessage(f"payload.every_ms: must be 1 to {LONGEST_MS}")
    position = None if message.position is None else positions.parse(message.position)
    texts = message.channel if isinstance(message.channel, list) else [message.channel]
    most = terms.limits.documents_per_connection
    if len(texts) > most:
        raise TooManyDocuments(f"{len(texts)} in one list; a connection has at most {most} documents")
    accepted: dict[str, tuple[str, ...]] = {}
    refused: list[m.Refused] = []
    first: BrokerError | None = None
    for text in texts:
        try:
            pattern, deny = check_pattern(rules, principal, text)
            accepted[pattern] = deny
        except BrokerError as error:
            first = first or error
            refused.append(m.Refused(channel=text[:MAX_SHOWN], code=error.code, message=error.message))
    if first and not accepted:
        raise first
    check_wild(accepted)
    return Open(
        patterns=accepted,
        refused=refused,
        position=position,
        seconds=rounded(every_ms),
        listed=isinstance(message.channel, list),
    )


def check_pattern(rules: Rules, principal: Principal, text: str) -> tuple[str, tuple[str, ...]]:
    """Return the pattern that `text` stands for, and the patterns that the token denies within it."""
    pattern = subjects.parse_pattern(subjects.expand_me(text, principal.encoded_user))
    if subjects.is_live(pattern):
        raise InvalidChannel(f"{subjects.shown(text)}: live channels are not stored, so none is a document")
    denied = principal.check_subscribe(pattern)
    if rules.find(pattern) is None:
        raise Forbidden(f"{pattern}: not within a pattern of state.documents in the configuration")
    return pattern, denied


def check_wild(patterns: Iterable[str]) -> None:
    """Raise `TooManyDocuments` for more patterns than a connection may have open."""
    count = sum(not subjects.is_literal(each) for each in patterns)
    if count > MAX_WILD:
        raise TooManyDocuments(
            f"{count} patterns with wildcards; a connection follows at most {MAX_WILD} of them"
        )


def check_close(terms: Terms, message: m.StateClose) -> Close:
    """Return what to close, by full names."""
    principal = terms.client()
    texts = message.channel if isinstance(message.channel, list) else [message.channel]
    patterns = [subjects.expand_me(text, principal.encoded_user) for text in texts]
    return Close(patterns=patterns, channel=patterns if isinstance(message.channel, list) else patterns[0])
