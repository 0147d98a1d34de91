"""The tenant's own work over a stream that is trimmed, deleted from and made anew, under many clients.

Everything runs by hand: the tenant's work is one coroutine that is resumed wherever it may yield, the sending
tasks are steps, and history is read when the story says so. Clients cut off at any byte come back with
what they were told last. In the end each subscription has what a naive reader of the stream would
give it, but for what a gap has named.

`SIMULATION_SEEDS=10000` runs more seeds; a failing test names its seed, which replays it exactly.
"""

from __future__ import annotations

import json
import random
from collections import Counter, deque
from types import coroutine
from typing import TYPE_CHECKING, Any, cast

import attrs
import trio
from msgspec import UNSET

from broker import config, subjects
from broker.actors import tenant as tenants
from broker.actors.following import Followers
from broker.actors.inbox import Hole, Inbox
from broker.actors.intake import Intake
from broker.actors.tenant import Tenant
from broker.bus.base import StreamState
from broker.eventlog.history import Segment
from broker.eventlog.places import at, sequence_of
from broker.eventlog.snapshots import Newer, Snapshot, events_of, make_base
from broker.flow.client import Notice
from broker.flow.flow import Start
from broker.metrics.meters import Meters
from broker.ranges import Ranges
from broker.wire import frames
from broker.wire.messages import Gap, Pong, ServerMessage, Source, Subscribed
from broker.wire.positions import Position
from tests.support.flows import ENDLESS, Link
from tests.support.scripted import parse_frame
from tests.support.seeds import simulated

if TYPE_CHECKING:
    from collections.abc import Generator

    import pytest

    from broker.bus.base import Record
    from broker.eventlog.history import Checked
    from broker.eventlog.log import EventLog, Missing
    from broker.eventlog.selection import Selection
    from broker.wire.messages import Lag

CHANNELS = ["a", "a.b", "a.c", "b", "b.c", "secret.x"]
PATTERNS = ["a", "a.>", "a.b", "b", "*", ">", "secret.>"]
DENY = ("a.b", "secret.x")
LIVE = "live.x"
NAMES = subjects.Names()
ANEW = "inc{}"
UNSENT = 200_000  # bytes that a client may make the broker hold


@coroutine
def suspended() -> Generator[None, None, None]:
    """Hand the turn back to the story."""
    yield


class ByHand:
    """A turn that is passed on at each chance."""

    async def pass_on(self) -> None:
        await suspended()


class Waiting(Inbox):
    """An inbox whose tenant waits in the hands of the story."""

    async def wait(self) -> None:
        while self.empty():
            await suspended()


@attrs.define(eq=False)
class Stream:
    """One incarnation: `records` by sequence with those that are gone, which are in `gone`."""

    incarnation: str
    records: list[tuple[int, str, str]] = attrs.Factory(list)  # sequence, tenant, channel
    gone: set[int] = attrs.Factory(set)
    first: int = 1

    @property
    def last(self) -> int:
        return len(self.records)

    def state(self) -> StreamState:
        held = Ranges.of(sorted(each for each in self.gone if each >= self.first))
        return StreamState(incarnation=self.incarnation, first=self.first, last=self.last, deleted=held)


@attrs.define(eq=False, kw_only=True)
class Wanted:
    """A subscription as its client knows it, and what has come of it.

    What is not above its `floor` comes for others. `lost` are stretches that a gap has named, after a
    position up to another; `dropped` those that its lag policy has let go, as the broker knows them, each
    with its incarnation. `limits` say what it was entitled to before its rights were cut: up to which
    position it had that. `rows` are what its snapshot must have.
    """

    pattern: str
    start: int | None
    floor: int = 0
    policy: Lag | None = None
    deny: tuple[str, ...] = ()
    limits: list[tuple[int, tuple[str, ...]]] = attrs.Factory(list)
    number: int | None = None
    seen: list[int] = attrs.Factory(list)
    lost: list[tuple[int, int]] = attrs.Factory(list)
    dropped: list[tuple[str, int, int]] = attrs.Factory(list)
    dropping: deque[tuple[str, int, int]] = attrs.Factory(deque)  # of which it has not heard yet
    passed: bool = False
    rows: list[int] | None = None

    def admits(self, channel: str, sequence: int) -> bool:
        deny = next((deny for upto, deny in self.limits if sequence <= upto), self.deny)
        return subjects.covers(self.pattern, channel) and channel not in deny

    def begin_anew(self) -> None:
        self.start, self.floor, self.rows, self.passed = 0, 0, None, False
        self.seen, self.lost, self.limits = [], [], []

    @property
    def newest(self) -> int:
        return max([self.start or 0, *self.seen])


@attrs.define(eq=False, kw_only=True)
class Client(Link):
    """A client that checks what it is told as it goes; `position` is what it would resume from."""

    world: World
    name: int
    rng: random.Random
    capacity: int = 0
    attached: bool = False
    tasked: bool = False  # there is a sending task
    waits: Missing | None = None  # which has asked the stream
    slow: bool = False  # it is to be closed
    incarnation: str = ""
    position: int | None = None
    unmarked: int = -1  # newest of the unmarked events
    live: int | None = None
    wanted: dict[str, Wanted] = attrs.Factory(dict)
    pending: deque[tuple[list[Wanted], bool]] = attrs.Factory(deque)

    # --- what the broker's side does

    def held_up(self) -> None:
        self.fell_behind()

    def fell_behind(self) -> None:
        flow = self.flow
        if flow.rest or flow.main or flow.beside:
            self.tasked = True

    def too_slow(self) -> None:
        assert any(each.policy == "close" for each in self.every()), "nobody asked for that"
        self.slow = True

    def heed_notice(self, notice: Notice) -> None:
        if notice.message:
            self.tell(notice.message)
        if notice.reason and self.flow.unstored:
            self.tell(Gap(channel=[each.pattern for each in self.flow.unstored], reason=notice.reason))

    def tell(self, message: ServerMessage) -> None:
        if isinstance(message, Gap) and message.reason == "lag" and message.start is not UNSET:
            patterns = [message.channel] if isinstance(message.channel, str) else message.channel
            log = self.flow.log
            assert log
            for each in {each.pattern: each for each in self.every()}.values():
                if each.pattern in patterns and each.policy == "drop":
                    assert message.count != 0, "a gap of nothing"
                    selection = self.flow.find(each.pattern)
                    assert selection
                    assert self.flow.options
                    head = sequence_of(self.flow.options.floors[selection])
                    start = int(str(message.start).rpartition("-")[2])
                    each.dropping.append((log.incarnation, start, head))
        super().tell(message)
        if self.world.alive(self):
            assert self.flow.unsent < UNSENT, "what waits grows without bounds"

    def every(self) -> list[Wanted]:
        return [*self.wanted.values(), *(each for group, _ in self.pending for each in group)]

    def step(self) -> None:
        """A step of the sending task."""
        flow = self.flow
        if not self.tasked or self.waits:
            return
        if flow.rest is not None:
            flow.took(self.take(flow.rest[0]))
        elif flow.log is not None and (flow.main is not None or flow.beside):
            self.waits = self.sending.read_on(flow.log)
        else:
            self.tasked = False

    # --- the link, and what comes over it

    def connect(self) -> None:
        world = self.world
        self.__attrs_post_init__()
        self.taken.clear()
        self.received.clear()
        self.capacity = self.room = self.rng.choice((60, 300, 2000, 20000))
        self.whole = self.flow.whole = self.rng.random() < 0.15
        self.attached, self.tasked, self.waits, self.slow, self.live = True, False, None, False, None
        self.pending.clear()
        world.tenant.enter(self.flow)
        kept, self.wanted = list(self.wanted.values()), {}
        for each in kept:
            each.dropping.clear()
        current = world.tenant.log.incarnation
        if self.position is not None and self.incarnation != current:
            self.learn(current)
            for each in kept:
                each.begin_anew()
            self.position = 0
        if self.position is None:
            return
        unstored = [each for each in kept if each.pattern == LIVE]
        kept = [each for each in kept if each.pattern != LIVE]
        main, place = [each for each in kept if each.number is None], self.position
        for each in main:
            each.seen = [sequence for sequence in each.seen if sequence <= max(place, each.start or 0)]
        above = [each for each in main if (each.start or 0) > place]
        for policy in dict.fromkeys(each.policy for each in main):
            together = [each for each in main if each not in above and each.policy == policy]
            self.subscribe(together, start=place)
        for each in above:
            self.subscribe([each], start=each.start)
        for each in kept:
            if each.number is not None and each.rows is None:
                each.floor = each.newest
                self.subscribe([each], start=each.floor)
        for each in unstored:
            self.subscribe([each], start=None)

    def cut(self) -> None:
        self.world.tenant.leave(self.flow)
        self.attached = False
        if self.rng.random() < 0.5:
            self.read()

    def read(self, most: int | None = None) -> None:
        """Take a part of what has come."""
        count = self.rng.randint(0, len(self.taken)) if most is None else min(most, len(self.taken))
        self.world.trace(self.name, "reads", count)
        self.received += self.taken[:count]
        del self.taken[:count]
        self.room = self.capacity - len(self.taken)
        while (frame := parse_frame(self.received)) is not None:
            message = json.loads(frame[1])
            self.world.trace(self.name, message)
            self.heed(message["type"], message["payload"])
        if not self.attached:
            self.received.clear()

    received: bytearray = attrs.Factory(bytearray)

    def learn(self, incarnation: str) -> None:
        """Positions of a new incarnation void all older ones."""
        assert incarnation > self.incarnation
        self.incarnation, self.unmarked, self.position = incarnation, -1, None
        for each in self.wanted.values():
            each.begin_anew()

    def place(self, text: str) -> int:
        incarnation, _, sequence = text.rpartition("-")
        if incarnation != self.incarnation:
            self.learn(incarnation)
        return int(sequence)

    def move(self, place: int, *, back: bool = False) -> None:
        assert back or self.position is None or place >= self.position, "P fell"
        self.position = place

    def heed(self, kind: str, payload: dict[str, Any]) -> None:
        getattr(self, "heed_" + kind.replace(".", "_"))(payload)

    def heed_event(self, payload: dict[str, Any]) -> None:
        channel, number = payload["channel"], payload.get("catch_up")
        if "position" not in payload:
            assert LIVE in self.wanted
            assert self.live in (None, payload["event"] - 1), "unstored events are lost without a word"
            self.live = payload["event"]
            return
        sequence = self.place(payload["position"])
        if number is None:
            assert sequence > self.unmarked, "unmarked events are given twice or out of order"
            self.unmarked = sequence
            self.move(sequence)
        else:
            assert self.position is not None
            assert sequence <= self.position, "a catch-up passes the P that was told"
        meant = [
            each for each in self.wanted.values() if each.number == number and each.admits(channel, sequence)
        ]
        assert meant, "an event for nobody"
        for each in meant:
            if each.rows is None or number is None or sequence not in each.rows:
                if sequence > max(each.start or 0, each.floor):
                    assert not each.seen or sequence > each.seen[-1], "twice or out of order"
                    each.seen.append(sequence)
            else:
                assert not each.seen or sequence > each.seen[-1], "twice or out of order"
                each.seen.append(sequence)

    def heed_subscribed(self, payload: dict[str, Any]) -> None:
        told = self.place(payload["position"])
        group, started = self.pending.popleft()
        assert payload["channel"] == [each.pattern for each in group]
        back = started and "catch_up" not in payload
        for each in group:
            if each.pattern == LIVE:
                self.live = None
            else:
                each.number = payload.get("catch_up")
                each.start = told if each.start is None else each.start
            self.wanted[each.pattern] = each
        if back and self.position is not None and told < self.position:
            self.unmarked = told
        self.move(told, back=back)

    def heed_unsubscribed(self, payload: dict[str, Any]) -> None:
        self.wanted.pop(payload["channel"], None)

    def heed_retuned(self, payload: dict[str, Any]) -> None:
        self.move(self.place(payload["position"]))
        if each := self.wanted.get(payload["channel"]):
            assert self.position is not None
            upto = self.position if each.number is None else each.newest
            each.limits.append((upto, each.deny))
            each.deny = DENY

    def heed_subscription_live(self, payload: dict[str, Any]) -> None:
        self.move(self.place(payload["position"]))
        named = payload["channel"]
        for pattern in [named] if isinstance(named, str) else named:
            each = self.wanted[pattern]
            assert each.number == payload.get("catch_up"), "live with another number"
            if each.rows is not None:
                self.check_rows(each)
            each.number, each.rows = None, None

    def check_rows(self, each: Wanted) -> None:
        gone = self.world.stream.gone
        if self.incarnation == self.world.stream.incarnation and each.rows and not each.limits:
            assert set(each.rows) - gone <= set(each.seen), "a channel is missing in a snapshot"

    def heed_pong(self, payload: dict[str, Any]) -> None:
        self.move(self.place(payload["position"]))

    def heed_source(self, _: dict[str, Any]) -> None: ...

    def heed_gap(self, payload: dict[str, Any]) -> None:
        named, reason = payload["channel"], payload["reason"]
        patterns = [named] if isinstance(named, str) else named
        start = self.place(payload["from"]) if "from" in payload else None
        end = self.place(payload["to"]) if "to" in payload else None
        if reason == "trimmed" and "catch_up" not in payload:
            assert start is not None
            assert self.position is not None
            assert start >= self.position, "P was told before its gap"
        if end is not None and "catch_up" not in payload:
            self.move(end)
            if reason == "reset":
                self.unmarked = end
        for pattern in patterns:
            each = self.wanted.get(pattern)
            if pattern == LIVE:
                self.live = None
            elif each is None:
                pass  # it has been replaced or ended meanwhile
            elif reason == "trimmed":
                assert start is not None
                each.lost.append((start, ENDLESS if end is None else end))
                if end is not None:
                    given = [one for one in each.seen if max(start, each.start or 0) < one <= end]
                    assert not given or each.rows is not None, "a gap names what was given"
            elif reason == "lag" and each.policy == "latest":
                each.passed = True
            elif reason == "lag":
                assert each.policy == "drop"
                each.dropped.append(each.dropping.popleft())

    # --- what it asks

    def subscribe(self, group: list[Wanted], *, start: int | None, rows: bool = False) -> None:
        """Do in one step what `joining` does."""
        if not group:
            return
        flow, log = self.flow, self.flow.log
        assert log
        self.world.trace(self.name, "subscribes", [each.pattern for each in group], start, rows)
        selections = [log.acquire(each.pattern, each.deny) for each in group]
        flow.settle()
        begin = None
        if rows:
            (each,) = group
            begin = Start(snapshot=self.world.snapshot(each, log, sequence_of(flow.place())))
            each.start = sequence_of(flow.place())
        elif start is not None:
            begin = Start(place=at(start))
        begun = flow.subscribe(
            selections, start=begin, again=begin is not None, policy=group[0].policy, listed=True, now=0.0
        )
        for selection in selections:
            log.release(selection)
        for each in group:
            if each.start is None and start is not None:
                each.start = start
        self.pending.append((group, begin is not None))
        self.tell(
            Subscribed(
                channel=[each.pattern for each in group],
                refused=[],
                position=log.text(flow.position()),
                recovered=True,
                live=begun.live,
                catch_up=UNSET if begun.number is None else begun.number,
            )
        )
        self.fell_behind()

    def act(self) -> None:
        rng, flow, world = self.rng, self.flow, self.world
        log = flow.log
        if self.slow or log is None:
            self.cut()
            return
        pattern = rng.choice(PATTERNS)
        busy = {each.pattern for each in self.every()}
        policies: list[Lag | None] = [None, None, None, "latest", "drop", "close"]
        new = Wanted(pattern=pattern, start=None, policy=rng.choice(policies))
        match rng.choices(range(8), (20, 20, 7, 6, 10, 6, 16, 5))[0]:
            case 0:
                if pattern not in busy:
                    self.subscribe([new], start=None)
            case 1:
                back = rng.choice((0, 3, 20, 200, -2))
                here = sequence_of(flow.place())
                start = max(0, here - back)
                known = self.incarnation in ("", log.incarnation)
                if known and start <= log.position() and log.incarnation == world.stream.incarnation:
                    new.start = start
                    self.subscribe([new], start=start)
            case 2:
                new.policy = None
                self.subscribe([new], start=None, rows=True)
            case 3:
                if LIVE not in busy:
                    unstored = Wanted(pattern=LIVE, start=None, policy=rng.choice(policies[:4]))
                    self.subscribe([unstored], start=None)
            case 4:
                if busy:
                    gone = rng.choice(sorted(busy))
                    world.trace(self.name, "leaves", gone)
                    flow.leave(gone)
                    self.say("unsubscribed", channel=gone)
            case 5:
                if (each := self.wanted.get(pattern)) and not self.pending and not each.deny:
                    world.trace(self.name, "is retuned", pattern)
                    flow.retune(pattern, DENY)
                    self.say("retuned", channel=pattern, position=log.text(flow.position()))
            case 6:
                self.tell(Pong(position=log.text(flow.position())))
            case _:
                self.cut()

    def say(self, kind: str, **payload: Any) -> None:
        self.flow.push(frames.text(json.dumps({"type": kind, "payload": payload}).encode()))


@attrs.define(eq=False)
class Pages:
    """The history of one log: pages of the stream that are read when the story says so."""

    world: World
    log: EventLog
    kept: dict[tuple[Selection, ...], list[Segment]] = attrs.Factory(dict)

    def find(self, selections: tuple[Selection, ...], after: int) -> Segment | None:
        for each in self.kept.get(selections, ()):
            if each.after <= after < each.upto:
                return each
        return None

    def read(self, missing: Missing) -> None:
        world, rng, below = self.world, self.world.rng, sequence_of(self.log.ring.floor)
        if world.stream.incarnation != self.log.incarnation or missing.after >= below:
            return
        upto = below if rng.random() < 0.5 else min(below, missing.after + rng.randint(1, 40))
        found: list[Checked] = []
        for sequence, tenant, channel in world.stream.records[missing.after : upto]:
            there = sequence not in world.stream.gone and not world.intake.gone.has(sequence)
            if there and tenant == "t" and any(each.admits(channel) for each in missing.selections):
                found.append((channel, world.record(sequence, channel)))
        if rng.random() < 0.2:
            world.trim()
        world.note()
        if world.stream.incarnation != self.log.incarnation:
            return
        tick = self.log.encode(found, base=0)
        tick.blank(world.state.deleted | Ranges.joined([(1, world.state.first - 1)]))
        self.kept.setdefault(missing.selections, []).append(
            Segment(
                after=missing.after,
                upto=upto,
                trimmed=min(world.state.first - 1, below),
                tick=tick,
                size=0,
                read_at=0.0,
            )
        )

    def blank(self, deleted: Ranges) -> None:
        for segments in self.kept.values():
            for each in segments:
                each.tick.blank(deleted)

    def clear(self) -> None:
        self.kept.clear()


class NoSnapshots:
    def blank(self, deleted: Ranges) -> None: ...


class World:
    """The stream, the feed, the tenant, and its clients."""

    def __init__(self, seed: int, *, loud: bool = False) -> None:
        rng = self.rng = random.Random(seed)
        self.loud, self.did = loud, Counter[str]()
        self.stream = Stream("inc0")
        self.unstored = 0
        self.depth = rng.choice((0, 12, 30, 200))
        self.size = rng.choice((0, 0, 100, 1500))
        self.fails = rng.choice((0, 0, 0.3))
        self.crashes, self.renews = rng.choice((0, 0, 0.05)), rng.choice((0, 0, 0.004))
        self.harms = rng.choice((0, 0.01, 0.06))
        for _ in range(rng.choice((0, 5, 200))):
            self.publish()
        if self.harms and rng.random() < 0.5:
            self.stream.first = rng.randint(1, self.stream.last + 1)
            self.stream.gone.update(range(1, self.stream.first))
        self.intake = Intake(names=NAMES, event_bytes=65536, rejected=print)
        self.intake.begin(self.stream.incarnation, self.stream.last)
        self.note()
        self.tenant = Tenant(
            name="t",
            bounds=config.Ring(events=rng.choice((3, 20, 8192))),
            outbound_bytes=rng.choice((300, 6000)),
            paced_channels=100,
            intake=self.intake,
            make_history=lambda _, log: Pages(self, log),  # type: ignore[arg-type,return-value]
            make_snapshots=lambda *_: NoSnapshots(),  # type: ignore[arg-type]
            followers=Followers(),
            advanced=trio.lowlevel.ParkingLot(),
            meters=Meters(),
        )
        self.tenant.inbox = Waiting()
        self.work = self.tenant.work()
        self.clients = [
            Client(world=self, name=number, rng=random.Random(f"{seed} {number}")) for number in range(4)
        ]
        for each in self.clients:
            each.connect()

    def trace(self, *what: object) -> None:
        if self.loud:
            print(*what)

    def alive(self, client: Client) -> bool:
        return client.attached and not client.slow

    # --- the stream

    def record(self, sequence: int, channel: str) -> Record:
        return sequence, f"events.t.{channel}", b"%d" % sequence + b" " * self.size, None

    def publish(self) -> None:
        stream = self.stream
        tenant = self.rng.choice(("t", "t", "other"))
        stream.records.append((stream.last + 1, tenant, self.rng.choice(CHANNELS)))

    def trim(self) -> None:
        if self.harms:
            stream, many = self.stream, 6 if self.rng.random() < 0.9 else 300
            stream.first = min(stream.last + 1, stream.first + self.rng.randint(0, many))
            stream.gone.update(range(1, stream.first))

    def harm(self) -> None:
        """Something is trimmed or deleted."""
        self.did["harms"] += 1
        stream = self.stream
        if self.rng.random() < 0.4:
            self.trim()
        elif stream.last:
            newest = self.rng.random() < 0.5
            low = max(0, stream.last - 20) if newest else 0
            stream.gone.update(self.rng.randint(low, stream.last - 1) + 1 for _ in range(3))

    def note(self) -> None:
        """Take out of memory what is gone, as `Deletions` does."""
        self.state = self.stream.state()
        if self.state.incarnation == self.intake.gone.incarnation:
            fresh = self.intake.gone.note(self.state)
            if fresh:
                self.trace("noted", fresh)
                self.intake.drop(fresh)
                if hasattr(self, "tenant"):
                    self.tenant.drop(fresh)

    def feed(self) -> None:
        """Deliver the next records, as `Supervisor.stored` takes them."""
        intake, inbox, gone = self.intake, self.tenant.inbox, self.intake.gone
        if intake.head < self.stream.first - 1:
            self.note()
            intake.begin(self.stream.incarnation, self.stream.first - 1)
            inbox.lose()
        upto = min(self.stream.last, intake.head + self.rng.randint(1, 30))
        there = [each for each in self.stream.records[intake.head : upto] if each[0] not in self.stream.gone]
        if there and there[-1][0] - intake.head > len(there):
            self.note()
        elif not there:
            upto = intake.head  # what is gone at the end is passed with the next that is there
        for sequence, tenant, channel in there:
            record = self.record(sequence, channel)
            record = (sequence, f"events.{tenant}.{channel}", *record[2:])
            gone.saw(record, intake.address(record[1]), 0.0)
            if tenant == "t":
                inbox.put(channel, record)
                intake.remember(float(sequence), "t", (channel, record), sequence)
        intake.forget(before=upto - self.depth)
        if upto > intake.head:
            before, intake.head = intake.head, there[-1][0] if there else upto
            if gone.reaches(before):
                inbox.announce(Hole(Position(intake.incarnation, intake.head)))
        self.trace("fed up to", intake.head)

    def renew(self) -> None:
        """The stream is made anew."""
        self.did["new streams"] += 1
        self.stream = Stream(ANEW.format(int(self.stream.incarnation[3:]) + 1))
        for _ in range(self.rng.choice((0, 3, 40))):
            self.publish()
        self.intake.begin(self.stream.incarnation, 0)
        self.note()
        self.tenant.inbox.renew()

    def snapshot(self, wanted: Wanted, log: EventLog, head: int) -> Snapshot:
        """A snapshot at a position: an older base, and what is newer, or none."""
        gone = self.intake.gone
        there = [
            (sequence, channel)
            for sequence, tenant, channel in self.stream.records[:head]
            if tenant == "t"
            and wanted.admits(channel, sequence)
            and sequence not in self.stream.gone
            and not gone.has(sequence)
        ]
        if self.stream.incarnation != log.incarnation:
            there = []
        newest = {channel: sequence for sequence, channel in there}
        wanted.rows = sorted(newest.values())
        split = max(sequence_of(log.ring.floor), head - 6)
        split = head if split > head or self.rng.random() < 0.5 else split
        older = {channel: sequence for sequence, channel in there if sequence <= split}
        pages = log.encode(
            [(each, self.record(older[each], each)) for each in sorted(older, key=older.__getitem__)], base=0
        )
        base = make_base(events_of(pages), tenant="t", head=split, matcher=log, now=0.0)
        if split == head:
            return Snapshot(base=base, head=head)
        later = {channel: sequence for channel, sequence in newest.items() if sequence > split}
        return Snapshot(
            base=base,
            head=split,
            superseded=sum(1 << base.where[channel] for channel in later if channel in base.where),
            newer=Newer(sequences=frozenset(later.values()), head=head),
        )

    # --- the story

    def run(self) -> None:
        """Let the tenant work up to the next place where it may yield."""
        self.work.send(None)

    def crash(self) -> None:
        self.did["crashes"] += 1
        self.trace("crash")
        self.work.close()
        self.tenant.inbox.lose()
        self.work = self.tenant.work()

    def answer(self) -> None:
        asking = [each for each in self.clients if each.waits and each.attached]
        if not asking:
            return
        client = self.rng.choice(asking)
        missing, log = client.waits, client.flow.log
        if missing is None or log is None:
            return
        client.waits = None
        self.did["reads"] += 1
        if self.rng.random() >= self.fails:
            cast("Pages", log.history).read(missing)

    def step(self) -> None:
        rng, tenant = self.rng, self.tenant
        client = rng.choice(self.clients)
        match rng.choices(range(8), (18, 6, 12, 18, 8, 14, 18, 2))[0]:
            case 0:
                for _ in range(rng.choice((1, 1, 3, 12))):
                    self.publish()
            case 1:
                self.unstored += 1
                if not tenant.inbox.renewed:
                    tenant.inbox.put(LIVE, (0, "live.t.x", b"%d" % self.unstored, None))
                    tenant.inbox.wake(None)
                else:
                    self.unstored -= 1
            case 2:
                self.feed()
            case 3:
                for _ in range(rng.choice((1, 3, 30))):
                    self.run()
            case 4:
                self.answer()
            case 5:
                if client.attached:
                    client.read()
                    client.step()
                elif rng.random() < 0.3:
                    client.connect()
            case 6:
                if client.attached:
                    client.act()
                    if client.attached and rng.random() < 0.5:
                        client.step()
            case _:
                if rng.random() < 0.3:
                    tenant.inbox.announce(Notice(Source(state="restored"), "source"))
        if rng.random() < self.harms:
            self.harm()
        if self.harms and rng.random() < 0.02:
            self.note()
        if rng.random() < self.crashes * 0.2:
            self.crash()
        if rng.random() < self.renews:
            self.renew()
        if rng.random() < 0.01:
            for log in tenant.logs:
                log.history.clear()
        self.check()

    def check(self) -> None:
        for each in self.clients:
            flow = each.flow
            if each.attached:
                assert flow.rest is None or flow.main is not None, "something waits, and it is up to date"
                assert each.tasked or not (flow.rest or flow.main or flow.beside), "nobody sends"
                assert flow.main is None or flow.log is None or not flow.main.groups or flow.main.resuming

    def at_rest(self) -> bool:
        tenant, stream = self.tenant, self.stream
        return tenant.inbox.empty() and all(
            each.position == stream.last
            and each.incarnation == stream.incarnation
            and each.flow.main is None
            and not each.flow.beside
            and not each.tasked
            and not any(one.number for one in each.wanted.values())
            for each in self.clients
        )

    def end(self) -> None:
        """Nothing more happens: everybody comes to the end."""
        self.trace("the end")
        self.fails = self.harms = 0
        self.publish()
        self.stream.records[-1] = (self.stream.last, "t", "a")
        for number in range(4000):
            self.feed()
            for _ in range(20):
                self.run()
            for each in self.clients:
                self.answer()
                if each.attached and each.slow:
                    each.cut()
                if not each.attached:
                    each.connect()
                each.capacity = 20000
                each.read(ENDLESS)
                each.step()
            if number % 20 == 9:
                self.note()
                for each in self.clients:
                    assert each.flow.log
                    each.tell(Pong(position=each.flow.log.text(each.flow.position())))
            if number % 20 == 19 and self.at_rest():
                break
        else:
            state = [
                (each.position, each.tasked, each.waits, each.slow, each.flow.main, each.flow.beside)
                for each in self.clients
            ]
            raise AssertionError("it does not come to an end", self.stream.last, self.intake.head, state)
        for each in self.clients:
            for one in each.wanted.values():
                self.judge(one)

    def judge(self, each: Wanted) -> None:
        """A naive reader of the whole stream, but for what a gap has named."""
        if each.pattern == LIVE:
            return
        self.did["judged"] += 1
        stream, start = self.stream, each.start or 0
        mine = [(sequence, channel) for sequence, tenant, channel in stream.records if tenant == "t"]
        want = {
            sequence: channel
            for sequence, channel in mine
            if sequence > start and each.admits(channel, sequence)
        }
        seen = {sequence for sequence in each.seen if sequence > start}
        assert seen <= want.keys(), "not its own"
        told = each.lost + [stretch for of, *stretch in each.dropped if of == stream.incarnation]
        missing = {
            sequence
            for sequence in want.keys() - seen
            if not any(low < sequence <= high for low, high in told)
        }
        if each.policy == "latest":
            newest = {want[sequence]: sequence for sequence in each.seen if sequence in want}
            later = {one for one in missing - stream.gone if newest.get(want[one], 0) < one}
            assert not later, ("the newest of a channel is missing", later, each)
            assert not missing or each.passed, ("passed over without a word", missing, each)
        else:
            assert not missing, ("missing", {one: one in stream.gone for one in missing}, each)


def play(seed: int, *, loud: bool = False) -> Counter[str]:
    world = World(seed, loud=loud)
    for _ in range(400):
        world.step()
    world.end()
    for each in world.clients:
        each.cut()
    assert not world.tenant.log.selections, "a selection was left behind"
    world.work.close()
    return world.did


@simulated(10)
async def test_storms(seed: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each subscription gets what it is entitled to, once and in order, or hears what it does not get."""
    monkeypatch.setattr(tenants, "Turn", ByHand)
    monkeypatch.setattr(tenants, "SENDS_BETWEEN_LOOKS", 1)
    play(seed)
