"""Whatever answers a session: it is open again when that has passed, and only the broker can end it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from broker.client import Backoff, Message, Reconnecting, SessionEnded
from broker.client import engine as engine_module
from broker.errors import Unavailable
from broker.wire import frames as server
from tests.client.shells import until
from tests.support.peer import PATIENCE_SECONDS, Peer, broker

if TYPE_CHECKING:
    from tests.client.shells import Running

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


async def test_nobody_there(running: Running, held: list[int]) -> None:
    """Where nothing listens that is said, and tried again."""
    [port] = held
    async with running(f"ws://127.0.0.1:{port}/ws") as session:
        for _ in range(2):
            lost = await anext(session)
            assert isinstance(lost, Reconnecting)
            assert str(port) in lost.reason


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
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws"
    async with listener, running(url, backoff=Backoff(first=0.001, longest=0.001)) as session:
        with trio.fail_after(PATIENCE_SECONDS):
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
