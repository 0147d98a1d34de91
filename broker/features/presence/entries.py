"""The members whose connections this broker has: each is written until the stream says what it should.

The broker is the authority for them. What the stream says against one, it answers by writing it again; only
another connection that has written the same key since is right.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Literal, Protocol

import attrs
import msgspec
import structlog
import trio
from msgspec import UNSET, Raw

from broker.backoff import Backoff
from broker.bus.base import NoRoom, OutcomeUnknown, Stale
from broker.errors import BrokerError, TooManyPresent, Unavailable
from broker.features.presence import records
from broker.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bus.base import AnyPut, Keyed
    from broker.features.presence.room import Room
    from broker.keyed.rows import Row
    from broker.session.requests import Caller

AT_ONCE = 500
WRITE_SECONDS = 0.2  # between two states of a member
LOST_SECONDS = 1.0  # until others see that a connection is lost: most are back by then
TENANT_PER_SECOND = 1000  # states of all members of a tenant
UNKNOWN_SECONDS = 5.0  # for the stream to tell of a write without an answer
BACKOFF = Backoff(first=0.1, longest=2.0, jitter=0.5)

Goal = Literal["here", "lost", "gone"]

log = structlog.get_logger("broker.presence")


class Writes(Protocol):
    """What an entry needs of the writer."""

    def write(self, entry: Entry, *, at: float = 0.0) -> None:
        """Write an entry as it is, not before a time."""

    def done(self, entry: Entry) -> None:
        """Forget an entry: nothing more is to be written."""

    def replaced(self, entry: Entry) -> None:
        """Do that too, and tell its client that another connection has its place."""


@attrs.define(eq=False, kw_only=True)
class Entry:
    """A member: what its client says of it, and what the stream does.

    `revision` is the sequence that this connection wrote, or at first what it replaces; `stored` tells which.
    Until the first write is confirmed the entry is `entering`; `other` is the newest write by anybody else
    meanwhile.
    `until` is when it ceases to be lost, at the end of its linger; both it and `brief` are on Trio's clock.
    """

    caller: Caller
    connection: str
    tenant: str
    user: str
    session: str
    channel: str
    key: str
    subject: str
    room: Room
    writes: Writes
    since: str
    info: bytes | None
    state: bytes | None = None
    away: bool = False
    brief: tuple[bytes, float] | None = None  # a state, and until when it holds
    late: bool = False  # its connection does not answer
    goal: Goal = "here"
    until: float = inf
    revision: int = 0
    stored: bool = False
    entering: bool = True
    other: int = 0
    written: Goal = "here"  # by the last write
    stuck: bool = False  # the stream has something else than was expected, and will say so
    over: bool = False
    outcome: trio.Event = attrs.Factory(trio.Event)  # of the first write
    error: BrokerError | None = None

    # --- what the stream says ----------------------------------------------------------------------

    def hear(self, row: Row) -> bool:
        """Take what the stream says of this key; return whether it may be shown."""
        mine = records.field(row.headers, records.CONNECTION) == self.connection
        current = records.field(row.headers, records.EPOCH) == self.room.view.stream
        if mine and current and not row.deleted:
            self.revision, self.stored = max(self.revision, row.revision), True
            if self.stuck or (self.entering and self.goal == "gone"):
                self.stuck = False
                self.writes.write(self)
            return True
        if self.entering:
            if not row.deleted and current:
                self.other = max(self.other, row.revision)
            return False
        if row.revision <= self.revision:
            return False
        if not row.deleted and current:
            self.writes.replaced(self)
            return True
        self.revision, self.stuck = row.revision, False
        if self.goal == "here":
            self.writes.write(self)
            return False
        self.writes.done(self)
        return True

    def missing(self) -> None:
        """Write it again, unless another connection is first."""
        if not self.entering:
            self.revision, self.stuck = 0, False
            self.writes.write(self)

    def acknowledged(self, revision: int) -> None:
        self.revision, self.stored = max(self.revision, revision), True
        if self.entering:
            self.entering = False
            self.outcome.set()
            if self.other > revision:
                self.writes.replaced(self)
                return
        if self.goal != "here" and self.written == self.goal:
            self.writes.done(self)
        elif self.brief is not None and self.brief[1] > trio.current_time():
            self.writes.write(self, at=self.brief[1])

    def fail(self, error: BrokerError) -> None:
        """Give up the first write."""
        self.error = error
        self.outcome.set()
        self.writes.done(self)

    # --- what is written ---------------------------------------------------------------------------

    def put(self, epoch: str, instance: str, now: float) -> AnyPut:
        """Return what to write now."""
        goal = self.goal
        if goal == "lost" and self.until <= now:
            goal = "gone"
        self.written = self.goal
        headers = {
            records.EPOCH: epoch,
            records.INSTANCE: instance,
            records.CONNECTION: self.connection,
        }
        if goal == "gone":
            return self.subject, b"", headers | {records.TTL: f"{records.GONE_SECONDS}s"}, self.revision
        if goal == "lost":
            headers[records.TTL] = f"{max(1, round(self.until - now))}s"
        return self.subject, self.body(now, lost=goal == "lost"), headers, self.revision

    def body(self, now: float, *, lost: bool) -> bytes:
        brief = self.brief if self.brief and self.brief[1] > now and not lost else None
        base = UNSET if self.state is None else Raw(self.state)
        return msgspec.json.encode(
            records.Stored(
                user=self.user,
                session=self.session,
                since=self.since,
                info=UNSET if self.info is None else Raw(self.info),
                state=base if brief is None else Raw(brief[0]),
                base=UNSET if brief is None else base,
                until=UNSET if brief is None else round((time.time() + brief[1] - now) * 1000),
                away="lost" if lost or self.late else "hidden" if self.away else UNSET,
            )
        )


@attrs.define(eq=False)
class Writer:
    """Writes the entries that have changed, many at a time. `due` has from when on each may be written."""

    keyed: Keyed
    broker: str
    epoch: Callable[[], str | None]
    finished: Callable[[Entry], None]  # nothing more of an entry will be written
    taken: Callable[[Entry], None]  # another connection has the place of an entry
    due: dict[Entry, float] = attrs.Factory(dict)
    next: dict[Entry, float] = attrs.Factory(dict)  # when the next state of each may be written
    tenants: dict[str, float] = attrs.Factory(dict)  # up to when each has used its writes
    woken: Signal = attrs.Factory(Signal)
    writing: bool = False
    resting: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)  # of `flush`

    def write(self, entry: Entry, *, at: float = 0.0) -> None:
        if not entry.over:
            self.due[entry] = min(at, self.due.get(entry, inf))
            self.woken.set()

    def say(self, entry: Entry, now: float) -> None:
        """Write the newest state of an entry as soon as the rates allow, unless it waits for that already."""
        at = max(self.next.get(entry, 0.0), now)
        if self.due.get(entry, inf) <= at:
            return
        # Up to a second's worth of a tenant goes out at once.
        used = max(self.tenants.get(entry.tenant, 0.0), now - 1.0)
        self.tenants[entry.tenant] = used + 1 / TENANT_PER_SECOND
        at = max(at, used)
        self.next[entry] = at + WRITE_SECONDS
        self.write(entry, at=at)

    def done(self, entry: Entry) -> None:
        if not entry.over:
            entry.over = True
            if not entry.outcome.is_set():
                entry.error = entry.error or Unavailable("it has ended meanwhile", retry_after=0.1)
                entry.outcome.set()
            self.due.pop(entry, None)
            self.next.pop(entry, None)
            self.finished(entry)

    def replaced(self, entry: Entry) -> None:
        if not entry.over:
            self.taken(entry)
            self.done(entry)

    async def run(self) -> None:
        failures = 0
        while True:
            now = trio.current_time()
            epoch = self.epoch()
            batch = [entry for entry, at in self.due.items() if at <= now][:AT_ONCE] if epoch else []
            if not batch or epoch is None:
                if not self.due:
                    self.resting.unpark_all()
                with trio.move_on_at(min(self.due.values(), default=inf) if epoch else now + 0.1):
                    await self.woken.wait()
                continue
            for entry in batch:
                del self.due[entry]
            self.writing = True
            try:
                reached = await self.put(batch, epoch, now)
            except BaseException:
                for entry in batch:
                    self.write(entry)
                raise
            finally:
                self.writing = False
            failures = 0 if reached else failures + 1
            if not reached:
                await trio.sleep(BACKOFF.delay(failures - 1))

    async def put(self, batch: list[Entry], epoch: str, now: float) -> bool:
        """Write some entries. Return False where NATS is out of reach."""
        for entry in batch:
            if entry.goal != "here" and not (entry.stored and (entry.revision or entry.goal == "lost")):
                self.done(entry)  # it is not there
        batch = [entry for entry in batch if not entry.over]
        puts = [entry.put(epoch, self.broker, now) for entry in batch]
        try:
            results = await self.keyed.put_each(puts)
        except (Unavailable, OutcomeUnknown) as error:
            for entry in batch:
                if entry.entering and entry.goal == "here":
                    self.refuse(entry, error)
                else:
                    self.write(entry)
            return False
        for entry, said, result in zip(batch, puts, results, strict=True):
            if entry.over:
                continue
            if isinstance(result, int):
                entry.acknowledged(result)
            elif isinstance(result, Stale):
                if entry.entering and entry.goal == "here":
                    await self.look(entry)
                else:  # the stream will tell, or has done so already
                    entry.stuck = entry.revision == said[3]
                if not entry.stuck:
                    self.write(entry)
            elif entry.entering:
                self.refuse(entry, result)
            else:
                log.warning("presence_not_written", channel=entry.channel, error=result.message)
                self.write(entry, at=trio.current_time() + 1.0)
        return True

    async def look(self, entry: Entry) -> None:
        """Find out what an entry replaces. A leave may have vanished without a word."""
        try:
            there = await self.keyed.get(entry.subject)
        except Unavailable as error:
            self.refuse(entry, error)
        else:
            entry.revision = there[0] if there else 0

    def refuse(self, entry: Entry, error: Exception) -> None:
        """Give up an entry whose first write has failed. What may have been stored is taken back."""
        if isinstance(error, NoRoom):
            entry.fail(TooManyPresent("no room is left for members; see presence.max_bytes", retry_after=5.0))
        elif isinstance(error, OutcomeUnknown):
            entry.error = Unavailable("NATS did not answer", retry_after=1.0)
            entry.outcome.set()
            entry.goal = "gone"
            self.write(entry, at=trio.current_time() + UNKNOWN_SECONDS)
        else:
            entry.fail(error if isinstance(error, BrokerError) else Unavailable(repr(error)))

    async def flush(self) -> None:
        """Write all that waits."""
        for entry in list(self.due):
            self.due[entry] = 0.0
        self.woken.set()
        while self.due or self.writing:
            await self.resting.park()
