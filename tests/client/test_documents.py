"""Documents that a client follows and changes: without I/O, and in both sessions over a cut."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker.client import (
    DocumentChanged,
    DocumentConflict,
    DocumentLost,
    DocumentRejected,
    SessionEnded,
)
from broker.client.changes import DOUBTS, EACH_SECONDS, TRIES
from broker.client.collection import Collection, Document
from broker.client.documents import Documents
from broker.client.gate import Allowed, Gate
from broker.client.outbox import Pending
from broker.client.together import Together
from broker.errors import (
    BadMessage,
    Conflict,
    Forbidden,
    InvalidChannel,
    Rejected,
    TooLarge,
    Unavailable,
    UnknownOutcome,
)
from broker.subjects import expand_me
from tests.client.shells import inside
from tests.support.peer import Peer, broker

if TYPE_CHECKING:
    from tests.client.shells import Running

NAME = "orders.7"
WAIT = 2.0  # the back-off of these tests


class Host:
    """A session, as far as documents need one."""

    def flag(self) -> trio.Event:
        return trio.Event()

    def clock(self) -> float:
        return trio.current_time()

    async def attend(self, flag: Any) -> None:
        await flag.wait()

    def wake(self) -> None: ...

    async def say(self) -> None:
        await trio.lowlevel.checkpoint()


@attrs.define
class Client:
    """The part of a session for documents, and a broker that says what a test wants."""

    documents: Documents = attrs.field(
        factory=lambda: Documents(Gate(), lambda _: WAIT, lambda name: expand_me(name, "ann"))
    )
    sent: list[tuple[str, dict[str, Any], str]] = attrs.field(factory=list)
    now: float = 0.0

    def document(self, name: str = NAME) -> Document:
        return Document(Host(), self.documents, name)

    def collection(self, name: str) -> Collection:
        return Collection(Host(), self.documents, name)

    def together(self, *changes: Any) -> Together:
        together = Together(self.documents, Pending(None))
        together.begin(changes)
        return together

    def send(self, after: float = 0.0) -> list[dict[str, Any]]:
        """The payloads that are sent, so much later."""
        self.now += after
        found = list(self.documents.take(self.now))
        self.sent += found
        return [payload for _, payload, _ in found]

    def hear(self, kind: str, payload: dict[str, Any], message_id: str | None = None) -> None:
        assert self.documents.answered(kind, payload, message_id, self.now)

    def reply(self, kind: str, payload: dict[str, Any]) -> None:
        """Answer what was sent last."""
        self.hear(kind, payload, self.sent[-1][2])

    def refuse(self, code: str, **fields: Any) -> None:
        self.reply("error", {"code": code, "message": "no", "retryable": False, **fields})

    def stored(self, revision: str) -> None:
        _, payload, _ = self.sent[-1]
        self.reply("state.changed", {"id": payload["id"], "revisions": {payload["channel"]: revision}})

    def state(self, revision: str, channel: str = NAME, position: str | None = None, **what: Any) -> None:
        position = position or revision
        self.hear("state", {"channel": channel, "revision": revision, "position": position, **what})

    def opened(self, name: str = NAME, position: str = "s-5", *, recovered: bool = False) -> None:
        answer = {"channel": [name], "refused": [], "position": position, "recovered": recovered}
        self.reply("state.opened", answer)

    def ready(self, name: str = NAME, position: str = "s-5") -> None:
        self.hear("state.ready", {"channel": name, "position": position})

    def again(self) -> list[dict[str, Any]]:
        """What is sent over another connection."""
        self.documents.cut()
        self.documents.begin()
        return self.send()

    def order(self) -> Document:
        """A document that is here."""
        order = self.document()
        self.send()
        self.opened()
        self.state("s-5", value={"amount": 1, "note": "a"})
        self.ready()
        assert (order.state, order.value) == ("live", {"amount": 1, "note": "a"})
        order.changed.clear()
        return order


def test_a_document() -> None:
    """It comes, is changed as a whole and by differences, and is asked for from where it stands."""
    client = Client()
    order = client.order()
    assert client.sent[0][:2] == ("state.open", {"channel": NAME})
    client.state("s-6", **{"from": "s-5"}, patch={"amount": 2, "note": None})
    client.state("s-6", value={"amount": 99})  # another open brings the same
    client.state("s-4", value={"amount": 98})
    client.state("s-6", **{"from": "s-5"}, patch={"amount": 2, "note": None})
    assert client.send() == []
    assert (order.value, order.revision, order.pending) == ({"amount": 2}, "s-6", 0)
    assert client.again() == [{"channel": NAME, "position": "s-6"}]
    client.opened(position="s-6", recovered=True)
    client.ready(position="s-6")
    assert order.value == {"amount": 2}
    order.close()
    assert client.send() == [{"channel": NAME}]
    assert client.sent[-1][0] == "state.close"
    client.reply("state.closed", {"channel": NAME})
    assert client.documents.due(client.now) == float("inf")


def test_a_difference_that_does_not_fit() -> None:
    client = Client()
    order = client.order()
    client.state("s-8", **{"from": "s-7"}, patch={"amount": 2})
    assert client.send() == [{"channel": NAME}]
    client.opened(position="s-8")
    client.state("s-8", value={"amount": 2})
    client.ready(position="s-8")
    assert order.value == {"amount": 2}
    client.again()
    client.refuse("invalid_position")
    assert client.send() == [{"channel": NAME}]


def test_what_has_not_come_is_gone() -> None:
    """And what comes of another stream counts, whatever its number."""
    client = Client()
    order, board = client.order(), client.collection("board.*")
    client.send()
    client.opened("board.*")
    client.state("s-3", "board.a", value={"rank": "b"})
    client.state("s-4", "board.b", value={"rank": "c"})
    client.ready("board.*")
    assert board.all == {"board.a": {"rank": "b"}, "board.b": {"rank": "c"}}
    client.again()
    client.opened("board.*", "s-9")
    client.state("s-4", "board.b", value={"rank": "c"})
    client.ready("board.*", "s-9")
    assert board.all == {"board.b": {"rank": "c"}}
    client.hear("state.opened", {"channel": [NAME], "refused": [], "position": "s-9", "recovered": False})
    client.ready(position="s-9")
    assert order.draft.value is None
    client.hear("state.opened", {"channel": [NAME], "position": "t-1", "recovered": False})
    client.state("t-1", value={"amount": 3})
    client.ready(position="t-1")
    assert (order.confirmed, order.revision) == ({"amount": 3}, "t-1")


async def test_an_open_that_is_refused_or_ended() -> None:
    client = Client()
    order = client.document()
    order.change({"amount": 1})
    client.send()
    client.refuse("unavailable", retryable=True, retry_after_ms=3000)
    assert (client.send(2.9), len(client.send(0.2))) == ([], 1)
    client.refuse("forbidden")
    assert order.state == "closed"
    for wait in (order.opened, order.saved):
        with pytest.raises(Forbidden):
            await wait()
    other = client.order()
    client.hear("state.closed", {"channel": NAME, "code": "limit_documents"})
    assert (other.state, other.error and other.error.code) == ("closed", "limit_documents")
    third = client.document("me.x")
    client.send()
    answer = {"channel": [], "position": "s-1", "recovered": True}
    client.reply("state.opened", answer | {"refused": [{"channel": "users.ann.x", "code": "forbidden"}]})
    with pytest.raises(Forbidden):
        await third.opened()


async def test_a_change() -> None:
    """It is shown at once, sent with what it replaces, and no faster than a person needs."""
    client = Client()
    order = client.order()
    order.change({"amount": 2})
    assert (order.value, order.confirmed) == ({"amount": 2, "note": "a"}, {"amount": 1, "note": "a"})
    [first] = client.send()
    assert first["id"].endswith("-1")
    assert (first["channel"], first["patch"], first["was"]) == (NAME, {"amount": 2}, {"amount": 1})
    order.change({"amount": 3})
    order.change({"note": "b"})
    assert client.send(1.0) == []
    client.stored("s-6")
    [second] = client.send()
    assert (second["patch"], second["was"]) == ({"amount": 3, "note": "b"}, {"amount": 2, "note": "a"})
    client.state("s-6", **{"from": "s-5"}, patch={"amount": 2}, by=[{"user": "ann", "id": first["id"]}])
    client.stored("s-7")
    order.change({"note": "c"})
    assert client.send() == []
    assert client.documents.due(client.now) == pytest.approx(client.now + EACH_SECONDS)
    assert len(client.send(EACH_SECONDS)) == 1
    client.stored("s-8")
    await order.saved()
    assert (order.value, order.pending) == ({"amount": 3, "note": "c"}, 2)
    client.state("s-8", value={"amount": 3, "note": "c"})
    assert (order.pending, await anext(order)) == (0, DocumentChanged(channel=NAME, value=order.value))


async def test_a_change_is_sent_again_as_it_was() -> None:
    """After a cut, where its outcome is not known, and later where the broker says so; not for ever.

    What was certainly not stored is no repetition; another one says from where on it would be remembered.
    """
    client = Client()
    order = client.order()
    order.change({"amount": 2})
    [first] = client.send()
    client.refuse("unavailable", retryable=True, retry_after_ms=5000)
    assert (client.send(4.9), client.send(0.2)) == ([], [first])
    client.state("s-6", value={"amount": 1, "note": "b"})
    again = first | {"revision": "s-5"}
    assert again in client.again() + client.send(EACH_SECONDS)
    for code in ("unknown_outcome", "timeout"):
        client.refuse(code)
        assert client.send(WAIT) == [again]
    client.refuse("unavailable", retryable=True, retry_after_ms=5000)
    assert (client.send(4.9), client.send(0.2)) == ([], [again])
    client.stored("s-7")
    client.state("s-7", value={"amount": 2, "note": "a"})
    assert (order.pending, order.unsaved) == (0, False)
    order.change({"amount": 3})
    client.send(1.0)
    for _ in range(TRIES - 1):
        client.refuse("unknown_outcome")
        client.send(WAIT)
    client.refuse("unknown_outcome")
    with pytest.raises(UnknownOutcome):
        await order.saved()
    order.change({"amount": 4})
    for _ in range(DOUBTS):
        assert client.send(1.0)
        assert client.documents.changes.sent_at() == client.now
        client.documents.doubt()
        client.again()
    assert isinstance(order.error, BadMessage)  # nor had its open an answer
    assert (order.value, order.unsaved) == ({"amount": 2, "note": "a"}, False)


async def test_what_was_seen_stored_is_never_called_refused() -> None:
    """A revision that has it proves it, and where nothing does its outcome is not known."""
    client = Client()
    order = client.order()
    order.change({"amount": 2})
    client.send()
    client.state("s-6", **{"from": "s-5"}, patch={"amount": 2}, by=[{"id": client.sent[-1][1]["id"]}])
    client.state("s-7", value={"amount": 3, "note": "a"})
    client.again()
    client.send(EACH_SECONDS)
    client.refuse("conflict", conflict=[{"channel": NAME, "revision": "s-7", "paths": {"/amount": 3}}])
    await order.saved()
    assert (order.value, order.pending, [*order.told]) == ({"amount": 3, "note": "a"}, 0, [])
    for code, error in (("forbidden", UnknownOutcome), ("rejected", Rejected)):
        order.change({"amount": 4})
        client.send(1.0)
        client.again()
        client.send(1.0)
        client.refuse(code)
        with pytest.raises(error):
            await order.saved()


def test_what_is_not_there_is_so_in_a_stream() -> None:
    """Also the repetition of what makes a document says where it began."""
    client = Client()
    orders = client.collection("orders.*")
    client.send()
    client.opened("orders.*")
    client.ready("orders.*", "s-5")
    orders.change(NAME, {"amount": 1})
    [made] = client.send()
    assert made["was"] is None
    assert made | {"revision": "s-0"} in client.again() + client.send(EACH_SECONDS)


async def test_a_conflict() -> None:
    """It is taken back where it is one, raised and told, and may be kept all the same."""
    client = Client()
    order = client.order()
    order.change({"amount": 2, "note": "b"})
    client.send()
    client.state("s-6", value={"amount": 9, "note": "a"})
    conflict = [{"channel": NAME, "revision": "s-6", "paths": {"/amount": 9}, "of": "a later broker"}]
    client.refuse("conflict", conflict=conflict)
    assert order.value == {"amount": 9, "note": "b"}
    with pytest.raises(Conflict) as raised:
        await order.saved()
    assert raised.value.conflict is not None
    assert raised.value.conflict[0].paths == {"/amount": 9}
    news = await anext(order)
    assert isinstance(news, DocumentConflict)
    assert (news.paths, news.mine, news.theirs) == (("/amount",), {"amount": 2}, {"/amount": 9})
    news.keep("theirs")
    assert order.value == {"amount": 9, "note": "b"}
    news.keep("mine")
    assert order.value == {"amount": 2, "note": "b"}
    [again] = client.send(EACH_SECONDS)
    assert (again["patch"], again["was"]) == ({"note": "b", "amount": 2}, {"note": "a", "amount": 9})
    client.refuse("conflict", conflict=[{"channel": NAME, "revision": "s-7", "paths": {"": None}}])
    await anext(order)  # a refusal that was told is not raised as well
    await order.saved()


async def test_what_is_added() -> None:
    """Shown at once, and made once more where there was no number."""
    client = Client()
    order = client.order()
    order.change(add={"/amount": -3})
    assert order.value == {"amount": -2, "note": "a"}
    [sent] = client.send()
    assert sent == {"id": sent["id"], "channel": NAME, "add": {"/amount": -3}, "revision": "s-5"}
    client.refuse("conflict", conflict=[{"channel": NAME, "revision": "s-6", "paths": {"/amount": "x"}}])
    client.state("s-7", value={"amount": 9, "note": "a"})
    conflict = await anext(order)
    assert isinstance(conflict, DocumentConflict)
    assert (conflict.mine, conflict.add, conflict.theirs) == (None, {"/amount": -3}, {"/amount": "x"})
    conflict.keep("mine")
    assert order.value == {"amount": 6, "note": "a"}


MOVED = (
    {"channel": NAME, "patch": {"note": "b"}, "add": {"/amount": -1}},
    {"channel": "orders.8", "patch": {"by": "me"}},
)


def test_several_documents() -> None:
    """One message once all are known, shown in each; what is typed meanwhile comes after it."""
    client = Client()
    order = client.order()
    together = client.together(*MOVED)
    order.change({"note": "c"})
    assert order.value == {"amount": 0, "note": "c"}
    assert client.send() == [{"channel": "orders.8"}]
    client.opened("orders.8")
    client.state("s-6", "orders.8", value=None)
    assert client.documents.due(client.now) == client.now
    parts: list[dict[str, Any]] = [
        {"channel": NAME, "patch": {"note": "b"}, "was": {"note": "a"}, "add": {"/amount": -1}},
        {"channel": "orders.8", "patch": {"by": "me"}, "was": None},
    ]
    parts[0]["revision"] = "s-5"
    [sent] = client.send()
    assert sent == {"id": sent["id"], "changes": parts}
    assert client.documents.due(client.now) == inf
    parts[1]["revision"] = "s-6"
    assert {"id": sent["id"], "changes": parts} in client.again() + client.send(EACH_SECONDS)
    revisions = {NAME: "s-8", "orders.8": "s-9"}
    client.reply("state.changed", {"id": sent["id"], "revisions": revisions})
    assert together.promise.result() == revisions
    client.state("s-8", value={"amount": 0, "note": "b"})
    [_, rest] = client.send(EACH_SECONDS)
    assert (rest["patch"], rest["was"]) == ({"note": "c"}, {"note": "b"})
    assert (order.value, [*order.told]) == ({"amount": 0, "note": "c"}, [])


def test_several_documents_that_are_refused() -> None:
    """Taken back in all of them, and only who made it is told."""
    client = Client()
    order = client.order()
    together = client.together(*MOVED)
    client.send()
    client.opened("orders.8")
    client.state("s-6", "orders.8", value=None)
    client.send()
    conflict = [{"channel": "orders.8", "revision": "s-7", "paths": {"": {"by": "you"}}}]
    client.refuse("conflict", conflict=conflict)
    with pytest.raises(Conflict):
        together.promise.result()
    assert (order.value, order.pending, [*order.told]) == (order.confirmed, 0, [])
    for error in (Forbidden, Unavailable, SessionEnded):
        together = client.together(*MOVED)
        assert order.pending == 1
        if error is Forbidden:
            client.send(1.0)
            client.refuse("forbidden")
        elif error is Unavailable:
            together.withdraw()
        else:
            client.documents.end(SessionEnded("over"))
        with pytest.raises(error):
            together.promise.result()
        assert (order.value, order.pending) == (order.confirmed, 0)
    wrong: list[tuple[Any, ...]] = [
        (),
        MOVED[:1] * 2,
        ({"channel": "a"},),
        ({"channel": "a.*", "patch": {}},),
    ]
    for changes in (*wrong, ({"channel": "a", "add": {"a": 1}},), ({"channel": "a", "what": 1},)):
        with pytest.raises((TypeError, ValueError, BadMessage, InvalidChannel)):
            client.together(*changes)


async def test_a_refusal() -> None:
    """By a service, for the size, and for the end of the session."""
    client = Client()
    order = client.order()
    order.change({"amount": -1})
    client.send()
    client.refuse("rejected", status=409, paths={"/amount": "at least 0"})
    assert (order.value, order.pending) == ({"amount": 1, "note": "a"}, 0)
    news = await anext(order)
    assert isinstance(news, DocumentRejected)
    assert isinstance(news.error, Rejected)
    assert (news.mine, news.error.status, news.error.paths) == (
        {"amount": -1},
        409,
        {"/amount": "at least 0"},
    )
    client.documents.gate.begin(Allowed(message_bytes=1000), client.now)
    order.change({"note": "x" * 1000})
    assert client.send(1.0) == []
    with pytest.raises(TooLarge):
        await order.saved()
    order.change({"note": "x" * 500})
    client.send()
    assert client.documents.changes.largest() > 500
    client.documents.changes.too_big()
    assert order.value == {"amount": 1, "note": "a"}
    lost = {"channel": NAME, "ids": ["me-1"], "revision": "s-9", "paths": {"/amount": 7}}
    client.hear("state.lost", lost)
    kinds = [await anext(order) for _ in range(3)]
    assert isinstance(kinds[2], DocumentLost)
    assert (kinds[2].ids, kinds[2].paths) == (("me-1",), {"/amount": 7})
    order.change({"amount": 5})
    client.documents.end(SessionEnded("over"))
    with pytest.raises(SessionEnded):
        await order.saved()
    with pytest.raises(SessionEnded):
        order.change({"amount": 6})


async def test_a_collection() -> None:
    """It has what its pattern brings and one's own changes; documents of it need no open of their own."""
    client = Client()
    board = client.collection("board.7.*")
    board.change("board.7.early", {"rank": "e"})
    client.send()
    client.opened("board.7.*")
    client.state("s-3", "board.7.a", value={"rank": "b"})
    client.state("s-4", "board.7.b", value={"rank": "c"})
    client.ready("board.7.*")
    board.change("board.7.a", {"rank": "d"})
    assert (board.all["board.7.a"], board.all["board.7.early"]) == ({"rank": "d"}, {"rank": "e"})
    card = client.document("board.7.a")
    assert (card.state, card.value) == ("live", {"rank": "d"})
    changes = [(each["channel"], each["was"]) for each in client.send()]
    assert changes == [("board.7.early", None), ("board.7.a", {"rank": "b"})]
    client.stored("s-5")
    client.state("s-6", "board.7.b", value=None)
    client.state("s-7", "board.7.a", value=None, invalid="not an object")
    assert board.all == {"board.7.early": {"rank": "e"}}
    found = {news.channel: news for news in [await anext(board) for _ in range(3)]}
    assert found["board.7.b"] == DocumentChanged(channel="board.7.b", value=None)
    board.close()
    assert client.send() == [{"channel": "board.7.*"}, {"channel": "board.7.a"}]
    assert [kind for kind, _, _ in client.sent[-2:]] == ["state.close", "state.open"]
    assert list(client.documents.changes.edited) == ["board.7.early", "board.7.a"]
    client.hear("state.changed", {"id": "x", "revisions": {"board.7.early": "s-8"}}, client.sent[1][2])
    assert list(client.documents.changes.edited) == ["board.7.a"]


async def test_what_is_no_document() -> None:
    """It says why, and may become one; a change of it is refused with the broker's words."""
    client = Client()
    board = client.collection("orders.*")
    client.send()
    client.opened("orders.*")
    client.state("s-5", value={"a": 1})
    client.state("s-6", "orders.8", invalid="it is a list")
    client.ready("orders.*", "s-6")
    order, other = client.document(), client.document("orders.8")
    assert (dict(board.invalid), dict(board.all)) == ({"orders.8": "it is a list"}, {NAME: {"a": 1}})
    assert (order.invalid, other.invalid, other.value) == (None, "it is a list", None)
    client.state("s-7", invalid="it is 7")
    assert (order.invalid, order.confirmed, len(board.all), len(board.invalid)) == ("it is 7", None, 0, 2)
    assert await anext(order) == DocumentChanged(channel=NAME, value=None, invalid="it is 7")
    order.change({"a": 2})
    client.send()
    client.refuse("rejected")
    with pytest.raises(Rejected):
        await order.saved()
    client.state("s-8", value={"a": 2})
    client.state("s-9", "orders.8", value=None)
    assert (order.invalid, order.value, other.invalid, len(board.invalid)) == (None, {"a": 2}, None, 0)


def test_names_before_and_after_they_are_known() -> None:
    """What `me` stands for is known once there is a connection."""
    users: list[str] = []
    client = Client(
        Documents(Gate(), lambda _: WAIT, lambda name: expand_me(name, users[0]) if users else name)
    )
    mine = client.document("me.cart")
    mine.change({"apples": 2})
    users.append("ann")
    client.documents.begin()
    assert client.send() == [{"channel": "users.ann.cart"}]
    client.opened("users.ann.cart")
    client.state("s-0", "users.ann.cart", value=None)
    client.ready("users.ann.cart")
    [change] = client.send()
    assert (change["channel"], change["patch"], change["was"]) == ("users.ann.cart", {"apples": 2}, None)


def test_what_is_closed_at_once() -> None:
    """A change that was made before anything was known is sent all the same; a later one cannot be made."""
    client = Client()
    order = client.document()
    order.change({"amount": 2})
    order.close()
    with pytest.raises(RuntimeError):
        order.change({"amount": 3})
    assert client.send() == [{"channel": NAME}]
    client.opened()
    client.state("s-5", value={"amount": 1})
    close, change = client.send()
    assert (close, change["patch"], change["was"]) == ({"channel": NAME}, {"amount": 2}, {"amount": 1})
    client.stored("s-6")
    assert (client.documents.opens, client.documents.changes.edited) == ({}, {})
    refused = client.document()
    refused.change({"amount": 2})
    refused.close()
    client.send()
    client.refuse("forbidden")
    assert (client.documents.opens, client.documents.closing) == ({}, set())


async def test_over_a_cut(running: Running) -> None:
    """A change whose answer was lost is sent as it was; what others do meanwhile is told."""
    heard: list[dict[str, Any]] = []

    async def say(peer: Peer, *states: dict[str, Any], recovered: bool) -> None:
        payload, message_id = await peer.hear("state.open")
        assert payload == {"channel": NAME} | ({"position": "s-5"} if recovered else {})
        answer = {"channel": [NAME], "refused": [], "position": "s-5", "recovered": recovered}
        await peer.say("state.opened", answer, message_id)
        for each in states:
            await peer.say("state", {"channel": NAME, "position": "s-5"} | each)
        await peer.say("state.ready", {"channel": NAME, "position": "s-5"})

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await say(peer, {"revision": "s-5", "value": {"amount": 1}}, recovered=False)
        heard.append((await peer.hear("state.change"))[0])
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.welcome()
        await say(peer, {"revision": "s-6", "value": {"amount": 2, "note": "b"}}, recovered=True)
        payload, message_id = await peer.hear("state.change")
        heard.append(payload)
        await peer.say("state.changed", {"id": payload["id"], "revisions": {NAME: "s-6"}}, message_id)
        _, message_id = await peer.hear("state.change")
        conflict = [{"channel": NAME, "revision": "s-6", "paths": {"/note": "b"}}]
        refusal = {"code": "conflict", "message": "no", "retryable": False, "conflict": conflict}
        await peer.say("error", refusal, message_id)
        await peer.hear("state.close")

    async def work(session: Any) -> None:
        async with session.document(NAME) as order:
            assert order.value == {"amount": 1}
            order.change({"amount": 2})
            await order.saved()
            assert order.value == {"amount": 2, "note": "b"}
            order.change({"note": None})
            async for news in order:
                if isinstance(news, DocumentConflict):
                    break
            assert order.value == {"amount": 2, "note": "b"}
        assert all([isinstance(each, DocumentChanged) async for each in order])

    async with broker(first, second) as url, running(url) as session:
        await inside(session, work)
        assert heard[1] == heard[0] | {"revision": "s-5"}


async def test_events_that_nobody_takes(running: Running) -> None:
    """They hold up no documents."""

    async def serve(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        _, message_id = await peer.hear("state.open")
        answer = {"channel": [NAME], "refused": [], "position": "s-5", "recovered": False}
        await peer.say("state.opened", answer, message_id)
        await peer.say("state", {"channel": NAME, "position": "s-5", "revision": "s-5", "value": None})
        await peer.say("state.ready", {"channel": NAME, "position": "s-5"})
        for sequence in range(2, 52):
            await peer.event(sequence)
        await peer.say("state", {"channel": NAME, "position": "s-6", "revision": "s-6", "value": {"n": 1}})
        await peer.hear("state.close")

    async def work(session: Any) -> None:
        await session.subscribe("orders.1")
        async with session.document(NAME) as order:
            while order.value is None:
                await anext(order)

    async with broker(serve) as url, running(url) as session:
        await inside(session, work)


WRONG: dict[str, tuple[Any, type[Exception]]] = {
    "a pattern": (lambda session: session.document("a.*"), InvalidChannel),
    "a live channel": (lambda session: session.document("live.a"), InvalidChannel),
    "live channels": (lambda session: session.collection("live.>"), InvalidChannel),
    "no pattern": (lambda session: session.collection("a..b"), InvalidChannel),
    "no text": (lambda session: session.document(7), TypeError),
    "outside": (lambda session: session.collection("a.*").change("b.c", {}), InvalidChannel),
    "no object": (lambda session: session.document("a").change([1]), TypeError),
    "no JSON": (lambda session: session.document("a").change({"a": {1}}), TypeError),
    "no double": (lambda session: session.document("a").change({"a": 2**53 + 1}), BadMessage),
    "a prototype": (lambda session: session.document("a").change({"__proto__": 1}), BadMessage),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_is_not_sent(name: str, running: Running) -> None:
    async def work(session: Any) -> None:
        call, error = WRONG[name]
        with pytest.raises(error):
            call(session)
        assert not session.engine.documents.changes.awaited

    async with running("ws://127.0.0.1:9/ws") as session:
        await inside(session, work)
