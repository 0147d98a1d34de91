"""Documents by long polls over the real actors, a scripted bus, a fake clock and a seed.

Clients change their lists and their tokens, lose answers and sessions, and stay away, while services write
and delete, NATS goes away and the stream is recreated. With each answer a client holds what a naive reader of
the stream would, as far as the position says, and in the end everything.

`SIMULATION_SEEDS=1000` runs more seeds; a failing test names its seed, which replays it exactly.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.documents import patches
from broker.keyed import rows, watch
from broker.links.poll import session
from tests.actors.test_simulated_documents import DOCUMENTS, Truth, happen
from tests.support.scripted import ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus
from tests.support.seeds import simulated
from tests.web.test_longpoll import Port

if TYPE_CHECKING:
    from broker.permissions import Principal

pytestmark = pytest.mark.usefixtures("quiet_logs")

LISTS = [
    ["board.*"],
    ["board.1", "none"],
    ["a", "b.>"],
    ["b.>", "a"],
    [">"],
    ["me.>", "board.2"],
    ["secret.x", "a"],
]
DENIED = "secret.>"
LESS = ":less"  # at the end of a token that denies something
PATIENCE = 5000


@attrs.define(eq=False)
class Verifier(ScriptedVerifier):
    """Tokens of which some deny."""

    async def verify(self, token: str, *, now: float, tenant: str | None = None) -> Principal:
        found = await super().verify(token.removesuffix(LESS), now=now, tenant=tenant)
        return attrs.evolve(found, deny=(DENIED,)) if token.endswith(LESS) else found


@attrs.define(eq=False, kw_only=True)
class Poller:
    """A client with its documents: revision and value by channel. `came`: since all began to come again."""

    name: str
    port: Port
    truth: Truth
    random: random.Random
    wanted: list[str] = attrs.Factory(lambda: LISTS[0])
    less: bool = False
    every_ms: int | None = None
    session: str | None = None
    position: str | None = None
    docs: dict[str, tuple[str, Any]] = attrs.Factory(dict)
    came: set[str] | None = None

    def change(self) -> None:
        """Want something else, or begin again with what was kept."""
        if self.random.random() < 0.15:
            self.wanted = self.random.choice(LISTS)
        if self.random.random() < 0.1:
            self.less = not self.less
        if self.random.random() < 0.1:
            self.every_ms = self.random.choice((None, 100, 5000))
        if self.random.random() < 0.1:
            self.session = None
            if self.random.random() < 0.3:
                self.position, self.docs, self.came = None, {}, None

    async def poll(self, wait: float, *, patience: float = 1e9, state: bool = True) -> None:
        """One poll; the answer may be lost on its way."""
        given: dict[str, Any] = {"wait": wait}
        given |= {"state": self.wanted} if state else {}
        given |= {"channels": ["a"]} if not state or self.random.random() < 0.3 else {}
        given |= {"state_every_ms": self.every_ms} if self.every_ms else {}
        given |= {"session": self.session} if self.session else {}
        given |= {"position": self.position} if self.position else {}
        answer = None
        with trio.move_on_after(patience):
            status, answer = await self.port.poll(self.name + LESS * self.less, given)
        if answer is None or self.random.random() < 0.1:
            return  # it has left, or the answer did not arrive: it asks again from where it was
        if status != 200:
            unavailable = (503, "unavailable"), (429, "rate_limited"), (403, "forbidden")
            assert (status, answer["code"]) in unavailable, answer
            assert status != 403 or self.less, answer
            if status == 403:
                self.less = False
            await trio.sleep(1)
            return
        self.session, self.position = answer["session"], answer["position"]
        if state:
            self.take(answer["state"])
        else:
            self.docs, self.came = {}, None
            assert "state" not in answer

    def take(self, said: dict[str, Any]) -> None:
        if not said["recovered"]:
            self.came = set()
        for each in said["documents"]:
            channel, held = each["channel"], self.docs.get(each["channel"])
            assert self.covers(channel), each
            if "patch" in each:
                assert held is not None, "a difference from what it does not hold"
                assert held[0] == each["from"], each
                value = patches.apply(held[1], each["patch"])
            else:
                value = "invalid" if "invalid" in each else each["value"]
            stream, _, sequence = each["revision"].rpartition("-")
            assert value == (self.truth.values[stream, int(sequence)] if sequence != "0" else None), each
            self.docs[channel] = each["revision"], value
            if self.came is not None:
                self.came.add(channel)
        if said["ready"]:
            self.docs = {
                channel: doc
                for channel, doc in self.docs.items()
                if self.covers(channel) and (self.came is None or channel in self.came)
            }
            self.came = None
            self.check()

    def covers(self, channel: str) -> bool:
        patterns = [subjects.expand_me(each, self.name) for each in self.wanted]
        denied = self.less and subjects.covers(DENIED, channel)
        return not denied and any(subjects.covers(each, channel) for each in patterns)

    def stored(self) -> dict[str, tuple[int, Any]]:
        """What is stored of what it wants: sequence and value."""
        keyed, found = self.truth.keyed, {}
        for subject, (sequence, *_) in keyed.rows.items():
            _, tenant, channel = subject.split(".", 2)
            if tenant == "t0" and self.covers(channel):
                found[channel] = sequence, self.truth.values[keyed.incarnation, sequence]
        return found

    def check(self) -> None:
        """All that is stored at or below the position, it holds."""
        stream, _, sequence = (self.position or "").split("~")[1].rpartition("-")
        if stream != self.truth.keyed.incarnation:
            return
        for channel, (stored, value) in self.stored().items():
            held = self.docs.get(channel)
            assert stored > int(sequence) or (held[1] if held else None) == value, (channel, stored)

    async def live(self) -> None:
        rng = self.random
        for _ in range(rng.randint(5, 40)):
            await trio.sleep(rng.choice((0, 0, 0.1, 3)) if rng.random() < 0.95 else 90)
            self.change()
            patience = rng.uniform(0, 2) if rng.random() < 0.2 else 1e9
            await self.poll(rng.choice((0, 1, 20)), patience=patience, state=rng.random() < 0.95)

    async def arrive(self) -> None:
        """It comes to hold everything, and nothing else."""
        with trio.fail_after(PATIENCE):
            while True:
                await self.poll(0)
                there = {name: value for name, (_, value) in self.docs.items() if value is not None}
                stored = {name: value for name, (_, value) in self.stored().items() if value is not None}
                if there == stored and self.came is None:
                    return
                await trio.sleep(1)


@simulated(4)
async def test_pollers_hold_what_is_stored(
    seed: int, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of lists, tokens, answers, sessions and NATS."""
    rng = random.Random(seed)
    bus = ScriptedBus(random=rng, failures=rng.choice((0, 0, 0.1)))
    keyed = bus.keyed("STATE")
    keyed.slowest = rng.choice((0.0, 0.02, 0.5))
    monkeypatch.setattr(watch, "PAGE_BYTES", rng.choice((100, 100, 65536)))
    monkeypatch.setattr(session, "ANSWER_BYTES", rng.choice((300, 300, 65536)))
    monkeypatch.setattr(rows, "SPARE_DELETIONS", rng.choice((0, 3, 1000)))
    truth = Truth(keyed)
    for _ in range(rng.choice((0, 5, 60))):
        truth.write(rng)
    supervisor = Supervisor(
        config=config.Config(
            limits=config.Limits(connections_per_user=1000, requests_burst=1000),
            state=config.State(documents=DOCUMENTS),
        ),
        bus=bus,
        names=subjects.Names(),
        verifier=Verifier(),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        port = Port(supervisor=supervisor, nursery=nursery)
        written = trio.Event()

        async def client(number: int) -> None:
            own = random.Random(f"{seed}-{number}")
            each = Poller(name=f"u{number}", port=port, truth=truth, random=own)
            await each.live()
            await written.wait()
            await each.arrive()

        async def write() -> None:
            for _ in range(rng.randint(20, 100)):
                for _ in range(rng.choice((1, 2, 20))):
                    truth.write(rng)
                await trio.sleep(rng.choice((0, 0.05, 0.3, 3)))

        async with trio.open_nursery() as playing:
            for number in range(3):
                playing.start_soon(client, number)
            async with trio.open_nursery() as stories:
                stories.start_soon(write)
                stories.start_soon(happen, bus, keyed, rng)
            written.set()
        nursery.cancel_scope.cancel()
