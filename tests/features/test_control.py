"""Bans as values: who is meant, which version counts, what is forgotten. The bus is scripted."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import pytest
import trio

from broker.bus.base import StreamState, Value
from broker.errors import TokenRevoked
from broker.features.control import LIFTED_SECONDS, NEWS, Ban, Control
from broker.permissions import Principal
from broker.subjects import Names
from tests.support.scripted_bus import ScriptedBus, ScriptedValues

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_800_000_000.0
BAD_TIME = b'{"kind":"tenant","tenant":"acme","at":"soon"}'
ENDLESS = b'{"kind":"tenant","tenant":"acme","at":1e999}'
BEYOND_THE_CALENDAR = b'{"kind":"tenant","tenant":"acme","at":1,"until":1e15}'
BEYOND_64_BITS = b'{"kind":"tenant","tenant":"acme","at":1,"version":1' + b"0" * 99 + b"}"
DEEP = b'{"kind":"tenant","tenant":"acme","at":1,"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}"


def principal(**values: Any) -> Principal:
    basis: dict[str, Any] = {
        "tenant": "acme",
        "user": "alice",
        "encoded_user": "alice",
        "expires_at": NOW + 3600,
        "life": 3600.0,
        "subscribe": (">",),
        "publish": (),
        "token_id": "t1",
        "issued_at": NOW - 60,
    }
    return Principal(**basis | values)


def ban(kind: Any, name: str = "", **values: Any) -> Ban:
    return Ban(**{"kind": kind, "tenant": "acme", "name": name, "at": NOW, "until": NOW + 3600} | values)


def control(*bans: Ban, now: Callable[[], float] = lambda: NOW) -> Control:
    made = Control(ScriptedBus(random=random.Random(1)), Names(), lambda: None, now)
    made.learn(list(bans))
    return made


def kept_out(of: Control, who: Principal) -> bool:
    try:
        of.check(who)
    except TokenRevoked:
        return True
    return False


@pytest.mark.parametrize(
    ("held", "who", "expected"),
    [
        (ban("token", "t1"), {}, True),
        (ban("token", "t2"), {}, False),
        (ban("token", "t1"), {"token_id": None}, False),
        (ban("token", "t1"), {"tenant": "globex"}, False),
        (ban("token", "t1"), {"issued_at": NOW + 1}, True),
        (ban("user", "alice"), {}, True),
        (ban("user", "alice"), {"issued_at": NOW + 1}, False),
        (ban("user", "alice"), {"issued_at": None}, True),
        (ban("user", "alice"), {"user": "bob"}, False),
        (ban("user", "alice"), {"tenant": "globex"}, False),
        (ban("tenant"), {"user": "bob"}, True),
        (ban("tenant"), {"issued_at": NOW + 1}, False),
        (ban("tenant"), {"tenant": "globex"}, False),
        (ban("suspension", until=None), {"issued_at": NOW + 1}, True),
        (ban("suspension", until=None), {"tenant": "globex"}, False),
        (ban("suspension", until=None), {"monitoring": True}, False),
        (ban("user", "alice", until=NOW), {}, False),
        (ban("user", "alice", tenant="*"), {"monitoring": True}, True),
        (ban("user", "alice", tenant="*"), {}, False),
    ],
)
def test_whom_a_ban_concerns(held: Ban, who: dict[str, Any], expected: bool) -> None:
    """A ban keeps out exactly those it names, and lets those back in who have a newer token."""
    assert kept_out(control(held), principal(**who)) is expected


def test_a_refusal_says_why() -> None:
    """The client is told what was revoked, and the reason that the operator gave."""
    with pytest.raises(TokenRevoked, match="this tenant is suspended: unpaid"):
        control(ban("suspension", reason="unpaid")).check(principal())


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_the_highest_version_counts(order: tuple[int, int]) -> None:
    """However late and in whichever order two versions come in, the newer one is in force."""
    versions = {1: ban("token", "t1", version=1), 2: ban("token", "t1", version=2, until=NOW)}
    assert not kept_out(control(*[versions[each] for each in order]), principal())


async def test_lifted_for_a_broker_whose_clock_is_late(autojump_clock: trio.abc.Clock) -> None:
    """A lifted ban concerns nobody: neither who was meant nor who has come back with a token since."""
    bus = ScriptedBus(random=random.Random(1))
    bus.sink = Deaf()  # type: ignore[assignment]
    ours = Control(bus, Names(), lambda: None, lambda: NOW)
    theirs = control(now=lambda: NOW - 10)
    stored = await ours.put(ban("user", "alice", at=NOW - 3600))
    theirs.learn([stored])
    newer = principal(issued_at=NOW - 1800)
    assert kept_out(theirs, principal(issued_at=NOW - 7200))
    assert not kept_out(theirs, newer)
    theirs.learn([await ours.lift(stored)])
    assert not kept_out(theirs, principal(issued_at=NOW - 7200))
    assert not kept_out(theirs, newer)
    theirs.forget()
    theirs.learn([stored])
    assert not kept_out(theirs, newer), "it is remembered that it was lifted"


async def test_a_clock_that_was_set(autojump_clock: trio.abc.Clock) -> None:
    """What was forgotten while the clock was far ahead holds again once that has been noticed.

    However often that happens, and though the bucket has nothing that is new.
    """
    bus = ScriptedBus(random=random.Random(1))
    bus.sink = Deaf()  # type: ignore[assignment]
    time = NOW
    ours = Control(bus, Names(), lambda: None, lambda: time)
    await ours.put(ban("user", "alice"))
    await ours.look()
    for hours in (48, -48) * 2:
        time = NOW + max(hours, 0) * 3600
        ours.read_again()
        await ours.look()
        ours.forget()
        assert bool(ours.bans) is kept_out(ours, principal()) is (hours < 0)


async def test_what_is_known_is_beaten(autojump_clock: trio.abc.Clock) -> None:
    """A ban comes into force over a newer version that the bucket has lost, or that a late clock made."""
    bus = ScriptedBus(random=random.Random(1))
    bus.sink = Deaf()  # type: ignore[assignment]
    ours = Control(bus, Names(), lambda: None, lambda: NOW)
    ours.learn([ban("user", "alice", until=NOW, version=2**61)])
    await ours.put(ban("user", "alice"))
    assert kept_out(ours, principal())


async def test_a_ban_that_goes_while_it_is_put(autojump_clock: trio.abc.Clock) -> None:
    """One whose time in the bucket ends between the read and the write is put all the same."""
    bus = ScriptedBus(random=random.Random(1))
    bus.sink = Deaf()  # type: ignore[assignment]
    ours = Control(bus, Names(), lambda: None, lambda: NOW)
    await ours.put(ban("user", "alice"))
    values: ScriptedValues = bus.control
    delay, calls = values.delay, 0

    async def expiring() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:  # a read was the first
            values.values.clear()
        await delay()

    values.delay = expiring
    await ours.put(ban("user", "alice", reason="again"))
    assert [each.reason for each in ours.listed()] == ["again"]


def test_what_is_over_is_forgotten_late() -> None:
    """A ban that is over stays for a while, so that an old version cannot come back; then it is dropped."""
    time = NOW
    held = control(ban("token", "t1", until=NOW, version=2), now=lambda: time)
    held.forget()
    held.learn([ban("token", "t1", version=1)])
    assert not kept_out(held, principal())
    time += LIFTED_SECONDS + 1
    held.forget()
    assert not held.bans


def test_words_that_are_no_bans() -> None:
    """What somebody else writes into the bucket, or sends, changes nothing and breaks nothing."""
    held = control()
    for data in (
        b"",
        b"x",
        b"{}",
        b"[]",
        b'{"kind":"all","tenant":"acme","at":0}',
        b"\xff",
        b"null",
        BAD_TIME,
        ENDLESS,
        BEYOND_THE_CALENDAR,
        BEYOND_64_BITS,
        DEEP,
    ):
        held.heard(NEWS, data)
    assert not held.bans


async def test_two_brokers_over_one_bucket(autojump_clock: trio.abc.Clock) -> None:
    """What one broker puts, another has read a second later without being told; and what it lifts."""
    bus = ScriptedBus(random=random.Random(1))
    bus.sink = Deaf()  # type: ignore[assignment]
    changes = []
    ours = Control(bus, Names(), lambda: None, lambda: NOW)
    theirs = Control(bus, Names(), lambda: changes.append(1), lambda: NOW)
    async with trio.open_nursery() as nursery:
        assert theirs.trouble()
        nursery.start_soon(theirs.run)
        theirs.up(StreamState(incarnation="x", first=1, last=0))
        await trio.sleep(2)
        assert theirs.trouble() is None
        stored = await ours.put(ban("user", "alice"))
        await trio.sleep(2)
        assert kept_out(theirs, principal())
        assert list(theirs.listed()) == [stored]
        await ours.lift(stored)
        await trio.sleep(2)
        assert not kept_out(theirs, principal())
        assert not list(theirs.listed())
        await ours.put(attrs.evolve(stored, reason="again"))
        await trio.sleep(2)
        assert kept_out(theirs, principal())
        assert len(changes) == 3
        nursery.cancel_scope.cancel()


async def test_two_that_put_the_same_at_once(autojump_clock: trio.abc.Clock) -> None:
    """Writers that get in each other's way both come through, and all end with the same version."""
    bus = ScriptedBus(random=random.Random(2))
    bus.sink = Deaf()  # type: ignore[assignment]
    brokers = [Control(bus, Names(), lambda: None, lambda: NOW) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for each in brokers:
            nursery.start_soon(each.put, ban("token", "t1"))
    for each in brokers:
        await each.look()
    assert len({each.bans["token", "acme", "t1"].version for each in brokers}) == 1


async def test_many_bans_hold_up_nobody() -> None:
    """While thousands are learned at the start others have their turns; nobody is let in before the last."""
    bus = ScriptedBus(random=random.Random(1))
    bus.sink = Deaf()  # type: ignore[assignment]
    for number in range(10_000):
        made = ban("token", f"t{number}", version=number)
        bus.control.last += 1
        bus.control.values[made.key] = Value(data=msgspec.json.encode(made), revision=bus.control.last)
    bus.control.delay = trio.lowlevel.checkpoint
    held = Control(bus, Names(), lambda: None, lambda: NOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.look)
        seen = {0}
        while held.trouble():
            seen.add(len(held.bans))
            await trio.lowlevel.checkpoint()
    assert len(seen) > 5
    assert len(held.bans) == 10_000


class Deaf:
    """A sink that hears of nothing that is not stored."""

    def live(self, records: object) -> None: ...
