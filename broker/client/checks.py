"""Checks of requests before anything is sent, so that an error is raised where it was made.

The broker ends a connection after ten malformed messages within a minute, so none is sent that it would
refuse for its form alone. `TypeError`: not JSON, or of the wrong type; `ValueError`: a value that JSON cannot
represent; a `BrokerError`: not allowed by the protocol.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import attrs
import msgspec

from broker import filters, subjects
from broker.documents import judging, values
from broker.errors import BadMessage, InvalidChannel, InvalidPosition
from broker.wire.events import MAX_DEPTH
from broker.wire.times import parse_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from broker.documents.patches import Path
    from broker.filters import Filter

Lag: TypeAlias = Literal["replay", "latest", "drop", "close"]

TOMBSTONE = b""  # an event that removes its channel from snapshots
MAX_ID_BYTES = 64
REQUEST_ID = re.compile(r"[!-~]{1,64}\Z")  # the value of a header
LONGEST_TIMEOUT = 30.0  # seconds that the broker waits for a service
DURABLE = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
LEAST_MS, MOST_MS = 100, 60_000  # of a pace
STATE_BYTES = 1024  # of a state in a channel that one is present in
SHORTEST_STATE, LONGEST_STATE = 0.1, 60.0  # seconds for which one may hold
LEAST_INTEGER, MOST_INTEGER = -(2**63), 2**64 - 1


@attrs.frozen
class Part:
    """A value within an event, and its path."""

    value: Any
    depth: int = 0
    parent: Part | None = None
    key: str | int = ""

    def within(self) -> Iterator[Part]:
        """Yield the values directly within it."""
        if isinstance(self.value, dict):
            for key, value in self.value.items():
                if not isinstance(key, str):
                    raise TypeError(f"{self}: the key {key!r:.80} is not a string")
                if fault := text_fault(key):
                    raise ValueError(f"{self}: the key {subjects.shown(key)} holds {fault}")
                yield Part(value, self.depth + 1, self, key)
        elif isinstance(self.value, list | tuple):
            for index, value in enumerate(self.value):
                yield Part(value, self.depth + 1, self, index)

    def __str__(self) -> str:
        steps, part = [], self
        while part.parent is not None:
            step = str(part.key) if isinstance(part.key, int) else subjects.shown(part.key)
            steps.append(f"[{step}]")
            part = part.parent
        return f"{part.key}" + "".join(reversed(steps[-8:])) + ("…" if len(steps) > 8 else "")


def event_json(event: Any) -> bytes:
    """Return an event as JSON: any JSON value, or JSON as bytes; `TOMBSTONE` becomes `null`.

    None by itself is refused: a function that forgets to return a value must not remove a channel.
    """
    if event is None:
        raise TypeError('event: None; a tombstone is TOMBSTONE (b""), and JSON null is b"null"')
    return as_json("event", event or b"null" if isinstance(event, bytes) else event)


def data_json(data: Any) -> bytes:
    """Return the data of a request as JSON: any JSON value, or JSON as bytes."""
    return as_json("data", data)


def as_json(name: str, value: Any) -> bytes:
    """Return a JSON value, or JSON as bytes, as JSON. `name` is for errors."""
    if isinstance(value, bytes):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadMessage(f"{name}: not JSON: {error}") from None
    pending = [Part(value, key=name)]
    while pending:
        part = pending.pop()
        check_value(part)
        pending += part.within()
    return msgspec.json.encode(value)


def check_value(part: Part) -> None:
    value = part.value
    if isinstance(value, str):
        if fault := text_fault(value):
            raise ValueError(f"{part}: holds {fault}")
    elif isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"{part}: {value} is not a JSON number")
    elif isinstance(value, int):
        if not LEAST_INTEGER <= value <= MOST_INTEGER:
            raise ValueError(f"{part}: an integer of more than 64 bits; send it as a string")
    elif isinstance(value, dict | list | tuple):
        if part.depth >= MAX_DEPTH:
            raise ValueError(f"{part}: nested deeper than {MAX_DEPTH}, or containing itself")
    elif value is not None:
        raise TypeError(f"{part}: {type(value).__name__} is not a JSON type")


def text_fault(text: str) -> str | None:
    """Return why a text cannot be encoded in UTF-8 (a lone surrogate, as in a truncated UTF-16 text), or
    None.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate at character {error.start}"
    return None


def check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: a string is wanted, not {type(value).__name__}")
    if fault := text_fault(value):
        raise ValueError(f"{name}: {subjects.shown(value)} holds {fault}")


def check_channel(channel: Any) -> None:
    if not isinstance(channel, str):
        raise TypeError(f"channel: a string is wanted, not {type(channel).__name__}")
    subjects.parse_channel(channel)


def check_method(method: Any) -> None:
    if not isinstance(method, str):
        raise TypeError(f"method: a string is wanted, not {type(method).__name__}")
    subjects.parse_method(method)


def check_request_id(request_id: Any) -> None:
    check_text("id", request_id)
    if not REQUEST_ID.match(request_id):
        raise BadMessage(f"id: {subjects.shown(request_id)}: 1 to 64 visible characters of ASCII")


def check_timeout(seconds: Any) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"timeout: seconds are wanted, not {type(seconds).__name__}")
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise ValueError(f"timeout: {seconds:g} s: more than 0 and at most {LONGEST_TIMEOUT:g} s")


def check_id(event_id: Any) -> None:
    check_text("event_id", event_id)
    if not 1 <= len(event_id.encode()) <= MAX_ID_BYTES:
        raise BadMessage(f"event_id: {subjects.shown(event_id)}: 1 to {MAX_ID_BYTES} bytes")


def check_durable(durable: Any) -> None:
    check_text("durable", durable)
    if not DURABLE.match(durable):
        raise BadMessage(f"durable: {subjects.shown(durable)}: 1 to 64 of A-Z a-z 0-9 _ -")


def check_patterns(channels: Iterable[Any]) -> None:
    if not channels:
        raise TypeError("channel: at least one")
    for channel in channels:
        if not isinstance(channel, str):
            raise TypeError(f"channel: strings are wanted, not {type(channel).__name__}")
        subjects.parse_pattern(channel)


def check_subscribe(
    channels: tuple[Any, ...], start: Mapping[str, Any], lag: Any, durable: Any, most_last: float
) -> None:
    """`most_last`: the broker's limit `last_events`."""
    check_patterns(channels)
    if len(start) > 1:
        raise ValueError(f"a subscription has one start, not {' and '.join(start)}")
    if lag is not None and lag not in get_args(Lag):
        raise ValueError(f"lag: {lag!r:.40} is none of {', '.join(get_args(Lag))}")
    if lag == "replay" and (live := [each for each in channels if subjects.is_live(each)]):
        raise ValueError(f"lag: {live[0]} is not stored and cannot be replayed")
    if durable is not None:
        check_durable(durable)
    match start:
        case {"position": position}:
            check_position(position)
        case {"since": since}:
            check_text("since", since)
            parse_time(since, "since")
        case {"last": last}:
            check_count("last", last, most_last)


def check_history(channels: tuple[Any, ...], asked: Mapping[str, Any], most: float) -> None:
    """`most`: the broker's limit `last_events`."""
    check_patterns(channels)
    if live := [each for each in channels if subjects.is_live(each)]:
        raise InvalidChannel(f"{live[0]}: a live channel is not stored")
    if len(starts := asked.keys() - {"limit", "filter"}) > 1:
        raise ValueError(f"a page has one start, not {' and '.join(sorted(starts))}")
    for name in starts & {"before", "after"}:
        check_position(asked[name])
    if "since" in asked:
        check_text("since", asked["since"])
        parse_time(asked["since"], "since")
    if "limit" in asked:
        check_count("limit", asked["limit"], most)


def check_document(channel: Any) -> None:
    check_channel(channel)
    check_stored(channel)


def check_collection(pattern: Any) -> None:
    check_patterns([pattern])
    check_stored(pattern)


def check_stored(name: str) -> None:
    if subjects.is_live(name):
        raise InvalidChannel(f"{name}: a live channel is no document")


def patch_of(patch: Any) -> dict[str, Any] | None:
    """Return a copy of a merge patch: a JSON object, or None. Raises also for what no document can hold."""
    if patch is not None and not isinstance(patch, dict):
        raise TypeError(f"patch: an object or None is wanted, not {type(patch).__name__}")
    copied: dict[str, Any] | None = msgspec.json.decode(as_json("patch", patch))
    if fault := values.fault(copied):
        raise BadMessage(f"patch: {fault}")
    return copied


def wish_of(patch: Any, add: Any) -> tuple[Any, Mapping[Path, float]]:
    """Return copies of a merge patch, if there is one, and of what is added at which paths."""
    sums = {} if add is None else dict(add)
    if patch is judging.OUT and not sums:
        raise TypeError("neither a patch nor something to add")
    return (patch if patch is judging.OUT else patch_of(patch)), judging.additions(sums)


def presence_state(state: Any) -> Any:
    """Return a copy of a state that others see: any JSON value."""
    data = as_json("state", state)
    if len(data) > STATE_BYTES:
        raise BadMessage(f"state: {len(data)} bytes; at most {STATE_BYTES}")
    return msgspec.json.decode(data)


def check_presence_session(session: Any) -> None:
    check_text("session", session)
    if not DURABLE.match(session):
        raise BadMessage(f"session: {subjects.shown(session)}: 1 to 64 of A-Z a-z 0-9 _ -")


def check_for(seconds: Any) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"for_seconds: seconds are wanted, not {type(seconds).__name__}")
    if not SHORTEST_STATE <= seconds <= LONGEST_STATE:
        raise ValueError(f"for_seconds: {seconds:g} s: {SHORTEST_STATE:g} to {LONGEST_STATE:g} s")


def check_count(name: str, value: Any, most: float) -> None:
    if type(value) is not int:
        raise TypeError(f"{name}: a whole number is wanted, not {type(value).__name__}")
    if not 1 <= value <= most:
        raise BadMessage(f"{name}: {value}: must be 1 to {most:g}")


def check_every(every_ms: Any) -> None:
    """Raise `ValueError` unless it is a pace, or None."""
    if every_ms is not None and (type(every_ms) is not int or not LEAST_MS <= every_ms <= MOST_MS):
        raise ValueError(f"every_ms: a whole number from {LEAST_MS} to {MOST_MS}")


def filter_of(value: Any, start: Mapping[str, Any]) -> Filter | None:
    """Return the filter that a JSON object, or JSON as bytes, stands for. Raises `BadMessage`."""
    if value is None:
        return None
    if "snapshot" in start:
        raise ValueError("a snapshot cannot be filtered: what no longer passes would stay in it")
    return filters.parse(msgspec.json.decode(as_json("filter", value)))


def check_position(position: Any) -> None:
    check_text("position", position)
    if not position or len(position) > 256:
        raise InvalidPosition(f"position: {subjects.shown(position)}; send one back as it was received")
