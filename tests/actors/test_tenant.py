"""Corners of a tenant's work, each as small as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from broker import config, subjects
from broker.actors.following import Followers
from broker.actors.inbox import Hole
from broker.actors.intake import Intake
from broker.actors.tenant import Tenant
from broker.bus.base import StreamState
from broker.metrics.meters import Meters
from broker.ranges import Ranges
from broker.turns import Turn
from broker.wire.positions import Position
from tests.support.flows import ENDLESS, Link
from tests.support.sabotage import Sabotage

if TYPE_CHECKING:
    import pytest


def make_tenant(*, deleted: int | None = None) -> Tenant:
    """Return a tenant without history, in whose stream a sequence may have been deleted."""
    intake = Intake(names=subjects.Names(), event_bytes=65536, rejected=print)
    intake.begin("inc", 0)
    if deleted is not None:
        gone = Ranges.of([deleted])
        intake.gone.note(StreamState(incarnation="inc", first=1, last=2, deleted=gone))
    return Tenant(
        name="t", bounds=config.Ring(), outbound_bytes=1000, paced_channels=1, intake=intake,
        make_history=lambda *_: None,  # type: ignore[arg-type]
        make_snapshots=lambda *_: None, followers=Followers(), advanced=trio.lowlevel.ParkingLot(),  # type: ignore[arg-type]
        meters=Meters(),
    )  # fmt: skip


def subscribe(tenant: Tenant, link: Link) -> None:
    selection = tenant.log.acquire("a", ())
    link.flow.subscribe([selection], start=None, again=False, policy=None, listed=False, now=0.0)


async def test_a_hole_is_told_once_to_who_falls_behind_meanwhile(autojump_clock: trio.abc.Clock) -> None:
    """The link does not take the gap: what is read on from there does not repeat it."""
    tenant = make_tenant(deleted=1)
    link = Link(room=10)
    tenant.enter(link.flow)
    subscribe(tenant, link)
    tenant.intake.head = 2
    await tenant.fan_out([("a", (2, "events.t.a", b"2", None))], Turn())
    link.room = ENDLESS
    link.write()
    assert [each["type"] for each in link.messages()] == ["gap", "event"]


async def test_who_is_sent_away_is_told_no_p_that_it_has_not_got(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant that gives up has taken events that nobody was given: P does not come to them."""
    tenant = make_tenant()
    link = Link()
    tenant.enter(link.flow)
    subscribe(tenant, link)
    tenant.intake.head = 2
    positions = []

    async def work() -> None:
        tenant.inbox.begin()  # as a rebuild does, and as it breaks before there is a new log
        raise Sabotage

    monkeypatch.setattr(Tenant, "work", lambda _: work())
    monkeypatch.setattr(Link, "send_away", lambda self: positions.append(self.flow.position()), raising=True)
    await tenant.run()
    assert positions == [0]


async def test_p_does_not_fall_while_everybody_moves(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream has gone on with what is others'; the new log begins at the P that was told."""
    tenant = make_tenant()
    links = [Link(), Link()]
    for link in links:
        tenant.enter(link.flow)
    tenant.intake.head = 9
    assert [link.flow.position() for link in links] == [9, 9]
    tenant.inbox.lose()
    told = []

    async def pass_on(_: Turn) -> None:
        links[0].write()
        told.append(links[0].flow.position())

    monkeypatch.setattr(Turn, "pass_on", pass_on)
    await tenant.rebuild(Turn())
    assert set(told) == {9}


async def test_who_leaves_while_a_hole_is_told_stops_nobody(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been told, and then ends its last stored subscription: there is nothing more to tell it."""
    tenant = make_tenant(deleted=1)
    link = Link()
    tenant.enter(link.flow)
    subscribe(tenant, link)
    turns = 0

    async def pass_on(_: Turn) -> None:
        nonlocal turns
        turns += 1
        link.flow.leave("a")
        assert turns < 10, "for ever"

    monkeypatch.setattr(Turn, "pass_on", pass_on)
    await tenant.tell_of_hole(2, Turn())


async def test_a_hole_of_the_next_stream_is_not_told_before_the_move(autojump_clock: trio.abc.Clock) -> None:
    """Who is in the old log after a rebuild that broke is not told of what is gone in the new stream."""
    tenant = make_tenant()
    intake, link = tenant.intake, Link()
    tenant.enter(link.flow)
    subscribe(tenant, link)
    intake.begin("new", 0)
    intake.gone.note(StreamState(incarnation="new", first=1, last=2, deleted=Ranges.of([1])))
    tenant.log, _ = tenant.begin_log()  # it breaks here: nobody has been moved
    tenant.inbox.lose()
    await tenant.heed(Hole(Position("new", 2)), Turn())
    assert link.messages() == []
    await tenant.rebuild(Turn())
    gaps = [each["payload"] for each in link.messages() if each["type"] == "gap"]
    assert [each["reason"] for each in gaps] == ["reset"]
