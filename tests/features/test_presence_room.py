"""A room as its watchers see it, by its messages: whole and in changes, all members or their numbers."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.features.presence.entries import WRITE_SECONDS, Entry, Writer
from broker.features.presence.lives import Lives
from broker.features.presence.records import life, understood
from broker.features.presence.room import Room
from broker.keyed.collection import Collection
from broker.keyed.rows import Row
from broker.wire import positions

CHANNEL = "orders.7"


def row(revision: int, user: str, session: str = "s", *, gone: bool = False, **fields: Any) -> Row:
    body = json.dumps({"user": user, "session": session, "since": "t"} | fields).encode()
    key = f"2.{CHANNEL}.{user}.{session}"
    return Row(key, revision, b"" if gone else body, None if gone else {"Broker-Epoch": "e"})


@attrs.define(eq=False)
class World:
    view: Any = attrs.Factory(lambda: SimpleNamespace(head=0, stream="e"))
    room: Room = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        collection: Collection[Any] = Collection(("acme", (f"2.{CHANNEL}.*.*",), ()))
        self.room = Room(CHANNEL, collection, self.view, Lives("b"), lambda _: None)
        collection.fill(())

    def put(self, user: str, session: str = "s", **options: Any) -> None:
        self.view.head += 1
        self.room.collection.put(row(self.view.head, user, session, **options), 0.0)


@attrs.define(eq=False)
class Watcher:
    world: World
    user: str
    shown: dict[tuple[str, str], Any] = attrs.Factory(dict)
    version: int = 0
    detail: str = ""
    position: str = ""
    counts: tuple[int, int] = (0, 0)

    def begin(self) -> None:
        self.detail = self.world.room.detail
        frames = self.world.room.whole(self.user)
        self.shown.clear()
        for frame in frames:
            self.take(frame)
        self.version = self.world.room.version

    def look(self) -> None:
        room = self.world.room
        if room.detail != self.detail:
            self.begin()
        elif room.version != self.version:
            self.take(room.after(self.version, self.user))
            self.version = room.version

    def take(self, frame: bytes) -> None:
        payload = json.loads(frame)["payload"]
        for each in payload["gone"]:
            self.shown.pop((each["user"], each["session"]), None)
        for each in payload["set"]:
            self.shown[each["user"], each["session"]] = each
        self.position, self.counts = payload["position"], (payload["users"], payload["sessions"])

    def check(self) -> None:
        room = self.world.room
        truth = {(each.user, each.session): json.loads(each.data) for each in room.members.values()}
        sampled = {(room.members[key].user, room.members[key].session) for key in room.sample}
        if room.detail == "count":
            truth = {key: each for key, each in truth.items() if key in sampled or key[0] == self.user}
        assert self.shown == truth
        assert self.counts == (len(room.keys), len(room.members))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_watchers_show_what_is_so(data: st.DataObject) -> None:
    """Whatever comes, changes and goes between two looks; around the number from which all are not shown."""

    async def story() -> None:
        world = World()
        base = data.draw(st.sampled_from((0, 5, 60, 890, 995, 1001)))
        for n in range(base):
            world.put(f"u{n}")
        watchers = [Watcher(world, user) for user in ("u1", "u3", "viewer")]
        for each in watchers:
            each.begin()
        names = st.sampled_from([*(f"u{n}" for n in range(8)), *(f"v{n}" for n in range(120))])
        for _ in range(data.draw(st.integers(1, 12))):
            for user in data.draw(st.lists(names, max_size=30)):
                gone, session = data.draw(st.booleans()), data.draw(st.sampled_from("st"))
                world.put(user, session, gone=gone, state=world.view.head)
            for each in watchers:
                if data.draw(st.booleans()):
                    each.look()
        for each in watchers:
            each.look()
            each.check()

    trio.run(story)


async def test_a_resume_has_what_has_changed() -> None:
    """Also of who has gone; where numbers alone were shown nothing can be resumed."""
    world = World()
    for n in range(3):
        world.put(f"u{n}")
    watcher = Watcher(world, "viewer")
    watcher.begin()
    world.put("u1", gone=True)
    world.put("u5")
    position = positions.parse(watcher.position)
    assert world.room.resumes(position)
    watcher.take(world.room.since(position.sequence, "viewer"))
    watcher.check()
    for n in range(10, 1010):
        world.put(f"u{n}")
    watcher.look()
    assert watcher.detail == "count"
    for n in range(10, 1010):
        world.put(f"u{n}", gone=True)
    assert world.room.detail == "full"
    assert not world.room.resumes(positions.parse(watcher.position))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"{}", b"\xff",
        b'{"user":"u","session":"s","since":"t","state":"\xff"}',
        b'{"user":"u","session":"s","since":"t","state":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"user":"other","session":"s","since":"t"}',
        b'{"user":"","session":"s","since":"t"}',
        b'{"user":"u","session":"s","since":"t","away":"asleep"}',
    ],
)  # fmt: skip
async def test_what_others_have_stored_is_not_shown(body: bytes) -> None:
    """And ends nothing; so it is with a time to live that no broker has written."""
    world = World()
    assert understood(f"2.{CHANNEL}.u.s", body) is None
    world.put("u")
    world.view.head += 1
    headers = {"Broker-Epoch": "e", "Nats-TTL": "never"}
    world.room.collection.put(Row(f"2.{CHANNEL}.u.s", world.view.head, body, headers), 0.0)
    assert world.room.members == {}
    assert life(headers) == life({"Nats-TTL": "1h30m"}) == float("inf")
    assert life({"Nats-TTL": "30s"}) == 30


def entry(writer: Writer) -> Entry:
    some: Any = None
    return Entry(
        caller=some, connection="c", tenant="acme", user="u", session="s", channel=CHANNEL, key="k",
        subject="k", room=some, writes=writer, since="t", info=None,
    )  # fmt: skip


async def test_quick_states_are_merged(autojump_clock: trio.testing.MockClock) -> None:
    """The newest is written at its time, however many came before it, and others do not wait for that."""
    ignore: Any = lambda *_: None  # noqa: E731
    writer = Writer(ignore, "b", lambda: "e", ignore, ignore)
    first, second = entry(writer), entry(writer)
    now = trio.current_time()
    for _ in range(5000):
        writer.say(first, now)
    assert writer.due[first] <= now
    del writer.due[first]
    for _ in range(5000):
        writer.say(first, now + 0.01)
    assert now < writer.due[first] <= now + WRITE_SECONDS
    writer.say(second, now + 0.02)
    assert writer.due[second] <= now + 0.02


def test_an_entry_that_ends_answers_its_client() -> None:
    """Whatever it ends by, before its first write."""
    ignore: Any = lambda *_: None  # noqa: E731
    writer = Writer(ignore, "b", lambda: "e", ignore, ignore)
    left = entry(writer)
    left.goal = "gone"
    writer.done(left)
    assert left.outcome.is_set()
    assert left.error is not None


async def test_one_of_the_sample_that_comes_back() -> None:
    """Is no longer in the sample: who was shown it is told that it has gone."""
    world = World()
    for n in range(1001):
        world.put(f"u{n}")
    watchers = [Watcher(world, user) for user in ("u1", "viewer")]
    for each in watchers:
        each.begin()
    world.put("u1", gone=True)
    world.put("u1")
    for each in watchers:
        each.look()
        each.check()
    world.put("u1", gone=True)
    for each in watchers:
        each.look()
        each.check()
