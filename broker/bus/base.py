"""The port to NATS: what actors and features need of it, and nothing that names a library.

All methods are called from Trio tasks. A `Sink` is called from one Trio task of the bus; its methods
return at once and never block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs
import trio

from broker.ranges import NOTHING, Ranges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

# (sequence, subject, body, headers). A live message has sequence 0. A tuple, since one is made for
# each message and a frozen attrs object costs eight times as much.
Record: TypeAlias = "tuple[int, str, bytes, Mapping[str, str] | None]"

Message: TypeAlias = "tuple[str, bytes, str]"  # subject, body, and the id under which it is stored once
Put: TypeAlias = "tuple[str, bytes, int]"  # key, data, and the revision that is replaced (0: there is none)


@attrs.frozen(kw_only=True)
class StreamState:
    """What the stream holds: sequences `first` to `last` (`first` is `last + 1` when it is empty).

    `incarnation` names this creation of the stream: `[a-z0-9]+`, the same for every broker. Sequences
    of different incarnations have nothing to do with each other. `deleted` are those between `first` and
    `last` that are not there; up to `unnamed` there are more, too many to be named. Of a subject the
    stream keeps `per_subject` messages (0: all). A message's id is known for `duplicate_window`
    seconds; without it the bus has not said.
    """

    incarnation: str
    first: int
    last: int
    deleted: Ranges = NOTHING
    unnamed: int = 0
    per_subject: int = 0
    duplicate_window: float | None = None


@attrs.frozen(kw_only=True)
class Usage:
    """How much the stream holds; `max_bytes` is None where it has no such bound."""

    messages: int
    bytes: int
    first: int
    last: int
    max_bytes: int | None


@attrs.frozen(kw_only=True)
class Page:
    """A run of stored records in sequence order; `pending` more that match follow in the stream."""

    records: list[Record]
    pending: int


@attrs.frozen(kw_only=True)
class PublishAck:
    """The stream's word that it has the message; of a `duplicate` it is the first copy's sequence."""

    sequence: int
    duplicate: bool


@attrs.frozen(kw_only=True)
class Value:
    """A small value that is kept by key; `revision` is what a put replaces."""

    data: bytes
    revision: int


@attrs.frozen(kw_only=True)
class Entry:
    """A stored message as `Archive` shows it; `time` is when NATS stored it."""

    sequence: int
    subject: str
    time: datetime
    headers: Mapping[str, str]
    body: bytes


@attrs.frozen(kw_only=True)
class Mark:
    """How much of a bucket has been read: up to `sequence`, in the bucket of that `incarnation`."""

    incarnation: str
    sequence: int


@attrs.frozen(kw_only=True)
class Change:
    """A setting in which a stream differs from the configuration.

    `setting` is the server's name, `key` ours where it has one. With `loses` what is `wanted` would delete
    events, copies of them, or the memory of ids, or leave out subjects that are kept or published again.
    """

    setting: str
    key: str | None
    found: str
    wanted: str
    loses: bool

    def __str__(self) -> str:
        """Ours → theirs."""
        return f"{self.key or self.setting}: {self.wanted} → {self.found}"


@attrs.frozen(kw_only=True)
class Standing:
    """A stream that the broker works with: whether it is `ours`, and why it cannot be used, if so."""

    stream: str
    ours: bool
    fault: str | None
    changes: tuple[Change, ...]


class Stale(Exception):
    """The value was replaced by somebody else meanwhile."""


class Values(Protocol):
    """Small values by key, the same for every broker. A key is tokens of [A-Za-z0-9_-] joined by ".".

    Requests raise `errors.Unavailable` as those of `Bus` do.
    """

    async def get(self, key: str) -> Value | None:
        """Return the newest value under a key; None when there is none."""

    async def put(self, key: str, data: bytes, *, revision: int, ttl: float | None = None) -> int:
        """Replace a revision (0: there is none yet) for `ttl` seconds (None: for good); the new one.

        Raises `Stale` when it was another.
        """

    async def put_all(self, puts: Sequence[Put]) -> list[int | None]:
        """Replace revisions of different keys, a hundred or so; the new ones, None where it was another.

        Where it raises, any of them may have been stored.
        """

    async def count(self, prefix: str) -> int:
        """Return how many keys there are under `prefix`."""

    async def news(self, prefix: str, mark: Mark | None) -> tuple[list[bytes], Mark]:
        """Return what has been put under `prefix` since `mark` (None: all there is), oldest first; how
        far it goes.

        Of a key that was put twice only the newest, or others before it.
        """


class Sink(Protocol):
    """Who gets what arrives: the supervisor."""

    async def reached(self) -> None:
        """NATS answers, before `restored`: for what has to be read before anything is delivered.

        Raises `Unavailable` when it cannot be; then the bus connects once more.
        """

    def restored(self, state: StreamState) -> None:
        """The stream can be reached: first, and after each interruption, before the next `stored`.

        The feed goes on after the last `head` when the incarnation is the same and nothing was cut off
        its end; else it starts over at `state.first`, and `state.incarnation` differs from the last.
        """

    def stored(self, records: list[Record], head: int, stored_at: float | None) -> None:
        """The next stored records in sequence order: all there are after the last call up to `head`.

        `stored_at` is when NATS stored the first of them, in Unix seconds by its clock; None without any.
        """

    def skipped(self, state: StreamState) -> None:
        """Something of what follows was deleted unread: the stream is now as `state` says."""

    def live(self, records: list[Record]) -> None:
        """Live messages in order of arrival."""

    def live_lost(self) -> None:
        """Live messages were dropped before they came here; how many and which is not known."""

    def interrupted(self) -> None:
        """NATS is out of reach. `restored` follows."""


class Archive(Protocol):
    """One of the streams as people look at it. All methods raise `Unavailable`.

    What is listed may lag behind by some seconds where the stream has replicas.
    """

    async def after(self, subject: str, sequence: int, *, limit: int) -> list[Entry]:
        """Return the first `limit` that match a subject filter after a sequence, oldest first."""

    async def before(self, subject: str, sequence: int | None, *, limit: int) -> list[Entry]:
        """Return the last `limit` that match before a sequence (None: of all), newest first."""

    async def sequence_at(self, time: datetime) -> int | None:
        """Return the first sequence stored at or after `time`; None when there is none yet."""

    async def get(self, sequence: int) -> Entry | None:
        """Return the message at a sequence, if it is still there."""

    async def delete(self, sequence: int) -> bool:
        """Take one message out; False when it was not there."""

    async def purge(self, subject: str) -> int:
        """Take out all that match a subject filter; how many."""


class Bus(Protocol):
    """One connection to NATS that is kept for ever.

    `cursors` and `control` are buckets of values. Requests raise `errors.Unavailable` while NATS is away and
    when no answer comes in time.
    """

    @property
    def cursors(self) -> Values: ...

    @property
    def control(self) -> Values: ...

    async def run(self, sink: Sink, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, makes the streams, feeds `sink`, and begins again whenever the client is gone.

        Reports started at once; the first `restored` says that NATS was reached.
        """

    async def publish(
        self,
        subject: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
    ) -> PublishAck:
        """Store one message and wait for the stream's acknowledgement."""

    async def publish_all(self, messages: Sequence[Message]) -> None:
        """Store messages, all on their way at once, and return when the stream has acknowledged each.

        Raises `Unavailable` when one is not. Some may have been stored all the same; under their ids they
        may be sent again.
        """

    @property
    def heard(self) -> float | None:
        """Trio's clock when the feed gave its last sign, if only that it lives; None before the first."""

    async def probe(self) -> None:
        """Ask the stream whether it takes events, without giving it one.

        Raises `Unavailable` with what is in the way: no answer within 2 s, no room in a stream that would
        rather refuse the new than lose the old, or that it refused the last event.
        """

    async def prepare_audit(self) -> None:
        """Make the stream of the audit trail when it is missing. Events do not wait for it."""

    @property
    def streams(self) -> Sequence[str]:
        """The names of the streams that the broker works with, those of buckets among them."""

    async def examine(self, stream: str) -> Standing:
        """Return how one of the streams that the broker works with stands to the configuration.

        Raises `NotFound` for another stream, and where there is none yet.
        """

    async def adopt(self, stream: str) -> Standing:
        """Make it ours, and as the configuration has it; what it was before. Raises as `examine` does."""

    async def publish_live(
        self, subject: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Hand one message to NATS without storing it, and return when the server has taken it."""

    async def subscribe_live(self, subject: str) -> None:
        """Have messages of `subject` given to `Sink.live`, and return once NATS has confirmed it.

        Kept over reconnections until `unsubscribe_live`.
        """

    async def unsubscribe_live(self, subject: str) -> None: ...

    async def state(self) -> StreamState:
        """Return the stream as it is now. Requests at the same time share one answer."""

    async def usage(self) -> Usage:
        """Return how much the stream holds."""

    async def tally(self, subject: str, *, token: int) -> Mapping[str, int]:
        """Return how many messages the stream holds under a filter, by one token (from 0) of their subjects.

        It takes time and memory with the number of subjects: for now and then.
        """

    async def read(self, subject: str, *, after: int, limit: int) -> Page:
        """Return at most `limit` stored records that match the subject filter, after the sequence `after`.

        Batched direct get (ADR-31); bounded by bytes too, and never empty while some match. May lag
        behind the feed by some seconds where the stream has replicas.
        """

    async def last(self, subjects: Sequence[str], *, up_to: int) -> list[Record]:
        """Return the newest record at or below `up_to` of each of the subjects, in sequence order."""

    async def subjects(self, subject: str, *, limit: int) -> list[str] | None:
        """Return the subjects under a filter that hold a message, or None when they are more than `limit`."""

    async def sequence_at(self, time: datetime) -> int | None:
        """Return the sequence of the first record stored at or after `time`; None when there is none yet."""

    def archive(self, stream: str) -> Archive:
        """Return a stream by its name."""
