from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme
from trio_websocket import ConnectionClosed

from broker.client import Event, Message, Published, Reconnecting, Session
from broker.errors import BadMessage, InvalidChannel, NotSubscribed, TooLarge
from tests.client.shells import events, until
from tests.support.peer import Peer, broker

if TYPE_CHECKING:
    from tests.client.shells import Running


async def test_it_presents_its_token_and_hands_over_what_comes(running: Running) -> None:
    """Token in the head, subprotocol offered, tenant in the address; an event's bytes are untouched."""

    async def script(peer: Peer) -> None:
        assert dict(peer.request.headers)[b"authorization"] == b"Bearer to.k.en"
        assert peer.request.proposed_subprotocols == ("broker.v1",)
        assert peer.request.path == "/ws?tenant=acme"
        await peer.welcome()
        assert await peer.accept() == {"channel": ["orders.>"], "last": 5, "lag": "latest"}
        await peer.link.send_message(
            '{"type":"event","payload":{"channel":"o.7","position":"a-2","new":1,"event": {"n" : 1.0e2}}}'
        )
        await peer.say("rumour", {"unheard": "of"})

    async with broker(script) as url, running(url, tenant="acme") as session:
        message_id = await session.subscribe("orders.>", last=5, lag="latest")
        assert (await until(session, "subscribed")).message_id == message_id
        event = await anext(session)
        assert isinstance(event, Event)
        assert (event.channel, event.position, event.data) == ("o.7", "a-2", b'{"n" : 1.0e2}')
        assert event.value == {"n": 100.0}
        assert await anext(session) == Message(type="rumour", payload={"unheard": "of"}, message_id=None)


async def test_it_resumes_after_a_cut(running: Running) -> None:
    """After TCP is cut without a word the next connection begins after the last event that arrived."""

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        await peer.event(2)
        await peer.event(3)
        await peer.hear("subscribe")
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.welcome()
        assert await peer.accept() == {"channel": ["orders.>"], "position": "a-3"}
        assert await peer.accept() == {"channel": ["chat"]}
        await peer.event(4)

    async with broker(first, second) as url, running(url) as session:
        await session.subscribe("orders.>")
        assert await events(session, 2) == [2, 3]
        await session.subscribe("chat")
        assert isinstance(await anext(session), Reconnecting)
        assert await events(session, 1) == [4]


async def test_an_unfinished_catch_up_is_resumed_beside_the_live_list(running: Running) -> None:
    """Two positions survive the cut: that of the live flow, and that of the catch-up."""

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept(position="a-50")
        await peer.accept(position="a-50", live=False, catch_up=1)
        await peer.event(7, "chat", catch_up=1)
        await peer.event(51)
        await peer.link.aclose(1012, "restart")

    async def second(peer: Peer) -> None:
        await peer.welcome()
        assert await peer.accept() == {"channel": ["orders.>"], "position": "a-51"}
        assert await peer.accept() == {"channel": ["chat"], "position": "a-7"}
        await peer.event(8, "chat", catch_up=2)

    async with broker(first, second) as url, running(url) as session:
        await session.subscribe("orders.>")
        await session.subscribe("chat", snapshot=True)
        assert await events(session, 3) == [7, 51, 8]


async def test_a_token_that_can_be_renewed(running: Running) -> None:
    """A token function is asked for each connection, and when the broker says that the token runs out."""
    count = 0

    async def token() -> str:
        nonlocal count
        count += 1
        return f"to.k.en-{count}"

    async def first(peer: Peer) -> None:
        assert dict(peer.request.headers)[b"authorization"] == b"Bearer to.k.en-1"
        await peer.welcome()
        await peer.say("connection.expiring", {"expires_at": "soon"})
        assert (await peer.hear("authenticate"))[0] == {"token": "to.k.en-2"}
        await peer.link.aclose(4002)

    async def second(peer: Peer) -> None:
        assert dict(peer.request.headers)[b"authorization"] == b"Bearer to.k.en-3"
        await peer.welcome()

    async with broker(first, second) as url, running(url, token) as session:
        await until(session, "connection.expiring")
        await until(session, "connection.authenticated")


async def test_draining_is_left_when_the_broker_says(running: Running) -> None:
    """`reconnect_after_ms` after `connection.draining` it goes by itself and resumes from P."""

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        await peer.say("connection.draining", {"reconnect_after_ms": 0, "position": "a-9"})
        with pytest.raises(ConnectionClosed) as closed:
            await peer.link.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1000

    async def second(peer: Peer) -> None:
        await peer.welcome()
        assert (await peer.accept())["position"] == "a-9"
        await peer.event(10)

    async with broker(first, second) as url, running(url) as session:
        await session.subscribe("orders.>")
        await until(session, "connection.draining")
        assert await events(session, 1) == [10]


async def test_it_pings_when_it_hears_nothing(running: Running) -> None:
    """A quiet link is asked for a sign of life, and its answer moves the resume position."""

    async def first(peer: Peer) -> None:
        await peer.welcome(heartbeat=0.05)
        await peer.accept()
        await peer.hear("ping")
        await peer.say("pong", {"position": "a-33"})
        await peer.link.aclose(1012)

    async def second(peer: Peer) -> None:
        await peer.welcome()
        assert (await peer.accept())["position"] == "a-33"

    async with broker(first, second) as url, running(url) as session:
        await session.subscribe("orders.>")
        await until(session, "pong")
        await until(session, "subscribed")


async def test_a_link_that_stays_silent_is_given_up(running: Running) -> None:
    """A peer that neither speaks nor answers a ping is left for another connection."""

    async def first(peer: Peer) -> None:
        await peer.welcome(heartbeat=0.05)
        await peer.hear("ping")

    async with broker(first, Peer.welcome) as url, running(url) as session:
        await until(session, "connection.authenticated")
        lost = await anext(session)
        assert isinstance(lost, Reconnecting)
        assert "silent" in lost.reason
        await until(session, "connection.authenticated")


async def test_a_subscribe_that_is_refused_for_now_is_sent_again(running: Running) -> None:
    """`unavailable` is answered by the same request, after the delay that was asked for."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.hear("subscribe")
        refusal = {"code": "unavailable", "message": "no NATS", "retryable": True, "retry_after_ms": 1}
        await peer.say("error", refusal, asked[1])
        assert await peer.hear("subscribe") == asked
        await peer.say("subscribed", {"channel": ["a"], "position": "a-1", "live": True}, asked[1])

    async with broker(script) as url, running(url) as session:
        await session.subscribe("a", since="2026-01-01T00:00:00Z")
        await until(session, "error")
        await until(session, "subscribed")


async def test_unsubscribing_is_for_good(running: Running) -> None:
    """What was unsubscribed is not asked for by the next connection."""

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        payload, message_id = await peer.hear("unsubscribe")
        await peer.say("unsubscribed", payload, message_id)
        await peer.link.aclose(1012)

    async def second(peer: Peer) -> None:
        await peer.welcome()
        assert (await peer.accept())["channel"] == ["b"]

    async with broker(first, second) as url, running(url) as session:
        await session.subscribe("a", "b")
        await until(session, "subscribed")
        await session.unsubscribe("a")
        assert (await until(session, "unsubscribed")).payload == {"channel": ["a"]}
        await until(session, "subscribed")


async def test_a_slow_taker_holds_up_the_broker(running: Running) -> None:
    """While nobody takes items no more than a bounded number is read: the sender is stopped by TCP."""
    sent = 0
    stuck = trio.Event()

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.welcome()
        padding = "x" * 200_000
        while True:
            with trio.move_on_after(1) as patience:
                await peer.event(sent, event=padding)
            if patience.cancelled_caught:
                stuck.set()
                await trio.sleep_forever()
            sent += 1

    async with broker(script) as url, running(url) as session:
        await until(session, "connection.authenticated")
        await stuck.wait()
        assert sent < 300  # of 0.2 MB each: the queue, and what two kernels hold


async def test_an_answer_behind_events(running: Running) -> None:
    """Whoever iterates may wait for an answer in between: the events that come before it are kept."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        _, message_id = await peer.hear("publish")
        for sequence in range(200):
            await peer.event(sequence)
        await peer.say("published", {"position": "a-200"}, message_id)

    async with broker(script) as url, running(url) as session:
        await session.subscribe("orders.>")
        await until(session, "subscribed")
        assert (await session.publish("orders.1", 1)).position == "a-200"
        assert await events(session, 200) == list(range(200))


async def test_who_only_publishes_need_not_listen(running: Running) -> None:
    """Where nothing is subscribed, messages that nobody takes hold up neither answers nor a new token."""
    renewed = trio.Event()

    async def token() -> str:
        return "an.oth.er"

    async def script(peer: Peer) -> None:
        await peer.welcome()
        for _ in range(50):
            await peer.say("source", {"state": "restored"})
        await peer.say("connection.expiring", {"expires_at": "soon"})
        assert (await peer.hear("authenticate"))[0] == {"token": "an.oth.er"}
        renewed.set()
        payload, message_id = await peer.hear("publish")
        await peer.say("published", {"id": payload["id"], "position": "a-1"}, message_id)

    async with broker(script) as url, running(url, token) as session:
        await renewed.wait()
        assert (await session.publish("a", 1)).position == "a-1"


async def test_a_publish_over_a_cut(running: Running) -> None:
    """Without an answer it is sent on the next connection, with the same id, and answered once."""
    ids: list[str] = []

    async def first(peer: Peer) -> None:
        await peer.welcome()
        ids.append((await peer.hear("publish"))[0]["id"])
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.welcome()
        payload, message_id = await peer.hear("publish")
        ids.append(payload["id"])
        await peer.say("published", {"position": "a-7", "duplicate": True}, message_id)

    async with broker(first, second) as url, running(url) as session:
        assert await session.publish("a", {"n": 1}) == Published(position="a-7", duplicate=True)
    assert ids[0] == ids[1]


async def test_filters(running: Running) -> None:
    """They are sent, after a cut again; a channel has its last; what was sent for another one is dropped."""
    big, small = {"/n": {"gte": 10}}, {"/n": {"lt": 10}}
    replaced = trio.Event()

    async def first(peer: Peer) -> None:
        await peer.welcome()
        assert await peer.accept() == {"channel": ["a"], "filter": big}
        for number in (1, 10):
            await peer.event(number, "a", event={"n": number})
        await peer.event(11, "b", event={"n": 1})
        await peer.event(12, "a", event=None)
        await replaced.wait()
        assert await peer.accept(position="a-12") == {"channel": ["a", "a.b"], "filter": small}
        await peer.event(13, "a", event={"n": 13})
        await peer.event(14, "a", event={"n": 1})
        assert await peer.accept(position="a-14") == {"channel": ["a.*"]}
        await peer.event(15, "a.b", event={"n": 15})
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.welcome()
        asked = [await peer.accept(position="a-15") for _ in range(2)]
        assert asked == [
            {"channel": ["a", "a.b"], "position": "a-15", "filter": small},
            {"channel": ["a.*"], "position": "a-15"},
        ]
        await peer.event(16, "a", event={"n": 16})
        await peer.event(17, "a.b", event={"n": 17})

    async with broker(first, second) as url, running(url) as session:
        with pytest.raises(BadMessage, match="gtt"):
            await session.subscribe("a", filter={"/n": {"gtt": 1}})
        with pytest.raises(ValueError, match="snapshot"):
            await session.subscribe("a", snapshot=True, filter=big)
        await session.subscribe("a", filter=big)
        found: Any = await events(session, 3)
        assert found == [{"n": 10}, {"n": 1}, None]
        await session.subscribe("a", "a.b", filter=b'{"/n": {"lt": 10}}')
        replaced.set()
        found = await events(session, 1)
        assert found == [{"n": 1}]
        await session.subscribe("a.*")
        found = await events(session, 2)
        assert found == [{"n": 15}, {"n": 17}]


async def test_a_publish_without_echo(running: Running) -> None:
    """The broker is told; another connection, which is sent the event, drops it, and only that one."""
    said: dict[str, object] = {}

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        payload, message_id = await peer.hear("publish")
        said.update(payload)
        await peer.say("published", {"id": payload["id"], "position": "a-2"}, message_id)
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.welcome()
        assert (await peer.accept())["position"] == "a-1"
        publisher = {"user": "u", "id": said["id"]}
        await peer.event(2, "users.u.x", publisher=publisher)
        await peer.event(3, "users.u.y", publisher=publisher)
        await peer.event(4, "users.u.x", publisher={"user": "u", "id": "another"})
        await peer.event(5, "users.u.x", publisher={"user": "w"})

    async with broker(first, second) as url, running(url) as session:
        await session.subscribe("me.>")
        await until(session, "subscribed")
        await session.publish("me.x", 1, echo=False)
        assert await events(session, 3) == [3, 4, 5]
    assert said.pop("id")
    assert said == {"channel": "me.x", "event": 1, "echo": False}


async def test_a_publish_that_the_broker_closes_for(running: Running) -> None:
    """After 1009 the message is given up, instead of being sent for ever."""

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.hear("publish")
        await peer.link.aclose(1009)

    async with broker(first, Peer.welcome) as url, running(url) as session:
        with pytest.raises(TooLarge, match="message_bytes"):
            await session.publish("a", "x" * 1000)
        for _ in range(2):
            await until(session, "connection.authenticated")


async def test_what_is_no_event(running: Running) -> None:
    """What cannot be said in JSON, and channels that are none, are refused before anything is sent."""
    async with broker(Peer.welcome) as url, running(url) as session:
        await until(session, "connection.authenticated")
        for channel, event, error in (
            ("a", b"{", BadMessage),
            ("a..b", 1, InvalidChannel),
            ("a", {1j}, TypeError),
        ):
            with pytest.raises(error):
                await session.publish(channel, event)
        with pytest.raises(NotSubscribed):
            await session.acknowledge("d", "a-1")


async def test_over_tls(running: Running) -> None:
    """wss: works with the authority given; without it nothing is sent and the reason is told."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    async with broker(Peer.welcome, tls=server) as url, running(url, ssl_context=client) as session:
        await until(session, "connection.authenticated")
        async with running(url) as stranger:
            lost = await anext(stranger)
            assert isinstance(lost, Reconnecting)
            assert "CERTIFICATE_VERIFY_FAILED" in lost.reason


async def test_more_than_the_broker_gives(running: Running) -> None:
    """`last` over its limit is refused by itself, also when the limit was not known at the call."""

    async def script(peer: Peer) -> None:
        await peer.welcome(limits={"last_events": 10})
        assert await peer.accept() == {"channel": ["b"], "last": 10}

    async with broker(script) as url, running(url) as session:
        asked = None
        with suppress(BadMessage):  # if it is known already
            asked = await session.subscribe("a", last=11)
        await session.subscribe("b", last=10)
        if asked:
            assert (await until(session, "error")).message_id == asked
        await until(session, "subscribed")
        with pytest.raises(BadMessage, match="last: 11: must be 1 to 10"):
            await session.subscribe("a", last=11)


async def test_two_starts_are_refused() -> None:
    """A subscription begins at one place."""
    session = Session(url="ws://127.0.0.1:1/ws", token="to.k.en")
    with pytest.raises(ValueError, match="one start"):
        await session.subscribe("a", last=1, snapshot=True)


def test_only_websocket_addresses() -> None:
    """An address of another kind is a mistake of the caller, not a broker that is away."""
    with pytest.raises(ValueError, match="url"):
        Session(url="http://127.0.0.1/ws", token="to.k.en")


def test_the_token_is_not_shown() -> None:
    """What is logged of a session does not hold its token."""
    assert "to.k.en" not in repr(Session(url="ws://127.0.0.1:1/ws", token="to.k.en"))
