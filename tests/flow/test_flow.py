"""Flows against what a list of all events says: a link is a number of bytes that it takes."""

from __future__ import annotations

import json
import random

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import config, subjects
from broker.eventlog.log import PAGE_BYTES, Missing
from broker.eventlog.places import at, sequence_of
from broker.eventlog.snapshots import PAGE_BYTES as SNAPSHOT_PAGE_BYTES
from broker.eventlog.snapshots import Snapshot, events_of, make_base
from broker.flow.flow import Start
from broker.flow.overflow import overflow, overflows
from broker.flow.pipe import Pipe
from broker.ranges import Ranges
from broker.wire import frames, sse
from broker.wire.messages import Pong
from tests.support.flows import ENDLESS, Bench, Link
from tests.support.seeds import simulated
from tests.support.sse import Parser

CHANNELS = ["a", "a.b", "b", "users.u.i", "live.x", "live.y"]
PATTERNS = ["a", "a.>", ">", "*", "b", "users.u.>", "live.>", "live.x"]


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
    tick = bench.log.append(bench.records("a", "a.b", "users.u.i"))
    shares = {mask: [links.index(each.client) for each in flows] for _, mask, flows in bench.log.shares(tick)}
    assert shares == {0b011: [0, 3], 0b010: [1], 0b001: [2]}
    bench.log.finish()


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
        link.flow.detach()
    assert not bench.log.framings
    assert not bench.log.framed


def test_encoded_once_for_all() -> None:
    """An event is the publisher's own bytes within one frame, with the user that the broker noted."""
    bench = Bench()
    link = bench.attach()
    bench.join(link, ">")
    body = b'{"n" :1.50}'
    tick = bench.log.append([("a", (5, "s", body, {"Broker-User": "a%2Eb"})), ("a", (6, "s", b"", None))])
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
    tick = Bench().log.append([("a", (1, "s", b"1", {"Broker-User": user}))])
    assert json.loads(tick.frames[0][2:])["payload"]["event"] == 1


@attrs.define
class Standing:
    """A subscription as the oracle knows it: from one place on and, once it has ended, up to another."""

    pattern: str
    start: int
    end: int = ENDLESS**9

    def wants(self, place: int, channel: str) -> bool:
        return self.start < place <= self.end and subjects.covers(self.pattern, channel)


@attrs.define(eq=False)
class Simulation:
    """Clients at random, in and between ticks, against what a list of all events says."""

    rng: random.Random
    bench: Bench = attrs.Factory(Bench)
    published: list[tuple[int, str]] = attrs.Factory(list)  # stored events: sequence, channel
    unstored: list[tuple[int, int, str]] = attrs.Factory(list)  # unstored events: number, place, channel
    stands: dict[Link, list[Standing]] = attrs.Factory(dict)

    def add_client(self) -> None:
        whole = self.rng.random() < 0.2
        room = self.rng.choice((0, 50, 500, ENDLESS))
        self.stands[self.bench.attach(whole=whole, room=room)] = []

    def act(self) -> None:
        link = self.rng.choice(list(self.stands))
        flow, stands = link.flow, self.stands[link]
        standing = {each.pattern: each for each in stands if each.end == ENDLESS**9}
        match self.rng.randrange(6):
            case 0 | 1:
                pattern = self.rng.choice(PATTERNS)
                if pattern not in standing:
                    flow.settle()
                    # Of unstored events those from now on, also where others of them still wait.
                    start = self.bench.log.head if subjects.is_live(pattern) else flow.place()
                    self.bench.join(link, pattern)
                    stands.append(Standing(pattern, start))
            case 2:
                if standing:
                    pattern, ended = self.rng.choice(list(standing.items()))
                    flow.leave(pattern)
                    ended.end = flow.place()
                    if subjects.is_live(pattern) and flow.main:
                        ended.end = flow.main.unstored
            case 3:
                link.ping()
            case 4:
                link.room += self.rng.choice((1, 30, 300, 3000))
                link.write()
            case _:
                link.write(pages=1)

    def tick(self) -> None:
        channels = self.rng.choices(CHANNELS, k=self.rng.choice((1, 2, 20)))
        number, sequence = self.bench.unstored, self.bench.sequence
        place = self.bench.log.head
        for channel in channels:
            if subjects.is_live(channel):
                number, place = number + 1, place + 1
                self.unstored.append((-number, place, channel))
            else:
                sequence += 1
                place = at(sequence)
                self.published.append((sequence, channel))
        self.bench.publish(*channels, size=self.rng.choice((0, 100, 3000)), between=self.sometimes)

    def sometimes(self) -> None:
        if self.rng.random() < 0.4:
            self.act()

    def check(self, link: Link) -> None:
        link.room = ENDLESS
        link.write()
        assert link.flow.main is None
        stands = self.stands[link]
        expected = [n for n, channel in self.published if any(each.wants(at(n), channel) for each in stands)]
        found = link.events()
        assert [number for number in found if number > 0] == expected
        assert [number for number in found if number < 0] == [
            number
            for number, place, channel in self.unstored
            if any(each.wants(place, channel) for each in stands)
        ]
        before = 0
        for message in link.messages():
            if message["type"] == "event":
                before += message["payload"]["event"] > 0
            else:  # all that is entitled up to P has come, and nothing above it
                position = int(message["payload"]["position"].removeprefix("inc-"))
                assert before == len([each for each in expected if each <= position])


@simulated(50)
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
        link.flow.detach()
    assert not it.bench.log.selections
    assert not it.bench.log.router.root.children, "a selection was left behind"


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
    selection = bench.join(link, "a")
    bench.publish("a")
    selection.members[None] = None
    with pytest.raises(AttributeError):
        bench.publish("a")
    link.ping()
    assert [each["payload"]["position"] for each in link.messages()] == ["inc-1", "inc-1"]


def test_position_advances_while_it_is_quiet() -> None:
    """P follows the stream where nothing of it is the tenant's, but never past a tick that is being sent."""
    bench = Bench()
    link = bench.attach()
    bench.join(link, "a")
    assert link.flow.position() == 0
    bench.feed.quiet = 7
    assert link.flow.position() == 7
    bench.feed.quiet = None
    assert link.flow.position() == 7
    bench.sequence = 9
    seen = []

    def look() -> None:
        bench.feed.quiet = 50
        seen.append(link.flow.position())

    bench.publish("a", between=look)
    assert seen == [10]
    assert link.flow.position() == 50
    link.room = 0
    bench.sequence = 50
    bench.publish("a")
    bench.feed.quiet = 90
    assert link.flow.position() == 51, "who is behind has what it is owed, and nothing above"
    link.room = ENDLESS
    link.write()
    assert link.flow.position() == 90


@pytest.mark.parametrize("room", range(0, 400, 7))
def test_cut_anywhere(room: int) -> None:
    """Wherever the link stops taking, the rest follows byte for byte, and P is what has been handed over."""
    bench = Bench()
    whole, cut = bench.attach(), bench.attach(room=room)
    bench.join(whole, ">")
    bench.join(cut, ">")
    bench.publish("a", "b", "a.b", "users.u.i", "a")
    sent = len(cut.messages())  # a private channel is not theirs, so the fourth is the fifth of the stream
    assert cut.flow.position() == [1, 2, 3, 5, 5][sent], "the frame that comes next is owed, and counts"
    assert (cut.flow.main is None) == (sent == 4)
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
    assert lost.flow.main is None
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
    assert link.flow.main is None


def test_replies_before_there_is_a_tenant() -> None:
    """What was said before the tenant was known is sent first, also when it was not taken at once."""
    bench = Bench()
    link = Link(room=3)
    link.tell(Pong())
    link.tell(Pong())
    assert link.flow.rest
    bench.sequence = 5
    bench.publish("a", "live.x")
    link.flow.attach(bench.log)
    assert link.flow.main
    assert link.flow.main.unstored == bench.log.head, "what came before is no loss"
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
    selection = bench.join(link, "a.>")
    bench.publish("a.b", "a.c")
    link.room = 0
    bench.publish("a.b", "a.c")
    link.flow.retune("a.>", ("a.b",))
    assert selection.uses == 0
    bench.publish("a.b", "a.c")
    link.room = ENDLESS
    link.write()
    assert link.events() in ([1, 2, 4, 6], [1, 2, 3, 4, 6]), "the frame that was begun may end"
    link.flow.retune("a.>", ())
    bench.publish("a.b", "a.c")
    assert link.events()[-2:] == [7, 8]
    link.flow.retune("nothing", ())
    link.flow.detach()
    assert not bench.log.selections


def snapshot_of(bench: Bench, *channels: str, size: int = 0) -> Snapshot:
    """A snapshot of the newest events, up to P."""
    page = bench.log.encode(bench.records(*channels, size=size), base=0)
    bench.log.head = page.head
    head = sequence_of(page.head)
    base = make_base(events_of(page), tenant="acme", head=head, matcher=bench.log, now=0.0)
    return Snapshot(base=base, head=head)


def test_snapshot_in_parts() -> None:
    """A large snapshot is sent a page at a time, each channel once, marked, and ends at its head."""
    bench = Bench()
    link = bench.attach()
    snapshot = snapshot_of(bench, *map(str, range(20)), size=20_000)
    bench.catch_up(link, ">", after=0, snapshot=snapshot)
    sizes = []
    while link.flow.beside:
        before = len(link.taken)
        link.write(pages=1)
        sizes.append(len(link.taken) - before)
    assert link.events() == list(range(1, 21))
    assert max(sizes) <= PAGE_BYTES + SNAPSHOT_PAGE_BYTES + 21_000
    assert all(each["payload"]["catch_up"] == 1 for each in link.messages() if each["type"] == "event")


def test_snapshot_after_unsubscribe() -> None:
    """After `unsubscribed` no frame of it follows: not of a snapshot that is being sent either."""
    bench = Bench()
    link = bench.attach()
    snapshot = snapshot_of(bench, "a", "b")
    bench.join(link, "c")
    held = [bench.log.acquire(pattern, ()) for pattern in ("a", "b")]
    start = Start(snapshot=snapshot)
    link.flow.subscribe(held, start=start, again=True, policy=None, listed=True, now=0.0)
    link.flow.leave("a")
    link.write()
    assert link.events() == [2]
    assert not link.flow.beside


def test_snapshot_after_a_renewed_token() -> None:
    """What the new token denies is not sent of a snapshot either."""
    bench = Bench()
    link = bench.attach()
    bench.catch_up(link, "a.>", after=0, snapshot=snapshot_of(bench, "a.b", "a.c", "a.d"))
    link.flow.retune("a.>", ("a.c",))
    link.write()
    assert link.events() == [1, 3]


def test_catch_up_from_the_ring() -> None:
    """Marked, after P was told, up to P and never past it, also when P stands still."""
    bench = Bench()
    link = bench.attach()
    bench.publish("a", "b", "a")
    bench.publish("a", "a")
    bench.join(link, "b")
    bench.catch_up(link, "a", after=1)
    link.write()
    kinds = [each["type"] for each in link.messages()]
    assert kinds == ["event", "event", "event", "subscription.live"], "P was told with `subscribed`"
    assert link.events() == [3, 4, 5]
    assert [each["payload"]["catch_up"] for each in link.messages() if each["type"] == "event"] == [1, 1, 1]
    link.room = 10
    bench.publish("b", "a", "b")
    assert link.flow.position() == 6, "in the middle of the tick"
    bench.catch_up(link, "users.u.i", after=3)
    bench.publish("users.u.i")
    link.room = ENDLESS
    link.write()
    events = [each["payload"] for each in link.messages() if each["type"] == "event"]
    assert [each.get("catch_up") for each in events[3:]] == [None, None, None, 2]
    kinds = [each["type"] for each in link.messages()]
    assert kinds[-3:] == ["pong", "event", "subscription.live"], "P went on since"
    assert link.events() == [3, 4, 5, 6, 7, 8, 9]


def test_below_the_ring_the_stream_is_asked() -> None:
    """What the ring has dropped is not given as if there were nothing."""
    bench = Bench()
    link = bench.attach()
    bench.publish("a", "b")
    bench.publish("a")
    bench.join(link, "b")
    bench.catch_up(link, "a", after=0)
    bench.log.ring.drop()
    bench.log.history = NothingRead()  # type: ignore[assignment]
    assert link.flow.log
    assert link.sending.read_on(link.flow.log) == Missing(link.flow.beside[0].selections, 0)


class NothingRead:
    """A history of which nothing has been read."""

    def find(self, selections: object, after: int) -> None: ...


def test_deleted_while_it_is_sent() -> None:
    """The tick on its way goes to everybody; afterwards nobody is given what was deleted of it."""
    bench = Bench()
    quick, slow = bench.attach(), bench.attach(room=0)
    for link in (quick, slow):
        bench.join(link, "a")
    bench.publish("a")
    bench.publish("a", "a", between=lambda: bench.log.drop(Ranges.of([2])))
    assert quick.events() == [1, 2, 3]
    slow.room = ENDLESS
    slow.write()
    assert slow.events() == [1, 3]
    bench.log.drop(Ranges.of([1, 3]))
    late = bench.attach()
    bench.join(late, "a", start=Start(place=0))
    late.write()
    assert late.events() == []
    assert late.flow.position() == 3


def test_what_is_deleted_is_said_once() -> None:
    """Ahead of what follows, and not again when the link does not take that."""
    bench = Bench()
    bench.publish("a", "a", "a")
    bench.feed.gone = Ranges.of([2])
    bench.log.drop(bench.feed.gone)
    link = bench.attach(room=10)
    bench.join(link, "a", start=Start(place=0))
    while link.flow.main:
        link.write()
        link.room += 7
    assert [each["type"] for each in link.messages()] == ["gap", "event", "event", "subscription.live"]
    assert link.events() == [1, 3]


# --- lag: close ------------------------------------------------------------------------------------


def slow_share(bench: Bench, link: Link, *channels: str, size: int = 0) -> int:
    """Publish a tick to a connection that is behind; how many bytes of it are its own."""
    tick = bench.log.append(bench.records(*channels, size=size))
    (share,) = [len(data) for data, _, flows in bench.log.shares(tick) if link.flow in flows] or [0]
    link.flow.mask = 0
    bench.log.finish()
    return share


def test_waiting_bytes() -> None:
    """What waits is its own share only; at the limit it is too much; caught up, nothing waits."""
    bench = Bench()
    link = bench.attach(room=0)
    bench.join(link, "a", policy="close")
    assert not overflows(link.flow, 1, 1), "it is not behind"
    bench.publish("a")
    frame = len(bench.log.ring.ticks[0].frames[0])
    assert link.flow.unsent == frame
    assert slow_share(bench, link, "b", size=10_000) == 0
    share = slow_share(bench, link, "a", "b")
    assert share == frame
    assert not overflows(link.flow, share, 2 * frame + 1)
    assert overflows(link.flow, share, 2 * frame + 1), "as much again"
    overflow(link.flow)
    assert link.calls["too_slow"] == 1
    link.room = ENDLESS
    link.write()
    assert not overflows(link.flow, 1, 1)


def test_below_the_ring_is_too_much() -> None:
    """Who stands where the ring no longer reaches has more to get than anybody counts."""
    bench = Bench(bounds=config.Ring(events=2))
    link = bench.attach(room=0)
    bench.join(link, "a", policy="close")
    bench.publish("a")
    bench.publish("b", "b")
    assert not overflows(link.flow, 1, ENDLESS)
    bench.publish("b", "b")
    bench.publish("b", "b")
    assert overflows(link.flow, 1, ENDLESS)


def test_dropped() -> None:
    """What may be dropped is let go of and said; the others go on, with nothing left out."""
    bench = Bench()
    link = bench.attach(room=0)
    bench.join(link, "a", policy="drop")
    bench.join(link, "b")
    bench.publish("a", "b")
    bench.publish("a", "b")
    overflow(link.flow)
    link.room = ENDLESS
    link.write()
    bench.publish("a", "b")
    assert link.events() == [1, 2, 4, 5, 6]
    (gap,) = (each["payload"] for each in link.messages() if each["type"] == "gap")
    assert gap == {"channel": "a", "reason": "lag", "from": "inc-1", "count": 1}


# --- a new log -------------------------------------------------------------------------------------


def test_moved_from_where_it_stands() -> None:
    """After a crash in the middle of a tick each connection goes on from what it had been given."""
    bench = Bench()
    upto, behind = bench.attach(), bench.attach()
    for link in (upto, behind):
        bench.join(link, "a")
        bench.join(link, "live.x")
    bench.publish("a", "a")
    behind.room = 30
    bench.publish("a", "live.x", "a")
    bench.log.append(bench.records("a"))  # and here it crashes
    assert [sequence_of(link.flow.place()) for link in (upto, behind)] == [4, 3]
    bench.log = bench.make(position=2)
    bench.log.append([("a", (sequence, "s", b"%d" % sequence, None)) for sequence in (3, 4, 5)])
    bench.log.finish()
    for link in (upto, behind):
        link.flow.move(bench.log)
        link.room = ENDLESS
        link.write()
    bench.publish("a", "live.x")
    assert upto.events() == [1, 2, 3, -1, 4, 5, 6, -2]
    assert [number for number in behind.events() if number > 0] == [1, 2, 3, 4, 5, 6]
    for link in (upto, behind):
        assert [each["payload"]["reason"] for each in link.messages() if each["type"] == "gap"] == ["source"]
        link.flow.detach()
    assert not bench.log.selections
    assert not bench.log.router.root.children


def test_a_crash_makes_nobody_slow() -> None:
    """A connection with lag "close" that had everything is not closed because its tenant was rebuilt."""
    bench = Bench()
    link = bench.attach()
    bench.join(link, "a", policy="close")
    bench.publish("a")
    bench.log = bench.make(position=0)
    bench.log.append([("a", (1, "s", b"1", None))])
    bench.log.finish()
    link.flow.move(bench.log)
    assert not overflows(link.flow, slow_share(bench, link, "a"), 1000), "one small event waits"
    link.write()
    assert link.events() == [1, 2]


def test_another_stream() -> None:
    """In a new incarnation old positions mean nothing: all that it holds is to come."""
    bench = Bench()
    link = bench.attach()
    bench.join(link, "a")
    bench.sequence = 70
    bench.publish("a")
    reader = bench.catch_up(link, "b", after=0, snapshot=snapshot_of(bench, "b"))
    bench.sequence = 0
    bench.log = bench.make(position=0, incarnation="new")
    link.flow.move(bench.log)
    assert (reader.place, reader.snapshot) == (0, None)
    bench.publish("a", "b")
    link.write()
    bench.publish("b")
    found = [each["payload"] for each in link.messages() if each["type"] == "event"]
    assert [each["position"] for each in found] == ["inc-71", "new-1", "new-2", "new-3"]
    assert [each.get("catch_up") for each in found] == [None, None, 1, None]
    gaps = [each["payload"] for each in link.messages() if each["type"] == "gap"]
    assert [(each["channel"], each["reason"], each.get("catch_up")) for each in gaps] == [
        ("a", "reset", None),
        ("b", "reset", 1),
    ]


# --- the pipe --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), data=st.data())
def test_offered(sizes: list[int], data: st.DataObject) -> None:
    """What was sent and what is left make up whole frames: those that count as written."""
    pieces = [bytes([65 + index]) * size for index, size in enumerate(sizes)]
    link = Link(room=data.draw(st.integers(0, sum(sizes))))
    pipe = Pipe(send=link.send, client=link, whole=False)
    written = pipe.offer(pieces)
    left = b"".join(pipe.rest or ())
    assert link.taken + left == b"".join(pieces[:written])
    assert bool(left) == (len(link.taken) < sum(sizes))
    pipe.write(pieces)
    while pipe.rest:
        link.room = data.draw(st.integers(1, 9))
        pipe.took(link.take(pipe.rest[0]))
    assert link.taken == b"".join(pieces[:written] + pieces)
