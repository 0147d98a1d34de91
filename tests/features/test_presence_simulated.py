"""Who is present under all that can happen: nobody is called gone who is there, and nobody stays for ever.

Several brokers share a stream in memory. Clients come, say something, leave, are cut off for a shorter or a
longer time and come back to any broker; tabs are duplicated; brokers are killed, stopped in order, stand
still, are cut off from NATS for longer than the linger; NATS is away, and loses its memory.
"""

from __future__ import annotations

import random
from math import inf
from typing import Any

import attrs
import trio

from broker.errors import BrokerError
from broker.wire import positions
from tests.features.presence import Broker, Connection, Stream
from tests.support.seeds import seeded, simulated

__all__ = ["seeded"]

LINGER = 30.0
LEASE = 10.0
SLACK = 4.0  # a message to all, windows, beats


@attrs.define(eq=False)
class Person:
    """A client with its session. `away` are the times in which it was not there, with how long it may be."""

    user: str
    session: str
    connection: Connection | None = None
    entered: bool = False
    tried: float = 0.0  # to enter, at last
    state: Any = None
    good: float = inf  # since when it is there
    spans: list[list[float]] = attrs.Factory(list)  # begin, end, allowed

    def absent(self) -> list[list[float]]:
        """Its spans, and the one that it has not noticed yet."""
        connection = self.connection
        if self.entered and connection is not None and connection.closing:
            return [*self.spans, [connection.ended, inf, LINGER]]
        if self.entered and connection is not None and connection.broker.bad is not None:
            return [*self.spans, [connection.broker.bad, inf, LINGER]]
        return self.spans

    @property
    def key(self) -> tuple[str, str]:
        return self.user, self.session


@attrs.define(eq=False)
class Story:
    rng: random.Random
    nursery: trio.Nursery
    stream: Stream
    brokers: list[Broker] = attrs.Factory(list)
    people: list[Person] = attrs.Factory(list)
    viewers: list[Connection] = attrs.Factory(list)
    ended: list[tuple[Broker, float]] = attrs.Factory(list)
    quiet: bool = False
    troubles: list[tuple[float, float]] = attrs.Factory(list)  # of NATS, in which nothing is judged
    losses: list[float] = attrs.Factory(list)
    serial: int = 0
    started: float = 0.0  # the last broker that may have judged

    def start(self) -> Broker:
        self.serial += 1
        self.started = trio.current_time()
        broker = Broker(self.stream, LINGER, f"b{self.serial}")
        self.brokers.append(broker)
        self.nursery.start_soon(broker.run)
        return broker

    def any(self) -> Broker:
        return self.rng.choice(self.brokers)

    # --- clients

    async def connect(self, person: Person) -> None:
        """Connect and enter, until that is done."""
        while not self.closed(person):
            broker = self.any()
            connection = Connection(broker, person.user)
            person.connection = connection
            try:
                with trio.move_on_after(10) as patience:
                    await connection.enter(person.session, person.state)
                if not patience.cancelled_caught and not connection.closing:
                    person.entered, person.good = True, trio.current_time()
                    if person.spans and person.spans[-1][1] == inf:
                        person.spans[-1][1] = trio.current_time()
                    return
            except BrokerError:
                pass
            connection.end()
            person.tried = trio.current_time()
            await trio.sleep(self.rng.uniform(0.1, 1))

    def closed(self, person: Person) -> bool:
        return person not in self.people

    def cut(self, person: Person, allowed: float = LINGER) -> None:
        if person.entered:
            person.entered = False
            person.good = inf
            begin = trio.current_time()
            if (connection := person.connection) is not None:
                begin = min(begin, connection.ended, connection.broker.bad or inf)
            person.spans.append([begin, inf, allowed])

    async def live(self, person: Person) -> None:
        rng = self.rng
        await trio.sleep(rng.uniform(0, 20))
        self.people.append(person)
        await self.connect(person)
        while True:
            await trio.sleep(rng.expovariate(1 / 15))
            connection = person.connection
            if connection is None or connection.closing:
                self.cut(person)
                await trio.sleep(rng.choice((0.1, 0.5, 2, 5, 60)))
                await self.connect(person)
                continue
            if self.quiet:
                continue
            mood = rng.random()
            try:
                if mood < 0.3:
                    person.state = rng.random()
                    await connection.update(person.state)
                elif mood < 0.4:
                    await connection.leave()
                    self.cut(person, 0.0)
                    connection.end(1000, "client")
                    await trio.sleep(rng.choice((0.5, 20, 50)))
                    await self.connect(person)
                elif mood < 0.5:  # a reload, or the page is left for good
                    connection.end(1001, "client")
                    self.cut(person, 10.0)
                    await trio.sleep(rng.choice((0.05, 1, 5, 50)))
                    await self.connect(person)
                elif mood < 0.8:
                    connection.end()
                    self.cut(person)
                    await trio.sleep(rng.choice((0, 0.3, 1.5, 10, 25, 50, 100)))
                    await self.connect(person)
                elif mood < 0.85:  # the link is dead, and the broker notices late
                    old = connection
                    if old.broker.bad is not None:
                        self.cut(person)
                    await self.connect(person)
                    await trio.sleep(rng.uniform(0, 20))
                    old.end()
            except BrokerError:
                connection.end()
                self.cut(person)
                await self.connect(person)

    async def view(self) -> None:
        """A client that only watches, and moves from one broker to another."""
        rng = self.rng
        held: dict[tuple[str, str], dict[str, Any]] = {}
        position = None
        while True:
            connection = Connection(self.any(), "viewer")
            try:
                await connection.watch(position, held)
            except BrokerError:
                connection.end()
                await trio.sleep(0.5)
                continue
            self.viewers.append(connection)
            until = inf if self.quiet else trio.current_time() + rng.choice((3, 20, 100))
            while not connection.closing and (self.quiet or trio.current_time() < until):
                await trio.sleep(0.5)
            self.viewers.remove(connection)
            self.departed(connection)
            held = dict(connection.members)
            position = positions.parse(connection.position) if connection.position else None
            if not connection.closing:
                connection.end()
            await trio.sleep(rng.choice((0, 1, 20)))

    # --- what is held

    def departed(self, viewer: Connection) -> None:
        """Nobody was shown as gone who was not."""
        for at, key in viewer.departures:
            person = next((each for each in self.people if each.key == key), None)
            assert person is not None
            if not self.judgeable(at) or self.broken(viewer.broker, at):
                continue
            spans = [
                (begin + max(0.0, allowed - 2.5), end + SLACK) for begin, end, allowed in person.absent()
            ]
            spans += [  # what is lost with the memory of NATS is known to those who have seen it alone
                (lost, end + SLACK)
                for lost in self.losses
                for begin, end, _ in person.absent()
                if begin - SLACK <= lost <= end
            ]
            excused = any(begin <= at <= end for begin, end in spans)
            assert excused, f"{at:.1f}: {key} is called gone; away {person.absent()}"
        viewer.departures.clear()

    def judgeable(self, at: float) -> bool:
        """Whether NATS has been well for long enough."""
        return all(not begin <= at <= end for begin, end in self.troubles)

    def broken(self, broker: Broker, at: float) -> bool:
        return broker.bad is not None and at >= broker.bad

    async def check(self) -> None:
        """Each second: nobody is missing, and nobody has been there for too long."""
        while True:
            await trio.sleep(1)
            now = trio.current_time()
            if not self.judgeable(now):
                continue
            for viewer in self.viewers:
                if self.broken(viewer.broker, now) or now < viewer.began + SLACK or not viewer.broker.alive:
                    continue
                shown = viewer.members
                for person in self.people:
                    connection = person.connection
                    there = person.entered and connection is not None and not connection.closing
                    if there and connection is not None and not self.broken(connection.broker, now):
                        if now > person.good + SLACK:
                            assert person.key in shown, f"{now:.1f}: {person.key} is missing"
                    elif person.key in shown and person.spans and (connection is None or connection.closing):
                        ended = min(connection.ended, now) if connection is not None else 0.0
                        since = max(person.tried, person.spans[-1][0], ended, self.started)
                        since = max([since, *(end for _, end in self.troubles)])
                        late = now > since + LINGER + LEASE + 2 * SLACK
                        assert not late, f"{now:.1f}: {person.key} is a ghost: {person.spans}"

    def equal(self) -> None:
        """All viewers show the same: what is so."""
        truth = {each.key: each.state for each in self.people if each.entered}
        for viewer in self.viewers:
            found = {key: each.get("state") for key, each in viewer.members.items()}
            assert found == truth
            away = {key: each["away"] for key, each in viewer.members.items() if "away" in each}
            assert not away
            assert viewer.counts == (len({user for user, _ in truth}), len(truth))

    # --- what happens

    async def happen(self) -> None:
        rng = self.rng
        while not self.quiet:
            await trio.sleep(rng.expovariate(1 / 25))
            if self.quiet:
                return
            mood = rng.random()
            broker = self.any()
            if mood < 0.25:
                self.start()
                self.brokers.remove(broker)
                broker.kill()
            elif mood < 0.45:
                self.start()
                self.brokers.remove(broker)
                await broker.drain()
            elif mood < 0.6:  # the process stands still
                await self.without(broker, "frozen", rng.choice((3, 12, 20)))
            elif mood < 0.75:
                await self.without(broker, "cut", rng.choice((2, 15, 70)))
            elif mood < 0.9:
                await self.trouble(rng.choice((1, 15, 60)), lose=False)
            else:
                await self.trouble(rng.choice((0.2, 5)), lose=True)

    async def without(self, broker: Broker, what: str, seconds: float) -> None:
        broker.bad = self.started = trio.current_time()
        setattr(broker.access, what, True)
        await trio.sleep(seconds)
        setattr(broker.access, what, False)
        await trio.sleep(SLACK)
        for viewer in self.viewers:
            if viewer.broker is broker:
                viewer.departures.clear()
        if seconds > LEASE:  # others may have judged it meanwhile
            for person in self.people:
                if person.connection is not None and person.connection.broker is broker:
                    person.spans.append([broker.bad, trio.current_time(), LINGER])
        broker.bad = None
        self.started = trio.current_time()  # who judges has to begin anew, perhaps

    async def trouble(self, seconds: float, *, lose: bool) -> None:
        begin = trio.current_time()
        self.troubles.append((begin, inf))
        self.stream.down = True
        await trio.sleep(seconds)
        if lose:
            self.stream.lose()
            self.losses.append(trio.current_time())
        self.stream.down = False
        self.troubles[-1] = (begin, trio.current_time() + SLACK + 2)


@simulated(3)
async def test_presence(autojump_clock: trio.testing.MockClock, seed: int) -> None:
    rng = random.Random(seed)
    async with trio.open_nursery() as nursery:
        stream = Stream(random.Random(f"{seed} stream"))
        story = Story(rng, nursery, stream)
        nursery.start_soon(stream.age)
        for _ in range(rng.choice((1, 2, 3))):
            story.start()
        await trio.sleep(1)
        for index in range(rng.choice((3, 8, 15))):
            nursery.start_soon(story.live, Person(f"u{index // 2}", f"s{index}"))
        for _ in range(4):
            nursery.start_soon(story.view)
        nursery.start_soon(story.check)
        nursery.start_soon(story.happen)
        await trio.sleep(rng.choice((60, 120, 240)))
        story.quiet = True
        await trio.sleep(LINGER + LEASE + 120)
        for viewer in story.viewers:
            story.departed(viewer)
        assert len(story.viewers) == 4
        story.equal()
        nursery.cancel_scope.cancel()
