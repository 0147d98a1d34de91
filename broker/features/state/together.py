"""Writing several documents: one change of all of them, or of none.

Its turn comes with each document, in the order of their channels. It judges, asks and writes as a `Queue`
does for one, and replaces all versions at once.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.bus.base import OutcomeUnknown, Stale
from broker.documents.judging import Accepted, Standing
from broker.errors import (
    BadAnswer,
    BrokerError,
    ChangeConflict,
    Contradiction,
    Internal,
    TooLarge,
    TooManyDocuments,
    Unavailable,
    UnknownOutcome,
)
from broker.features.state import owners
from broker.features.state.owners import Agreed, Written
from broker.features.state.queue import OUTCOME, PATIENCE_SECONDS, RETRY_SECONDS, amended, growth, under_way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.documents.judging import Verdict, Version
    from broker.features.state.queue import Queue, Sources, Waiting
    from broker.features.state.store import Write

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Member:
    """The part of the change that concerns one document."""

    queue: Queue
    waiting: Waiting


@attrs.define(eq=False, kw_only=True)
class Together:
    """A change of several documents.

    `versions` are those that it was judged by. `pending` are its writes, where nobody knows what became of
    them.
    """

    sources: Sources
    members: Sequence[Member]
    versions: Sequence[Version] = ()
    pending: list[tuple[Member, Write]] | None = None

    async def work(self) -> None:
        """Answer the change, which is one of the `joint` ones of each document."""
        try:
            async with AsyncExitStack() as turns:
                for each in self.members:
                    await turns.enter_async_context(each.queue.turn)
                while not self.members[0].waiting.done.is_set():
                    await self.round()
        except Exception:  # any: other documents can be written without these
            log.exception("document_crashed", subject=self.members[0].queue.subject)
            self.fail(Internal("the broker failed"))
        finally:
            for each in self.members:
                each.queue.joint -= 1
            self.fail(Unavailable("the broker is stopping"))

    @property
    def waiting(self) -> list[Waiting]:
        return [each.waiting for each in self.members]

    def fail(self, error: BrokerError) -> None:
        for each in self.members:
            each.waiting.settle(error)

    async def round(self) -> None:
        try:
            versions = [await each.queue.read() for each in self.members]
            if writes := self.unfinished(versions):
                await self.commit(writes)
            elif not self.members[0].waiting.done.is_set() and (judged := await self.judge(versions)):
                await self.decide(judged)
        except Unavailable as error:
            first = self.members[0].waiting
            if not first.sent or trio.current_time() > first.began + PATIENCE_SECONDS:
                self.fail(error)
            else:
                await trio.sleep(RETRY_SECONDS)

    def unfinished(self, versions: Sequence[Version]) -> list[tuple[Member, Write]] | None:
        """Return the writes that are to be sent again, as those of a `Queue`."""
        if self.pending is None:
            return None
        found = dict(zip((each.queue.channel for each in self.members), versions, strict=True))
        written = [(found[each.queue.channel], write.base) for each, write in self.pending]
        if all(version.sequence == base for version, base in written):
            return self.pending
        self.pending = None
        change = self.members[0].waiting.change
        if not any(version.knows(change) or version.covers(base) for version, base in written):
            self.fail(UnknownOutcome(OUTCOME))  # all of them have forgotten
        for each in self.members:
            each.waiting.sent = False
        return None

    # --- judging ---------------------------------------------------------------------------------------

    async def judge(self, versions: Sequence[Version]) -> list[tuple[Member, Version, Verdict]]:
        """Return the documents to write. None where the change is answered.

        What is already as the change would have it is written too, or a late write of the others would not
        notice that it has become otherwise, after the change was refused for that.
        """
        self.versions = versions
        if any(version.knows(self.members[0].waiting.change) for version in versions):
            self.succeed()
            return []
        verdicts = [
            (each, version, await each.queue.verdict(each.waiting, version))
            for each, version in zip(self.members, versions, strict=True)
        ]
        errors = [
            each.queue.error(verdict, version.sequence)
            for each, version, verdict in verdicts
            if not isinstance(verdict, Accepted | Standing)
        ]
        if errors:
            self.fail(joined(errors))
            return []
        if not any(isinstance(verdict, Accepted) for _, _, verdict in verdicts):
            self.succeed()
            return []
        return verdicts

    def succeed(self) -> None:
        """Answer that the versions that were read have the change, where it is not answered yet."""
        for each, version in zip(self.members, self.versions, strict=True):
            each.waiting.settle(each.queue.revision(version.sequence))

    # --- deciding and writing --------------------------------------------------------------------------

    async def decide(self, judged: Sequence[tuple[Member, Version, Verdict]]) -> None:
        """Have the owners judge the change, and write it if all agree."""
        if fault := await self.crowded(judged):
            self.fail(TooManyDocuments(fault))
            return
        writes: list[tuple[Member, Write]] = []
        for each, version, verdict in judged:
            queue, change = each.queue, each.waiting.change
            if queue.rule.service and isinstance(verdict, Accepted):
                try:
                    revision = queue.revision(version.sequence)
                    with under_way(self.waiting):
                        said = await owners.ask(self.sources.bus, queue.question, version, revision, [change])
                    if isinstance(said, Written):
                        raise BadAnswer(f"{queue.channel}: the service wrote one of several documents itself")
                except BrokerError as error:
                    self.fail(error)
                    return
                (saying,) = said
                if not isinstance(saying, Agreed):
                    self.fail(saying)
                    return
                change = amended(change, saying)
            write = await queue.make(version, [each.waiting], [change])
            if write is None:  # what the service has amended cannot be
                self.fail(
                    each.waiting.answer if isinstance(each.waiting.answer, BrokerError) else Internal("")
                )
                return
            writes.append((each, write))
        await self.commit(writes)

    async def crowded(self, judged: Sequence[tuple[Member, Version, Verdict]]) -> str | None:
        """Return why the tenant has no room for the change as a whole."""
        subject, room = self.members[0].queue.subject, self.sources.room
        if room.ample(subject):
            return None
        growths = [growth(each.waiting.change, version) for each, version, _ in judged]
        return await room.fault(subject, *map(sum, zip(*growths, strict=True)))

    async def commit(self, writes: list[tuple[Member, Write]]) -> None:
        """Replace all versions, or none. What is not answered here is so in the next round."""
        puts = [(each.queue.subject, write.body, write.headers, write.base) for each, write in writes]
        for each in self.members:
            each.queue.known = None
        try:
            with under_way(self.waiting):
                sequences = await self.sources.keyed.put_all(puts)
                self.pending = None
                for each, _ in writes:
                    each.waiting.written = True
                for (each, write), sequence in zip(writes, sequences, strict=True):
                    each.queue.known = write.after(sequence)
                    each.waiting.settle(each.queue.revision(sequence))
                for (each, write), sequence in zip(writes, sequences, strict=True):
                    self.sources.wrote(each.queue.subject, sequence, write, [each.waiting])
        except Stale:
            for each in self.members:
                each.waiting.overtaken += 1
        except OutcomeUnknown:
            self.pending = writes
        except TooLarge as error:
            self.fail(error)


def joined(errors: Sequence[BrokerError]) -> BrokerError:
    """Return one error for all documents: what is not known, or refused, as it is, or else all conflicts."""
    conflicts: list[Contradiction] = []
    for error in sorted(errors, key=lambda each: not isinstance(each, UnknownOutcome)):
        if error.conflict is None:
            return error
        conflicts += error.conflict
    return ChangeConflict("; ".join(error.message for error in errors), conflicts)
