"""Fan-out and outlets without I/O: a link is a number of bytes that it takes, and time stands still."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import config, subjects
from broker.actors.chunks import CHUNK_BYTES, Chunk
from broker.actors.fanout import Fanout
from broker.actors.outlet import CatchUp, Group, Outlet
from broker.actors.transport import LinkLost
from broker.features.snapshots import PAGE_BYTES, Snapshot, events_of, make_base
from broker.ranges import Ranges
from broker.wire import codec, frames, sse
from broker.wire.messages import Pong, ServerMessage
from tests.support.scripted import parse_frame
from tests.support.seeds import simulated
from tests.support.sse import Parser

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.actors.outlet import Backlog, Who
    from broker.actors.tenant import Notice
    from broker.features.replay import Checked
    from broker.ring import Tick
    from broker.routing import Topic
    from broker.wire.frames import Framing

ENDLESS = 10**9
CHANNELS = ["a", "a.b", "b", "users.u.i", "live.x", "live.y"]
PATTERNS = ["a", "a.>", ">", "*", "b", "users.u.>", "live.>", "live.x"]


@attrs.define(eq=False)
class Feed:
    quiet: int | None = None

    def quiet_at(self) -> int | None:
        return self.quiet


@attrs.define(eq=False)
class Link:
    """A client that takes `room` more bytes, and its outlet's `Client`. `whole`: nothing at once, as TLS."""

    room: int = ENDLESS
    whole: bool = False
    lost: bool = False
    user: str = "u"
    framing: Framing | None = None
    taken: bytearray = attrs.Factory(bytearray)
    calls: Counter[str] = attrs.Factory(Counter)
    outlet: Outlet = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.outlet = Outlet(send=self.send, client=self, whole=self.whole, framing=self.framing)

    def send(self, data: bytes | memoryview) -> int:
        if self.lost:
            raise LinkLost
        return 0 if self.whole else self.take(data)

    def take(self, data: bytes | memoryview) -> int:
        taken = min(self.room, len(data))
        self.room -= taken
        self.taken += data[:taken]
        return taken

    def who(self) -> Who:
        return {"connection": "c", "peer": "", "tenant": "t", "user": self.user}

    def fell_behind(self) -> None:
        self.calls["fell_behind"] += 1

    def link_lost(self) -> None:
        self.calls["link_lost"] += 1

    def crashed(self, error: Exception) -> None:
        raise error

    def heed_notice(self, notice: Notice) -> None:
        self.calls["heed_notice"] += 1

    def too_slow(self) -> None:
        self.calls["too_slow"] += 1

    def send_away(self) -> None:
        self.calls["send_away"] += 1

    def tell(self, message: ServerMessage) -> None:
        self.outlet.push(frames.text(codec.encode(message)))

    def ping(self) -> None:
        """A reply that carries P."""
        assert self.outlet.fanout
        self.tell(Pong(position=self.outlet.fanout.text(self.outlet.position())))

    def write(self) -> None:
        """What the sending task does while the ring has all: sends what waits, as far as it is taken."""
        outlet = self.outlet
        while backlog := outlet.backlog:
            if backlog.left:
                sent = self.take(backlog.left)
                backlog.left = backlog.left[sent:]
                if not sent:
                    return
            elif backlog.replies:
                backlog.left = memoryview(b"".join(backlog.replies))
                backlog.replies.clear()
            else:
                self.read_on(backlog)

    def read_on(self, backlog: Backlog) -> None:
        outlet = self.outlet
        if live := outlet.next_live(backlog):
            outlet.give(live, backlog, live=True)
        if not backlog.left:
            stored = outlet.next_stored(backlog)
            assert stored, "below the ring"
            outlet.give(stored, backlog)
            outlet.rejoin()

    def messages(self) -> list[dict[str, Any]]:
        """The whole messages so far."""
        data, found = bytearray(self.taken), []
        while (frame := parse_frame(data)) is not None:
            found.append(json.loads(frame[1]))
        return found

    def events(self) -> list[Any]:
        return [each["payload"]["event"] for each in self.messages() if each["type"] == "event"]


@attrs.define(eq=False)
class Bench:
    """One tenant's fan-out. Each event's body is its number: its sequence, or -n for the nth live one."""

    bounds: config.Ring = attrs.Factory(config.Ring)
    feed: Feed = attrs.Factory(Feed)
    sequence: int = 0
    lives: int = 0
    fanout: Fanout = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.fanout = self.make(head=0)

    def make(self, *, head: int, count: int = 0, incarnation: str = "inc") -> Fanout:
        return Fanout(
            bounds=self.bounds,
            incarnation=incarnation,
            head=head,
            clock=lambda: 0.0,
            feed=self.feed,
            count=count,
        )

    def attach(self, **how: Any) -> Link:
        link = Link(**how)
        self.fanout.attach(link.outlet)
        return link

    def join(
        self, link: Link, pattern: str, *, deny: tuple[str, ...] = (), floor: int | None = None
    ) -> Topic:
        """Subscribes from now on, as `joining` does: from P, or from the newest live event."""
        topic = self.fanout.acquire(pattern, deny)
        link.outlet.settle()
        now = self.fanout.count if topic.live else link.outlet.position()
        link.outlet.join(topic, now if floor is None else floor)
        return topic

    def records(self, *channels: str, size: int = 0) -> list[Checked]:
        found: list[Checked] = []
        for channel in channels:
            if subjects.is_live(channel):
                self.lives += 1
                body, sequence = -self.lives, 0
            else:
                self.sequence += 1
                body = sequence = self.sequence
            found.append((channel, (sequence, channel, b"%d" % body + b" " * size, None)))
        return found

    def publish(self, *channels: str, size: int = 0, between: Callable[[], None] = lambda: None) -> Tick:
        """One tick, sent as the tenant sends it; `between` is called where it may yield."""
        tick = self.fanout.add(self.records(*channels, size=size))
        for data, mask, outlets in self.fanout.shares(tick):
            for outlet in outlets:
                if outlet.mask and outlet.backlog is None:
                    sent = outlet.try_send(data)
                    outlet.mask = 0
                    outlet.took(tick, mask, data, sent)
                else:
                    outlet.mask = 0
                between()
        self.fanout.finish()
        return tick

    def catch_up(self, link: Link, pattern: str, *, after: int, snapshot: Snapshot | None = None) -> CatchUp:
        catch_up = CatchUp(7, position=after, told=self.fanout.position(), began=0.0, snapshot=snapshot)
        catch_up.topics[self.fanout.acquire(pattern, ())] = 0
        catch_up.groups.append(Group([pattern], listed=False, number=7))
        link.outlet.catch_ups.append(catch_up)
        return catch_up


# --- who gets what ---------------------------------------------------------------------------------


def test_equal_shares_are_one_group() -> None:
    """Connections that want the same of a tick get the same bytes, by whatever patterns they want it."""
    bench = Bench()
    links = [bench.attach() for _ in range(4)]
    for link, pattern in zip(links, ("a", "a.>", "*", ">"), strict=True):
        bench.join(link, pattern)
    bench.join(links[0], "a.b")
    bench.join(links[0], "a.>")
    bench.join(links[0], "*")
    bench.fanout.add(bench.records("a", "a.b", "users.u.i"))
    groups = bench.fanout.groups()[None]
    assert {mask: [links.index(each.client) for each in group] for mask, group in groups.items()} == {  # type: ignore[arg-type]
        0b011: [0, 3],
        0b010: [1],
        0b001: [2],
    }
    bench.fanout.finish()


def test_framed_once_for_all_links_of_a_kind() -> None:
    """Streams share their bytes as WebSockets do; the ring holds none, and who reads on frames anew."""
    bench = Bench()
    framed: list[bytes] = []

    def framing(frame: bytes, marked: bool) -> bytes:
        framed.append(frame)
        return sse.event(frame, marked)

    sockets = [bench.attach() for _ in range(2)]
    streams = [bench.attach(framing=framing) for _ in range(3)]
    for link in (*sockets, *streams):
        bench.join(link, ">")
    bench.join(streams[2], "live.>")
    tick = bench.publish("a", "live.x", "b")
    assert sorted(framed) == sorted(tick.frames)
    assert [link.events() for link in sockets] == [[1, 2]] * 2
    assert streams[0].taken == streams[1].taken
    found = [
        (json.loads(data)["payload"]["event"], place)
        for data, place in Parser().feed(bytes(streams[2].taken))
    ]
    assert found == [(1, "inc-1"), (-1, "inc-1"), (2, "inc-2")]
    slow = bench.attach(framing=framing, room=10)
    bench.join(slow, ">")
    del streams[0].taken[:]
    bench.publish("a", "b")
    assert slow.taken == streams[0].taken[:10]
    slow.room = ENDLESS
    slow.write()
    assert slow.taken == streams[0].taken
    for link in (*streams, slow):
        bench.fanout.detach(link.outlet)
    assert not bench.fanout.framings
    assert not bench.fanout.framed


def test_encoded_once_for_all() -> None:
    """An event is the publisher's own bytes within one frame, with the user that the broker noted."""
    bench = Bench()
    link = bench.attach()
    bench.join(link, ">")
    body = b'{"n" :1.50}'
    tick = bench.fanout.add([("a", (5, "s", body, {"Broker-User": "a%2Eb"})), ("a", (6, "s", b"", None))])
    payload = frames.text(
        b'{"type":"event","payload":{"channel":"a","position":"inc-5","publisher":{"user":"a.b"},"event":'
        + body
        + b"}}"
    )
    assert tick.frames[0] == payload
    assert tick.frames[1].endswith(b'"position":"inc-6","event":null}}')


@pytest.mark.parametrize("user", ["\udcff", "%FF", "%", "a\udcffb", ""])
def test_odd_publisher(user: str) -> None:
    """A header that holds no text stops nobody's events."""
    tick = Bench().fanout.add([("a", (1, "s", b"1", {"Broker-User": user}))])
    assert json.loads(tick.frames[0][2:])["payload"]["event"] == 1


@attrs.define
class Standing:
    """A subscription as the oracle knows it: what is above `start` and, once it has ended, up to `end`."""

    pattern: str
    start: int
    end: int = ENDLESS

    def wants(self, number: int, channel: str) -> bool:
        return self.start < number <= self.end and subjects.covers(self.pattern, channel)


@attrs.define(eq=False)
class Simulation:
    """Clients at random, in and between ticks, against what a list of all events says."""

    rng: random.Random
    bench: Bench = attrs.Factory(Bench)
    published: list[tuple[int, str]] = attrs.Factory(list)  # stored events: sequence, channel
    live: list[tuple[int, int, str]] = attrs.Factory(list)  # live events: number, counter, channel
    stands: dict[Link, list[Standing]] = attrs.Factory(dict)

    def add_client(self) -> None:
        whole = self.rng.random() < 0.2
        room = self.rng.choice((0, 50, 500, ENDLESS))
        self.stands[self.bench.attach(whole=whole, room=room)] = []

    def act(self) -> None:
        link = self.rng.choice(list(self.stands))
        outlet, stands = link.outlet, self.stands[link]
        standing = {each.pattern: each for each in stands if each.end == ENDLESS}
        match self.rng.randrange(6):
            case 0 | 1:
                pattern = self.rng.choice(PATTERNS)
                if pattern not in standing:
                    self.bench.join(link, pattern)
                    live = subjects.is_live(pattern)
                    now = self.bench.fanout.count if live else outlet.position()
                    stands.append(Standing(pattern, now))
            case 2:
                if standing:
                    pattern, ended = self.rng.choice(list(standing.items()))
                    outlet.leave(pattern)
                    backlog = outlet.backlog
                    if subjects.is_live(pattern):
                        ended.end = backlog.live_cursor if backlog else self.bench.fanout.count
                    else:
                        ended.end = outlet.position()
            case 3:
                link.ping()
            case 4:
                link.room += self.rng.choice((1, 30, 300, 3000))
                link.write()
            case _:
                link.write()

    def tick(self) -> None:
        channels = self.rng.choices(CHANNELS, k=self.rng.choice((1, 2, 20)))
        counter, sequence, lives = self.bench.fanout.count, self.bench.sequence, self.bench.lives
        for channel in channels:
            counter += 1
            if subjects.is_live(channel):
                lives += 1
                self.live.append((-lives, counter, channel))
            else:
                sequence += 1
                self.published.append((sequence, channel))
        self.bench.publish(*channels, size=self.rng.choice((0, 100, 3000)), between=self.sometimes)

    def sometimes(self) -> None:
        if self.rng.random() < 0.4:
            self.act()

    def check(self, link: Link) -> None:
        link.room = ENDLESS
        link.write()
        assert link.outlet.backlog is None
        stands = self.stands[link]
        expected = [n for n, channel in self.published if any(each.wants(n, channel) for each in stands)]
        found = link.events()
        assert [number for number in found if number > 0] == expected
        assert [number for number in found if number < 0] == [
            number
            for number, counter, channel in self.live
            if any(each.wants(counter, channel) for each in stands)
        ]
        before = 0
        for message in link.messages():
            if message["type"] == "event":
                before += message["payload"]["event"] > 0
            else:  # all that is entitled up to P has come, and nothing above it
                position = int(message["payload"]["position"].removeprefix("inc-"))
                assert before == len([each for each in expected if each <= position])


@simulated(150)
def test_as_a_list_of_all_events_says(seed: int) -> None:
    """Each event once and in order, each reply in its place: whatever happens in and between ticks."""
    rng = random.Random(seed)
    it = Simulation(rng)
    for _ in range(rng.choice((1, 4, 12))):
        it.add_client()
    for _ in range(rng.choice((5, 40))):
        it.tick()
        while rng.random() < 0.7:
            it.act()
    for link in it.stands:
        it.check(link)
        it.bench.fanout.detach(link.outlet)
    fanout = it.bench.fanout
    assert not fanout.topics
    assert not fanout.outlets
    assert not fanout.router.root.children, "a topic was left behind"


# --- positions and replies -------------------------------------------------------------------------


def test_a_reply_never_overtakes_a_share() -> None:
    """In the middle of a tick a reply first sends its connection's share: the worst of all traps."""
    bench = Bench()
    first, second = bench.attach(), bench.attach()
    bench.join(first, "a")
    bench.join(second, "a")
    asked: list[int] = []

    def ask() -> None:
        if not asked:
            asked.append(1)
            second.ping()

    bench.publish("a", between=ask)
    assert [each["type"] for each in second.messages()] == ["event", "pong"]
    assert first.events() == second.events() == [1]


def test_a_reply_counts_what_was_taken() -> None:
    """P in a reply amid a tick is where the link stopped taking: who is cut off then resumes from there."""
    bench = Bench()
    first, second = bench.attach(), bench.attach(room=100)
    bench.join(first, "a")
    bench.join(second, "a")
    bench.publish("a", "a", "a", "b", between=second.ping)
    second.room = ENDLESS
    second.write()
    assert [(each["type"], each["payload"]["position"]) for each in second.messages()] == [
        ("event", "inc-1"), ("event", "inc-2"), ("pong", "inc-2"), ("pong", "inc-2"), ("event", "inc-3"),
    ]  # fmt: skip


def test_what_breaks_before_it_is_shared_out_is_not_counted() -> None:
    """A tenant that crashes at that moment tells nobody of events that nobody was given."""
    bench = Bench()
    link = bench.attach()
    topic = bench.join(link, "a")
    bench.publish("a")
    topic.members[cast("Any", None)] = None
    with pytest.raises(AttributeError):
        bench.publish("a")
    link.ping()
    assert [each["payload"]["position"] for each in link.messages()] == ["inc-1", "inc-1"]
    assert bench.fanout.reached(link.outlet) == 1


def test_position_advances_while_it_is_quiet() -> None:
    """P follows the stream where nothing of it is the tenant's, but never past a tick that is being sent."""
    bench = Bench()
    link = bench.attach()
    bench.join(link, "a")
    assert link.outlet.position() == 0
    bench.feed.quiet = 7
    assert link.outlet.position() == 7
    bench.feed.quiet = None
    assert link.outlet.position() == 7
    bench.sequence = 9
    seen = []

    def look() -> None:
        bench.feed.quiet = 50
        seen.append(link.outlet.position())

    bench.publish("a", between=look)
    assert seen == [10]
    assert link.outlet.position() == 50
    link.room = 0
    bench.sequence = 50
    bench.publish("a")
    bench.feed.quiet = 90
    assert link.outlet.position() == 51, "who is behind has what it is owed, and nothing above"
    link.room = ENDLESS
    link.write()
    assert link.outlet.position() == 90


@pytest.mark.parametrize("room", range(0, 400, 7))
def test_cut_anywhere(room: int) -> None:
    """Wherever the link stops taking, the rest follows byte for byte, and P is what has been handed over."""
    bench = Bench()
    whole, cut = bench.attach(), bench.attach(room=room)
    bench.join(whole, ">")
    bench.join(cut, ">")
    bench.publish("a", "b", "a.b", "users.u.i", "a")
    sent = len(cut.messages())  # a private channel is not theirs, so the fourth is the fifth of the stream
    assert cut.outlet.position() == [1, 2, 3, 5, 5][sent], "the frame that comes next is owed, and counts"
    assert (cut.outlet.backlog is None) == (sent == 4)
    bench.publish("b")
    cut.room = ENDLESS
    cut.write()
    assert cut.taken == whole.taken


def test_a_lost_link_takes_everything() -> None:
    """It holds nobody up, and its connection is told."""
    bench = Bench()
    lost, other = bench.attach(lost=True), bench.attach()
    bench.join(lost, "a")
    bench.join(other, "a")
    bench.publish("a")
    lost.ping()
    assert lost.calls == {"link_lost": 2}
    assert lost.outlet.backlog is None
    assert other.events() == [1]


def test_whole_link() -> None:
    """A link that takes all or nothing keeps what it was handed as one piece, in order."""
    bench = Bench()
    link = bench.attach(whole=True)
    bench.join(link, "a")
    bench.publish("a", "a")
    link.ping()
    bench.publish("a")
    assert not link.taken
    link.write()
    assert [each["type"] for each in link.messages()] == ["event", "event", "pong", "event"]
    assert link.outlet.backlog is None


def test_replies_before_there_is_a_tenant() -> None:
    """What was said before the tenant was known is sent first, also when it was not taken at once."""
    bench = Bench()
    link = Link(room=3)
    link.tell(Pong())
    link.tell(Pong())
    assert link.outlet.backlog
    bench.sequence = 5
    bench.publish("a")
    bench.fanout.attach(link.outlet)
    assert link.outlet.backlog.live_cursor == 1, "what came before is no loss"
    bench.join(link, "a")
    bench.publish("a")
    link.room = ENDLESS
    link.write()
    assert [each["type"] for each in link.messages()] == ["pong", "pong", "event"]
    assert link.events() == [7]


# --- subscriptions that change ---------------------------------------------------------------------


def test_retune() -> None:
    """What a renewed token denies is left out of all that is not sent yet, of the backlog as well."""
    bench = Bench()
    link = bench.attach()
    topic = bench.join(link, "a.>")
    bench.publish("a.b", "a.c")
    link.room = 0
    bench.publish("a.b", "a.c")
    link.outlet.retune("a.>", ("a.b",))
    assert topic.uses == 0
    bench.publish("a.b", "a.c")
    link.room = ENDLESS
    link.write()
    assert link.events() in ([1, 2, 4, 6], [1, 2, 3, 4, 6]), "the frame that was begun may end"
    link.outlet.retune("a.>", ())
    bench.publish("a.b", "a.c")
    assert link.events()[-2:] == [7, 8]
    link.outlet.retune("nothing", ())
    bench.fanout.detach(link.outlet)
    assert not bench.fanout.topics


def snapshot_of(bench: Bench, *channels: str, size: int = 0) -> Snapshot:
    """A snapshot of the newest events, up to P."""
    page = bench.fanout.encode(bench.records(*channels, size=size), first=0, base=0)
    bench.fanout.head = page.head
    base = make_base(events_of(page), tenant="acme", head=page.head, topics=bench.fanout, now=0.0)
    return Snapshot(base=base, head=page.head)


def test_snapshot_in_parts() -> None:
    """A large snapshot is sent a chunk at a time, each channel once, marked, and ends at its head."""
    bench = Bench()
    link = bench.attach()
    catch_up = bench.catch_up(
        link, ">", after=0, snapshot=snapshot_of(bench, *map(str, range(20)), size=20_000)
    )
    sizes = []
    while catch_up.snapshot:
        chunk = link.outlet.next_of_snapshot(catch_up, catch_up.snapshot)
        assert not link.outlet.hand_over(chunk)
        sizes.append(len(chunk.frames))
        catch_up.move(chunk.position)
    assert link.events() == list(range(1, 21))
    assert max(sizes) * 20_000 <= CHUNK_BYTES + PAGE_BYTES
    assert all(each["payload"]["catch_up"] == 7 for each in link.messages())


def test_snapshot_after_unsubscribe() -> None:
    """After `unsubscribed` no frame of it follows: not of a snapshot that is being sent either."""
    bench = Bench()
    link = bench.attach()
    catch_up = bench.catch_up(link, "a", after=0, snapshot=snapshot_of(bench, "a", "b"))
    catch_up.topics[bench.fanout.acquire("b", ())] = 0
    link.outlet.leave("a")
    assert catch_up.snapshot
    chunk = link.outlet.next_of_snapshot(catch_up, catch_up.snapshot)
    link.outlet.hand_over(chunk)
    assert link.events() == [2]
    assert chunk.position == catch_up.snapshot.head


def test_snapshot_after_a_renewed_token() -> None:
    """What the new token denies is not sent of a snapshot either."""
    bench = Bench()
    link = bench.attach()
    catch_up = bench.catch_up(link, "a.>", after=0, snapshot=snapshot_of(bench, "a.b", "a.c", "a.d"))
    link.outlet.retune("a.>", ("a.c",))
    assert catch_up.snapshot
    link.outlet.hand_over(link.outlet.next_of_snapshot(catch_up, catch_up.snapshot))
    assert link.events() == [1, 3]


def test_catch_up_from_the_ring() -> None:
    """Marked, up to P and never past it, also in the middle of a tick and when P stands still behind."""
    bench = Bench()
    link = bench.attach()
    bench.publish("a", "b", "a")
    bench.publish("a", "a")
    bench.join(link, "b")
    catch_up = bench.catch_up(link, "a", after=1)
    chunk = link.outlet.next_of(catch_up)
    assert chunk
    assert (len(chunk.frames), chunk.position) == (3, 5)
    link.outlet.hand_over(chunk)
    assert link.events() == [3, 4, 5]
    assert [each["payload"]["catch_up"] for each in link.messages()] == [7, 7, 7]
    link.room = 10
    bench.publish("a", "b", "a")
    assert link.outlet.position() == 7, "in the middle of the tick"
    catch_up.position = 5
    chunk = link.outlet.next_of(catch_up)
    assert chunk
    assert (len(chunk.frames), chunk.position) == (1, 7)
    catch_up.position = -1
    bench.fanout.ring.drop()
    assert link.outlet.next_of(catch_up) is None, "older than the ring"


def test_deleted_while_it_is_sent() -> None:
    """The tick on its way goes to everybody; afterwards nobody is given what was deleted of it."""
    bench = Bench()
    quick, slow = bench.attach(), bench.attach(room=0)
    for link in (quick, slow):
        bench.join(link, "a")
    bench.publish("a")
    bench.publish("a", "a", between=lambda: bench.fanout.drop(Ranges.of([2])))
    assert quick.events() == [1, 2, 3]
    slow.room = ENDLESS
    slow.write()
    assert slow.events() == [1, 3]
    bench.fanout.drop(Ranges.of([1, 3]))
    catch_up = bench.catch_up(quick, "a", after=0)
    chunk = quick.outlet.next_of(catch_up)
    assert chunk
    assert (chunk.frames, chunk.position) == ([], 3)


# --- lag: close ------------------------------------------------------------------------------------


def test_unsent_bytes() -> None:
    """What waits is counted from where the connection stands, its own share only, and from the limit on."""
    bench = Bench()
    link = bench.attach(room=0)
    link.outlet.lags = {"a": "close"}
    bench.join(link, "a")
    assert not link.outlet.unsent(1)
    bench.publish("a")
    frame = len(bench.fanout.ring.ticks[0].frames[0])
    assert list(bench.fanout.strict) == [link.outlet]
    assert link.outlet.unsent(frame)
    assert not link.outlet.unsent(frame + 1)
    bench.publish("b", size=10_000)
    assert not link.outlet.unsent(frame + 1)
    bench.publish("a")
    assert link.outlet.unsent(2 * frame)
    assert not link.outlet.unsent(2 * frame + 1)
    link.room = ENDLESS
    link.write()
    assert not bench.fanout.strict
    assert not link.outlet.unsent(1)


def test_below_the_ring_is_too_much() -> None:
    """Who stands where the ring no longer reaches has more to get than anybody counts."""
    bench = Bench(bounds=config.Ring(events=2))
    link = bench.attach(room=0)
    bench.join(link, "a")
    bench.publish("a")
    bench.publish("b", "b")
    assert link.outlet.unsent(ENDLESS) is False
    bench.publish("b", "b")
    bench.publish("b", "b")
    assert link.outlet.unsent(ENDLESS)


# --- a new fan-out ---------------------------------------------------------------------------------


def test_adopted_where_it_stands() -> None:
    """After a crash each connection goes on in the new fan-out from what it had been given."""
    bench = Bench()
    upto, behind = bench.attach(), bench.attach()
    for link in (upto, behind):
        bench.join(link, "a")
        bench.join(link, "live.x")
    bench.publish("a", "a")
    behind.room = 30
    bench.publish("a", "live.x", "a")
    old = bench.fanout
    old.add(bench.records("a"))
    groups = old.groups()[None]
    assert groups == {1: [upto.outlet, behind.outlet]}  # and here it crashes
    positions = {link: old.reached(link.outlet) for link in (upto, behind)}
    assert positions == {upto: 4, behind: 3}
    bench.fanout = bench.make(head=2, count=old.count + 1)
    bench.fanout.add([("a", (sequence, "s", b"%d" % sequence, None)) for sequence in (3, 4, 5)])
    bench.fanout.finish()
    for link, position in positions.items():
        bench.fanout.adopt(link.outlet, position=position, same_stream=True)
        link.room = ENDLESS
        link.write()
    bench.publish("a", "live.x")
    assert upto.events() == [1, 2, 3, -1, 4, 5, 6, -2]
    assert [number for number in behind.events() if number > 0] == [1, 2, 3, 4, 5, 6]
    for link in (upto, behind):
        bench.fanout.detach(link.outlet)
    assert not bench.fanout.topics
    assert not bench.fanout.router.root.children


def test_a_crash_makes_nobody_slow() -> None:
    """A connection with lag "close" that had everything is not closed because its tenant was rebuilt."""
    bench = Bench()
    link = bench.attach()
    link.outlet.lags = {"a": "close"}
    bench.join(link, "a")
    bench.publish("a")
    old = bench.fanout
    bench.fanout = bench.make(head=0, count=old.count + 1)
    bench.fanout.add([("a", (1, "s", b"1", None))])
    bench.fanout.finish()
    bench.fanout.adopt(link.outlet, position=old.reached(link.outlet), same_stream=True)
    bench.publish("a")
    assert not link.outlet.unsent(1000), "nothing waits but one small event"
    link.write()
    assert link.events() == [1, 2]


def test_another_stream() -> None:
    """In a new incarnation old positions mean nothing: all that it holds is to come."""
    bench = Bench()
    link = bench.attach()
    bench.join(link, "a")
    bench.sequence = 70
    bench.publish("a")
    catch_up = bench.catch_up(link, "b", after=50, snapshot=snapshot_of(bench, "b"))
    old, bench.sequence = bench.fanout, 0
    bench.fanout = bench.make(head=0, count=old.count + 1, incarnation="new")
    bench.fanout.adopt(link.outlet, position=0, same_stream=False)
    bench.publish("a", "b")
    link.write()
    bench.publish("b")
    assert [each["payload"]["position"] for each in link.messages()] == ["inc-71", "new-1"]
    assert (catch_up.position, catch_up.snapshot) == (0, None)
    chunk = link.outlet.next_of(catch_up)
    assert chunk
    assert chunk.positions == [2, 3]


# --- chunks ----------------------------------------------------------------------------------------

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def make_chunk(sizes: list[int]) -> Chunk:
    chunk = Chunk(cursor=99, position=990)
    chunk.frames = [bytes([65 + index]) * size for index, size in enumerate(sizes)]
    chunk.counters = list(range(1, len(sizes) + 1))
    chunk.positions = [10 * counter for counter in chunk.counters]
    return chunk


@settings(deadline=None)
@given(sizes=SIZES, data=st.data())
def test_cut(sizes: list[int], data: st.DataObject) -> None:
    """What was sent and what is left make up whole frames, and the chunk ends after them."""
    chunk = make_chunk(sizes)
    joined = b"".join(chunk.frames)
    sent = data.draw(st.integers(0, len(joined)))
    left = bytes(chunk.cut(sent))
    if sent == len(joined):
        assert (left, chunk.cursor, chunk.position) == (b"", 99, 990)
    else:
        whole = chunk.counters.index(chunk.cursor) + 1
        assert joined[:sent] + left == b"".join(chunk.frames[:whole])
        assert left
        assert chunk.position == chunk.positions[whole - 1]


@settings(deadline=None)
@given(sizes=SIZES, limit=st.integers(0, 26).map(lambda number: number * 5))
def test_limit(sizes: list[int], limit: int) -> None:
    """What is above a position is left out, and the chunk ends there."""
    chunk = make_chunk(sizes)
    chunk.limit(limit)
    kept = [counter for counter in range(1, len(sizes) + 1) if 10 * counter <= limit]
    assert chunk.counters == kept
    assert len(chunk.frames) == len(chunk.positions) == len(kept)
    assert chunk.position == min(990, limit)


def test_merge_and_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that overlap become one run of events, each once; beyond a chunk's worth it is cut."""
    chunk = Chunk(cursor=-1, position=50)
    chunk.positions, chunk.frames = [1, 3, 5, 2, 3, 4], [b"a", b"c", b"e", b"b", b"c", b"d"]
    chunk.counters = [0] * 6
    chunk.merge()
    assert (chunk.positions, chunk.frames) == ([1, 2, 3, 4, 5], [b"a", b"b", b"c", b"d", b"e"])
    monkeypatch.setattr("broker.actors.chunks.CHUNK_BYTES", 3)
    chunk.trim()
    assert (chunk.frames, chunk.position) == ([b"a", b"b", b"c", b"d"], 4)
    chunk.trim()
    assert chunk.position == 4
