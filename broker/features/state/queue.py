"""Writing one document: the changes that wait for it, and their way into its stream.

One round at a time: the changes that wait are judged against what is stored, those that pass and do not touch
each other become one write, which replaces that version and no other. Whatever is lost on the way, the next
round reads what is stored; each version names the changes that it has (`documents.memory`).
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.bus.base import OutcomeUnknown, Stale
from broker.documents import judging, patches, values
from broker.documents.judging import OUT, Accepted, Conflicting, Group, Refused, Standing, Version
from broker.documents.patches import pointer
from broker.errors import (
    BrokerError,
    ChangeConflict,
    Contradiction,
    Internal,
    Rejected,
    TooLarge,
    TooManyDocuments,
    Unavailable,
    UnknownOutcome,
)
from broker.features.state import owners, store
from broker.features.state.owners import Agreed, Written
from broker.turns import Turn
from broker.wire.positions import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker.bus.base import Bus, Keyed, Record
    from broker.documents.judging import Change, Verdict
    from broker.documents.values import Value
    from broker.features.state.room import Room
    from broker.features.state.rules import Rule
    from broker.features.state.store import Write
    from broker.flow.client import Who

MAX_WAITING = 32
MAX_OVERTAKEN = 5  # times that a service has agreed, and somebody else has written before
MAX_RACES = 100  # times that somebody else has written before, where the broker decides
INLINE_BYTES = 1024  # a schema judges as much in a few milliseconds; more in a thread, a value at a time
JUDGING = trio.CapacityLimiter(1)
PATIENCE_SECONDS = 15.0  # for what has become of a write: a new leader takes some seconds
RETRY_SECONDS = 0.2

log = structlog.get_logger()

OUTCOME = "whether the change has been applied is not known; send the same one again"


@attrs.define(eq=False, kw_only=True)
class Waiting:
    """A change of a document that waits. `sent`: it may be applied by what is under way.

    `overtaken` counts writes that came before its own. `written`: by this broker, or by a service for it.
    """

    change: Change
    channel: str
    who: Who
    began: float
    settled: Callable[[Waiting], None]
    sent: bool = False
    overtaken: int = 0
    written: bool = False
    answer: str | BrokerError | None = None
    done: trio.Event = attrs.Factory(trio.Event)

    def settle(self, answer: str | BrokerError) -> None:
        """Answer with the revision that has the change, or with why none has."""
        if self.answer is None:
            if (self.sent or self.written) and isinstance(answer, BrokerError):  # it may have been applied
                answer = UnknownOutcome(OUTCOME)
            self.answer = answer
            self.done.set()
            self.settled(self)

    async def revision(self) -> str:
        """Return the revision that has the change. Raise why none has."""
        await self.done.wait()
        if isinstance(self.answer, BrokerError):
            raise self.answer
        return self.answer or ""


@contextmanager
def under_way(group: Sequence[Waiting]) -> Iterator[None]:
    """Do something by which changes may be applied, and remember so if nobody learns what becomes of it.

    That is known where it ends well, and where it raises what says that nothing is applied.
    """
    before = [each.sent for each in group]
    for each in group:
        each.sent = True
    try:
        yield
    except (BrokerError, Stale):
        for each, sent in zip(group, before, strict=True):
            each.sent = sent
        raise
    for each, sent in zip(group, before, strict=True):
        each.sent = sent


def settle_written(group: Sequence[Waiting], revision: str) -> None:
    for each in group:
        each.written = True
    for each in group:
        each.settle(revision)


@attrs.frozen(kw_only=True)
class Sources:
    """What documents are written with. `incarnation` returns that of the stream.

    `wrote` is told of each write: its subject, its sequence, what was written, and the changes in it.
    """

    bus: Bus
    keyed: Keyed
    incarnation: Callable[[], str]
    room: Room
    wrote: Callable[[str, int, Write, Sequence[Waiting]], None]


@attrs.define(eq=False, kw_only=True)
class Queue:
    """The changes of one document.

    `turn` is held by whoever writes it. `known` is its newest version as far as this broker has heard, None
    where it has not. `pending` is a write of which nobody knows what became, with its changes.
    """

    sources: Sources
    channel: str
    subject: str  # in the stream
    question: str  # the subject on which its service is asked
    rule: Rule
    waiting: deque[Waiting] = attrs.Factory(deque)
    joint: int = 0  # changes of several documents that have, or wait for, the turn
    turn: trio.Lock = attrs.Factory(trio.Lock)
    known: Version | None = None
    pending: tuple[Write, list[Waiting]] | None = None
    working: bool = False

    @property
    def idle(self) -> bool:
        return not (self.working or self.joint)

    def check_room(self) -> None:
        """Raise `Unavailable` where too many changes wait."""
        if len(self.waiting) + self.joint >= MAX_WAITING:
            raise Unavailable(f"{self.channel}: {MAX_WAITING} changes wait already", retry_after=0.5)

    def heard(self, record: Record) -> None:
        """Note what the feed of the stream says of the document. What takes long to read has to be needed."""
        if self.known is None or record[0] > self.known.sequence:
            self.known = None if store.takes_long(record) else store.read(record)

    async def work(self) -> None:
        """Answer the changes that wait, until none does."""
        try:
            while self.waiting:
                async with self.turn:
                    await self.round()
        except Exception:  # any: other documents can be written without this one
            log.exception("document_crashed", subject=self.subject)
            self.fail(Internal("the broker failed"))
        finally:
            self.working = False
            self.fail(Unavailable("the broker is stopping"))

    def fail(self, error: BrokerError) -> None:
        """Answer all changes that are left."""
        for each in self.waiting:
            each.settle(error)
        self.waiting.clear()

    async def round(self) -> None:
        try:
            version = self.known
            fresh = self.pending is not None or self.rule.service
            if version is None or fresh:
                version, fresh = await self.read(), True
            if write := self.unfinished(version):
                await self.commit(*write)
                return
            group = await self.select(version, fresh=fresh)
            if group is None:  # what is not written is so by what is stored now
                version = await self.read()
                group = await self.select(version, fresh=True)
            if group:
                await self.decide(version, group)
        except Unavailable as error:
            self.known = None
            await self.postpone(error)
        finally:
            while self.waiting and self.waiting[0].done.is_set():
                self.waiting.popleft()
            if any(each.done.is_set() for each in self.waiting):
                self.waiting = deque(each for each in self.waiting if not each.done.is_set())

    async def read(self) -> Version:
        self.known = store.read(await self.sources.keyed.get(self.subject))
        return self.known

    def unfinished(self, version: Version) -> tuple[Write, list[Waiting]] | None:
        """Return the write that is to be sent again: it may still arrive, and replace this version.

        Where another version has come, it cannot any more. Then its changes are judged by that, which knows
        those that it has, or has forgotten them.
        """
        if self.pending is None:
            return None
        write, group = self.pending
        if all(each.done.is_set() for each in group):
            self.pending = None
        elif version.sequence == write.base:
            return self.pending
        else:
            self.pending = None
            for each in group:
                if not (version.knows(each.change) or version.covers(write.base)):
                    each.settle(UnknownOutcome(OUTCOME))
                each.sent = False
        return None

    async def postpone(self, error: Unavailable) -> None:
        """Answer what was not sent. Wait with the rest for NATS, which will say what became of it."""
        now = trio.current_time()
        for each in self.waiting:
            if not each.sent or now > each.began + PATIENCE_SECONDS:
                each.settle(error)
        if not all(each.done.is_set() for each in self.waiting):
            await trio.sleep(RETRY_SECONDS)

    # --- judging ---------------------------------------------------------------------------------------

    async def select(self, version: Version, *, fresh: bool) -> list[Waiting] | None:
        """Return changes for one write, for which the tenant has room, as `gather` does."""
        group = await self.gather(version, fresh=fresh)
        if not group or self.sources.room.ample(self.subject):
            return group
        for each in group:
            if fault := await self.sources.room.fault(self.subject, *growth(each.change, version)):
                if not fresh or self.known is not version:  # which took a while
                    return None
                each.settle(TooManyDocuments(f"{self.channel}: {fault}"))
        return [each for each in group if not each.done.is_set()]

    async def gather(self, known: Version, *, fresh: bool) -> list[Waiting] | None:
        """Return changes for one write, after answering those that nothing is written for.

        None where that would be by a version that is not `fresh`.
        """
        group, found, turn = Group(), list[Waiting](), Turn()
        for each in tuple(self.waiting):
            await turn.pass_on()  # a schema takes milliseconds
            if each.done.is_set():
                continue
            verdict = await self.verdict(each, known)
            if isinstance(verdict, Accepted):
                if group.take(each.change):
                    found.append(each)
            elif not fresh:
                return None
            elif isinstance(verdict, Standing):
                each.settle(self.revision(known.sequence))
            else:
                each.settle(self.error(verdict, known.sequence))
        return found

    async def verdict(self, waiting: Waiting, version: Version) -> Verdict:
        """Return what becomes of a change of this version."""
        change = waiting.change
        verdict = judging.judge(change, version)
        if isinstance(verdict, Accepted):
            if waiting.overtaken >= (MAX_OVERTAKEN if self.rule.service else MAX_RACES):
                there = {pointer(path): patches.at(version.value, path) for path in change.touched}
                return judging.conflicting(there, version.value)
            return await self.ruled(change, version.value, verdict)
        return verdict

    async def ruled(self, change: Change, before: Value | None, accepted: Accepted) -> Verdict:
        """Return what the schema of the document says of a change that is otherwise accepted."""
        schema, value = self.rule.schema, accepted.value
        if schema is None or value is None:
            return accepted
        if len(accepted.body) <= INLINE_BYTES:
            faults = schema.faults(before, value, change.touched)
        else:
            faults = await trio.to_thread.run_sync(
                schema.faults, before, value, change.touched, limiter=JUDGING
            )
        if not faults:
            return accepted
        where, what = next(iter(faults.items()))
        return Refused(f"{where or 'the document'}: {what}", faults)

    def error(self, verdict: Verdict, sequence: int) -> BrokerError:
        """Return the error for a change that is not applied."""
        if isinstance(verdict, Conflicting):
            where = ", ".join(path[:100] or "the document" for path in list(verdict.paths)[:8])
            contradiction = Contradiction(
                channel=self.channel, revision=self.revision(sequence), paths=verdict.paths
            )
            return ChangeConflict(f"{self.channel}: changed meanwhile: {where}", [contradiction])
        if isinstance(verdict, Refused):
            reason = f"{self.channel}: {verdict.reason}"
            return TooLarge(reason) if verdict.too_large else Rejected(reason, paths=verdict.paths)
        return UnknownOutcome(
            f"{self.channel}: the change was made on a revision from which repetitions are not known any more"
        )

    def revision(self, sequence: int) -> str:
        return str(Position(self.sources.incarnation(), sequence))

    # --- deciding and writing --------------------------------------------------------------------------

    async def decide(self, version: Version, group: list[Waiting]) -> None:
        """Have the owner judge the changes of a group, and write those that it agrees to."""
        changes = [each.change for each in group]
        if self.rule.service:
            try:
                said = await self.ask(version, group)
            except BrokerError as error:
                for each in group:
                    each.settle(error)
                return
            if isinstance(said, Written):
                self.known = None
                settle_written(group, said.revision)
                return
            group, changes = self.agreed(group, said)
        if write := await self.make(version, group, changes):
            await self.commit(write, group)

    async def ask(self, version: Version, group: list[Waiting]) -> list[owners.Saying] | Written:
        """Return what the owner says of changes, see `owners.ask`.

        Those for which NATS has no room in one question are taken out of the group: they wait.
        """
        revision = self.revision(version.sequence)
        while True:
            changes = [each.change for each in group]
            try:
                with under_way(group):  # the service may write them itself
                    return await owners.ask(self.sources.bus, self.question, version, revision, changes)
            except TooLarge:  # and nothing was sent
                if len(group) == 1:
                    raise
                del group[len(group) // 2 :]

    def agreed(
        self, group: list[Waiting], said: Sequence[owners.Saying]
    ) -> tuple[list[Waiting], list[Change]]:
        """Return the changes that a service agrees to, as it amends them, after refusing the others."""
        left, changes = list[Waiting](), list[judging.Change]()
        for each, saying in zip(group, said, strict=True):
            if isinstance(saying, Agreed):
                left.append(each)
                changes.append(amended(each.change, saying))
            else:
                each.settle(saying)
        return left, changes

    async def make(self, version: Version, group: list[Waiting], changes: Sequence[Change]) -> Write | None:
        """Return what replaces the version; None where nothing is left to write.

        A change that does not go with those before it, for the size of the document or its schema, is taken
        out of the group: it waits, unless its service has amended it.
        """
        value, body, left, turn = version.value, b"", list[judging.Change](), Turn()
        for each, change in zip(tuple(group), changes, strict=True):
            verdict = judging.applied(change, value)
            if left and isinstance(verdict, Accepted):  # else it has been judged by this very version
                await turn.pass_on()
                verdict = await self.ruled(change, value, verdict)
            if isinstance(verdict, Accepted):
                value, body = verdict.value, verdict.body
                left.append(change)
                continue
            group.remove(each)
            if self.rule.service:
                each.settle(self.error(verdict, version.sequence))
        return store.write(version, left, value, body) if left else None

    async def commit(self, write: Write, group: list[Waiting]) -> None:
        """Replace the version. Whatever is not answered here waits for the next round."""
        self.known = None
        try:
            with under_way(group):
                sequence = await self.sources.keyed.put(
                    self.subject, write.body, headers=write.headers, revision=write.base
                )
                self.pending = None
                self.known = write.after(sequence)
                settle_written(group, self.revision(sequence))
                self.sources.wrote(self.subject, sequence, write, group)
        except Stale:
            for each in group:
                each.overtaken += 1
        except OutcomeUnknown:
            self.pending = write, group
        except TooLarge as error:
            for each in group:
                each.settle(error)


def growth(change: Change, version: Version) -> tuple[int, int]:
    """Return how many documents a change makes, and how many bytes more than before they have."""
    verdict = judging.applied(change, version.value)
    if not isinstance(verdict, Accepted):
        return 0, 0
    before = 0 if version.value is None else len(values.encode(version.value))
    return int(version.value is None and verdict.value is not None), len(verdict.body) - before


def amended(change: Change, agreed: Agreed) -> Change:
    """Return a change as its service will have it: what it amends is all that is written."""
    if agreed.patch is OUT:
        return change
    return attrs.evolve(change, patch=agreed.patch, add=judging.NONE)
