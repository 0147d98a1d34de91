"""Documents that were deleted, and of whose deletion nothing is left when somebody comes to look."""

from __future__ import annotations

import json
import random
from typing import Any

import attrs
import trio

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello
from tests.support.scripted import ScriptedLink, ScriptedVerifier, until_let_in
from tests.support.scripted_bus import ScriptedBus

PATIENCE = 300.0


class Highest(random.Random):
    """No replica lags, which could bring what is deleted and forgotten."""

    def randint(self, a: int, b: int) -> int:
        return b


@attrs.define(eq=False)
class Client:
    """A client that writes down what it is told of documents."""

    supervisor: Supervisor
    nursery: trio.Nursery
    link: ScriptedLink = attrs.Factory(lambda: ScriptedLink(room=100_000))
    told: list[tuple[str, dict[str, Any]]] = attrs.Factory(list)

    def open(self, **payload: Any) -> None:
        self.nursery.start_soon(self.supervisor.serve, self.link, Hello(peer="test", token="t0:u0"))
        self.link.say("state.open", {"channel": "board.*", **payload})

    async def until_ready(self) -> list[tuple[str, Any]]:
        """What has come since the last time, up to `state.ready`: channels and values, and `recovered`."""
        with trio.fail_after(PATIENCE):
            while not any(kind == "state.ready" for kind, _ in self.told):
                for _, frame in await self.link.read(100_000):
                    message = json.loads(frame)
                    self.told.append((message["type"], message["payload"]))
        told, self.told = self.told, []
        found = [("recovered", said["recovered"]) for kind, said in told if kind == "state.opened"]
        return found + [(said["channel"], said["value"]) for kind, said in told if kind == "state"]


async def test_deletions_that_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """Who follows over an interruption, and who comes back with a position, gets the whole set again.

    Where they are remembered, what has changed is enough.
    """
    bus = ScriptedBus(random=Highest(0))
    keyed = bus.keyed("STATE")
    for number in range(4):
        keyed.store(f"state.t0.board.{number}", b"{}")
    settings = config.Config(state=config.State(documents=(config.Documents(channel=">"),)))
    verifier: Any = ScriptedVerifier(())
    supervisor = Supervisor(config=settings, bus=bus, names=subjects.Names(), verifier=verifier)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        client = Client(supervisor, nursery)
        client.open()
        whole = [("recovered", False), *((f"board.{number}", {}) for number in range(4))]
        assert await client.until_ready() == [("recovered", True), *whole[1:]]

        bus.leave()
        keyed.store("state.t0.board.0", b"")
        keyed.forget()
        bus.come_back()
        assert await client.until_ready() == [whole[0], *whole[2:]]

        other = Client(supervisor, nursery)
        client.link.drop()
        position = f"{keyed.incarnation}-{keyed.last}"
        keyed.store("state.t0.board.1", b"")
        await trio.sleep(1)
        other.open(position=position)
        assert await other.until_ready() == [("recovered", True), ("board.1", None)]

        another = Client(supervisor, nursery)
        other.link.drop()
        await trio.sleep(1)
        keyed.forget()
        another.open(position=position)
        assert await another.until_ready() == [whole[0], *whole[3:]]
        nursery.cancel_scope.cancel()
