"""Documents under all that can happen: what is confirmed is there, what is refused is nowhere, nothing twice.

Up to four brokers write the same documents over one stream. Acknowledgements are lost, writes arrive late or
never, services are slow, dead or of another opinion, brokers are killed between a write and its answer;
clients repeat what they do not know the outcome of, after others have changed the same there and back.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import Any

import attrs
import msgspec
import pytest
import trio

from broker.bus.base import OutcomeUnknown, Stale
from broker.config import Limits
from broker.documents import judging, memory, patches, values
from broker.documents.judging import OUT, Change
from broker.errors import (
    BadAnswer,
    Conflict,
    Rejected,
    TooLarge,
    TooManyDocuments,
    Unavailable,
    UnknownOutcome,
)
from broker.features.state import store
from broker.features.state.room import Holding
from broker.subjects import Names
from tests.features.documents import Asker, Broker, Killed, World
from tests.support.seeds import seeded, simulated

__all__ = ["seeded"]

CHANNELS = ("board.1", "board.2", "owned.1", "owned.2")
FIELDS = ("a", "b", "c", "deep", "n")
FINAL = (Conflict, Rejected, TooLarge)


@attrs.define
class Done:
    """A change and how it ended: `changed`, `refused` or `unknown`."""

    changes: dict[str, Change]
    seen: dict[str, int]  # the sequences that they are made on
    end: str = "unknown"
    error: str = ""

    def repeated(self) -> dict[str, Change]:
        return {
            channel: attrs.evolve(each, revision=self.seen[channel]) for channel, each in self.changes.items()
        }


@attrs.define(eq=False)
class Story:
    rng: random.Random
    world: World
    brokers: list[Broker]
    all: dict[tuple[str, str], Done] = attrs.Factory(dict)  # by user and id
    opinions: dict[tuple[str, str, str], Any] = attrs.Factory(dict)  # of services, of a change of a document
    own: dict[tuple[str, str], str] = attrs.Factory(dict)  # what services wrote themselves: the revision
    forgetful: bool = False  # documents remember few sessions, and each change has one of its own
    quiet: bool = False

    # --- services

    async def service(self, channel: str, question: Any) -> bytes:
        """Agrees, amends, refuses; slow, wrong or writing itself. It says the same of a change each time."""
        rng, subject = self.rng, Names().document("acme", channel)
        mood = rng.random()
        if mood < 0.1 and not self.quiet:
            await trio.sleep(rng.uniform(2.5, 6))
        elif mood < 0.15:
            return rng.choice((b"", b"[]", b"{", b'{"changes":[]}', b'{"what":1}'))
        await self.world.pause(0.05)
        changes = question["changes"]
        if all((each["user"], each["id"]) in self.own for each in changes):
            return msgspec.json.encode({"revision": self.own[changes[0]["user"], changes[0]["id"]]})
        said = [self.opinion(channel, each) for each in changes]
        if len(changes) == 1 and said == ["write"]:
            return self.write(subject, question)
        return msgspec.json.encode({"changes": [{} if each == "write" else each for each in said]})

    def opinion(self, channel: str, change: Any) -> Any:
        key = change["user"], change["id"], channel
        if key not in self.opinions:
            choices: list[Any] = [{}, {}, {}, {"error": {"code": 7, "message": "no"}}]
            many = len(self.all[key[:2]].changes) > 1
            if isinstance(change.get("patch"), dict):
                choices.append({"patch": change["patch"] | {"by": change["id"]}})
            if not many and "add" not in change:
                choices.append("write")
            self.opinions[key] = self.rng.choice(choices)
        return self.opinions[key]

    def write(self, subject: str, question: Any) -> bytes:
        """Writes the document itself, if it is still as it was asked about, and carries on what it knows."""
        (change,) = question["changes"]
        there = self.world.rows.get(subject)
        if f"inc0-{there[0] if there else 0}" != question["revision"]:
            return b"{}"
        value = patches.apply(question["value"], change["patch"])
        body = b"" if value is None else values.encode(value)
        base = there[0] if there else 0
        known = memory.parse((there[3] or {}).get(store.CHANGES) if there else None, base)
        session, n = memory.parse_id(change["id"])
        known = known.with_changes([memory.Entry(session=session, n=n, user=change["user"], base=base)])
        revision = f"inc0-{self.world.store(subject, body, {store.CHANGES: str(known)})}"
        self.own[change["user"], change["id"]] = revision
        return msgspec.json.encode({"revision": revision})

    # --- clients

    async def client(self, name: str, count: int) -> None:
        for n in range(1, count + 1):
            await trio.sleep(self.rng.uniform(0, 0.3))
            several = self.rng.random() < 0.15
            group = [each for each in CHANNELS if each.startswith(self.rng.choice(("board", "owned")))]
            channels = (
                group if several and group else [self.rng.choice(CHANNELS[: 1 if self.forgetful else 4])]
            )
            session = f"{name}x{n}" if self.forgetful else name
            changes, seen = dict[str, Change](), dict[str, int]()
            for each in channels:
                changes[each], seen[each] = self.make(name, session, n, each)
            done = self.all[name, f"{session}-{n}"] = Done(changes, seen)
            await self.send(name, done)

    def make(self, name: str, session: str, n: int, channel: str) -> tuple[Change, int]:
        """A change of what the client has seen, which may be a little old, and the sequence of that."""
        rng = self.rng
        seen = [each for each in self.world.log if each[1] == Names().document("acme", channel)][-3:]
        version = store.read(rng.choice([*seen, *seen[-1:], *seen[-1:]]) if seen else None)
        assert isinstance(version, judging.Version)
        value, fields = version.value, dict[str, Any](session=session, n=n, user=name)
        mood = rng.random()
        if value is None:
            fields |= {"patch": {"a": f"{name}-{n}", "n": 0}, "was": None}
        elif mood < 0.05:
            fields |= {"patch": None, "was": value}
        elif mood < 0.15:
            fields |= {"patch": {"a": f"{name}-{n}"}, "revision": version.sequence}
        elif mood < 0.3:
            fields |= {"add": {("n",): 1}, "revision": version.sequence}
        else:
            patch: dict[str, Any] = {}
            for field in rng.sample(("a", "b", "c", "deep"), rng.choice((1, 1, 2))):
                some = rng.choice(("A", "B", f"{name}-{n}", None))
                patch[field] = {rng.choice("xy"): some} if field == "deep" else some
            fields |= {"patch": patch, "was": saw(patch, value)}
        change = Change(**fields)
        judging.check(change)
        return change, version.sequence

    async def send(self, name: str, done: Done) -> None:
        """Sends a change until its outcome is known, through any broker, as client libraries do."""
        unknown = False
        for _ in range(12):
            broker = self.rng.choice(self.brokers)
            try:
                with trio.move_on_after(
                    self.rng.choice((0.03 if self.forgetful else 0.05, 60, 60, 60))
                ) as patience:
                    changes = done.repeated() if unknown else done.changes
                    await broker.change(Asker(f"{name}@{id(broker)}", name), changes)
                    done.end = "changed"
                    return
                if patience.cancelled_caught:
                    unknown = True
            except FINAL as error:
                if unknown and self.forgetful and any(each.was is OUT for each in done.changes.values()):
                    return  # without `was` its revision is the condition, and no more can be said
                done.end, done.error = "refused", repr(error)
                return
            except (
                Unavailable,
                BadAnswer,
                TooManyDocuments,
            ) as error:  # which say nothing of an earlier attempt
                if not unknown:
                    done.end, done.error = "refused", repr(error)
                    return
            except (UnknownOutcome, Killed):
                unknown = True
                if any(change.add for change in done.changes.values()) and self.rng.random() < 0.3:
                    return
            await trio.sleep(self.rng.uniform(0, 12 if self.forgetful else 4))

    # --- brokers

    async def kill(self, nursery: trio.Nursery) -> None:
        while not self.quiet:
            await trio.sleep(self.rng.uniform(0.5, 8))
            index = self.rng.randrange(len(self.brokers))
            fresh = Broker(self.world)
            await nursery.start(fresh.run)
            old, self.brokers[index] = self.brokers[index], fresh
            old.kill()


def saw(patch: Any, value: Any) -> Any:
    if isinstance(patch, dict) and isinstance(value, dict):
        return {name: saw(each, value.get(name)) for name, each in patch.items()}
    return value


def amended(story: Story, change: Change, channel: str) -> Change:
    said = story.opinions.get((change.user, change.id, channel))
    if isinstance(said, dict) and "patch" in said:
        return attrs.evolve(change, patch=said["patch"])
    return change


def judge(story: Story) -> None:
    """What the stream had in the end tells what was applied; each answer has to agree with it."""
    applied: Counter[tuple[str, str, str]] = Counter()
    versions: dict[str, list[Any]] = {each: [None] for each in CHANNELS}
    before: dict[str, tuple[int, Any]] = {}
    for sequence, subject, body, headers in story.world.log:
        channel = subject.split(".", 2)[2]
        base, value = before.get(channel, (0, None))
        new = values.parse(body) if body else None
        assert not isinstance(new, values.Invalid)
        if headers is not None and store.BASE in headers:
            assert headers[store.BASE] == str(base), "somebody's write is lost"
            known = memory.parse(headers[store.CHANGES], sequence)
            expected = value
            for entry in known.since(base):
                change = story.all[entry.user, entry.id].changes[channel]
                applied[entry.user, entry.id, channel] += 1
                for path, leaf in patches.leaves(change.patch) if change.was is not OUT else ():
                    there = patches.at(value, path)
                    seen = patches.at(change.was, path)
                    assert patches.is_done(leaf, there) or patches.matches(there, seen), (
                        "not what it replaces"
                    )
                if change.was is OUT and change.patch is not OUT:
                    assert change.revision == base
                    assert patches.equal(expected, value), "another change of the same write came before"
                for path, seen in patches.leaves(change.was) if change.was is not OUT else ():
                    there = patches.at(expected, path)
                    so = change.patch is not OUT and patches.is_done(patches.at(change.patch, path), there)
                    assert so or patches.matches(there, seen) or seen == {}, "not its condition"
                verdict = judging.applied(amended(story, change, channel), expected)
                assert isinstance(verdict, judging.Accepted)
                expected = verdict.value
            assert patches.equal(expected, new), "what is written is not what was wanted"
        versions[channel].append(new)
        before[channel] = sequence, new
    twice = {key: count for key, count in applied.items() if count > 1}
    assert not twice, "applied twice"
    for (user, id_), done in story.all.items():
        got = {channel for channel in done.changes if applied[user, id_, channel]}
        if done.end == "refused":
            assert not got, f"{id_} was applied, and called refused: {done.error}"
        elif done.end == "changed" and (user, id_) not in story.own:
            for channel in done.changes.keys() - got:
                change = done.changes[channel]
                assert not change.add, f"{id_} was not added, and called changed"
                seen = versions[channel]
                assert any(patches.is_done(change.patch, each) for each in seen), f"{id_} is nowhere"


async def test_where_too_many_wait(autojump_clock: trio.testing.MockClock) -> None:
    """One more is refused, also as one of several documents, and leaves nothing behind."""
    async with trio.open_nursery() as nursery:
        world = World(random.Random(0), nursery)
        broker = Broker(world)
        await nursery.start(broker.run)
        change = Change(session="s", n=1, user="u", patch={"a": 1}, was=None)
        ends: list[str] = []

        async def send(n: int, *channels: str) -> None:
            try:
                each = attrs.evolve(change, session=f"s{n}")
                await broker.change(Asker(f"c{n}", "u"), dict.fromkeys(channels, each))
                ends.append("changed")
            except (Unavailable, Conflict) as error:
                ends.append(error.code)

        async with trio.open_nursery() as clients:
            for n in range(32):
                clients.start_soon(send, n, "a")
            await trio.testing.wait_all_tasks_blocked()
            await send(32, "a")
            await send(33, "a", "b")
            assert ends == ["unavailable"] * 2
            assert [*broker.changing.queues] == ["state.acme.a"]
        assert Counter(ends[2:]) == {"changed": 32}
        await trio.testing.wait_all_tasks_blocked()
        assert not broker.changing.queues
        nursery.cancel_scope.cancel()


async def test_a_service_is_asked_as_much_as_fits(autojump_clock: trio.testing.MockClock) -> None:
    """What NATS has no room for in one question is in the next."""
    async with trio.open_nursery() as nursery:
        world = World(random.Random(0), nursery, max_payload=60_000)
        broker = Broker(world)
        await nursery.start(broker.run)
        asked: list[int] = []

        async def agree(question: Any) -> bytes:
            asked.append(len(question["changes"]))
            await trio.sleep(0.1)
            return b"{}"

        world.services[Names().question("acme", "owned.1")] = agree
        value = {f"f{n}": "y" * 2000 for n in range(24)}
        world.store("state.acme.owned.1", values.encode(value), None)

        async def send(n: int) -> None:
            name = f"f{n}"
            change = Change(session=f"s{n}", n=1, user="u", patch={name: None}, was={name: value[name]})
            await broker.change(Asker(f"c{n}", "u"), {"owned.1": change})

        async with trio.open_nursery() as clients:
            for n in range(24):
                clients.start_soon(send, n)
        assert world.rows["state.acme.owned.1"][2] == b"{}"
        assert sum(asked) == 24
        assert max(asked) < 24
        nursery.cancel_scope.cancel()


@simulated(usual=12)
async def test_documents(
    seed: int, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(f"{seed} documents")
    async with trio.open_nursery() as nursery:
        limits = rng.choice((Limits(), Limits(documents=2), Limits(document_bytes=2000)))
        world = World(rng, nursery, failures=rng.choice((0.0, 0.05, 0.2)), limits=limits)
        world.max_payload = rng.choice((1 << 20, 600))
        story = Story(rng, world, [Broker(world) for _ in range(rng.randint(1, 4))])
        story.forgetful = rng.random() < 0.3
        if story.forgetful:  # no write carries as many changes
            monkeypatch.setattr(memory, "MAX_SESSIONS", 11)
        for each in CHANNELS:
            if each.startswith("owned") and rng.random() < 0.9:
                world.services[Names().question("acme", each)] = partial(story.service, each)
        for broker in story.brokers:
            await nursery.start(broker.run)
        if rng.random() < 0.7:
            nursery.start_soon(story.kill, nursery)
        async with trio.open_nursery() as clients:
            for number in range(10 if story.forgetful else rng.randint(2, 10)):
                clients.start_soon(story.client, f"c{number}", rng.randint(5, 20))
        story.quiet = True
        await trio.sleep(60)
        judge(story)
        world.failures = 0.0
        for broker in story.brokers:
            assert not broker.changing.queues
            room = broker.changing.room
            for tenant, holding in room.holdings.items():
                if kept := holding.count:  # as the feed has kept it
                    anew = await room.count(tenant, Holding(0.0))
                    assert (kept.sizes, kept.documents, kept.taken) == (
                        anew.sizes,
                        anew.documents,
                        anew.taken,
                    )
        nursery.cancel_scope.cancel()
    ends = Counter(each.end for each in story.all.values())
    assert ends["changed"]


async def test_what_is_so_already_is_part_of_all_or_none(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One document has become otherwise before a late write of the other: that must not land any more."""
    async with trio.open_nursery() as nursery:
        world = World(random.Random(0), nursery)
        broker = Broker(world)
        await nursery.start(broker.run)
        for channel, value in (("board.1", b'{"a":1}'), ("board.2", b'{"a":0}')):
            world.store(Names().document("acme", channel), value, None)
        late: list[Any] = []
        put_all = World.put_all

        async def lose(world: World, puts: Any) -> list[int]:
            if late:
                return await put_all(world, puts)
            late.extend(puts)
            world.store(Names().document("acme", "board.1"), b'{"a":5}', None)
            raise OutcomeUnknown("scripted")

        monkeypatch.setattr(World, "put_all", lose)
        changes = {
            "board.1": Change(session="s", n=1, user="u", patch={"a": 1}, was={"a": 1}),
            "board.2": Change(session="s", n=1, user="u", patch={"a": 2}, was={"a": 0}),
        }
        with pytest.raises((Conflict, UnknownOutcome)):
            await broker.change(Asker("c", "u"), changes)
        with pytest.raises(Stale):
            world.replace(late)
        assert world.rows[Names().document("acme", "board.2")][2] == b'{"a":0}'
        broker.kill()
