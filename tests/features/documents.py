"""Documents in memory: a keyed stream, late and failing, brokers that may be killed, and services."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import trio

from broker import config
from broker.bus.base import OutcomeUnknown, Stale
from broker.errors import BrokerError, Timeout, TooLarge, Unavailable
from broker.features.state.changing import Changing
from broker.features.state.rules import Rule, Rules
from broker.features.state.wishes import Part, Wish
from broker.metrics.meters import Changes
from broker.subjects import Names

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from broker.bus.base import KeyedPut, Record
    from broker.documents.judging import Change
    from broker.wire.messages import Changed

INCARNATION = "inc0"
TENANT = "acme"
RULES = Rules((Rule(pattern="owned.>", service=True), Rule(pattern=">")))


@attrs.define(eq=False, repr=False)
class World:
    """The stream: `log` is all that it ever had, `rows` the newest of each subject.

    `failures` is how often a request fails, and how often the answer to a write is lost.
    """

    random: random.Random
    nursery: trio.Nursery
    failures: float = 0.0
    log: list[Record] = attrs.Factory(list)
    rows: dict[str, Record] = attrs.Factory(dict)
    listeners: list[Changing] = attrs.Factory(list)
    services: dict[str, Callable[[Any], Awaitable[bytes]]] = attrs.Factory(dict)  # by subject
    limits: config.Limits = attrs.Factory(config.Limits)
    heads: dict[Changing, int] = attrs.Factory(dict)  # how far the feed of each has come
    loads: int = 0
    max_payload: int = 1 << 20  # of a request

    async def pause(self, most: float = 0.02) -> None:
        await trio.sleep(self.random.uniform(0, most))

    def store(self, subject: str, body: bytes, headers: Mapping[str, str] | None) -> int:
        record = (len(self.log) + 1, subject, body, headers)
        self.log.append(record)
        self.rows[subject] = record
        for each in self.listeners:
            self.nursery.start_soon(self.feed, each, record)
        return record[0]

    async def feed(self, listener: Changing, record: Record) -> None:
        """In order: the pause of each broker is the same for all its records."""
        await trio.sleep(0.001 * (1 + self.listeners.index(listener)) if listener in self.listeners else 0)
        if listener in self.listeners:
            self.heads[listener] = record[0]
            listener.hear([record])

    def replace(self, puts: Sequence[KeyedPut]) -> list[int]:
        for subject, _, _, revision in puts:
            there = self.rows.get(subject)
            if (there[0] if there else 0) != revision:
                raise Stale
        return [self.store(subject, body, headers) for subject, body, headers, _ in puts]

    # --- bus.base.Keyed and bus.base.Bus, as far as changes need them

    async def get(self, subject: str) -> Record | None:
        await self.pause()
        if self.random.random() < self.failures / 4:
            raise Unavailable("scripted")
        found = self.rows.get(subject)
        await self.pause()
        return found

    async def load(
        self, filters: Sequence[str], *, at_least: int, take: Callable[[list[Record]], None]
    ) -> str:
        """One record at a time, as it is when its turn comes."""
        self.loads += 1
        for subject in list(self.rows):
            await self.pause()
            take([self.rows[subject]])
        if self.random.random() < self.failures / 4:
            raise Unavailable("scripted")
        assert filters == [f"state.{TENANT}.>"]
        assert at_least <= len(self.log)
        return INCARNATION

    async def put(self, subject: str, body: bytes, *, headers: Mapping[str, str], revision: int) -> int:
        [sequence] = await self.put_all([(subject, body, headers, revision)])
        return sequence

    async def put_all(self, puts: Sequence[KeyedPut]) -> list[int]:
        """A write arrives whoever waits for it, and perhaps long after nobody does any more."""
        if self.random.random() < self.failures / 4:
            raise Unavailable("scripted: nothing was sent")
        fate: list[list[int] | Exception] = []
        done = trio.Event()
        late = self.random.random() < self.failures

        async def arrive() -> None:
            await self.pause(8.0 if late else 0.02)
            if late and self.random.random() < 0.5:
                return  # never
            try:
                fate.append(self.replace(puts))
            except Stale as error:
                fate.append(error)
            done.set()

        self.nursery.start_soon(arrive)
        with trio.move_on_after(2.0):
            await done.wait()
            await self.pause()
        if not fate or late:
            raise OutcomeUnknown("scripted")
        if isinstance(fate[0], Exception):
            raise fate[0]
        return fate[0]

    async def request(
        self, subject: str, body: bytes, *, headers: Mapping[str, str], seconds: float
    ) -> tuple[Mapping[str, str], bytes]:
        if len(body) > self.max_payload:
            raise TooLarge("scripted")
        service = self.services.get(subject)
        if service is None or self.random.random() < self.failures / 4:
            raise Unavailable("scripted: nobody")
        answer: list[bytes] = []
        done = trio.Event()

        async def work() -> None:
            answer.append(await service(msgspec.json.decode(body)))
            done.set()

        self.nursery.start_soon(work)
        with trio.move_on_after(seconds):
            await done.wait()
            await self.pause()
            return {}, answer[0]
        raise Timeout("scripted")


@attrs.frozen
class Asker:
    """Whoever asks for a change."""

    id: str
    user: str

    def attach(self) -> Asker:
        return self

    @property
    def tenant(self) -> str:
        return TENANT

    def who(self) -> dict[str, str | None]:
        return {"connection": self.id, "peer": "", "tenant": TENANT, "user": self.user}


@attrs.define(eq=False, repr=False)
class Broker:
    """A broker that changes documents, from `run` to `kill`."""

    world: World
    changing: Changing = attrs.field(init=False)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)

    def __attrs_post_init__(self) -> None:
        world: Any = self.world
        self.changing = Changing(
            bus=world,
            keyed=world,
            names=Names(),
            rules=RULES,
            incarnation=lambda: INCARNATION,
            head=lambda: world.heads.get(self.changing, 0),
            limits=world.limits,
            meters=Changes(),
            features=lambda: (),
        )

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.world.listeners.append(self.changing)
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.changing.run)
                await trio.testing.wait_all_tasks_blocked()
                task_status.started()
        self.world.listeners.remove(self.changing)

    def kill(self) -> None:
        self.scope.cancel()

    async def change(self, asker: Asker, changes: Mapping[str, Change]) -> dict[str, str]:
        """The revisions that have it. Raises why it is not applied, or `Killed`."""
        parts = tuple(
            Part(channel=channel, rule=RULES.find(channel) or RULES.rules[-1], change=change, made_on=None)
            for channel, change in sorted(changes.items())
        )
        whoever: Any = asker
        with suppress(trio.Cancelled):
            found: Changed | BrokerError | None = None
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    while not self.scope.cancel_called:
                        await trio.sleep(0.01)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                try:
                    found = await self.changing.change(whoever, Wish(id=parts[0].change.id, parts=parts))
                except BrokerError as error:
                    found = error
                nursery.cancel_scope.cancel()
        if self.scope.cancel_called or found is None:
            raise Killed
        if isinstance(found, BrokerError):
            raise found
        return found.revisions


class Killed(Exception):
    """The broker was killed before it answered."""
