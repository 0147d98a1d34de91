"""Durable cursors: up to where a user has dealt with its events, under a name, on whichever broker.

A cursor is one value in NATS. Acknowledgements are cumulative and only ever raise it; they are written at
most once a second, so that up to a second of them may be lost in a crash. Writers replace a revision
that they know; who is told that it was another reads it again and keeps the higher position. What is no
position, such as what `nats kv del` leaves, is as good as no cursor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker import subjects
from broker.bus.base import Stale, Value
from broker.errors import BrokerError, InvalidPosition, TooManySubscriptions, Unavailable
from broker.wire import positions
from broker.wire.positions import Position

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from broker.bus.base import Bus

WRITE_SECONDS = 1.0
PATIENCE_SECONDS = 5.0  # of a request that waits for that
WRITTEN_AT_ONCE = 100
TRIES = 5  # against other brokers that write the same cursor
NOWHERE = Position("", 0)  # of no stream
RENEWALS = 8  # writes of an unchanged cursor in use, within the time after which it would expire

log = structlog.get_logger()


@attrs.define(eq=False)
class Cursor:
    """One cursor in use. `position` is acknowledged, `stored` is in NATS as `revision`.

    `holders` counts the connections that use it; `waiting` are told once a position is stored.
    """

    key: str
    position: Position
    stored: Position
    revision: int
    written: float
    holders: int = 0
    waiting: list[tuple[Position, Callable[[], None]]] = attrs.Factory(list)

    def raise_to(self, position: Position) -> None:
        """Notes an acknowledgement; a lower one is ignored. Another incarnation is always newer."""
        if position.incarnation != self.position.incarnation or position.sequence > self.position.sequence:
            self.position = position

    def merge(self, value: Value) -> None:
        """Takes over what another broker wrote; in a stream that began anew unless that is known here too."""
        position = parse(value)
        if position and (position.incarnation == self.position.incarnation or self.position == self.stored):
            self.raise_to(position)
        self.stored, self.revision = position or NOWHERE, value.revision
        self.notify()

    def written_as(self, position: Position, revision: int, now: float) -> None:
        """Notes what is in NATS now."""
        self.stored, self.revision, self.written = position, revision, now
        self.notify()

    def notify(self) -> None:
        """Tells those whose acknowledgement is stored by now."""
        done = [told for position, told in self.waiting if self.stores(position)]
        self.waiting = [each for each in self.waiting if not self.stores(each[0])]
        for told in done:
            told()

    def stores(self, position: Position) -> bool:
        """Whether NATS has at least this position. One of a stream that is gone is as good as stored."""
        if position.incarnation != self.position.incarnation:
            return True
        return position.incarnation == self.stored.incarnation and position.sequence <= self.stored.sequence


@attrs.define(eq=False)
class Cursors:
    """The cursors that this broker's connections use.

    A user may have `per_user`; one that is not used is kept for `max_age` seconds.
    """

    bus: Bus
    per_user: int
    max_age: float
    used: dict[str, Cursor] = attrs.Factory(dict)
    writing: trio.Lock = attrs.Factory(trio.Lock)

    async def hold(
        self, tenant: str, user: str, name: str, begin: Callable[[], Awaitable[Position]]
    ) -> Cursor:
        """The cursor of a user under a name; `begin` says where a new one is to stand.

        `release` gives it back. Raises `Unavailable`, and `TooManySubscriptions` when the user has
        as many as it may.
        """
        folder = subjects.digest(tenant, user)
        key = f"{folder}.{subjects.digest(name)}"
        known = self.used.get(key)  # may be written and dropped while NATS is asked
        value = await self.bus.cursors.get(key)
        while value is None or not (position := parse(value)):
            if value is None and await self.bus.cursors.count(folder) >= self.per_user:
                raise TooManySubscriptions(f"durable: a user has at most {self.per_user} durable names")
            data, revision = str(await begin()).encode(), value.revision if value else 0
            try:
                value = Value(data=data, revision=await self.bus.cursors.put(key, data, revision=revision))
            except Stale:  # made elsewhere at this very moment
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
        """Raises a cursor, and returns once that is in NATS. Raises `Unavailable` when it takes too long."""
        cursor.raise_to(position)
        stored = trio.Event()
        cursor.waiting.append((position, stored.set))
        cursor.notify()
        with trio.move_on_after(PATIENCE_SECONDS):
            await stored.wait()
            return
        raise Unavailable("the acknowledgement is not stored yet; send it again", retry_after=WRITE_SECONDS)

    async def run(self) -> None:
        """Writes what has been acknowledged, and keeps what is in use from expiring."""
        while True:
            await trio.sleep(WRITE_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Writes now what is not written yet, as far as NATS takes it."""
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
        """Whether it is to be written: it has moved, or is in use and would expire."""
        late = self.max_age and now > cursor.written + self.max_age / RENEWALS
        return cursor.position != cursor.stored or bool(cursor.holders and late)

    async def write_all(self, cursors: Sequence[Cursor]) -> None:
        """Writes cursors together, and those by themselves that another broker has written."""
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
        """Reads a cursor that others have written, and writes it if it is higher here."""
        for _ in range(TRIES):
            if value := await self.bus.cursors.get(cursor.key):
                cursor.merge(value)
            else:
                cursor.stored, cursor.revision = NOWHERE, 0
            position, now = cursor.position, trio.current_time()
            if position == cursor.stored:  # as after a write of ours whose answer was lost
                cursor.written = now
                return
            data = str(position).encode()
            try:
                revision = await self.bus.cursors.put(cursor.key, data, revision=cursor.revision)
            except Stale:
                continue
            cursor.written_as(position, revision, now)
            return
        log.debug("cursor_contended", key=cursor.key)  # others keep writing it: in a second once more


def parse(value: Value) -> Position | None:
    try:
        return positions.parse(value.data.decode())
    except (InvalidPosition, UnicodeDecodeError):
        return None
