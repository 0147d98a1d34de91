"""One client of real actors, over a scripted link and a scripted bus."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker import config, subjects
from broker.actors.supervisor import Supervisor
from broker.actors.transport import Hello
from tests.support.scripted import ScriptedLink, ScriptedVerifier, until_let_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.actors.connection import Connection
    from broker.permissions import Principal
    from tests.support.scripted_bus import ScriptedBus


@attrs.define(eq=False)
class Granting(ScriptedVerifier):
    """Tokens that allow what a test says at the time."""

    changes: dict[str, Any] = attrs.Factory(dict)

    async def verify(self, token: str, *, now: float, tenant: str | None = None) -> Principal:
        return attrs.evolve(await super().verify(token, now=now, tenant=tenant), **self.changes)


@attrs.define(eq=False)
class Client:
    """Reads as much at a time as a test wants, and keeps all messages."""

    link: ScriptedLink
    supervisor: Supervisor
    messages: list[dict[str, Any]] = attrs.Factory(list)
    looked_at: int = 0

    @property
    def connection(self) -> Connection:
        (connection,) = self.supervisor.connections
        return connection

    async def ask(self, kind: str, payload: dict[str, Any], *answers: str) -> list[dict[str, Any]]:
        """Say something, and return the answers of these kinds, in this order."""
        self.link.say(kind, payload)
        return [await self.until(each) for each in answers]

    async def read(self, most: int) -> None:
        for opcode, payload in await self.link.read(most):
            if opcode == 1:
                self.messages.append(json.loads(payload))
        assert not self.link.cut, self.messages[-1]

    async def until(self, kind: str) -> dict[str, Any]:
        """The next message of a kind; those before it have been looked at, too."""
        with trio.fail_after(1000):
            while True:
                while self.looked_at < len(self.messages):
                    message = self.messages[self.looked_at]
                    self.looked_at += 1
                    if message["type"] == kind:
                        payload: dict[str, Any] = message["payload"]
                        return payload
                await self.read(500)


@asynccontextmanager
async def open_client(
    bus: ScriptedBus,
    *,
    room: int,
    verifier: ScriptedVerifier | None = None,
    settings: config.Config | None = None,
) -> AsyncIterator[Client]:
    supervisor = Supervisor(
        config=settings or config.Config(ring=config.Ring(events=10)),
        bus=bus,
        names=subjects.Names(),
        verifier=verifier or ScriptedVerifier(),  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await until_let_in(supervisor)
        link = ScriptedLink(room=room)
        nursery.start_soon(supervisor.serve, link, Hello(peer="test", token="acme:u"))
        yield Client(link, supervisor)
        nursery.cancel_scope.cancel()
