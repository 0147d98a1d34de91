"""`/poll`: a connection whose link comes and goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from broker.bus.nats import NatsBus
from tests.e2e.test_lag import EVENTS, flood, settled
from tests.support.broker import Broker, configure, run_broker
from tests.support.http import ask, opened, request
from tests.support.polling import Poller, until_one_waits
from tests.support.sse import target

if TYPE_CHECKING:
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from broker.bus.base import Page
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


def poller(broker: Broker, *channels: str, user: str = "alice", **start: Any) -> Poller:
    return Poller(broker.running.http, broker.token(user=user), list(channels), start)


async def test_the_first_answers_at_once_and_the_next_go_on(broker: Broker, publisher: RawNats) -> None:
    """What comes between polls is in the next one, in order, once; the position is where a resume begins."""
    alice = poller(broker, "orders.>", "live.x")
    first = await alice.poll(60)
    assert (first["events"], first["gaps"], first["recovered"]) == ([], [], True)
    for number in range(3):
        await publisher.store(f"events.acme.orders.{number}", b"%d" % number)
    await settled(broker, publisher)
    second = await alice.poll(0)
    assert [each["event"] for each in second["events"]] == [0, 1, 2]
    assert second["session"] == first["session"]
    assert int(second["position"].rpartition("-")[2]) >= 3
    assert (await alice.poll(0))["events"] == []
    await publisher.publish("live.acme.x", b'"now"')
    assert await alice.until(4) == [0, 1, 2, "now"]
    assert "position" not in alice.events[-1]
    assert alice.gaps == []


async def test_a_poll_waits_for_an_event(broker: Broker, publisher: RawNats) -> None:
    alice = poller(broker, "a")
    await alice.poll()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.poll, 60)
        await publisher.store("events.acme.a", b"1")
    assert [each["event"] for each in alice.events] == [1]


async def test_the_query_says_the_same(broker: Broker, publisher: RawNats) -> None:
    """`GET /poll` with a repeated `channel`."""
    url, token = broker.running.http, broker.token()
    first = await ask(url, "GET", target("/poll", ["a", "b.*"]), token=token)
    await publisher.store("events.acme.b.c", b"1")
    again = target("/poll", ["a", "b.*"], session=first.json["session"], position=first.json["position"])
    second = await ask(url, "GET", again + "&wait=20", token=token)
    assert [each["channel"] for each in second.json["events"]] == ["b.c"]


async def test_polls_read_no_history(
    broker: Broker, publisher: RawNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscription stays between polls, and what came meanwhile is read from the ring."""
    reads: list[str] = []
    read = NatsBus.read

    async def counted(bus: NatsBus, subject: str, **options: Any) -> Page:
        reads.append(subject)
        return await read(bus, subject, **options)

    alice = poller(broker, "a")
    await alice.poll()
    monkeypatch.setattr(NatsBus, "read", counted)
    for number in range(5):
        await publisher.store("events.acme.a", b"%d" % number)
        await alice.until(number + 1)
    assert reads == []


async def test_an_unknown_session_is_resumed_by_position(broker: Broker, publisher: RawNats) -> None:
    """As after an hour, or at another broker: nothing is missing, nothing comes twice."""
    alice = poller(broker, "a")
    await alice.poll()
    await publisher.store("events.acme.a", b"1")
    await alice.until(1)
    alice.session = "gone"
    await publisher.store("events.acme.a", b"2")
    assert await alice.until(2) == [1, 2]
    alice.session, alice.position = "gone", None
    assert (await alice.poll())["recovered"] is False


async def test_an_answer_that_was_lost(broker: Broker, publisher: RawNats) -> None:
    """A client that asks from where it was before gets it again."""
    alice = poller(broker, "a")
    await alice.poll()
    began = alice.position
    for number in range(3):
        await publisher.store("events.acme.a", b"%d" % number)
    await alice.until(3)
    alice.position, alice.events = began, []
    assert await alice.until(3) == [0, 1, 2]
    await publisher.store("events.acme.a", b"3")
    assert await alice.until(4) == [0, 1, 2, 3]


async def test_a_client_that_leaves_while_it_waits_misses_nothing(broker: Broker, publisher: RawNats) -> None:
    alice = poller(broker, "a", "live.a")
    await alice.poll()
    body = b'{"channels":["a","live.a"],"session":"%b","wait":60}' % (alice.session or "").encode()
    asked = request(broker.running.http, "POST", "/poll", token=alice.token, body=body)
    async with opened(broker.running.http, asked):
        await trio.sleep(0.05)  # whether it has begun to wait or not, the same is to come of it
    for number in range(5):
        await publisher.store("events.acme.a", b"%d" % number)
    assert await alice.until(5) == [0, 1, 2, 3, 4]


async def test_the_newer_of_two_polls_wins(
    supervisors: list[Supervisor], broker: Broker, publisher: RawNats
) -> None:
    """The older one is answered at once, with nothing."""
    alice, other = poller(broker, "a"), poller(broker, "a")
    await alice.poll()
    other.session, other.position = alice.session, alice.position
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.poll, 60)
        older = await until_one_waits(supervisors[0])
        nursery.start_soon(other.poll, 60)
        await until_one_waits(supervisors[0], but=older)
        await publisher.store("events.acme.a", b"1")
    assert len(alice.events) + len(other.events) == 1
    assert alice.position or other.position


async def test_channels_change_within_a_session(broker: Broker, publisher: RawNats) -> None:
    """What is new begins where the client stands; what is gone sends nothing more."""
    alice = poller(broker, "a", "me.x")
    session = (await alice.poll())["session"]
    await publisher.store("events.acme.b", b'"b1"')
    await publisher.store("events.acme.a", b'"a1"')
    alice.channels = ["b", "live.c"]
    assert await alice.until(1) == ["b1"]
    await publisher.store("events.acme.a", b'"a2"')
    await publisher.store("events.acme.users.alice.x", b'"x"')
    await publisher.store("events.acme.b", b'"b2"')
    assert await alice.until(2) == ["b1", "b2"]
    assert alice.session == session


@pytest.mark.parametrize(
    ("start", "expected"), [({"since": "2020-01-01T00:00:00Z"}, [0, 1, 2]), ({"last": 2}, [1, 2])]
)
async def test_starts(broker: Broker, publisher: RawNats, start: dict[str, Any], expected: list[int]) -> None:
    for number in range(3):
        await publisher.store("events.acme.a", b"%d" % number)
    await broker.caught_up()
    assert await poller(broker, "a", **start).until(len(expected)) == expected


async def test_what_is_stored_comes_at_once(broker: Broker, publisher: RawNats, monkeypatch: Any) -> None:
    """A poll that does not want to wait gets what there is, as soon as it is all there."""
    monkeypatch.setattr("broker.links.poll.session.CATCH_UP_SECONDS", 1000)
    await publisher.store("events.acme.a", b"1")
    await broker.caught_up()
    found = await poller(broker, "a", last=5).poll(0)
    assert [each["event"] for each in found["events"]] == [1]
    nothing = await poller(broker, "b", since="2020-01-01T00:00:00Z").poll(0)
    assert (nothing["events"], nothing["recovered"]) == ([], True)


async def test_a_snapshot_has_no_position_before_it_is_over(broker: Broker, publisher: RawNats) -> None:
    """Who loses its session in the middle asks for all of it again."""
    for number in range(40):
        await publisher.store(f"events.acme.s.{number}", b'"' + b"x" * 5000 + b'"')
    await broker.caught_up()
    alice = poller(broker, "s.*", snapshot=True)
    first = await alice.poll(5)
    assert 0 < len(first["events"]) < 40
    assert "position" not in first
    await alice.until(40)
    while alice.position is None:
        await alice.poll(0)
    assert sorted(each["channel"] for each in alice.events) == sorted(f"s.{n}" for n in range(40))


async def test_a_long_way_back_comes_in_pieces(broker: Broker, publisher: RawNats) -> None:
    """No answer is much larger than 64 KiB; all of it arrives, in order."""
    await flood(publisher, 10)
    await settled(broker, publisher)
    alice = poller(broker, "q.*", since="2020-01-01T00:00:00Z")
    while len(alice.events) < EVENTS:
        answer = await alice.ask(5)
        assert len(answer.body) < 300_000
        alice.take(answer)
    assert [each["event"]["n"] for each in alice.events] == list(range(EVENTS))


async def test_live_events_beyond_what_is_kept_are_a_gap(broker: Broker, publisher: RawNats) -> None:
    """The newest of them come, and the gap says how many do not."""
    alice = poller(broker, "live.q.*")
    await alice.poll()
    await flood(publisher, 10, prefix="live.acme.q")
    await settled(broker, publisher)
    while not alice.events or alice.events[-1]["event"]["n"] < EVENTS - 1:
        await alice.poll(10)
    numbers = [each["event"]["n"] for each in alice.events]
    assert numbers == sorted(set(numbers))
    assert {gap["reason"] for gap in alice.gaps} == {"lag"}
    assert len(numbers) + sum(gap["count"] for gap in alice.gaps) == EVENTS > len(numbers)


# --- tokens and limits ------------------------------------------------------------------------------


async def test_a_session_belongs_to_its_user(broker: Broker) -> None:
    """With another's token it is forbidden, with a bad one 401, and the session is as it was."""
    alice = poller(broker, "a")
    await alice.poll()
    thief = poller(broker, "a", user="eve")
    thief.session = alice.session
    answer = await thief.ask()
    assert (answer.status, answer.problem["code"]) == (403, "forbidden")
    thief.token = "a.b.c"
    answer = await thief.ask()
    assert (answer.status, answer.problem["code"]) == (401, "token_invalid")
    session = alice.session
    assert (await alice.poll())["session"] == session


async def test_a_token_is_renewed_by_a_later_poll(broker: Broker, publisher: RawNats) -> None:
    """With fewer permissions a channel ends, and says so; the expired one is refused."""
    alice = poller(broker, "a", "b")
    alice.token = broker.token(ttl=3)
    session = (await alice.poll())["session"]
    alice.token = broker.token(subscribe=["a"])
    found = await alice.poll()
    assert found["refused"] == [{"channel": "b", "code": "forbidden"}]
    assert found["session"].partition(".")[0] == session
    await publisher.store("events.acme.b", b"1")
    await publisher.store("events.acme.a", b"2")
    assert await alice.until(1) == [2]


async def test_a_waiting_poll_ends_with_its_token(broker: Broker) -> None:
    alice = poller(broker, "a")
    alice.token = broker.token(ttl=2)
    await alice.poll()
    answer = await alice.ask(60)
    assert (answer.status, answer.problem["code"]) == (401, "token_expired")
    answer = await alice.ask(0)
    assert answer.status == 401


async def test_a_session_is_one_connection(
    tmp_path: Path, nats: NatsServer, supervisors: list[Supervisor]
) -> None:
    """Whatever the number of its polls; with too many sessions 429. It is listed as what it is."""
    settings = configure(tmp_path / "b", nats.url, limits={"connections_per_user": 2})
    async with run_broker(tmp_path / "b", settings) as broker:
        one, two, three = (poller(broker, "a") for _ in range(3))
        for _ in range(5):
            await one.poll()
            await two.poll()
        assert [each.transport.name for each in supervisors[0].connections] == ["poll", "poll"]
        answer = await three.ask()
        assert (answer.status, answer.problem["code"]) == (429, "limit_connections")


async def test_polls_are_limited(tmp_path: Path, nats: NatsServer) -> None:
    """Each costs what a request on a connection costs; one that is refused loses nothing."""
    limits = {"requests_per_second": 0.5, "requests_burst": 4}
    settings = configure(tmp_path / "b", nats.url, limits=limits)
    async with run_broker(tmp_path / "b", settings) as broker:
        alice = poller(broker, "a")
        statuses = [(await alice.ask()).status for _ in range(1)]
        alice.take(await alice.ask())
        for _ in range(6):
            answer = await alice.ask()
            statuses.append(answer.status)
        assert set(statuses) == {200, 429}
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_session_ends_when_nobody_polls(
    broker: Broker, supervisors: list[Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection ends, and gives back what it held."""
    monkeypatch.setattr("broker.links.poll.session.SESSION_SECONDS", 0.3)
    alice = poller(broker, "a")
    await alice.poll()
    with trio.fail_after(45):
        while supervisors[0].connections:
            await trio.sleep(0.02)
    before = alice.session
    assert (await alice.poll())["session"] != before


async def test_a_page_that_goes_ends_its_session(
    broker: Broker, supervisors: list[Supervisor], publisher: RawNats
) -> None:
    """By the name alone, as a beacon sends it; a poll that waits is over, and whoever polls again resumes."""
    url = broker.running.http
    alice = poller(broker, "a")
    await alice.poll()
    await publisher.store("events.acme.a", b"1")
    await alice.until(1)
    beacon = {"Content-Type": "text/plain;charset=UTF-8", "Origin": url}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alice.ask, 60)
        await until_one_waits(supervisors[0])
        body = {"session": alice.session, "leave": True}
        answer = await ask(url, "POST", "/poll", json=body, headers=beacon)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == url
    with trio.fail_after(45):
        while supervisors[0].connections:
            await trio.sleep(0.01)
    (end,) = supervisors[0].ends.find(user="alice")
    assert (end.code, end.by, end.reason) == (1000, "client", "the client left")
    answer = await ask(url, "POST", "/poll", json=body)
    assert answer.status == 204, "whoever is gone already has left"
    await publisher.store("events.acme.a", b"2")
    assert await alice.until(2) == [1, 2]


@pytest.mark.parametrize(
    "body",
    [
        {"session": "x", "leave": False},
        {"session": "x", "leave": 1},
        {"leave": True},
        {"session": None, "leave": True},
        {"session": "x", "leave": True, "channels": ["a"]},
    ],
)
async def test_what_is_no_leave(broker: Broker, body: dict[str, Any]) -> None:
    answer = await ask(broker.running.http, "POST", "/poll", json=body, token=broker.token())
    assert answer.problem["status"] == 400


async def test_draining(supervisors: list[Supervisor], broker: Broker) -> None:
    """A poll that waits is answered with when to come back."""
    alice = poller(broker, "a")
    await alice.poll()
    async with trio.open_nursery() as nursery:
        found: list[dict[str, Any]] = []

        async def wait() -> None:
            found.append(await alice.poll(60))

        nursery.start_soon(wait)
        await until_one_waits(supervisors[0])
        broker.stop.wanted.set()
    assert found[0]["reconnect_after_ms"] >= 0
    assert found[0]["position"]


REFUSED: dict[str, tuple[Any, int]] = {
    "no object": ([], 400),
    "no channels": ({}, 400),
    "empty channels": ({"channels": []}, 400),
    "channels is text": ({"channels": "a"}, 400),
    "unknown field": ({"channels": ["a"], "chanels": 1}, 400),
    "wait below": ({"channels": ["a"], "wait": -1}, 400),
    "wait above": ({"channels": ["a"], "wait": 61}, 400),
    "wait is text": ({"channels": ["a"], "wait": "1"}, 400),
    "bad channel": ({"channels": ["a..b"]}, 400),
    "position": ({"channels": ["a"], "position": "x"}, 400),
    "two starts": ({"channels": ["a"], "last": 1, "snapshot": True}, 400),
    "lag": ({"channels": ["a"], "lag": "never"}, 400),
    "forbidden": ({"channels": ["users.bob.x"]}, 403),
    "too many": ({"channels": [f"c{number}" for number in range(200)]}, 429),
    "too long": ({"channels": ["x" * 70000]}, 413),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused(broker: Broker, name: str) -> None:
    """By a problem document; the next poll is served."""
    body, status = REFUSED[name]
    answer = await ask(broker.running.http, "POST", "/poll", token=broker.token(), json=body)
    assert answer.problem["status"] == status, answer
    assert (await poller(broker, "a").poll())["events"] == []
