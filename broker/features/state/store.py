"""Versions of documents in their stream, read from and written to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from broker.documents import memory, values
from broker.documents.judging import Version
from broker.documents.values import Invalid
from broker.wire.events import PUBLISHER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.bus.base import Record
    from broker.documents.judging import Change
    from broker.documents.memory import Memory
    from broker.documents.values import Value

CHANGES = "Broker-Changes"  # the changes that the version knows, see `documents.memory`
BASE = "Broker-Base"  # the sequence that it replaced, for `lost`
TTL = "Nats-TTL"  # ADR-43
decode = msgspec.json.Decoder(dict[str, Any]).decode
LARGE_BYTES = 4096
TOMBSTONE_TTL = "168h"  # for which a deleted document is remembered, as the stream's own markers


def read(record: Record | None) -> Version:
    """Return the version that a record is. Of none there is nothing, and an empty body is no document."""
    if record is None:
        return Version()
    sequence, _, body, headers = record
    known = memory.parse((headers or {}).get(CHANGES), sequence)
    if not body:
        return Version(sequence=sequence, memory=known)
    value = document(body, headers)
    if isinstance(value, Invalid):
        return Version(sequence=sequence, memory=known, invalid=value.reason)
    return Version(value=value, sequence=sequence, memory=known)


def document(body: bytes, headers: Mapping[str, str] | None) -> Value | Invalid:
    """Return the document that a stored body is, or why it is none.

    What a broker has written is known to be one, and decoding it takes a twentieth of the time.
    """
    if base_of(headers) is not None:
        try:
            return decode(body)
        except msgspec.MsgspecError:  # whoever has written it
            pass
    return values.parse(body)


def takes_long(record: Record) -> bool:
    """Return whether reading a record takes milliseconds: a large one that no broker has written."""
    return len(record[2]) > LARGE_BYTES and base_of(record[3]) is None


@attrs.frozen(kw_only=True)
class Write:
    """What replaces a version: `body`, with `headers`; `after` is the version that it will be."""

    value: Value | None
    body: bytes
    base: int
    memory: Memory
    headers: Mapping[str, str]

    def after(self, sequence: int) -> Version:
        return Version(value=self.value, sequence=sequence, memory=self.memory)


def write(version: Version, changes: Sequence[Change], value: Value | None, body: bytes) -> Write:
    """Return what some changes make of a version; the last of them names the publisher."""
    base = version.sequence
    known = version.memory.with_changes(each.entry(base) for each in changes)
    headers = {CHANGES: str(known), BASE: str(base), PUBLISHER: changes[-1].user}
    if value is None:
        headers[TTL] = TOMBSTONE_TTL
    return Write(value=value, body=body, base=base, memory=known, headers=headers)


def base_of(headers: Mapping[str, str] | None) -> int | None:
    """Return the sequence that a record replaced; None for one that no broker has written."""
    text = (headers or {}).get(BASE, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else None
