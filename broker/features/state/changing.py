"""The request `state.change`: clients change documents."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import attrs
import structlog
import trio

from broker import limits
from broker.errors import BrokerError, Unavailable
from broker.features.port import Feature
from broker.features.state import wishes
from broker.features.state.lost import Confirmed, Ledger
from broker.features.state.queue import Queue, Sources, Waiting
from broker.features.state.room import Room
from broker.features.state.together import Member, Together
from broker.session.requests import Page, Request
from broker.subjects import BROKER
from broker.wire import messages as m
from broker.wire.positions import Position

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from broker import config
    from broker.bus.base import Bus, Keyed, Record
    from broker.features.state.lost import LostUpdate
    from broker.features.state.rules import Rules
    from broker.features.state.store import Write
    from broker.features.state.wishes import Part, Wish
    from broker.flow.client import Who
    from broker.metrics.meters import Changes
    from broker.session.requests import Asker, Caller, Requests
    from broker.subjects import Names

log = structlog.get_logger()


@attrs.define(eq=False, kw_only=True)
class Changing(Feature):
    """Changes documents for clients. `features` are told.

    `incarnation` returns that of their stream, `head` the sequence up to which its feed has come.

    A change goes on when its client is gone.
    """

    bus: Bus
    keyed: Keyed
    names: Names
    rules: Rules
    incarnation: Callable[[], str]
    head: Callable[[], int]
    limits: config.Limits
    meters: Changes
    features: Callable[[], Iterable[Feature]]
    queues: dict[str, Queue] = attrs.Factory(dict)  # by subject
    callers: WeakValueDictionary[str, Caller] = attrs.Factory(WeakValueDictionary)  # by connection
    nursery: trio.Nursery | None = None
    ledger: Ledger = attrs.field(init=False)
    room: Room = attrs.field(init=False)
    sources: Sources = attrs.field(init=False)
    own: str = attrs.field(init=False)  # what the subjects begin with that brokers need for themselves

    def __attrs_post_init__(self) -> None:
        self.own = self.names.document(BROKER, "")
        self.ledger = Ledger(self.lost, self.foreign)
        self.room = Room(
            keyed=self.keyed,
            prefix=self.names.state,
            incarnation=self.incarnation,
            head=self.head,
            limits=self.limits,
        )
        self.sources = Sources(
            bus=self.bus,
            keyed=self.keyed,
            incarnation=self.incarnation,
            room=self.room,
            wrote=self.wrote,
        )

    def requests(self) -> Requests:
        return (
            Request(
                message=m.Change,
                check=partial(wishes.check, self.rules),
                perform=self.perform,
                replies=(m.Changed,),
                costs=(limits.CHANGES,),
                waits=True,
                page=Page(
                    path="/state",
                    about="Change documents without a connection.",
                    example='{"id": …, "channel": …, "patch": …, "was": …}',
                    status=200,
                    perform=self.change,
                ),
            ),
        )

    async def run(self) -> None:
        """Answer changes, until cancelled."""
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self.nursery = None
                self.queues.clear()

    def settings_changed(self, config: config.Config) -> None:
        self.room.set_limits(config.limits)

    async def perform(self, caller: Caller, wish: Wish, _: str | None) -> m.Changed:
        self.callers[caller.id] = caller
        return await self.change(caller, wish)

    async def change(self, asker: Asker, wish: Wish) -> m.Changed:
        """Change documents; return the revisions that have the change. Raise why it is not applied."""
        principal = asker.attach()
        try:
            waiting = self.begin(wish, principal.tenant, asker.who())
        except Unavailable as error:
            self.meters.outcomes[error.code] += 1
            raise
        return m.Changed(id=wish.id, revisions={each.channel: await each.revision() for each in waiting})

    def begin(self, wish: Wish, tenant: str, who: Who) -> list[Waiting]:
        """Have a change begin; return what waits for its outcome. Raise `Unavailable`."""
        incarnation = self.incarnation()
        if self.nursery is None or not incarnation:
            raise Unavailable("documents cannot be changed yet", retry_after=1.0)
        queues = [self.queue(tenant, part) for part in wish.parts]
        try:
            for queue in queues:
                queue.check_room()
        except Unavailable:
            self.forget(queues)
            raise
        now = trio.current_time()
        members = [
            Member(
                queue=queue,
                waiting=Waiting(
                    change=part.within(incarnation),
                    channel=part.channel,
                    who=who,
                    began=now,
                    settled=self.settled,
                ),
            )
            for queue, part in zip(queues, wish.parts, strict=True)
        ]
        if len(members) > 1:
            for queue in queues:
                queue.joint += 1
            self.nursery.start_soon(self.work, Together(sources=self.sources, members=members).work, queues)
        else:
            queue.waiting.append(members[0].waiting)
            if not queue.working:
                queue.working = True
                self.nursery.start_soon(self.work, queue.work, queues)
        return [each.waiting for each in members]

    def settled(self, waiting: Waiting) -> None:
        """Count what has become of a change, also if its client is gone, and tell the other features."""
        self.meters.seconds.observe(trio.current_time() - waiting.began)
        if isinstance(waiting.answer, BrokerError):
            self.meters.outcomes[waiting.answer.code] += 1
            return
        self.meters.outcomes["changed" if waiting.written else "unchanged"] += 1
        for feature in self.features() if waiting.written else ():
            feature.document_changed(
                waiting.who,
                channel=waiting.channel,
                id=waiting.change.id,
                revision=waiting.answer or "",
                deleted=waiting.change.patch is None,
            )

    def queue(self, tenant: str, part: Part) -> Queue:
        subject = self.names.document(tenant, part.channel)
        found = self.queues.get(subject)
        if found is None:
            found = self.queues[subject] = Queue(
                sources=self.sources,
                channel=part.channel,
                subject=subject,
                question=self.names.question(tenant, part.channel),
                rule=part.rule,
            )
        return found

    async def work(self, work: Callable[[], Awaitable[None]], queues: Sequence[Queue]) -> None:
        """Do some work with documents; then forget those that have none left."""
        await work()
        self.forget(queues)

    def forget(self, queues: Iterable[Queue]) -> None:
        for queue in queues:
            if queue.idle:
                self.queues.pop(queue.subject, None)
                self.ledger.written(queue.subject)

    # --- what the feed says -----------------------------------------------------------------------------

    def hear(self, records: Iterable[Record]) -> None:
        """Take what was stored, in the order of the stream."""
        for record in records:
            subject = record[1]
            if subject.startswith(self.own):
                continue
            if queue := self.queues.get(subject):
                queue.heard(record)
            self.ledger.hear(record, writing=queue is not None)
            self.room.hear(*record[1:])

    def wrote(self, subject: str, sequence: int, write: Write, group: Sequence[Waiting]) -> None:
        self.room.wrote(subject, sequence, write.body, write.headers)
        self.ledger.wrote(
            subject,
            sequence,
            [
                Confirmed(
                    id=each.change.id, connection=each.who["connection"] or "", touched=each.change.touched
                )
                for each in group
            ],
        )

    def lost(self, update: LostUpdate) -> None:
        """Tell the authors of changes that these are lost."""
        _, tenant, channel = update.subject.split(".", 2)
        self.meters.lost += len(update.changes)
        log.error(
            "document_update_lost",
            tenant=tenant,
            channel=channel,
            sequence=update.sequence,
            ids=[each.id for each in update.changes],
        )
        revision = str(Position(self.incarnation(), update.sequence))
        for connection in {each.connection for each in update.changes}:
            caller = self.callers.get(connection)
            if caller is None or caller.closing:
                continue
            own = [each for each in update.changes if each.connection == connection]
            ids = [each.id for each in own]
            caller.tell(m.Lost(ids=ids, channel=channel, revision=revision, paths=update.paths(own)))

    def foreign(self, subject: str) -> None:
        self.meters.foreign += 1
        _, tenant, channel = subject.split(".", 2)
        log.info("document_written_by_a_service", tenant=tenant, channel=channel)
