"""Who is present: without I/O, and in both sessions over a cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker.client import Room, SessionEnded
from broker.client.gate import Allowed, Gate
from broker.client.outbox import Pending
from broker.client.presence import SAY_SECONDS, Place, Presence
from broker.errors import BadMessage, Forbidden, InvalidChannel, NotEntered
from broker.subjects import expand_me
from tests.client.shells import inside
from tests.support.peer import Peer, broker

if TYPE_CHECKING:
    from tests.client.shells import Running

NAME = "orders.7"


def member(user: str, session: str = "s", **fields: Any) -> dict[str, Any]:
    return {"user": user, "session": session, "since": "2026-01-31T12:00:00Z"} | fields


@attrs.define
class Client:
    """The part of a session for presence, and a broker that says what a test wants."""

    presence: Presence = attrs.field(
        factory=lambda: Presence(Gate(Allowed(requests_burst=100)), lambda name: expand_me(name, "ann"))
    )
    now: float = 0.0
    ids: dict[str, str] = attrs.field(factory=dict)  # of what was sent last, by type
    told: int = 0

    def place(self, name: str = NAME, session: str | None = "mine", state: Any = None) -> Place:
        place = Place(name, session, state, self.tell)
        self.presence.open(place)
        return place

    def tell(self) -> None:
        self.told += 1

    def send(self, after: float = 0.0) -> list[tuple[str, dict[str, Any]]]:
        """What is sent, so much later: types without the prefix, and payloads without the channel."""
        self.now += after
        found = []
        for kind, payload, message_id in self.presence.take(self.now):
            short = kind.removeprefix("presence.")
            self.ids[short] = message_id
            found.append((short, {key: value for key, value in payload.items() if key != "channel"}))
        return found

    def hear(self, kind: str, message_id: str | None = None, **fields: Any) -> None:
        payload = {"channel": NAME} | fields
        assert self.presence.answered(kind, payload, message_id, self.now)

    def entered(self) -> None:
        self.hear("presence.entered", self.ids["enter"], position="e-1")

    def watched(self, detail: str = "full", recovered: bool = True) -> None:
        fields = {"position": "e-1", "recovered": recovered, "detail": detail}
        self.hear("presence.watched", self.ids["watch"], **fields)

    def refuse(self, short: str, code: str, **fields: Any) -> None:
        self.hear("error", self.ids[short], code=code, message="no", **{"retryable": False} | fields)

    def show(self, *came: dict[str, Any], at: int = 2, **fields: Any) -> None:
        numbers = {"users": 1, "sessions": 1}
        self.hear("presence", **{"position": f"e-{at}", "set": list(came), "gone": []} | numbers | fields)

    def begin(self, *came: dict[str, Any], state: Any = None) -> Place:
        """A place that is entered, with these members."""
        place = self.place(state=state)
        assert [kind for kind, _ in self.send()] == ["enter", "watch"]
        self.entered()
        self.watched()
        self.show(*came, whole=True, complete=True)
        assert place.is_live
        return place


def shown(place: Place) -> dict[str, list[str]]:
    return {user: sorted(sessions) for user, sessions in place.users.items()}


ANN, ANN2, BOB, EVE = member("ann"), member("ann", "t"), member("bob"), member("eve")
GONE = {"user": "ann", "session": "s"}
FRAMES: dict[str, tuple[list[dict[str, Any]], dict[str, list[str]]]] = {
    "joined": ([{"set": [EVE]}], {"ann": ["s"], "bob": ["s"], "eve": ["s"]}),
    "another session": ([{"set": [ANN2]}], {"ann": ["s", "t"], "bob": ["s"]}),
    "one of two sessions gone": ([{"set": [ANN2]}, {"gone": [GONE]}], {"ann": ["t"], "bob": ["s"]}),
    "gone": ([{"gone": [GONE]}], {"bob": ["s"]}),
    "gone twice": ([{"gone": [GONE]}, {"gone": [GONE]}], {"bob": ["s"]}),
    "came and went": ([{"set": [EVE]}, {"gone": [GONE | {"user": "eve"}]}], {"ann": ["s"], "bob": ["s"]}),
    "a part of a whole set": ([{"set": [EVE], "whole": True}], {"ann": ["s"], "bob": ["s"]}),
    "a whole set in parts": (
        [{"set": [EVE], "whole": True}, {"set": [ANN2], "whole": True, "complete": True}],
        {"eve": ["s"], "ann": ["t"]},
    ),
    "a whole set of nobody": ([{"whole": True, "complete": True}], {}),
    "another channel": ([{"set": [EVE], "channel": "orders.8"}], {"ann": ["s"], "bob": ["s"]}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames(name: str) -> None:
    """What is shown after some frames, when ann and bob were there; the state before is not modified."""
    frames, expected = FRAMES[name]
    client = Client()
    place = client.begin(ANN, BOB)
    before = dict(place.users)
    for number, frame in enumerate(frames, 3):
        client.show(at=number, **{"set": []} | frame)
    assert shown(place) == expected
    assert {user: sorted(each) for user, each in before.items()} == {"ann": ["s"], "bob": ["s"]}


def test_a_member_and_the_numbers() -> None:
    """All of a member is shown; with `detail` "count" the numbers are those of the broker."""
    client = Client()
    place = client.begin(member("ann", info={"n": 1}, state=[2], away="hidden"))
    ann = place.users["ann"]["s"]
    assert (ann.info, ann.state, ann.away, ann.since) == ({"n": 1}, [2], "hidden", ANN["since"])
    client.hear("presence.watched", position="e-3", recovered=False, detail="count")
    client.show(BOB, whole=True, complete=True, users=1500, sessions=1600)
    assert (place.detail, place.users_count, place.sessions_count) == ("count", 1500, 1600)
    client.show(users=1501, sessions=1601)
    assert (shown(place), place.users_count) == ({"bob": ["s"]}, 1501)


def test_over_a_cut() -> None:
    """The list stays, stale; it is entered with the newest state and watched from the position."""
    client = Client()
    place = client.begin(ANN, BOB, state=1)
    promise: Pending[bool] = Pending(None)
    place.say(2, None, promise)
    assert client.send() == [("update", {"state": 2})]
    client.presence.cut()
    assert (place.stale, place.is_live, shown(place)) == (True, False, {"ann": ["s"], "bob": ["s"]})
    assert (promise.outcome, client.presence.sent) == (None, {})
    expected = [("enter", {"session": "mine", "state": 2}), ("watch", {"position": "e-2"})]
    assert client.send() == expected
    client.show(EVE, at=9)  # of another watch, before this one is answered
    assert place.stale
    client.entered()
    client.watched()
    assert (promise.outcome, place.stale) == (True, True)
    client.show(EVE, at=3, gone=[GONE])
    assert (place.is_live, shown(place)) == (True, {"bob": ["s"], "eve": ["s"]})
    client.show(ANN, whole=True)  # and it is cut within a whole set
    client.presence.cut()
    assert client.send()[1] == ("watch", {"position": "e-3"})
    client.watched(recovered=False)
    client.show(BOB, at=4, whole=True, complete=True)
    assert shown(place) == {"bob": ["s"]}
    client.presence.cut()
    assert client.send()[1] == ("watch", {"position": "e-4"})
    client.refuse("watch", "invalid_position")
    assert client.send() == [("watch", {})]


def test_replaced() -> None:
    """Who has lost its place to another connection enters with another session."""
    client = Client()
    place = client.begin(ANN, state=1)
    place.say(2, None, Pending(None))
    client.send()
    client.hear("presence.left", code="replaced")
    [(kind, payload)] = client.send()
    assert (kind, payload["state"], place.session) == ("enter", 2, payload["session"])
    assert payload["session"] != "mine"
    client.refuse("update", "not_entered")  # the update had crossed it
    client.entered()
    assert client.send() == []
    assert client.send(after=1.0) == [("update", {"state": 2})]


@pytest.mark.parametrize("short", ["enter", "watch", "update"])
@pytest.mark.parametrize("code", ["limit_presence", "unavailable", "rate_limited"])
def test_refused_for_now(short: str, code: str) -> None:
    """It is asked for again, when the broker says."""
    client = Client()
    place = client.place(state=1)
    sent = client.send()
    if short == "update":
        client.entered()
        client.watched()
        place.say(1, None, Pending(None))
        sent = client.send()
    client.refuse(short, code, retryable=True, retry_after_ms=2000)
    assert (client.presence.due(client.now), client.send(after=1.9)) == (2.0, [])
    assert client.send(after=0.1) == [each for each in sent if each[0] == short]
    assert place.error is None


@pytest.mark.parametrize("short", ["enter", "watch"])
def test_refused(short: str) -> None:
    """It ends, and what was granted of it is given back."""
    client = Client()
    place = client.place()
    client.send()
    promise: Pending[bool] = Pending(None)
    place.say(1, None, promise)
    client.refuse(short, "forbidden")
    assert isinstance(place.error, Forbidden)
    with pytest.raises(Forbidden):
        promise.result()
    if short == "enter":
        client.watched()
        assert client.send() == [("unwatch", {})]
    else:
        client.entered()
        assert client.send() == [("leave", {})]
    assert not client.presence.places


@pytest.mark.parametrize(
    ("kind", "others"), [("presence.left", ["unwatch"]), ("presence.unwatched", ["leave"])]
)
def test_ended(kind: str, others: list[str]) -> None:
    """The right to it is gone: it ends, and so does the rest of it."""
    client = Client()
    place = client.begin(ANN)
    client.hear(kind, code="forbidden")
    assert (type(place.error), place.stale, shown(place)) == (Forbidden, True, {"ann": ["s"]})
    assert [kind for kind, _ in client.send()] == others


def test_states() -> None:
    """Of several that wait the newest is sent, five a second; one for a time does not outlive it."""
    client = Client()
    place = client.begin(ANN, state=0)
    promises: list[Pending[bool]] = [Pending(None) for _ in range(6)]
    place.say(1, None, promises[0])
    assert client.send() == [("update", {"state": 1})]
    place.say(2, None, promises[1])
    place.say(3, None, promises[2])
    assert client.send(after=SAY_SECONDS) == []  # one at a time
    client.hear("presence.updated", client.ids["update"])
    assert client.send() == [("update", {"state": 3})]
    client.hear("presence.updated", client.ids["update"])
    assert [each.outcome for each in promises[:3]] == [True] * 3
    place.say(None, None, promises[3])
    place.say("typing", client.now + 5.0, promises[4])
    assert (client.send(), client.presence.due(client.now)) == ([], client.now + SAY_SECONDS)
    assert client.send(after=SAY_SECONDS) == [("update", {"state": None})]
    client.hear("presence.updated", client.ids["update"])
    assert client.send(after=1.0) == [("update", {"state": "typing", "for_ms": 3800})]
    client.presence.cut()
    assert promises[4].outcome is True
    place.say("typing", client.now + 1.0, promises[5])
    assert client.send(after=2.0) == [("enter", {"session": "mine"}), ("watch", {"position": "e-2"})]
    assert promises[5].outcome is True
    client.entered()
    client.watched()
    place.say(4, None, refused := Pending[bool](None))
    assert client.send() == [("update", {"state": 4})]
    client.refuse("update", "bad_message")
    with pytest.raises(BadMessage):
        refused.result()
    assert place.error is None


def test_left() -> None:
    """It is left at once, or once it is known to be entered; a new one of that channel is not."""
    client = Client()
    place = client.begin(ANN)
    left = client.presence.close(place)
    assert client.send() == [("unwatch", {}), ("leave", {})]
    assert (left.outcome, client.presence.awaited) == (None, False)
    client.hear("presence.left", client.ids["leave"])
    assert left.outcome is True
    early = client.place()
    client.send()
    assert client.presence.close(early).outcome is True
    other = client.place(session="other")
    assert client.send() == [("enter", {"session": "other"}), ("watch", {})]
    client.hear("presence.entered", "p5", position="e-1")  # of the one before
    assert client.send() == []
    client.entered()
    client.watched()
    left = client.presence.close(other)
    client.presence.cut()
    assert (left.outcome, client.send()) == (True, [])


def test_only_watched() -> None:
    """It is not entered; and by its name before that is known, too."""
    client = Client()
    place = client.place("me.desk", session=None)
    assert client.send() == [("watch", {})]
    client.hear(
        "presence.watched", "p1", channel="users.ann.desk", position="e-1", recovered=True, detail="full"
    )
    client.show(ANN, channel="users.ann.desk", whole=True, complete=True)
    assert (place.is_live, shown(place)) == (True, {"ann": ["s"]})
    with pytest.raises(ValueError, match="already"):
        client.place("users.ann.desk")


def test_the_end() -> None:
    """Whoever waits learns that the session has ended."""
    client = Client()
    place = client.begin(ANN)
    promises: list[Pending[bool]] = [Pending(None), Pending(None)]
    place.say(1, None, promises[0])
    client.send()
    place.say(2, None, promises[1])
    client.presence.end(SessionEnded("stopped"))
    for each in promises:
        with pytest.raises(SessionEnded):
            each.result()
    assert isinstance(place.error, SessionEnded)
    with pytest.raises(SessionEnded):
        client.place()


async def test_over_a_cut_in_both(running: Running) -> None:
    """The room is entered again by itself; what others did meanwhile is told, users first."""

    async def serve(peer: Peer, position: str | None, frame: dict[str, Any]) -> str:
        await peer.welcome()
        entered, message_id = await peer.hear("presence.enter")
        assert entered["state"] == {"field": "a"}
        await peer.say("presence.entered", {"channel": NAME, "position": "e-1"}, message_id)
        watch, message_id = await peer.hear("presence.watch")
        assert watch.get("position") == position
        answer = {"channel": NAME, "position": "e-1", "recovered": True, "detail": "full"}
        await peer.say("presence.watched", answer, message_id)
        base = {"channel": NAME, "set": [], "gone": [], "users": 2, "sessions": 2}
        await peer.say("presence", base | frame)
        return str(entered["session"])

    sessions: list[str] = []

    async def first(peer: Peer) -> None:
        whole = {"position": "e-2", "set": [ANN, BOB], "whole": True, "complete": True}
        sessions.append(await serve(peer, None, whole))
        await peer.cut()

    async def second(peer: Peer) -> None:
        changes = {"set": [EVE, member("bob", state=1)], "gone": [GONE]}
        sessions.append(await serve(peer, "e-2", {"position": "e-5"} | changes))
        update, message_id = await peer.hear("presence.update")
        assert (update["state"], 4000 < update["for_ms"] <= 5000) == ("typing", True)
        await peer.say("presence.updated", {"channel": NAME}, message_id)
        for kind in ("unwatch", "leave"):
            _, message_id = await peer.hear(f"presence.{kind}")
            answered = {"unwatch": "presence.unwatched", "leave": "presence.left"}[kind]
            await peer.say(answered, {"channel": NAME}, message_id)

    async def work(session: Any) -> None:
        room: Room
        async with session.presence(NAME, state={"field": "a"}) as room:
            assert sorted(room.users) == ["ann", "bob"]
            changes = [await anext(room)]
            while not changes[-1].joined:
                changes.append(await anext(room))
            assert (changes[-1].joined, changes[-1].left, changes[-1].updated) == (
                ("eve",),
                ("ann",),
                ("bob",),
            )
            assert not any(each.joined or each.left or each.updated for each in changes[:-1])
            assert (room.stale, room.users["bob"]["s"].state) == (False, 1)
            await room.set("typing", for_seconds=5)
        with pytest.raises(StopAsyncIteration):
            await anext(room)
        with pytest.raises(NotEntered):
            await room.set(1)

    async with broker(first, second) as url, running(url) as session:
        with trio.fail_after(60):
            await inside(session, work)
    assert sessions[0] == sessions[1]


WRONG: dict[str, tuple[Any, type[Exception]]] = {
    "a pattern": (lambda session: session.presence("a.*"), InvalidChannel),
    "no text": (lambda session: session.presence(7), TypeError),
    "no session": (lambda session: session.presence("a", session="a b"), BadMessage),
    "no JSON": (lambda session: session.presence("a", state={1}), TypeError),
    "a large state": (lambda session: session.presence("a", state="a" * 1023), BadMessage),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_is_not_sent(name: str, running: Running) -> None:
    call, expected = WRONG[name]

    async def work(session: Any) -> None:
        with pytest.raises(expected):
            call(session)
        assert not session.engine.presence.awaited

    async with running("ws://127.0.0.1:9/ws") as session:
        await inside(session, work)
