"""`presence.…` over a real nats-server: who is here, who has gone, and who only seemed to."""

from __future__ import annotations

import json
from base64 import b64decode
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from tests.support import rawnats
from tests.support.broker import configure, run_broker
from tests.support.http import ask
from tests.support.raw import open_raw, say
from tests.web.harness import PONG, frame

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

    async def shows(self, user: str, state: Any) -> None:
        """Read until a user has this state."""
        while not any(key[0] == user and each.get("state") == state for key, each in self.members.items()):
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
        one.client(user="ann", info={"name": "Ann", "level": 3}) as ann,
        two.client(user="bob") as bob,
        rawnats.connect(nats.url) as services,
    ):
        viewer = await watch(bob)
        assert viewer.members == {}
        entered = await enter(ann, state={"field": "amount"})
        await viewer.sees("ann")
        shown = viewer.members["ann", "s"]
        assert (shown["state"], shown["info"]) == ({"field": "amount"}, {"name": "Ann", "level": 3})
        assert entered["position"].partition("-")[0] == viewer.frames[-1]["position"].partition("-")[0]
        await enter(bob, "t", away="hidden")
        await viewer.sees("ann", "bob", bob="hidden")
        subject = f"presence.acme.2.{ROOM}.ann.s"
        stored = await services.api("STREAM.MSG.GET.PRESENCE", last_by_subj=subject)
        assert stored["message"]["subject"] == subject
        brief = {"channel": ROOM, "state": {"typing": 1}, "for_ms": 300}
        await ann.send("presence.update", brief, messageId="1")
        assert (await ann.until("presence.updated"))["channel"] == ROOM
        await viewer.shows("ann", {"typing": 1})
        await viewer.shows("ann", {"field": "amount"})
        target = f"/presence?channel={ROOM}"
        body = (await ask(one.running.http, "GET", target, token=one.token(user="eve"))).json
        assert sorted(each["user"] for each in body["set"]) == ["ann", "bob"]
        assert (body["users"], body["sessions"], body["detail"]) == (2, 2, "full")
        await ann.send("presence.leave", {"channel": ROOM})
        await ann.until("presence.left")
        await viewer.sees("bob", bob="hidden")


async def test_lost_and_back(tmp_path: Path, nats: NatsServer) -> None:
    """Who is back within the linger, at whichever broker, has not gone; who is not goes without a word."""
    async with (
        running(tmp_path, nats, presence_linger_seconds=3.0) as one,
        running(tmp_path, nats, "other") as two,
        two.client(user="bob") as bob,
    ):
        viewer = await watch(bob)
        async with one.client(user="ann") as ann:
            await enter(ann, state=1)
            await viewer.sees("ann")
            since = viewer.members["ann", "s"]["since"]
        await viewer.sees("ann", ann="lost")
        async with two.client(user="ann") as ann:
            await enter(ann, state=2)
            await viewer.shows("ann", 2)
            assert viewer.members["ann", "s"]["since"] == since
            assert not any(frame["gone"] for frame in viewer.frames)
            async with one.client(user="ann") as again:
                await enter(again, state=3)
                assert await ann.until("presence.left") == {"channel": ROOM, "code": "replaced"}
                await viewer.shows("ann", 3)
                position = viewer.frames[-1]["position"]
            await viewer.sees("ann", ann="lost")
            await viewer.sees()
            await ann.send("presence.update", {"channel": ROOM, "state": 4})
            assert (await ann.until("error"))["code"] == "not_entered"
        async with two.client(user="eve") as eve:
            resumed = await watch(eve, position=position)
            assert resumed.frames[0]["gone"] == [{"user": "ann", "session": "s"}]
            assert "whole" not in resumed.frames[0]


async def test_memory_of_nats_is_lost(tmp_path: Path, nats: NatsServer) -> None:
    """Nobody goes, and nobody comes; positions of before are of no use."""
    async with (
        running(tmp_path, nats) as one,
        running(tmp_path, nats, "other") as two,
        one.client(user="ann") as ann,
        two.client(user="bob") as bob,
    ):
        viewer = await watch(bob)
        await enter(ann)
        await viewer.sees("ann")
        position = viewer.frames[-1]["position"]
        await nats.kill9()
        await nats.start()
        async with rawnats.connect(nats.url) as services:
            subject = f"presence.acme.2.{ROOM}.ann.s"
            with trio.fail_after(60):
                while "error" in await services.api("STREAM.MSG.GET.PRESENCE", last_by_subj=subject):
                    await trio.sleep(0.05)
        await ann.send("presence.update", {"channel": ROOM, "state": "still here"})
        await viewer.shows("ann", "still here")
        assert not any(frame["gone"] or frame.get("whole") for frame in viewer.frames[1:])
        await bob.send("presence.watch", {"channel": ROOM, "position": position})
        assert (await bob.until("presence.watched"))["recovered"] is False


async def test_many(tmp_path: Path, nats: NatsServer) -> None:
    """A large channel is shown by its numbers, one's own sessions and a sample."""
    async with (
        running(tmp_path, nats) as broker,
        rawnats.connect(nats.url) as services,
        broker.client(user="ann") as ann,
    ):
        await enter(ann)
        found = await services.api("STREAM.MSG.GET.PRESENCE", last_by_subj="presence._broker.epoch")
        epoch = found["message"]
        for n in range(1100):
            body = json.dumps({"user": f"u{n}", "session": "s", "since": "2026-01-01T00:00:00Z"})
            await services.store(
                f"presence.acme.2.{ROOM}.u{n}.s",
                body.encode(),
                header=b"NATS/1.0\r\nBroker-Epoch: %b\r\n\r\n" % b64decode(epoch["data"]),
            )
        async with broker.client(user="ann") as other:
            await other.send("presence.watch", {"channel": ROOM})
            assert (await other.until("presence.watched"))["detail"] == "count"
            viewer = Viewer(other)
            while not viewer.frames or not viewer.frames[-1].get("complete"):
                viewer.take(await other.until("presence"))
            assert (viewer.users, viewer.sessions) == (1101, 1101)
            assert ("ann", "s") in viewer.members
            assert len(viewer.members) in (50, 51)
            await ann.send("presence.leave", {"channel": ROOM})
            while ("ann", "s") in viewer.members:
                viewer.take(await other.until("presence"))
            assert viewer.sessions == 1100


async def test_who_may(tmp_path: Path, nats: NatsServer) -> None:
    """Each answer to what is not allowed, or is not so."""
    async with (
        running(tmp_path, nats, presence_entered=1, presence_watched=1) as broker,
        broker.client(user="ann", subscribe=["a.>", "live.>"], presence=["a.1", "a.2"], observe=["b"]) as ann,
    ):

        async def answer(kind: str, **payload: Any) -> str:
            await ann.send(kind, payload)
            while (message := await ann.receive())["type"] == "presence":
                pass
            return str(message["payload"].get("code", message["type"]))

        assert await answer("presence.enter", channel="a.3", session="s") == "forbidden"
        assert await answer("presence.enter", channel="b", session="s") == "forbidden"
        assert await answer("presence.enter", channel="a.*", session="s") == "invalid_channel"
        assert await answer("presence.enter", channel="_all.x", session="s") == "invalid_channel"
        assert await answer("presence.enter", channel="a.1", session="a.b") == "bad_message"
        assert await answer("presence.enter", channel="a.1", session="s", state="x" * 1023) == "bad_message"
        assert await answer("presence.enter", channel="a.1", session="s") == "presence.entered"
        assert await answer("presence.enter", channel="a.1", session="s") == "presence.entered"
        assert await answer("presence.enter", channel="a.2", session="s") == "limit_presence"
        assert await answer("presence.update", channel="a.2", state=1) == "not_entered"
        assert await answer("presence.update", channel="a.1", for_ms=200) == "bad_message"
        assert await answer("presence.update", channel="a.1", state=1, for_ms=99) == "bad_message"
        assert await answer("presence.leave", channel="a.2") == "not_entered"
        assert await answer("presence.watch", channel="c") == "forbidden"
        assert await answer("presence.watch", channel="b", position="x") == "invalid_position"
        assert await answer("presence.watch", channel="b") == "presence.watched"
        assert await answer("presence.watch", channel="a.1") == "limit_presence"
        assert await answer("presence.unwatch", channel="a.1") == "not_subscribed"
        await ann.send("authenticate", {"token": broker.token(user="ann", subscribe=["b"])})
        assert await ann.until("presence.left") == {"channel": "a.1", "code": "forbidden"}
        await ann.send("authenticate", {"token": broker.token(user="ann", subscribe=[])})
        assert await ann.until("presence.unwatched") == {"channel": "b", "code": "forbidden"}


async def test_a_silent_client(tmp_path: Path, nats: NatsServer) -> None:
    """Is shown as lost before its link is given up, and no longer once it answers."""
    async with (
        running(tmp_path, nats, heartbeat_seconds=0.3, heartbeat_timeout_seconds=16.0) as broker,
        running(tmp_path, nats, "other") as other,
        other.client(user="bob") as bob,
        open_raw(broker.running.ws) as ann,
    ):
        viewer = await watch(bob)
        await ann.upgrade()
        await say(ann, "authenticate", {"token": broker.token(user="ann")})
        await say(ann, "presence.enter", {"channel": ROOM, "session": "s"})
        await viewer.sees("ann")
        await viewer.sees("ann", ann="lost")
        await ann.send(frame(PONG))
        await viewer.sees("ann")


async def test_what_others_do_to_the_stream(tmp_path: Path, nats: NatsServer) -> None:
    """What is no member is not shown and stops nothing; a purge is noticed, and all is said again."""
    async with (
        running(tmp_path, nats) as one,
        running(tmp_path, nats, "other") as two,
        one.client(user="ann") as ann,
        two.client(user="bob") as bob,
        rawnats.connect(nats.url) as services,
    ):
        viewer = await watch(bob)
        await enter(ann)
        await viewer.sees("ann")
        epoch = viewer.frames[-1]["position"].partition("-")[0]
        head = f"NATS/1.0\r\nBroker-Epoch: {epoch}\r\nNats-TTL: never\r\n\r\n".encode()
        for user, body in (("eve", b"{"), ("eve", b"[" * 5000), ("ann", b'{"user":"eve","session":"s"}')):
            await services.store(f"presence.acme.2.{ROOM}.{user}.s2", body, header=head)
        await enter(bob, "t")
        await viewer.sees("ann", "bob")
        await services.api("STREAM.PURGE.PRESENCE")
        await ann.send("presence.update", {"channel": ROOM, "state": 5})
        await viewer.shows("ann", 5)
        assert not any(frame["gone"] for frame in viewer.frames)
        assert viewer.frames[-1]["position"].partition("-")[0] != epoch
        await enter(ann, channel="live.other")
