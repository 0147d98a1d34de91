"""The view of a process on a keyed stream: its collections, kept up to date by the feed, and their lanes."""

from __future__ import annotations

import heapq
from contextlib import suppress
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from broker import subjects
from broker.backoff import Backoff
from broker.beats import beat
from broker.bus.base import OutcomeUnknown, Stale
from broker.errors import TooLarge, TooManyDocuments, Unavailable
from broker.eventlog.routing import Router
from broker.eventlog.selection import Selection
from broker.keyed import collection as collections
from broker.keyed.removals import Removals
from broker.keyed.rows import Row
from broker.keyed.watch import Shared
from broker.signals import Signal
from broker.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from broker.bus.base import Keyed, Record, StreamState
    from broker.keyed.collection import Key
    from broker.keyed.lane import Lane
    from broker.keyed.watch import Form, Watch
    from broker.wire.positions import Position

    Collection: TypeAlias = collections.Collection[Watch]

log = structlog.get_logger()

BACKOFF = Backoff(first=0.1, longest=2.0, jitter=0.5)
LOADS_AT_ONCE = 8
LOOK_SECONDS = 2.0  # between looks whether keys have been removed without a word
LOOKS_SHARE = 20  # the pause before the next look is so many times as long as one took
LONGEST_PAUSE = 30.0
REMOVED = "removed."  # before a tenant: the channel where a broker says so, of the broker's own
OPENING_SECONDS = 5.0  # that clients wait for the stream when the broker has just started
MEMBERS: Final = 16  # that get a lane's frames between two looks at the clock


class Rooms:
    """The collections of one tenant, by what they match."""

    def __init__(self) -> None:
        self.router: Router[tuple[Collection, ...]] = Router(collected)
        self.selections: dict[Collection, list[Selection]] = {}

    def add(self, collection: Collection) -> None:
        found = [Selection(pattern, collection.deny, 0) for pattern in collection.patterns]
        for each in found:
            each.members[collection] = None
            self.router.add(each)
        self.selections[collection] = found

    def remove(self, collection: Collection) -> None:
        for each in self.selections.pop(collection):
            self.router.remove(each)


def collected(_: str, selections: tuple[Selection, ...]) -> tuple[Collection, ...]:
    return tuple({collection: None for each in selections for collection in each.members})


@attrs.define(eq=False)
class View:
    """The receiver of the feed of `keyed`, whose subjects are `<prefix>.<tenant>.<channel>`.

    `stream` is the incarnation that it has seen (None: none yet), `head` how far. `excess` says why nobody
    may have a collection of so many keys and bytes; it is then loaded no further. `lasting`: no key goes
    without a word, unless somebody removes it.
    """

    keyed: Keyed
    prefix: str
    form: Form | None  # of what watches get; without any there are only listeners
    excess: Callable[[int, int], str | None]
    lasting: bool = True
    stream: str | None = None
    head: int = 0
    up: bool = False
    doubts: int = 0  # interruptions in which, as far as is known yet, deletions may have come and gone
    announced: str = ""  # the incarnation of the feed, whose head comes next
    tenants: dict[str, Rooms] = attrs.Factory(dict)
    collections: dict[Key, Collection] = attrs.Factory(dict)
    due: list[tuple[float, int, Collection, Lane[Watch]]] = attrs.Factory(list)  # a heap
    queued: dict[Lane[Watch], float] = attrs.Factory(dict)  # when each lane is in it
    serial: Iterator[int] = attrs.Factory(count)
    woken: Signal = attrs.Factory(Signal)
    advanced: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)  # of `head`, `up`, `doubts`
    gate: trio.Semaphore = attrs.Factory(lambda: trio.Semaphore(LOADS_AT_ONCE))
    removals: Removals = attrs.Factory(Removals)
    removed: dict[str, int] = attrs.Factory(dict)  # by tenant the sequence of the latest word of a removal
    nursery: trio.Nursery | None = None
    heard: Callable[[list[Record]], None] = lambda _: None  # told of all records, before anybody else

    async def run(self) -> None:
        """Follow the stream, until cancelled."""
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            self.due.clear()
            self.queued.clear()
            for collection in list(self.collections.values()):  # after a crash
                collection.reset()
                self.load(collection)
            nursery.start_soon(self.give_on)
            nursery.start_soon(self.look_for_removals)
            await self.keyed.run(self)

    # --- the feed ------------------------------------------------------------------------------------

    def restored(self, state: StreamState) -> None:
        self.up = True
        self.announced = state.incarnation
        if self.announced == self.stream and self.nursery is not None:
            self.doubts += 1
            self.nursery.start_soon(self.look_back, self.stream, self.head)

    def stored(self, records: list[Record], head: int, times: Sequence[int]) -> None:  # noqa: ARG002
        self.head = head
        if self.stream != self.announced:
            self.begin(self.announced)
        self.heard(records)
        now = trio.current_time()
        for sequence, subject, body, headers in records:
            self.removals.note(sequence, subject)
            tenant, _, channel = subject[len(self.prefix) + 1 :].partition(".")
            if tenant == subjects.BROKER and channel.startswith(REMOVED):
                self.hear_of_removal(channel.removeprefix(REMOVED), sequence)
            rooms = self.tenants.get(tenant)
            found = rooms.router.match(channel) if rooms is not None else ()
            if found:
                row = Row(channel, sequence, body, headers if body else None)
                for collection in found:
                    if collection.put(row, now):
                        self.schedule(collection, now)
        self.advanced.unpark_all()

    async def look_back(self, stream: str, head: int) -> None:
        """Begin anew after an interruption in which deletions may have come and gone."""
        failures = 0
        try:
            while self.stream == stream:
                try:
                    if not await self.keyed.remembers(head) and self.stream == stream:
                        self.begin_anew(self.collections.values())
                    return
                except Unavailable:
                    await trio.sleep(BACKOFF.delay(failures))
                    failures += 1
        finally:
            self.doubts -= 1
            self.advanced.unpark_all()

    def begin_anew(self, found: Iterable[Collection]) -> None:
        """Load collections again, and have their watches begin anew."""
        for collection in list(found):
            for watch in collection.watches:
                watch.stream = ""  # see `go_on`
            collection.reset()
            self.load(collection)

    def begin(self, stream: str) -> None:
        """Begin with another stream: what was read of the last one is void."""
        self.stream = stream
        self.removed.clear()
        for collection in list(self.collections.values()):
            collection.reset()
            self.load(collection)

    def skipped(self, state: StreamState) -> None:
        """Do nothing: what was deleted has been replaced, or is looked for, see `look`."""

    def interrupted(self) -> None:
        self.up = False
        self.advanced.unpark_all()

    # --- collections ---------------------------------------------------------------------------------

    async def acquire(self, key: Key) -> Collection:
        """Return a collection with its rows, for one more use. Raise `Unavailable`, or `TooManyDocuments`.

        Wait for a stream that has not been reached yet: a refusal ends some clients.
        """
        with trio.move_on_after(OPENING_SECONDS):
            while self.stream is None:
                await self.advanced.park()
        if self.stream is None:
            raise Unavailable("documents cannot be read yet", retry_after=1.0)
        collection = self.collections.get(key)
        if collection is None:
            collection = self.add(key)
        if not collection.loaded and collection.loading is None:
            self.load(collection)
        collection.uses += 1
        try:
            while not collection.loaded:
                await collection.outcome.wait()
                if (error := collection.error) is not None:
                    raise type(error)(error.message, retry_after=error.retry_after)
        except BaseException:
            self.release(collection)
            raise
        return collection

    def add(self, key: Key) -> Collection:
        collection = self.collections[key] = collections.Collection(key)
        self.tenants.setdefault(collection.tenant, Rooms()).add(collection)
        return collection

    def release(self, collection: Collection) -> None:
        """Give back one use of a collection."""
        collection.uses -= 1
        if collection.uses == 0:
            del self.collections[collection.key]
            rooms = self.tenants[collection.tenant]
            rooms.remove(collection)
            if not rooms.selections:
                del self.tenants[collection.tenant]

    def part(self, collection: Collection, key: Key) -> Collection:
        """Return the collection of a part of what one holds, for one more use."""
        found = self.collections.get(key)
        if found is None:
            found = self.add(key)
            if collection.loaded:
                found.fill(row for row in collection.rows.after(0) if found.admits(row.key))
                found.rows.floor = max(found.rows.floor, collection.rows.floor)
            else:
                self.load(found)
        found.uses += 1
        return found

    def load(self, collection: Collection) -> None:
        """Load a collection in the background."""
        if self.nursery is not None:
            collection.loading = attempt = object()
            self.nursery.start_soon(self.load_on, collection, attempt)

    async def load_on(self, collection: Collection, attempt: object) -> None:
        failures = 0
        while collection.uses and collection.loading is attempt:
            loading = collections.Loading(collection, f"{self.prefix}.{collection.tenant}.", self.excess)
            try:
                async with self.gate:
                    stream = await self.keyed.load(loading.filters, at_least=self.head, take=loading.take)
                await self.reach(stream, loading.last)
            except TooManyDocuments as error:
                if collection.loading is attempt:
                    collection.loading = None
                    collection.ended(error)
                    for watch in list(collection.watches):
                        watch.holder.failed(watch, error)
                return
            except Unavailable as error:
                log.debug("collection_not_loaded", error=error.message, patterns=collection.patterns)
                if collection.loading is attempt:  # for who waits, of whatever kind it is
                    collection.ended(Unavailable(error.message, retry_after=error.retry_after))
                await trio.sleep(BACKOFF.delay(failures))
                failures += 1
                continue
            if collection.loading is not attempt:
                return
            if stream == self.stream:
                collection.fill(loading.rows)
                for watch in list(collection.watches):
                    watch.holder.grew(watch)
                for watch in list(collection.watches):
                    self.go_on(watch)
                return
            await trio.sleep(BACKOFF.delay(failures))  # the feed will say so soon

    async def reach(self, stream: str, last: int) -> None:
        """Wait until the feed has come to what was loaded, so that all are rows of one moment.

        Raise `Unavailable` if it is interrupted.
        """
        while stream == self.stream and last > self.head:
            if not self.up:
                raise Unavailable("documents cannot be read now", retry_after=1.0)
            await self.advanced.park()

    def go_on(self, watch: Watch) -> None:
        """Have a watch go on once its collection is loaded: from its place, or anew in another stream."""
        if not watch.collection.loaded or self.stream is None:
            return
        if watch.stream != self.stream:
            watch.begin(self.stream, 0, self.head, recovered=False)
        else:
            watch.holder.owes()

    async def remembers(self, collection: Collection, position: Position) -> bool:
        """Return whether a collection has all that was deleted after a position; it holds until a wait."""
        if position.incarnation != self.stream or not await self.keyed.remembers(position.sequence):
            return False
        tenant = collection.tenant
        said = None if tenant in self.removed else await self.keyed.get(self.removal(tenant))
        if position.incarnation != self.stream:
            return False
        removed = self.removed.setdefault(tenant, said[0] if said else 0)
        return max(collection.rows.floor, removed) <= position.sequence <= self.head

    async def look_ended(self) -> None:
        """Wait until it is known whether deletions were missed. Raise `Unavailable` if that takes long."""
        with trio.move_on_after(OPENING_SECONDS):
            while self.doubts:
                await self.advanced.park()
            return
        raise Unavailable("documents cannot be read yet", retry_after=1.0)

    # --- removals ------------------------------------------------------------------------------------

    def removal(self, tenant: str) -> str:
        """Return the subject where a broker says that keys of a tenant have been removed.

        It is in the stream itself: positions before it do not count any more, here and after a restart.
        """
        return f"{self.prefix}.{subjects.BROKER}.{REMOVED}{tenant}"

    async def look_for_removals(self) -> None:
        """Look again and again whether keys have been removed without a word, for ever."""
        while self.lasting:
            await beat(LOOK_SECONDS)
            if not self.collections:
                self.removals.begin(None)
            elif self.up:
                began = trio.current_time()
                with suppress(Unavailable):
                    await self.look()
                pause = LOOKS_SHARE * (trio.current_time() - began) - LOOK_SECONDS
                await trio.sleep(min(max(0.0, pause), LONGEST_PAUSE))

    async def look(self) -> None:
        """Have it said of which tenants keys are gone. Raise `Unavailable`."""
        count = await self.keyed.count()
        while self.stream == count.incarnation and self.head < count.last:
            if not self.up:
                return
            await self.advanced.park()
        if self.stream != count.incarnation or not self.removals.suspects(count):
            return
        for tenant, rooms in list(self.tenants.items()):
            prefix, head = f"{self.prefix}.{tenant}.", self.head
            there = set(await self.keyed.keys(f"{prefix}>", at_least=head))
            if self.stream != count.incarnation or not all(each.loaded for each in rooms.selections):
                return  # what is being loaded may lack it: the next look tells
            gone = any(
                not row.deleted and row.revision <= head and prefix + row.key not in there
                for collection in rooms.selections
                for row in collection.rows.after(0)
            )
            if gone:
                await self.say_removed(tenant)
        self.removals.begin(count)

    async def say_removed(self, tenant: str) -> None:
        """Say to all brokers that keys of a tenant are gone; if that cannot be said, at least here."""
        log.warning("keys_removed", tenant=tenant, stream=self.stream)
        subject = self.removal(tenant)
        try:
            said = await self.keyed.get(subject)
            await self.keyed.put(subject, b"{}", headers={}, revision=said[0] if said else 0)
        except Stale:
            pass  # another broker says so
        except (Unavailable, OutcomeUnknown, TooLarge) as error:
            log.warning("removal_not_said", tenant=tenant, error=repr(error))
            self.hear_of_removal(tenant, self.head + 1)

    def hear_of_removal(self, tenant: str, sequence: int) -> None:
        """Begin anew with a tenant: of what is gone nothing else tells."""
        self.removed[tenant] = sequence
        if rooms := self.tenants.get(tenant):
            self.begin_anew(rooms.selections)

    # --- lanes ---------------------------------------------------------------------------------------

    def schedule(self, collection: Collection, now: float) -> None:
        """Have the lanes of a collection give what they hold, when they may."""
        for lane in collection.lanes.values():
            due = lane.due(now)
            if due is not None and due < self.queued.get(lane, inf):
                self.queued[lane] = due
                heapq.heappush(self.due, (due, next(self.serial), collection, lane))
                self.woken.set()

    async def give_on(self) -> None:
        """Give the members of each lane what is due, for ever."""
        while True:
            now, turn = trio.current_time(), Turn()
            while self.due and self.due[0][0] <= now:
                due, _, collection, lane = heapq.heappop(self.due)
                if self.queued.get(lane) == due:
                    del self.queued[lane]
                    await self.give(collection, lane, turn)
                    self.schedule(collection, trio.current_time())
                    await turn.pass_on()
            with trio.move_on_at(self.due[0][0] if self.due else inf):
                await self.woken.wait()

    async def give(self, collection: Collection, lane: Lane[Watch], turn: Turn) -> None:
        """Give the members of a lane the steps that are due."""
        if collection.grown:
            collection.grown = False
            for watch in list(collection.watches):
                watch.holder.grew(watch)
        if collection.lanes.get(lane.seconds) is not lane or self.stream is None or self.form is None:
            return
        steps = lane.take(trio.current_time(), self.head)
        if not steps:
            return
        members, newest = list(lane.members), max(each.new.revision for each in steps)
        shared = Shared(steps, self.form, self.stream)
        for index in range(len(steps)):
            shared.change(index)
            await turn.pass_on()
        for number, watch in enumerate(members, 1):
            if watch.lane is lane and watch.place < newest:  # else it has read on, and joined again
                try:
                    watch.give(shared)
                except Exception as error:  # any: it ends that connection alone
                    watch.flow.client.crashed(error)
            if number % MEMBERS == 0:
                await turn.pass_on()

    # --- for operators -------------------------------------------------------------------------------

    def held(self) -> Iterable[Collection]:
        return self.collections.values()
