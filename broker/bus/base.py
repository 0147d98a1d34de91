"""The port to NATS: what actors and features need of it, and nothing that names a library.

All methods are called from Trio tasks. A `Sink` is called from one Trio task of the bus; its methods
return at once and never block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs
import trio

from broker.errors import BrokerError, Unavailable
from broker.ranges import NOTHING, Ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

# (sequence, subject, body, headers). A live message has sequence 0. A tuple, since one is made for
# each message and a frozen attrs object costs eight times as much.
Record: TypeAlias = "tuple[int, str, bytes, Mapping[str, str] | None]"

Message: TypeAlias = "tuple[str, bytes, str]"  # subject, body, and the id under which it is stored once
Put: TypeAlias = "tuple[str, bytes, int]"  # key, data, and the revision that is replaced (0: there is none)
# Subject, body, headers, and the sequence of the message that is replaced (0: there is none).
KeyedPut: TypeAlias = "tuple[str, bytes, Mapping[str, str], int]"
AnyPut: TypeAlias = "tuple[str, bytes, Mapping[str, str], int | None]"  # None: whatever is there


@attrs.frozen(kw_only=True)
class StreamState:
    """What the stream holds: sequences `first` to `last` (`first` is `last + 1` when it is empty).

    `incarnation` names this creation of the stream: `[a-z0-9]+`, the same for every broker. Sequences
    of different incarnations are unrelated. `deleted` are those between `first` and `last` that are missing;
    up to `unnamed` more are missing, too many to list. The stream keeps `per_subject` messages of each
    subject (0: all) and recognises a message id for `duplicate_window` seconds (None: not known).
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
    """A run of stored records in sequence order; `pending` more that match follow in the stream.

    `times` is when NATS stored each (ns since 1970, by its clock).
    """

    records: list[Record]
    pending: int
    times: list[int] = attrs.Factory(list)


@attrs.frozen(kw_only=True)
class PublishAck:
    """The stream's acknowledgement; for a `duplicate`, `sequence` is that of the first copy."""

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

    `setting` is the server's name, `key` the configuration's where it has one. `loses`: applying `wanted`
    would delete events, replicas or remembered ids, or drop subjects that are stored or republished.
    """

    setting: str
    key: str | None
    found: str
    wanted: str
    loses: bool

    def __str__(self) -> str:
        """The configuration's value → the stream's."""
        return f"{self.key or self.setting}: {self.wanted} → {self.found}"


@attrs.frozen(kw_only=True)
class Standing:
    """How a stream stands: whether it is `ours`, why it cannot be used (`fault`), and how it differs."""

    stream: str
    ours: bool
    fault: str | None
    changes: tuple[Change, ...]


@attrs.frozen(kw_only=True)
class Count:
    """How many messages a stream of this `incarnation` held when its last sequence was `last`."""

    incarnation: str
    last: int
    messages: int


class Stale(Exception):
    """The value was replaced by somebody else meanwhile."""


class NoRoom(Unavailable):
    """The stream is full, and stores nothing new. Some of what is there may be replaced."""


class OutcomeUnknown(Exception):
    """What was sent may have been stored: no answer came."""


class Values(Protocol):
    """Small values by key, the same for every broker. A key is tokens of [A-Za-z0-9_-] joined by ".".

    Requests raise `errors.Unavailable` as those of `Bus` do; what a put should have stored may then be stored
    all the same.
    """

    async def get(self, key: str) -> Value | None:
        """Return the newest value under a key; None when there is none."""

    async def put(self, key: str, data: bytes, *, revision: int, ttl: float | None = None) -> int:
        """Replace a revision (0: there is none yet) and return the new one; it lives for `ttl` seconds
        (None: always).

        Raises `Stale` when the present revision is another. After its time a value is gone as if it had never
        been put; where values stay, as in `cursors`, a `ttl` is refused as `Unavailable`.
        """

    async def put_all(self, puts: Sequence[Put]) -> list[int | None]:
        """Replace revisions of different keys, a hundred or so; return the new ones, None for each that was
        stale.

        When this raises, any of them may have been stored.
        """

    async def count(self, prefix: str) -> int:
        """Return how many keys there are under `prefix`: those that begin with it and a "."."""

    async def news(self, prefix: str, mark: Mark | None) -> tuple[list[bytes], Mark]:
        """Return what was put under `prefix` since `mark` (None: all), oldest first, and the new mark.

        Earlier values of a key may be left out. A mark of another bucket counts as none.
        """


class Feed(Protocol):
    """The receiver of a stream's records."""

    def restored(self, state: StreamState) -> None:
        """Record that the stream can be reached, at first and after each interruption, before `stored`.

        The feed continues after the last `head` when the incarnation is the same and nothing was cut off
        its end; otherwise `state.incarnation` differs, and the feed starts again at `state.first`. Records
        between the last `head` and `state.first` were deleted before they were read; when that happens
        during the feed, `interrupted` and `restored` follow each other at once, without `reached`.
        """

    def stored(self, records: list[Record], head: int, times: Sequence[int]) -> None:
        """Take the next stored records in sequence order: all between the last call's `head` and this one.

        `times` is when NATS stored each of them (ns since 1970, by its clock). The first call of an
        incarnation has no records: its `head` is where the feed begins. A broker that starts may begin some
        seconds back, or at the end of the stream.
        """

    def skipped(self, state: StreamState) -> None:
        """Record that some of the next records were deleted before they were read; `state` is the stream
        now, and `deleted` has them.

        Called before the records that follow the missing ones; not for a stream with `per_subject`, where
        that is usual, nor for records before `state.first`, see `restored`.
        """

    def interrupted(self) -> None:
        """Record that NATS is out of reach. `restored` follows."""


class Sink(Feed, Protocol):
    """The receiver of what arrives: the supervisor."""

    async def reached(self) -> None:
        """Read what has to be known before anything is delivered: NATS answers, and `restored` follows.

        Called on each new connection, when the live subscriptions have been renewed. Raises `Unavailable`
        when it cannot be read; the bus then connects again.
        """

    def live(self, records: list[Record]) -> None:
        """Take live messages in order of arrival: each once for each subscription that it matches."""

    def live_lost(self) -> None:
        """Record that live messages were dropped on the way; how many and which is not known."""


class Keyed(Protocol):
    """A stream that keeps the newest message of each subject: its *key*, with the message's sequence as
    revision.

    A message with an empty body deletes its key; the server puts one, a marker, where a key's time to live
    has ended. Besides its own headers a record may have those that were for NATS (`Nats-…`). Requests raise
    `Unavailable` as those of `Bus` do, also when no stream has the subjects. Events do not wait for any of
    this.
    """

    async def run(self, feed: Feed) -> None:
        """Make the stream, feed `feed`, and begin again whenever that is interrupted, for ever.

        The feed begins at the end of the stream. After an interruption it continues behind its head, with the
        newest message of each key that was stored meanwhile, and names another `incarnation` only when the
        stream is another one. `skipped` is never called. What `feed` raises is raised here; called again,
        this continues as after an interruption.
        """

    async def load(
        self, filters: Sequence[str], *, at_least: int, take: Callable[[list[Record]], None]
    ) -> str:
        """Give `take` the newest record of each key under subjects and subject filters, in pages.

        Those that delete are among them; a page has the order of the stream, the pages have none. Return the
        incarnation of the stream. What `take` raises ends this.

        All that was stored up to the sequence `at_least` is contained or has been replaced by what is: with
        the head of the feed, nothing is missing between both. Later records may be contained too.
        """

    async def get(self, subject: str) -> Record | None:
        """Return the newest record of a key, from the stream's leader; None when there is none."""

    async def put(self, subject: str, body: bytes, *, headers: Mapping[str, str], revision: int) -> int:
        """Replace the message with the sequence `revision` (0: there is none) and return the new one.

        Raises `Stale` when another one is the newest, `TooLarge`, `ValueError` for an invalid subject or
        header, `Unavailable` if it certainly was not stored, and `OutcomeUnknown` if it may have been.
        """

    async def put_each(self, puts: Sequence[AnyPut]) -> list[int | Stale | BrokerError]:
        """Replace messages, each by itself and in this order.

        Return for each the new sequence or what `put` raises. A revision of None replaces whatever is there.
        Raises `Unavailable` if certainly none was stored, and `OutcomeUnknown` if any of them may have been.
        """

    async def put_all(self, puts: Sequence[KeyedPut]) -> list[int]:
        """Replace messages of different subjects, all or none, and return the new sequences.

        Raises as `put` does, and `Unavailable` before nats-server 2.12, which knows no atomic batch (ADR-50).
        """

    async def count(self) -> Count:
        """Return how many keys there are, those with a message that deletes them included."""

    async def keys(self, filter_: str, *, at_least: int) -> list[str]:
        """Return the subjects of all keys under a filter, as they are when or after the stream had come to
        the sequence `at_least`.
        """

    async def remembers(self, sequence: int) -> bool:
        """Return whether all that was deleted after a sequence can still be seen: deletions stay for 7 days.

        False also when that cannot be known.
        """


class Archive(Protocol):
    """One of the streams, for operators. All methods raise `Unavailable`.

    A listing may be some seconds old where the stream has replicas.
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
        """Delete one message; return False when it was not there."""

    async def purge(self, subject: str) -> int:
        """Delete all that match a subject filter, and return how many."""


class Bus(Protocol):
    """A connection to NATS that is re-established for ever.

    `cursors` and `control` are buckets of values. Requests raise `errors.Unavailable` while NATS is away, at
    once, and when no answer comes in time. From `Sink.reached` to `Sink.interrupted` they are answered.
    """

    @property
    def cursors(self) -> Values: ...

    @property
    def control(self) -> Values: ...

    async def run(self, sink: Sink, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, make the streams, feed `sink`, and begin again whenever the connection is lost.

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
        """Store one message and wait for the stream's acknowledgement.

        Under one `message_id` it is stored once within `duplicate_window`; without an id it is no duplicate.
        Raises `ValueError` for an invalid subject or header, `TooLarge` above the server's limit, and
        `Unavailable`, also when no stream has the subject; the message may then be stored all the same.
        """

    async def request(
        self, subject: str, body: bytes, *, headers: Mapping[str, str], seconds: float
    ) -> tuple[Mapping[str, str], bytes]:
        """Ask the services that subscribe to `subject`; return the headers and the body of the first answer.

        Raises `Unavailable` if no service has received it, `Timeout` if one may have, `BadAnswer` where it is
        a status of NATS, and otherwise as `publish` does.
        """

    async def publish_all(self, messages: Sequence[Message]) -> None:
        """Store messages, all on their way at once, and return when the stream has acknowledged each.

        Raises `Unavailable` when one is not acknowledged. Some may have been stored all the same; they may
        be sent again under their ids. Raises `ValueError` and `TooLarge` as `publish` does.
        """

    @property
    def heard(self) -> float | None:
        """The time (Trio's clock) of the feed's last sign of life; None before the first."""

    async def probe(self) -> None:
        """Ask the stream whether it would store an event, without storing one.

        Raises `Unavailable` with the reason it would not: no answer within 2 s, no room in a stream with
        `discard: new`, or a refusal of the last event.
        """

    async def prepare_audit(self) -> None:
        """Make the stream of the audit trail when it is missing. Events do not wait for this."""

    @property
    def streams(self) -> Sequence[str]:
        """The names of the streams that the broker works with, including those behind buckets."""

    async def examine(self, stream: str) -> Standing:
        """Compare one of the broker's streams with the configuration.

        Raises `NotFound` for any other stream, and for one that does not exist yet.
        """

    async def adopt(self, stream: str) -> Standing:
        """Make the stream ours and as configured; return how it stood before. Raises as `examine` does."""

    async def publish_live(
        self, subject: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Hand one message to NATS without storing it, and return when the server has taken it.

        Raises `ValueError` and `TooLarge` as `publish` does.
        """

    async def subscribe_live(self, subject: str) -> None:
        """Have messages of `subject` given to `Sink.live`, and return once NATS has confirmed it.

        The subscription outlives reconnections, until `unsubscribe_live`. When this raises there is none,
        now or later. Subscribing again to the same subject changes nothing.
        """

    async def unsubscribe_live(self, subject: str) -> None:
        """End the subscription, if there is one; also while NATS is away."""

    async def state(self) -> StreamState:
        """Return the state of the stream now. Simultaneous requests share one answer."""

    async def usage(self) -> Usage:
        """Return how much the stream holds."""

    async def tally(self, subject: str, *, token: int) -> Mapping[str, int]:
        """Count the messages under a filter, by one token (from 0) of their subjects.

        Time and memory grow with the number of subjects: not for frequent use.
        """

    async def read(self, subject: str, *, after: int, limit: int) -> Page:
        """Return at most `limit` stored records that match the subject filter, after the sequence `after`.

        By batched direct get (ADR-31); bounded by bytes too, and never empty while some match. May lag
        some seconds behind the feed where the stream has replicas.
        """

    async def next(self, subject: str, *, after: Sequence[int]) -> Page:
        """Return the first record after each of some sequences that matches the subject filter.

        Each record is there once, in sequence order. May lag as `read` does, but nothing is counted, so that
        NATS does not search for long while publishers wait: `pending` is 0.
        """

    async def get(self, sequences: Sequence[int]) -> Page:
        """Return the records at some ascending sequences, a hundred or so, without those that are not there.

        May lag as `read` does.
        """

    async def last(self, subjects: Sequence[str], *, up_to: int) -> list[Record]:
        """Return the newest record at or below `up_to` of each of the subjects, in sequence order."""

    async def subjects(self, subject: str, *, limit: int) -> list[str] | None:
        """Return the subjects under a filter that hold a message, or None when they are more than `limit`."""

    async def sequence_at(self, time: datetime) -> int | None:
        """Return the sequence of the first record stored at or after `time`; None when there is none yet."""

    def archive(self, stream: str) -> Archive:
        """Return a stream by its name."""

    def keyed(self, stream: str) -> Keyed:
        """Return one of the configured keyed streams by its name."""
