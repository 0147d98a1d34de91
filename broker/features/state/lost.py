"""Noticing updates that were confirmed and are lost all the same.

Each write of a broker names the version that it replaces. One that names an older version than one which was
confirmed has taken its place without having seen it, whatever the server promised
(https://github.com/nats-io/nats-server/issues/8469).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import attrs

from broker.documents.patches import at, pointer
from broker.features.state import store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker.bus.base import Record
    from broker.documents.patches import Path

REMEMBERED = 10_000  # changes
MOST_PATHS = 64  # of one change, and the characters in them
MOST_CHARACTERS = 1024
MARKER = "Nats-Marker-Reason"  # of what the server stores in place of a message that has expired


def noted(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return the paths to remember: of many, or long ones, that it is something of the document."""
    characters = sum(len(name) for path in paths for name in path)
    return tuple(paths) if len(paths) <= MOST_PATHS and characters <= MOST_CHARACTERS else ((),)


@attrs.frozen(kw_only=True)
class Confirmed:
    """A change that was confirmed to a connection, and what it wrote to, see `noted`."""

    id: str
    connection: str
    touched: tuple[Path, ...] = attrs.field(converter=noted)


@attrs.frozen(kw_only=True)
class LostUpdate:
    """Changes that are gone, and what is there now, at the sequence, by JSON Pointer."""

    subject: str
    sequence: int
    changes: Sequence[Confirmed]
    value: Any

    def paths(self, changes: Sequence[Confirmed]) -> dict[str, Any]:
        return {pointer(path): at(self.value, path) for each in changes for path in each.touched}


@attrs.define(eq=False)
class Ledger:
    """This broker's latest write of each document, until another one has replaced it.

    The oldest are forgotten where they have more than `REMEMBERED` changes, of which `count` is the number.
    `lost` is called for a lost update, `foreign` for a write that says nothing of what it replaces.
    """

    lost: Callable[[LostUpdate], None]
    foreign: Callable[[str], None]
    writes: OrderedDict[str, tuple[int, Sequence[Confirmed]]] = attrs.Factory(OrderedDict)
    heard: dict[str, Record] = attrs.Factory(dict)  # the latest record of each that is being written
    count: int = 0

    def wrote(self, subject: str, sequence: int, changes: Sequence[Confirmed]) -> None:
        """Note a write that was confirmed. The feed may have been faster."""
        self.forget(subject)
        self.writes[subject] = sequence, changes
        self.count += len(changes)
        while self.count > REMEMBERED:
            self.forget(next(iter(self.writes)))
        if record := self.heard.get(subject):
            self.compare(record)

    def hear(self, record: Record, *, writing: bool) -> None:
        """Compare a record of the feed with what was written here. `writing`: something is being written."""
        _, subject, _, headers = record
        if store.base_of(headers) is None and MARKER not in (headers or {}):
            self.foreign(subject)
        if writing:
            self.heard[subject] = record
        self.compare(record)

    def written(self, subject: str) -> None:
        """Note that nothing is being written any more."""
        self.heard.pop(subject, None)

    def forget(self, subject: str) -> None:
        _, changes = self.writes.pop(subject, (0, ()))
        self.count -= len(changes)

    def compare(self, record: Record) -> None:
        sequence, subject, _, headers = record
        written = self.writes.get(subject)
        if written is None or sequence <= written[0]:
            return
        base = store.base_of(headers)
        self.forget(subject)
        if base is not None and base < written[0]:
            version = store.read(record)
            self.lost(LostUpdate(subject=subject, sequence=sequence, changes=written[1], value=version.value))
