from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import ssl
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trustme
from trio_websocket import ConnectionClosed

from broker.client import Backoff, Event, Message, Published, Reconnecting, Session, SessionEnded
from broker.client import engine as engine_module
from broker.errors import BadMessage, InvalidChannel, NotSubscribed, TooLarge, Unavailable
from broker.wire import frames as server
from tests.support.peer import Peer, broker

if TYPE_CHECKING:
    from tests.client.shells import Running, Shell

BAD_ANSWERS: list[Any] = [
    OSError("no route"),
    Unavailable("it restarts"),
    ValueError("a mistake of the application"),
    "502 Bad Gateway",
    "<!doctype html><title>Log in</title>",
    '{"token": "to.k.en"}',
    "to.k",
    "tö.k.en",
    "to.k.en\nto.k.en",
    "",
    b"to.k.en",
    None,
]


async def until(session: Shell, kind: str) -> Message:
    async for item in session:
        if isinstance(item, Message) and item.type == kind:
            return item
    raise AssertionError(f"no {kind}")


async def events(session: Shell, count: int) -> list[int]:
    found: list[int] = []
    async for item in session:
        if isinstance(item, Event):
            found.append(item.value)
            if len(found) == count:
                return found
    raise AssertionError(f"only {found}")


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


@pytest.mark.parametrize(
    "code", [1001, 1002, 1003, 1007, 1011, 1012, 4001, 4008, 4009, 4010, 4029, 4500, 4510]
)
async def test_codes_after_which_it_comes_back(code: int, running: Running) -> None:
    """Any close is answered by another connection; the reason is told. Once is no verdict."""

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.link.aclose(code, "because")

    async with broker(first, Peer.welcome) as url, running(url) as session:
        await until(session, "connection.authenticated")
        lost = await anext(session)
        assert isinstance(lost, Reconnecting)
        assert lost.reason == f"closed with {code}: because"
        await until(session, "connection.authenticated")


@pytest.mark.parametrize("code", [4002, 4500, 4501, 4503])
async def test_codes_after_which_it_stays_away(code: int, running: Running) -> None:
    """When the same token is refused again iteration ends with what the broker said."""

    async def script(peer: Peer) -> None:
        await peer.say("error", {"code": "token_invalid", "message": "the signature", "retryable": False})
        await peer.link.aclose(code)

    async with broker(script, script) as url, running(url) as session:
        with pytest.raises(SessionEnded, match=f"closed with {code}: the signature") as ended:
            async for _ in session:
                pass
        assert ended.value.closed_with == code


async def test_another_token_after_each_refusal(running: Running) -> None:
    """Tokens that differ are refused as often as it takes; the one that is good is as good as any."""
    count = 0

    async def token() -> str:
        nonlocal count
        count += 1
        return f"to.k.en{count}"

    async def script(peer: Peer) -> None:
        await peer.say("error", {"code": "token_invalid", "message": "the key", "retryable": False})
        await peer.link.aclose(4500)

    async with broker(*[script] * 5, Peer.welcome) as url, running(url, token) as session:
        await until(session, "connection.authenticated")
    assert count == 6


async def test_a_token_that_was_good_in_between(running: Running) -> None:
    """Refused, taken, and refused again: the second time is the first one anew."""

    async def refuse(peer: Peer) -> None:
        await peer.link.aclose(4500)

    async with broker(refuse, cut_welcome, refuse, Peer.welcome) as url, running(url) as session:
        for _ in range(2):
            await until(session, "connection.authenticated")


async def cut_welcome(peer: Peer) -> None:
    await peer.welcome()
    await peer.link.aclose(1012)


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 429, 500, 502, 503, 504])
async def test_refusals_by_http(status: int, running: Running) -> None:
    """Whatever answers instead of the upgrade is no verdict: it is asked again, as long as that lasts."""
    async with broker(status, status, status, Peer.welcome) as url, running(url) as session:
        for _ in range(3):
            lost = await anext(session)
            assert isinstance(lost, Reconnecting)
            assert lost.reason == f"refused with HTTP {status}: try later"
        await until(session, "connection.authenticated")


async def test_nobody_there(running: Running) -> None:
    """Where nothing listens that is said, and tried again."""
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]
    await listener[0].aclose()
    async with running(f"ws://127.0.0.1:{port}/ws") as session:
        for _ in range(2):
            lost = await anext(session)
            assert isinstance(lost, Reconnecting)
            assert str(port) in lost.reason


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


@pytest.mark.parametrize("answer", BAD_ANSWERS)
async def test_a_token_that_cannot_be_had_for_now(answer: Any, running: Running) -> None:
    """The service that makes tokens is away, or gives an error page: that is told, and it is asked again."""
    answers = [answer] * 3

    async def token() -> str:
        answer = answers.pop() if answers else " to.k.en\n"
        if isinstance(answer, Exception):
            raise answer
        return cast("str", answer)

    async def script(peer: Peer) -> None:
        assert dict(peer.request.headers)[b"authorization"] == b"Bearer to.k.en"
        await peer.welcome()

    async with broker(script) as url, running(url, token) as session:
        for _ in range(3):
            lost = await anext(session)
            assert isinstance(lost, Reconnecting)
            assert lost.reason.startswith("the token function: ")
            assert isinstance(lost.cause, ValueError) or lost.cause is answer
        await until(session, "connection.authenticated")


async def test_a_token_function_that_hangs(running: Running) -> None:
    """It is given up after a time, and called again: before there is a connection, and for a renewal."""
    count = 0

    async def token() -> str:
        nonlocal count
        count += 1
        if count not in (3, 6):
            await forever()
        return f"to.k.en{count}"

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.say("connection.expiring", {"expires_at": "soon"})
        assert (await peer.hear("authenticate"))[0] == {"token": "to.k.en6"}
        await peer.welcome()

    async with broker(script) as url, running(url, token, token_timeout=0.05) as session:
        for _ in range(2):
            lost = await anext(session)
            assert isinstance(lost, Reconnecting)
            assert lost.reason == "the token function: no answer within 0.05 s"
        for _ in range(2):
            await until(session, "connection.authenticated")


async def forever() -> None:
    """On whichever loop."""
    if trio.lowlevel.in_trio_run():
        await trio.sleep_forever()
    await asyncio.Event().wait()


async def test_a_token_that_cannot_be_judged_yet(running: Running) -> None:
    """`unavailable` ends nothing: the token is presented again, on the connection that there is."""
    later = {"code": "unavailable", "message": "no keys yet", "retryable": True, "retry_after_ms": 1}

    async def script(peer: Peer) -> None:
        await peer.say("connection.established", {"connection_id": "c", "heartbeat_seconds": 25})
        await peer.say("error", later)
        for _ in range(3):
            payload, message_id = await peer.hear("authenticate")
            assert payload == {"token": "to.k.en"}
            await peer.say("error", later, message_id)
        await peer.hear("authenticate")
        await peer.welcome()

    async with broker(script) as url, running(url) as session:
        await until(session, "connection.authenticated")


async def test_a_connection_without_an_answer_to_the_token(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that speaks of other things is left for another one."""
    monkeypatch.setattr(engine_module, "OPENED_SECONDS", 0.1)

    async def chatty(peer: Peer) -> None:
        while True:
            await peer.say("rumour")
            await trio.sleep(0.01)

    async with broker(chatty, Peer.welcome) as url, running(url) as session:
        async for item in session:
            if isinstance(item, Reconnecting):
                assert item.reason == "no answer to the token"
                break
        monkeypatch.undo()
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


@pytest.mark.parametrize(
    "word",
    [
        "hello", b"hello", "[]", '{"type":7}', '{"type":"pong","payload":[]}', "\ufeff{}", "",
        '{"type":"event","payload":{}}', '{"type":"subscribed","payload":{"channel":7}}',
        '{"type":"pong","payload":{"position":{}}}', '{"type":"error","payload":{}}', "[" * 5000,
        '{"type":"error","payload":{"code":"unavailable","retry_after_ms":"soon"}}',
        '{"type":"connection.established","payload":{"heartbeat_seconds":"often"}}',
    ],
)  # fmt: skip
async def test_a_bad_word(word: str | bytes, running: Running) -> None:
    """What no broker says is said by something else, which will be gone again: the connection is left."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.link.send_message(word)

    async with broker(script, script, Peer.welcome) as url, running(url) as session:
        for _ in range(2):
            await until(session, "connection.authenticated")
            lost = await anext(session)
            assert isinstance(lost, Reconnecting)
            assert "does not speak broker.v1" in lost.reason
        await until(session, "connection.authenticated")


@pytest.mark.parametrize(
    "frame", [b"\x81\x02\xff\xfe", b"\xc1\x01x", b"\x81\x82mask..", b"\x83\x00", b"\x88\x01x"]
)
async def test_a_broken_frame(frame: bytes, running: Running) -> None:
    """No UTF-8, reserved bits, a mask, an opcode that there is not: the connection is lost, and no more."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.link._stream.send_all(frame)

    async with broker(script, script, Peer.welcome) as url, running(url) as session:
        for _ in range(2):
            await until(session, "connection.authenticated")
            assert isinstance(await anext(session), Reconnecting)
        await until(session, "connection.authenticated")


async def test_cut_at_each_byte(running: Running) -> None:
    """A broker's first words are cut short at each byte, and after that the session is open all the same."""
    words = b"".join(
        server.text(json.dumps({"type": kind, "payload": payload}).encode())
        for kind, payload in (
            ("connection.established", {"connection_id": "c", "heartbeat_seconds": 25}),
            ("connection.authenticated", {"private": "users.u", "user": "u", "tenant": "t"}),
        )
    )
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    size = 0
    async with listener, running(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws") as session:
        with trio.fail_after(60):
            while size >= 0:
                stream = await listener.accept()
                head = b""
                while b"\r\n\r\n" not in head:
                    head += await stream.receive_some()
                answer = upgraded(head) + words
                await stream.send_all(answer[:size])
                size = size + 1 if size < len(answer) else -1
                await stream.aclose()
                opened = False
                while not isinstance(item := await anext(session), Reconnecting):
                    opened = isinstance(item, Message) and item.type == "connection.authenticated"
                assert opened == (size < 0)


def upgraded(head: bytes) -> bytes:
    """The answer to the request for an upgrade (RFC 6455, section 4.2.2)."""
    [key] = re.findall(rb"(?i)sec-websocket-key: *(\S+)", head)
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\nSec-WebSocket-Protocol: broker.v1\r\n\r\n"
    )


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


async def test_a_peer_that_leaves_in_the_handshake(running: Running) -> None:
    """A server that takes the connection and ends it without an answer is tried again at once."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, running(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws") as session:
        for _ in range(2):
            stream = await listener.accept()
            await stream.receive_some()
            await stream.aclose()
            lost = await anext(session)
            assert isinstance(lost, Reconnecting)
            assert lost.reason == "no answer to the WebSocket handshake"


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


def test_the_wait_grows_to_its_bound() -> None:
    """Waits lie between 0 and a bound that doubles from 0.5 s to 20 s."""
    backoff = Backoff()
    for failures, most in ((0, 0.5), (1, 1.0), (5, 16.0), (6, 20.0), (5000, 20.0)):
        waits = [backoff.delay(failures) for _ in range(200)]
        assert 0 <= min(waits) <= max(waits) <= most
        assert max(waits) > most / 2
