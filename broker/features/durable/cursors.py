"""Durable cursors: the position up to which a user has acknowledged events, by name, on every broker.

A cursor is one value in NATS. Acknowledgements are cumulative and only ever raise it; they are written at
most once a second, so that a crash may lose up to a second of them. A writer states the revision that it
replaces; on a conflict it reads the value again and keeps the higher position. A value that is not a
position, such as the marker of `nats kv del`, counts as no cursor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker import subjects
from broker.beats import beat
from broker.bus.base import Stale, Value
from broker.errors import BrokerError, InvalidPosition, TooManySubscriptions, Unavailable
from broker.wire import positions
from broker.wire.positions import Position

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from broker.bus.base import Bus

WRITE_SECONDS = 1.0
PATIENCE_SECONDS = 5.0  # of a request that waits for a write
WRITTEN_AT_ONCE = 100
TRIES = 5  # attempts while other brokers write the same cursor
NOWHERE = Position("", 0)  # in no stream
RENEWALS = 8  # writes of an unchanged cursor in use, within the time until it would expire

log = structlog.get_logger()


@attrs.define(eq=False)
class Cursor:
    """A cursor in use. `position` is acknowledged, `stored` is in NATS as `revision`.

    `holders` counts the connections that use it; `waiting` are called once a position is stored.
    """

    key: str
    position: Position
    stored: Position
    revision: int
    written: float
    holders: int = 0
    waiting: list[tuple[Position, Callable[[], None]]] = attrs.Factory(list)

    def raise_to(self, position: Position) -> None:
        """Record an acknowledgement; a lower one is ignored. Another incarnation is always newer."""
        if position.incarnation != self.position.incarnation or position.sequence > self.position.sequence:
            self.position = position

    def merge(self, value: Value) -> None:
        """Take over another broker's value.

        If it is of a new stream, only if this broker has no unwritten acknowledgement.
        """
        position = parse(value)
        if position and (position.incarnation == self.position.incarnation or self.position == self.stored):
            self.raise_to(position)
        self.stored, self.revision = position or NOWHERE, value.revision
        self.notify()

    def written_as(self, position: Position, revision: int, now: float) -> None:
        """Record what is in NATS now."""
        self.stored, self.revision, self.written = position, revision, now
        self.notify()

    def notify(self) -> None:
        """Notify those whose acknowledgement has been stored."""
        done = [told for position, told in self.waiting if self.stores(position)]
        self.waiting = [each for each in self.waiting if not self.stores(each[0])]
        for told in done:
            told()

    def stores(self, position: Position) -> bool:
        """Return whether NATS has at least this position; one of a former stream counts as stored."""
        if position.incarnation != self.position.incarnation:
            return True
        return position.incarnation == self.stored.incarnation and position.sequence <= self.stored.sequence


@attrs.define(eq=False)
class Cursors:
    """The cursors used by the connections of this broker.

    A user may have `per_user` of them; an unused one is kept for `max_age` seconds.
    """

    bus: Bus
    per_user: int
    max_age: float
    used: dict[str, Cursor] = attrs.Factory(dict)
    writing: trio.Lock = attrs.Factory(trio.Lock)

    async def hold(
        self, tenant: str, user: str, name: str, begin: Callable[[], Awaitable[Position]]
    ) -> Cursor:
        """Return a user's cursor by name; `begin` returns the position of a new one.

        `release` gives it back. Raises `Unavailable`, and `TooManySubscriptions` when the user has as many as
        allowed.
        """
        folder = subjects.digest(tenant, user)
        key = f"{folder}.{subjects.digest(name)}"
        known = self.used.get(key)  # may be written and dropped meanwhile
        value = await self.bus.cursors.get(key)
        while value is None or not (position := parse(value)):
            if value is None and await self.bus.cursors.count(folder) >= self.per_user:
                raise TooManySubscriptions(f"durable: a user has at most {self.per_user} durable names")
            data, revision = str(await begin()).encode(), value.revision if value else 0
            try:
                value = Value(data=data, revision=await self.bus.cursors.put(key, data, revision=revision))
            except Stale:  # created by another broker at the same time
                value = await self.bus.cursors.get(key)
        fresh = Cursor(key, position, position, value.revision, trio.current_time())
        cursor = self.used.setdefault(key, known or fresh)
        if value.revision > cursor.revision:
            cursor.merge(value)
        cursor.holders += 1
        return cursor

    def release(self, cursor: Cursor) -> None:
        cursor.holders -= 1

    async def store(self, cursor: Cursor, position: Position) -> None:
        """Raise a cursor, and return once that is stored. Raises `Unavailable` when it takes too long."""
        cursor.raise_to(position)
        stored = trio.Event()
        cursor.waiting.append((position, stored.set))
        cursor.notify()
        with trio.move_on_after(PATIENCE_SECONDS):
            await stored.wait()
            return
        raise Unavailable("the acknowledgement is not stored yet; send it again", retry_after=WRITE_SECONDS)

    async def run(self) -> None:
        """Write acknowledgements each second, and keep cursors in use from expiring."""
        while True:
            await beat(WRITE_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write now what has not been written, as far as NATS takes it."""
        async with self.writing:
            now = trio.current_time()
            due = [cursor for cursor in self.used.values() if self.is_due(cursor, now)]
            try:
                for start in range(0, len(due), WRITTEN_AT_ONCE):
                    await self.write_all(due[start : start + WRITTEN_AT_ONCE])
            except BrokerError as error:
                log.debug("cursors_not_written", error=error.message)
            for cursor in list(self.used.values()):
                if not cursor.holders and cursor.position == cursor.stored:
                    del self.used[cursor.key]

    def is_due(self, cursor: Cursor, now: float) -> bool:
        """Return whether a cursor is to be written: it has moved, or is in use and would expire."""
        late = self.max_age and now > cursor.written + self.max_age / RENEWALS
        return cursor.position != cursor.stored or bool(cursor.holders and late)

    async def write_all(self, cursors: Sequence[Cursor]) -> None:
        """Write cursors together, and those that another broker has written one by one."""
        positions = [cursor.position for cursor in cursors]
        puts = [
            (cursor.key, str(position).encode(), cursor.revision)
            for cursor, position in zip(cursors, positions, strict=True)
        ]
        revisions = await self.bus.cursors.put_all(puts)
        for cursor, position, revision in zip(cursors, positions, revisions, strict=True):
            if revision is not None:
                cursor.written_as(position, revision, trio.current_time())
        for cursor, revision in zip(cursors, revisions, strict=True):
            if revision is None:
                await self.reconcile(cursor)

    async def reconcile(self, cursor: Cursor) -> None:
        """Read a cursor that others have written, and write it if it is higher here."""
        for _ in range(TRIES):
            if value := await self.bus.cursors.get(cursor.key):
                cursor.merge(value)
            else:
                cursor.stored, cursor.revision = NOWHERE, 0
            position, now = cursor.position, trio.current_time()
            if position == cursor.stored:  # for example, the answer to our own write was lost
                cursor.written = now
                return
            data = str(position).encode()
            try:
                revision = await self.bus.cursors.put(cursor.key, data, revision=cursor.revision)
            except Stale:
                continue
            cursor.written_as(position, revision, now)
            return
        log.debug("cursor_contended", key=cursor.key)  # retried in a second


def parse(value: Value) -> Position | None:
    try:
        return positions.parse(value.data.decode())
    except (InvalidPosition, UnicodeDecodeError):
        return None
