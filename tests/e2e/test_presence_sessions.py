"""Presence in both sessions, against a real broker: seen by each other, and over a kill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio

from broker.errors import Forbidden
from tests.client import shells
from tests.client.shells import SHELLS, Running
from tests.e2e import test_client_sessions as sessions
from tests.support.ports import held_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from broker.client import Member, Room
    from tests.client.shells import Shell
    from tests.support.nats import NatsServer

T = TypeVar("T")
ROOM = "orders.7"
TEMPLATE = sessions.TEMPLATE.replace("[limits]", 'presence = [">"]\ndeny = ["secret.>"]\n[limits]')


@pytest.fixture(params=SHELLS)
def running(request: pytest.FixtureRequest) -> Running:
    """Runs a session at an address for the length of a block: on Trio, and on asyncio."""
    return SHELLS[request.param]


@pytest.fixture
def file(tmp_path: Path, nats: NatsServer) -> Iterator[Path]:
    """The configuration of a broker that comes back at the same address."""
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    path = tmp_path / "broker.toml"
    with held_ports() as [port]:
        path.write_text(TEMPLATE.format(nats=nats.url, port=port))
        yield path


async def inside(session: Shell, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    with trio.fail_after(sessions.PATIENCE_SECONDS):
        return await shells.inside(session, work)


def only(room: Room, user: str) -> Member:
    [member] = room.users[user].values()
    return member


async def until(room: Room, condition: Callable[[], bool]) -> set[str]:
    """Read until it is so; return who has left meanwhile."""
    left: set[str] = set()
    while not condition():
        left.update((await anext(room)).left)
    return left


async def test_seen_by_each_other(file: Path, running: Running) -> None:
    """Entering, states, a kill of the broker, losing one's place, and leaving, as another sees it."""
    watching: list[Room] = []  # each is used where its session runs
    entered: list[Room] = []

    async def watch(session: Any) -> None:
        room = await session.presence(ROOM, enter=False).__aenter__()
        watching.append(room)
        assert (dict(room.users), room.session, room.detail, room.stale) == ({}, None, "full", False)

    async def enter(session: Any) -> None:
        with pytest.raises(Forbidden):
            async with session.presence("secret.1"):
                pass
        room = await session.presence(ROOM, state=1, session="desk").__aenter__()
        entered.append(room)
        await until(room, lambda: "ann" in room.users)
        assert only(room, "ann").session == "desk"
        with pytest.raises(ValueError, match="already"):
            async with session.presence(ROOM):
                pass

    async def seen(_: Any) -> None:
        [room] = watching
        while not (change := await anext(room)).joined:
            pass
        assert (change.joined, only(room, "ann").state) == (("ann",), 1)
        assert (room.users_count, room.sessions_count) == (1, 1)

    async def say(_: Any) -> None:
        [room] = entered
        await room.set(2)
        await room.set("typing", for_seconds=60)

    async def said(_: Any) -> None:
        [room] = watching
        await until(room, lambda: only(room, "ann").state == "typing")

    async def cut(_: Any) -> None:
        [room] = watching
        assert await until(room, lambda: room.stale) == set()
        assert (only(room, "ann").session, only(room, "ann").state) == ("desk", "typing")

    async def back(_: Any) -> None:
        """Nobody has left: it is the same session, with the state that lasts."""
        [room] = watching
        left = await until(room, lambda: not room.stale and only(room, "ann").state == 2)
        assert (left, only(room, "ann").session) == (set(), "desk")

    async def take_over(session: Any) -> None:
        async with session.presence(ROOM, state=3, session="desk") as room:
            await until(room, lambda: len(room.users["ann"]) == 2)
            assert sorted(each.state for each in room.users["ann"].values()) == [2, 3]
            assert room.users["ann"]["desk"].state == 3

    async def replaced(_: Any) -> None:
        [room] = entered
        await until(room, lambda: list(room.users.get("ann", ())) == [room.session])
        assert room.session != "desk"
        await room.__aexit__(None, None, None)

    async def gone(_: Any) -> None:
        [room] = watching
        assert await until(room, lambda: not room.users) == {"ann"}

    url, ann, bob = sessions.address(file), sessions.token(file, "ann"), sessions.token(file, "bob")
    async with running(url, bob) as his, running(url, ann) as hers, running(url, ann) as other:
        async with sessions.serve(file) as broker:
            for session, work in ((his, watch), (hers, enter), (his, seen), (hers, say), (his, said)):
                await inside(session, work)
            broker.process.kill()
            await inside(his, cut)
        async with sessions.serve(file):
            for session, work in ((his, back), (other, take_over), (hers, replaced), (his, gone)):
                await inside(session, work)
