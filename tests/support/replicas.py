"""One keyed stream of several brokers in memory: each reads it through a feed of its own, as late as its bus.

A write arrives whoever waits for it, perhaps long after nobody does any more, or never.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from broker.bus.base import OutcomeUnknown, Stale
from broker.documents import values
from broker.errors import Timeout, Unavailable
from tests.support.scripted_bus import ScriptedBus
from tests.support.scripted_keyed import ScriptedKeyed

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import Any

    from broker.bus.base import KeyedPut, Record

ACK_SECONDS = 2.0
LATEST_SECONDS = 8.0


@attrs.define(eq=False, kw_only=True)
class Stream:
    """What all have in common: `values` is what was ever stored, by sequence; services are by subject."""

    random: random.Random
    nursery: trio.Nursery
    late: float = 0.0  # how often a write arrives late
    log: list[Record] = attrs.Factory(list)
    rows: dict[str, Record] = attrs.Factory(dict)
    values: dict[int, Any] = attrs.Factory(dict)
    replicas: list[Replica] = attrs.Factory(list)
    services: dict[str, Callable[[bytes], Awaitable[bytes]]] = attrs.Factory(dict)

    def bus(self, failures: float) -> Bus:
        """Return the way of another broker to it."""
        bus = Bus(random=self.random, failures=failures, stream=self)
        replica = Replica(bus, log=self.log, rows=self.rows, last=len(self.log), stream=self)
        bus.by_key["STATE"] = replica
        self.replicas.append(replica)
        return bus

    def store(self, subject: str, body: bytes, headers: Mapping[str, str] | None) -> int:
        record = (len(self.log) + 1, subject, body, headers or None)
        self.log.append(record)
        self.rows[subject] = record
        self.values[record[0]] = values.parse(body) if body else None
        for each in self.replicas:
            each.last = record[0]
            each.wake()
        return record[0]

    def replace(self, puts: Sequence[KeyedPut]) -> list[int]:
        for subject, _, _, revision in puts:
            there = self.rows.get(subject)
            if (there[0] if there else 0) != revision:
                raise Stale
        return [self.store(subject, body, headers) for subject, body, headers, _ in puts]


@attrs.define(eq=False, kw_only=True)
class Bus(ScriptedBus):
    stream: Stream

    async def request(
        self, subject: str, body: bytes, *, headers: Mapping[str, str], seconds: float
    ) -> tuple[Mapping[str, str], bytes]:
        """Ask a service, which goes on if nobody waits for its answer any more."""
        await self.delay()
        service = self.stream.services.get(subject)
        if service is None:
            raise Unavailable(f"no service answers on {subject}", retry_after=1.0)
        answers: list[bytes] = []
        done = trio.Event()

        async def work() -> None:
            answers.append(await service(body))
            done.set()

        self.stream.nursery.start_soon(work)
        with trio.move_on_after(seconds):
            await done.wait()
            await self.delay()
            return {}, answers[0]
        raise Timeout("the service did not answer in time")


@attrs.define(eq=False)
class Replica(ScriptedKeyed):
    stream: Stream = attrs.field(kw_only=True)

    def store(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        return self.stream.store(subject, body, headers)

    async def put_all(self, puts: Sequence[KeyedPut]) -> list[int]:
        await self.bus.delay()
        rng = self.bus.random
        late = rng.random() < self.stream.late
        fate: list[list[int] | Exception] = []
        done = trio.Event()

        async def arrive() -> None:
            await trio.sleep(rng.uniform(0, LATEST_SECONDS if late else 0.02))
            if late and rng.random() < 0.3:
                return  # never
            try:
                fate.append(self.stream.replace(puts))
            except Stale as error:
                fate.append(error)
            done.set()

        self.stream.nursery.start_soon(arrive)
        with trio.move_on_after(ACK_SECONDS):
            await done.wait()
            await trio.sleep(rng.uniform(0, 0.02))
        if not fate or late:
            raise OutcomeUnknown("scripted")
        if isinstance(fate[0], Exception):
            raise fate[0]
        try:
            self.bus.acknowledge()
        except Unavailable as error:
            raise OutcomeUnknown("scripted") from error
        return fate[0]
