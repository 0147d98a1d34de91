"""`presence.…` over a real nats-server: who is here, who has gone, and who only seemed to."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs

from tests.support import rawnats
from tests.support.broker import configure, run_broker
from tests.support.http import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.broker import Broker
    from tests.support.nats import NatsServer
    from tests.support.websocket import Client

ROOM = "orders.7"


@attrs.define(eq=False)
class Viewer:
    """A client that watches a channel, and what it shows by all frames up to now."""

    client: Client
    members: dict[tuple[str, str], dict[str, Any]] = attrs.Factory(dict)
    frames: list[dict[str, Any]] = attrs.Factory(list)
    users: int = 0
    sessions: int = 0

    def take(self, frame: dict[str, Any]) -> None:
        if frame.get("whole") and (not self.frames or self.frames[-1].get("complete", True)):
            self.members.clear()
        for each in frame["set"]:
            self.members[each["user"], each["session"]] = each
        for each in frame["gone"]:
            self.members.pop((each["user"], each["session"]), None)
        self.users, self.sessions = frame["users"], frame["sessions"]
        self.frames.append(frame)

    async def sees(self, *names: str, **away: str) -> None:
        """Read until exactly these users are shown, and `away` as said."""
        while True:
            users = sorted({user for user, _ in self.members})
            gone = {user: each["away"] for (user, _), each in self.members.items() if "away" in each}
            if users == sorted(names) and gone == away:
                assert (self.users, self.sessions) == (len(users), len(self.members))
                return
            self.take(await self.client.until("presence"))


async def watch(client: Client, channel: str = ROOM, **options: Any) -> Viewer:
    await client.send("presence.watch", {"channel": channel, **options})
    await client.until("presence.watched")
    viewer = Viewer(client)
    while not viewer.frames or not viewer.frames[-1].get("complete", "position" in options):
        viewer.take(await client.until("presence"))
    return viewer


async def enter(client: Client, session: str = "s", channel: str = ROOM, **options: Any) -> dict[str, Any]:
    await client.send("presence.enter", {"channel": channel, "session": session, **options})
    return await client.until("presence.entered")


@asynccontextmanager
async def running(
    directory: Path, nats: NatsServer, name: str = "broker", **limits: Any
) -> AsyncIterator[Broker]:
    settings = configure(directory / name, nats.url)
    changed = attrs.evolve(settings.limits, **limits)
    async with run_broker(directory / name, attrs.evolve(settings, limits=changed)) as broker:
        yield broker


async def test_seen_by_others(tmp_path: Path, nats: NatsServer) -> None:
    """Entering, saying something, for a while too, and leaving; on two brokers, by GET, and in NATS."""
    async with (
        running(tmp_path, nats) as one,
        running(tmp_path, nats, "other") as two,
        one.client(user="ann") as ann,
        two.client(user="bob") as bob,
        rawnats.connect(nats.url) as services,
    ):
        viewer = await watch(bob)
        assert viewer.members == {}
        entered = await enter(ann, state={"field": "amount"})
        await viewer.sees("ann")
        assert viewer.members["ann", "s"]["state"] == {"field": "amount"}
        assert entered["position"].partition("-")[0] == viewer.frames[-1]["position"].partition("-")[0]
        await enter(bob, "t", away="hidden")
        await viewer.sees("ann", "bob", bob="hidden")
        subject = f"presence.acme.2.{ROOM}.ann.s"
        stored = await services.api("STREAM.MSG.GET.PRESENCE", last_by_subj=subject)
        assert stored["message"]["subject"].endswith("ann.s")
        await ann.send(
            "presence.update", {"channel": ROOM, "state": {"typing": 1}, "for_ms": 300}, messageId="1"
        )
        assert (await ann.until("presence.updated"))["channel"] == ROOM
        while viewer.members["ann", "s"]["state"] != {"typing": 1}:
            viewer.take(await bob.until("presence"))
        while viewer.members["ann", "s"]["state"] != {"field": "amount"}:
            viewer.take(await bob.until("presence"))
        answer = await ask(one.running.http, "GET", f"/presence?channel={ROOM}", token=one.token(user="eve"))
        body = answer.json()
        assert sorted(each["user"] for each in body["set"]) == ["ann", "bob"]
        await ann.send("presence.leave", {"channel": ROOM})
        await ann.until("presence.left")
        await viewer.sees("bob", bob="hidden")
