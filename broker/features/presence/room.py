"""A room: who is present in a channel, as this broker sees it, and what has changed since. No I/O."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
import trio

from broker.features.presence import records
from broker.wire.positions import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from broker.keyed.collection import Collection
    from broker.keyed.rows import Row
    from broker.keyed.view import View
    from broker.keyed.watch import Watch

COUNT_MEMBERS, COUNT_BYTES = 1000, 262_144  # from here on only numbers are shown ...
BACK = 0.9  # ... until it is below this part of both
SAMPLE = 50
COUNTED = "count"  # at the end of the epoch in a position
FRAME_BYTES = 32_768
SPARE_GONE = 1000  # that are remembered beside as many as there are members

Detail = Literal["full", "count"]


class Own(Protocol):
    """A member whose connection this broker has: it knows better than the stream."""

    def hear(self, row: Row) -> bool:
        """Take what the stream says of it. Return whether that is to be shown."""

    def missing(self) -> None:
        """Note that the stream does not have it."""


class Lives(Protocol):
    def lost(self, broker: str, revision: int) -> bool:
        """Return whether a broker that wrote a message has died since."""


class Shown:
    """A member as it is shown: `data` is its JSON, and on Trio's clock it `ends` by itself."""

    __slots__ = ("broker", "data", "ends", "revision", "session", "user")

    def __init__(self, stored: records.Stored, data: bytes, row: Row) -> None:
        self.user = stored.user
        self.session = stored.session
        self.data = data
        self.revision = row.revision
        self.broker = records.field(row.headers, records.INSTANCE)
        self.ends = trio.current_time() + records.life(row.headers)

    @property
    def departed(self) -> bytes:
        return msgspec.json.encode({"user": self.user, "session": self.session})


class Change:
    """A key that has changed: in which version of the room, and at which sequence of the stream.

    `departed` is the JSON of a member that has gone, `sampled` whether it was in the sample.
    """

    __slots__ = ("at", "departed", "sampled", "user", "version")

    def __init__(self, version: int, at: int, user: str, departed: bytes, *, sampled: bool) -> None:
        self.version = version
        self.at = at
        self.user = user
        self.departed = departed
        self.sampled = sampled


class News:
    """What has changed in a room: for all watchers, and for those of some users besides."""

    __slots__ = ("came", "gone", "own", "shared")

    def __init__(self) -> None:
        self.came: list[bytes] = []
        self.gone: list[bytes] = []
        self.own: dict[str, News] = {}
        self.shared: bytes | None = None  # the message without those besides

    def of(self, user: str) -> News:
        return self.own.setdefault(user, News())

    def message(self, room: Room, user: str) -> bytes:
        if (own := self.own.get(user)) is not None:
            # What an own member is now counts: it is told as gone only where it is.
            gone = [each for each in self.gone if each not in own.departures(room, user)]
            return room.frame([*self.came, *own.came], [*gone, *own.gone])
        if self.shared is None:
            self.shared = room.frame(self.came, self.gone)
        return self.shared

    @staticmethod
    def departures(room: Room, user: str) -> set[bytes]:
        """Return how the members of a user that are present would be told as gone."""
        return {room.members[key].departed for key in room.keys.get(user, ())}


class Room:
    """The members of a channel by their keys, kept up to date by a collection.

    `version` counts what has changed, and `changes` are the last ones by key, oldest first. Of changes up to
    the sequence `floor` some are not known any more. `orphans` are members that were lost with the stream,
    and until when (Trio's clock) they may come back.
    """

    def __init__(
        self,
        channel: str,
        collection: Collection[Watch],
        view: View,
        lives: Lives,
        changed: Callable[[Room], None],
    ) -> None:
        self.channel = channel
        self.collection = collection
        self.view = view
        self.lives = lives
        self.changed = changed
        self.own: dict[str, Own] = {}
        self.members: dict[str, Shown] = {}
        self.keys: dict[str, dict[str, None]] = {}  # of each user
        self.size = 0
        self.version = 0
        self.changes: dict[str, Change] = {}
        self.floor = view.head
        self.epoch = view.stream
        self.orphans: dict[str, float] = {}
        self.linger = 30.0
        self.detail: Detail = "full"
        self.sample: dict[str, None] = {}
        self.cache: dict[int, News] = {}  # by the version after which
        self.pages: list[bytes] = []  # all members, where they have been asked for
        collection.listener = self
        if collection.loaded:
            self.filled()

    # --- what the collection says ------------------------------------------------------------------

    def put(self, row: Row) -> None:
        """Take a row of the feed."""
        own = self.own.get(row.key)
        if own is None or own.hear(row):
            self.show(row)

    def filled(self) -> None:
        """Take the rows that have been loaded, in place of those before."""
        if self.epoch != self.view.stream:
            self.epoch, self.floor = self.view.stream, self.view.head
            until = trio.current_time() + self.linger
            for key in self.members.keys() - self.own.keys():
                self.orphans.setdefault(key, min(until, self.members[key].ends))
        rows = self.collection.rows
        for row in list(rows.after(0)):
            self.put(row)
        for key in list(self.members):
            if rows.get(key) is None and key not in self.own and key not in self.orphans:
                self.drop(key)
        for key, own in list(self.own.items()):
            if rows.get(key) is None:
                own.missing()

    def disown(self, key: str) -> None:
        """Believe the stream again."""
        del self.own[key]
        if (row := self.collection.rows.get(key)) is not None:
            self.show(row)
        elif self.collection.loaded:
            self.drop(key)

    # --- members -----------------------------------------------------------------------------------

    def show(self, row: Row) -> None:
        """Show what a row says."""
        current = records.field(row.headers, records.EPOCH) == self.view.stream
        stored = records.understood(row.key, row.body) if current else None
        if stored is None:
            if row.deleted or row.key not in self.orphans:
                self.drop(row.key)
            return
        self.orphans.pop(row.key, None)
        lost = self.lives.lost(records.field(row.headers, records.INSTANCE), row.revision)
        data = records.shown(stored, lost=lost, now=time.time())
        before = self.members.get(row.key)
        member = self.members[row.key] = Shown(stored, data, row)
        if before is not None:
            self.size -= len(before.data)
        else:
            self.keys.setdefault(member.user, {})[row.key] = None
            if len(self.sample) < SAMPLE:
                self.sample[row.key] = None
        self.size += len(data)
        if before is None or before.data != data:
            self.note(row.key, member.user)

    def drop(self, key: str) -> None:
        """Show a member no longer, if it was shown."""
        self.orphans.pop(key, None)
        member = self.members.pop(key, None)
        if member is None:
            return
        self.size -= len(member.data)
        keys = self.keys[member.user]
        del keys[key]
        if not keys:
            del self.keys[member.user]
        self.note(key, member.user, member.departed)
        if key in self.sample:
            del self.sample[key]
            successor = next((each for each in self.members if each not in self.sample), None)
            if successor is not None:
                self.sample[successor] = None
                self.note(successor, self.members[successor].user)

    def note(self, key: str, user: str, departed: bytes = b"") -> None:
        self.version += 1
        before = self.changes.pop(key, None)
        # Who was in the sample is known to watchers, until they have been told that it has gone.
        sampled = key in self.sample or (before is not None and before.sampled)
        self.changes[key] = Change(self.version, self.view.head, user, departed, sampled=sampled)
        self.cache.clear()
        self.pages = []
        if len(self.changes) > 2 * len(self.members) + 2 * SPARE_GONE:
            self.forget()
        self.judge_size()
        self.changed(self)

    def forget(self) -> None:
        """Forget the oldest changes."""
        for key, change in list(self.changes.items())[: len(self.changes) // 2]:
            del self.changes[key]
            self.floor = max(self.floor, change.at)

    def judge_size(self) -> None:
        """Decide whether all members are shown or their numbers alone."""
        factor = BACK if self.detail == "count" else 1.0
        large = len(self.members) >= COUNT_MEMBERS * factor or self.size >= COUNT_BYTES * factor
        self.detail = "count" if large else "full"

    def overlay(self, broker: str) -> None:
        """Show the members of a broker as they are now that something has become of it."""
        for key, member in list(self.members.items()):
            row = self.collection.rows.get(key)
            if member.broker == broker and row is not None and key not in self.own:
                self.show(row)

    def expire(self, now: float) -> None:
        """Drop members that were lost with the stream and have not come back."""
        for key, until in list(self.orphans.items()):
            if until <= now:
                self.drop(key)

    # --- what clients are told ---------------------------------------------------------------------

    @property
    def position(self) -> str:
        """Where who watches may resume. Who has been shown numbers alone may not."""
        mark = "" if self.detail == "full" else COUNTED
        return str(Position((self.view.stream or "") + mark, self.view.head))

    def resumes(self, position: Position) -> bool:
        """Return whether all that has changed since a position is known."""
        return position.incarnation == self.epoch and self.floor <= position.sequence <= self.view.head

    def since(self, sequence: int, user: str) -> bytes:
        """Return the message with what has changed since a sequence of the stream."""
        return self.news(key for key, change in self.changes.items() if change.at >= sequence).message(
            self, user
        )

    def after(self, version: int, user: str) -> bytes:
        """Return the message with what has changed after a version, for a watcher of this user."""
        news = self.cache.get(version)
        if news is None:
            keys: list[str] = []
            for key in reversed(self.changes):
                if self.changes[key].version <= version:
                    break
                keys.append(key)
            news = self.cache[version] = self.news(reversed(keys))
        return news.message(self, user)

    def news(self, keys: Iterable[str]) -> News:
        """Return what is to be told of some keys that have changed."""
        found = News()
        for key in keys:
            change, member = self.changes[key], self.members.get(key)
            sampled = self.detail == "full" or key in self.sample
            known = self.detail == "full" or change.sampled
            if member is None and known:
                found.gone.append(change.departed)
            elif member is not None and sampled:
                found.came.append(member.data)
            elif member is None:
                found.of(change.user).gone.append(change.departed)
            else:
                found.of(change.user).came.append(member.data)
                if known:  # it has given its place in the sample to another
                    found.gone.append(member.departed)
        return found

    def whole(self, user: str) -> list[bytes]:
        """Return the messages with all members that a watcher of this user sees."""
        if self.detail == "full":
            if not self.pages:
                self.pages = self.parts(member.data for member in self.members.values())
            return self.pages
        keys = [*self.sample, *(key for key in self.keys.get(user, ()) if key not in self.sample)]
        return self.parts(self.members[key].data for key in keys)

    def parts(self, members: Iterable[bytes]) -> list[bytes]:
        """Return messages of at most `FRAME_BYTES`, or of one member, with all of these."""
        pages: list[list[bytes]] = [[]]
        size = 0
        for data in members:
            if pages[-1] and size + len(data) > FRAME_BYTES - 1024:
                pages.append([])
                size = 0
            pages[-1].append(data)
            size += len(data) + 1
        return [
            self.frame(page, [], b',"whole":true' + (b',"complete":true' if page is pages[-1] else b""))
            for page in pages
        ]

    def frame(self, came: list[bytes], gone: list[bytes], more: bytes = b"") -> bytes:
        return (
            b'{"type":"presence","payload":{"channel":%b,"position":"%b","set":[%b],"gone":[%b],'
            b'"users":%d,"sessions":%d%b}}'
        ) % (
            msgspec.json.encode(self.channel),
            self.position.encode(),
            b",".join(came),
            b",".join(gone),
            len(self.keys),
            len(self.members),
            more,
        )
