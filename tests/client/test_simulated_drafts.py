"""Clients, brokers and services change the same documents under a fake clock and a seed: real sessions with
their drafts, over scripted links, to one to four real brokers over one stream.

After each frame and each change a client shows what is confirmed, with its own changes over it and nothing
else. In the end all show what is stored; what was answered is there once, what was refused is nowhere, and
nothing was replaced by a change that did not name it.

`SIMULATION_SEEDS=1000` runs more seeds; a failing test names its seed, which replays it exactly.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import pytest
import trio

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.documents import memory, patches, values
from broker.features.state import store
from tests.client.tabs import Sent, Tab
from tests.client.twin import Add
from tests.support.replicas import Stream
from tests.support.scripted import ScriptedVerifier, until_let_in
from tests.support.seeds import seeded, simulated

if TYPE_CHECKING:
    from tests.support.replicas import Bus

__all__ = ["seeded"]

pytestmark = pytest.mark.usefixtures("quiet_logs")

ALONE = ("board.1", "owned.1")  # each client follows them one by one
CARDS = ("cards.1", "cards.2")  # and these by a pattern
DOCUMENTS = (config.Documents(channel="owned.>", owner="service"), config.Documents(channel=">"))
LEAVES = (("a",), ("b",), ("c",), ("deep", "x"), ("deep", "y"))
PATIENCE = 3000
SERVICE = "service"


@attrs.define(eq=False, kw_only=True)
class Story:
    rng: random.Random
    stream: Stream
    nursery: trio.Nursery
    failures: float
    brokers: list[Supervisor] = attrs.Factory(list)  # that run
    buses: list[Bus] = attrs.Factory(list)
    tabs: list[Tab] = attrs.Factory(list)
    scopes: list[trio.CancelScope] = attrs.Factory(list)
    opinions: dict[str, Any] = attrs.Factory(dict)  # of the service, by the ids of changes
    quiet: bool = False

    # --- brokers

    async def start_broker(self) -> None:
        bus = self.stream.bus(self.failures)
        settings = config.Config(
            limits=config.Limits(
                connections_per_user=100, requests_burst=10000, requests_per_second=1000, stall_seconds=10000,
                heartbeat_seconds=9000, changes_per_second=1000, changes_burst=1000,
            ),
            state=config.State(documents=DOCUMENTS),
        )  # fmt: skip
        verifier: Any = ScriptedVerifier(change=(">",))
        supervisor = Supervisor(config=settings, bus=bus, names=subjects.Names(), verifier=verifier)
        scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await supervisor.run(task_status=task_status)

        await self.nursery.start(run)
        await until_let_in(supervisor)
        self.brokers.append(supervisor)
        self.buses.append(bus)
        self.scopes.append(scope)

    def kill_broker(self) -> None:
        """Whatever it was about to do."""
        at = self.rng.randrange(len(self.brokers))
        gone = self.brokers.pop(at)
        self.scopes.pop(at).cancel()
        self.stream.replicas.remove(self.buses.pop(at).by_key["STATE"])  # type: ignore[arg-type]
        for each in self.tabs:
            if each.link and each.supervisor is gone:
                each.link.drop()

    async def happen(self) -> None:
        """What becomes of brokers, of NATS and of connections."""
        rng = self.rng
        for _ in range(rng.randint(0, 12)):
            await trio.sleep(rng.uniform(0.2, 4))
            match rng.randrange(5):
                case 0:
                    await self.start_broker()
                    self.kill_broker()
                case 1:
                    bus = rng.choice(self.buses)
                    bus.leave()
                    await trio.sleep(rng.uniform(0, 4))
                    bus.come_back()
                case 2:
                    rng.choice(self.buses).keyed("STATE").interrupt()
                case _:
                    if link := rng.choice(self.tabs).link:
                        link.drop()

    # --- services

    async def decide(self, channel: str, body: bytes) -> bytes:
        """Agrees, amends, refuses; slow, dead or wrong. It says the same of a change each time."""
        rng, mood = self.rng, self.rng.random()
        if not self.quiet:
            if mood < 0.1:
                await trio.sleep(rng.uniform(2.5, 6))
            elif mood < 0.15:
                return rng.choice((b"", b"[]", b'{"changes":[]}'))
            elif mood < 0.2:
                await trio.sleep(20)
        await trio.sleep(rng.uniform(0, 0.05))
        question = msgspec.json.decode(body)
        said = [self.opinion(each) for each in question["changes"]]
        return msgspec.json.encode({"changes": said})

    def opinion(self, change: Any) -> Any:
        if change["id"] not in self.opinions:
            choices: list[Any] = [{}, {}, {}, {"error": {"code": 7, "message": "no"}}]
            if "patch" in change:
                choices.append({"patch": change["patch"] | {"by": change["id"]}})
            self.opinions[change["id"]] = self.rng.choice(choices)
        return self.opinions[change["id"]]

    async def write(self) -> None:
        """A service that writes documents beside the clients: new values, and such as were there before."""
        for number in range(self.rng.randint(0, 60)):
            await trio.sleep(self.rng.uniform(0, 0.6))
            channel = self.rng.choice((*ALONE, *CARDS))
            subject = subjects.Names().document("t0", channel)
            there = self.stream.rows.get(subject)
            value = self.stream.values[there[0]] if there else {}
            new = patches.apply(value, self.patch(f"{SERVICE}-{number}", value))
            known = (there[3] or {}) if there else {}
            headers = {store.CHANGES: known[store.CHANGES]} if store.CHANGES in known else {}
            self.stream.store(subject, values.encode(new), headers)

    # --- clients

    def patch(self, identity: str, value: Any) -> Any:
        """Of one or two leaves: something new, something that was there once, or nothing."""
        found: dict[str, Any] = {}
        for path in self.rng.sample(LEAVES, self.rng.choice((1, 1, 2))):
            leaf: Any = self.rng.choice((f"{identity}.{path[-1]}", f"{identity}.{path[-1]}", "A", "B"))
            if patches.at(value, path) is not None and self.rng.random() < 0.15:
                leaf = None
            found = merged(found, path, leaf)
        return found

    async def edit(self, tab: Tab) -> None:
        for number in range(self.rng.randint(5, 60)):
            await trio.sleep(self.rng.choice((0.0, 0.05, 0.3, 1.0)) * self.rng.random())
            channel = self.rng.choice(list(tab.twins))
            some = self.patch(f"{tab.name}-{number}", tab.shown(channel))
            tab.write_to(channel, Add.ONE if self.rng.random() < 0.15 else some)

    async def settle(self) -> None:
        self.quiet = True
        with trio.fail_after(PATIENCE):
            while not all(self.arrived(each) for each in self.tabs):
                await trio.sleep(1)

    def arrived(self, tab: Tab) -> bool:
        """Whether it shows what is stored, and has nothing under way."""
        return not tab.unsaved and all(
            tab.shown(channel) == self.stored(channel) == twin.confirmed
            for channel, twin in tab.twins.items()
        )

    def stored(self, channel: str) -> Any:
        there = self.stream.rows.get(subjects.Names().document("t0", channel))
        return self.stream.values[there[0]] if there else None


def merged(patch: dict[str, Any], path: tuple[str, ...], leaf: Any) -> dict[str, Any]:
    first, *rest = path
    return patch | {first: merged(patch.get(first, {}), tuple(rest), leaf) if rest else leaf}


def judge(story: Story) -> Counter[str]:
    """What the stream had in the end tells what was applied; each answer has to agree with it."""
    sent = {identity: each for tab in story.tabs for identity, each in tab.sent.items()}
    applied: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    before: dict[str, tuple[int, Any]] = {}
    for sequence, subject, _, headers in story.stream.log:
        base, value = before.get(subject, (0, None))
        if headers is not None and store.BASE in headers:
            assert headers[store.BASE] == str(base), "somebody's write is lost"
            for entry in memory.parse(headers[store.CHANGES], sequence).since(base):
                applied[entry.id] += 1
                sums[subject] += "add" in sent[entry.id].payload
                named(sent[entry.id], value)
        before[subject] = sequence, story.stream.values[sequence]
        assert (patches.at(before[subject][1], ("n",)) or 0) == sums[subject], "not what was added"
    for identity, each in sent.items():
        assert applied[identity] <= 1, f"{identity} was applied twice"
        if each.end == "refused":
            assert not applied[identity], f"{identity} was applied, and called refused"
        if each.end == "changed" and not applied[identity]:
            value = story.stream.values[int(each.revision.rpartition("-")[2])]
            assert "patch" in each.payload, f"{identity} was not added"
            assert patches.is_done(each.payload["patch"], value), f"{identity} is lost"
    return Counter(each.end for each in sent.values())


def named(change: Sent, value: Any) -> None:
    """Each leaf that a change replaced was what it says there was, or is so already."""
    for path, leaf in patches.leaves(change.payload.get("patch", {})):
        if not path:
            continue
        there = patches.at(value, path)
        was = patches.at(change.payload["was"], path)
        assert patches.is_done(leaf, there) or patches.matches(there, was), f"{change} replaced {there}"


@simulated(usual=6)
async def test_what_is_shown(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    rng = random.Random(f"{seed} drafts")
    async with trio.open_nursery() as nursery:
        stream = Stream(random=rng, nursery=nursery, late=rng.choice((0.0, 0.05, 0.2)))
        story = Story(rng=rng, stream=stream, nursery=nursery, failures=rng.choice((0.0, 0.05)))
        stream.services[subjects.Names().question("t0", "owned.1")] = partial(story.decide, "owned.1")
        for _ in range(rng.randint(1, 4)):
            await story.start_broker()
        for number in range(rng.randint(2, 6)):
            tab = Tab(name=f"u{number}", rng=rng, nursery=nursery, brokers=story.brokers, truth=stream.values)
            tab.engine.documents.changes.session = tab.name
            for channel in ALONE:
                tab.follow(tab.document(channel), channel)
            tab.follow(tab.collection("cards.*"), *CARDS)
            if rng.random() < 0.3:
                tab.collection("board.*")  # which brings a document that is open by itself once more
            story.tabs.append(tab)
            nursery.start_soon(tab.run)
        async with trio.open_nursery() as telling:
            telling.start_soon(story.happen)
            telling.start_soon(story.write)
            for tab in story.tabs:
                telling.start_soon(story.edit, tab)
        await story.settle()
        ends = judge(story)
        assert ends["changed"]
        assert sum(tab.frames for tab in story.tabs)
        nursery.cancel_scope.cancel()
