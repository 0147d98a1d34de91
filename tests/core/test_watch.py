"""Watches of a keyed collection: whoever is slow gets the newest of each key, and nothing twice."""

from __future__ import annotations

import json
import random
from typing import Any

import attrs

from broker.keyed.collection import Collection
from broker.keyed.rows import Row
from broker.keyed.watch import Shared, Watch

KEYS = "abcdef"


class Plain:
    """A form of rows that is their key and revision, and says of a difference what it is from."""

    def whole(self, row: Row, stream: str, upto: int) -> bytes:
        return json.dumps([row.key, row.revision, upto, None]).encode()

    def step(self, old: Row, new: Row, stream: str, upto: int) -> bytes | None:
        return json.dumps([new.key, new.revision, upto, old.revision]).encode()

    def absent(self, key: str, stream: str, upto: int) -> bytes:
        raise AssertionError("nothing is named")


@attrs.define(eq=False)
class Client:
    """A connection that may be behind: the other end checks what is written to it."""

    rest: object = None
    framing: Any = None
    owed: bool = False
    held: dict[str, int] = attrs.Factory(dict)
    place: int = 0

    def push(self, data: bytes) -> None:
        decoder, text = json.JSONDecoder(), "".join(map(chr, data))
        while "[" in text:
            (key, revision, upto, before), end = decoder.raw_decode(text, text.index("["))
            text = text[end:]
            assert revision > self.held.get(key, 0), "twice"
            assert before is None or before == self.held.get(key), "from what it does not hold"
            self.held[key] = revision
            self.place = max(self.place, upto)

    def owes(self) -> None:
        self.owed = True

    def ready(self, _: object) -> None: ...


@attrs.define(eq=False)
class Story:
    """A collection with its lane, and what is behind of its clients."""

    rng: random.Random
    collection: Collection[Watch] = attrs.Factory(lambda: Collection(("t", ("*",), ())))
    clients: dict[Client, Watch] = attrs.Factory(dict)
    head: int = 0
    now: float = 0.0

    def join(self) -> Client:
        client: Any = Client()
        watch = Watch(
            self.collection,
            flow=client,
            holder=client,
            form=Plain(),
            stream="s",
            seconds=0.1,
            place=0,
            since=0,
        )
        self.clients[client] = watch
        watch.step(self.head)
        return client  # type: ignore[no-any-return]

    def put(self, key: str) -> None:
        self.head += 1
        self.collection.put(Row(key, self.head, b"x", None), self.now)

    def give(self, after: float) -> None:
        self.now += after
        for lane in list(self.collection.lanes.values()):
            if steps := lane.take(self.now, self.head):
                shared = Shared(steps, Plain(), "s")
                for watch in list(lane.members):
                    watch.give(shared)
        self.check()

    def read(self, client: Client) -> None:
        """The link has accepted everything."""
        client.rest = None
        if client.owed:
            client.owed = False
            self.clients[client].step(self.head)
        self.check()

    def check(self) -> None:
        """What is stored at or below the place of a client, it has."""
        for client in self.clients:
            stored = [row for row in self.collection.rows.after(0) if row.revision <= client.place]
            assert all(client.held.get(row.key) == row.revision for row in stored)


def test_a_slow_client_gets_nothing_twice() -> None:
    """Also where a key that changes often holds its place back, so that others are above it."""
    story = Story(random.Random(0))
    story.collection.fill([])
    client = story.join()
    story.put("a")
    story.give(0)
    story.put("a")
    story.put("b")
    story.give(0.01)
    assert (client.held, client.place) == ({"a": 1, "b": 3}, 1)
    client.rest = b"..."
    story.put("c")
    story.give(0.01)
    assert client.held == {"a": 1, "b": 3}
    story.read(client)
    assert client.held == {"a": 2, "b": 3, "c": 4}


def test_whatever_happens() -> None:
    """Nothing comes twice, a place is true, and in the end everybody has everything."""
    for seed in range(300):
        rng = random.Random(seed)
        story = Story(rng)
        story.collection.fill([])
        for _ in range(60):
            client = rng.choice([*story.clients, None])
            match rng.randrange(6):
                case 0 if client is None:
                    story.join()
                case 1 if client:
                    client.rest = b"..."
                case 2 if client:
                    story.read(client)
                case 3:
                    story.give(rng.choice((0, 0.01, 0.05, 0.2)))
                case _:
                    story.put(rng.choice(KEYS))
        for client in story.clients:
            story.read(client)
        story.give(0.2)
        newest = {row.key: row.revision for row in story.collection.rows.after(0)}
        assert all(client.held == newest for client in story.clients), seed
