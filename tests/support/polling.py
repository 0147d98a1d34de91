"""A client that polls: it knows a session and a position, and comes again with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker.links.poll.session import PollTransport
from tests.support.http import SECONDS, Answer, ask

if TYPE_CHECKING:
    from broker.actors.supervisor import Supervisor


@attrs.define(eq=False)
class Poller:
    """`events` and `gaps` are all that came."""

    url: str
    token: str
    channels: list[str]
    start: dict[str, Any] = attrs.Factory(dict)
    session: str | None = None
    position: str | None = None
    events: list[dict[str, Any]] = attrs.Factory(list)
    gaps: list[dict[str, Any]] = attrs.Factory(list)

    def body(self, wait: float) -> dict[str, Any]:
        found: dict[str, Any] = {"channels": self.channels, "wait": wait}
        found |= {"session": self.session} if self.session else {}
        return found | ({"position": self.position} if self.position else self.start)

    async def ask(self, wait: float = 0) -> Answer:
        return await ask(self.url, "POST", "/poll", token=self.token, json=self.body(wait))

    async def poll(self, wait: float = 0) -> dict[str, Any]:
        """One poll and what came of it."""
        answer = await self.ask(wait)
        assert answer.status == 200, answer
        return self.take(answer)

    def take(self, answer: Answer) -> dict[str, Any]:
        found: dict[str, Any] = answer.json
        self.session, self.position = found["session"], found.get("position")
        self.events += found["events"]
        self.gaps += found["gaps"]
        return found

    async def until(self, count: int) -> list[Any]:
        """Polls until there have been so many events: what they hold."""
        with trio.fail_after(2 * SECONDS):
            while len(self.events) < count:
                await self.poll(10)
        return [each["event"] for each in self.events]


def waiting(supervisor: Supervisor) -> list[object]:
    """What identifies the polls that wait now, and have said what for."""
    sessions = (each.transport for each in supervisor.connections)
    return [
        each.turn
        for each in sessions
        if isinstance(each, PollTransport) and each.turn is not None and not each.talking.locked()
    ]


async def until_one_waits(supervisor: Supervisor, *, but: object = None) -> object:
    """The poll that waits, once there is one; another one than `but`."""
    with trio.fail_after(SECONDS):
        while not (found := [turn for turn in waiting(supervisor) if turn is not but]):
            await trio.sleep(0.01)
    return found[0]


async def until_none_waits(supervisor: Supervisor) -> None:
    """Until the broker has noticed that nobody is there for the answer."""
    with trio.fail_after(SECONDS):
        while waiting(supervisor):
            await trio.sleep(0.01)
