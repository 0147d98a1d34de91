"""A link to a NATS server: however it ends, those who wait are told, and its socket is closed."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
import trustme

from broker import config
from broker.errors import TooLarge, Unavailable
from broker.nats import link as module
from broker.nats.link import NotPermitted, open_link
from broker.nats.login import Server
from broker.nats.protocol import Decoder, Info
from tests.nats.servers import gone, greet, info, serving, sockets
from tests.support.bus import PATIENCE_SECONDS
from tests.support.nats import run_nats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from broker.nats.link import Link
    from tests.support.nats import NatsServer

PAYLOAD = bytes(1 << 19)


@asynccontextmanager
async def full(link: Link) -> AsyncIterator[None]:
    """Within it there is more to be written to a link than its peer takes."""

    async def write() -> None:
        with suppress(Unavailable):
            while True:
                await link.send("nobody.at.all", PAYLOAD)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert link.lost.is_set() or link.held > module.UNSENT_BYTES
        yield


def certified(directory: Path, **more: Any) -> tuple[dict[str, Any], config.Nats]:
    """Options of a server with TLS, and the section of whoever connects to it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    ca, certificate, key = (directory / name for name in ("ca", "certificate", "key"))
    authority.cert_pem.write_to_path(ca)
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return {"tls": {"cert_file": str(certificate), "key_file": str(key), **more}}, config.Nats(tls_ca=ca)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_server_that_reads_no_more(tmp_path: Path, tls: bool, killed: bool) -> None:
    """It hangs, or is killed, in the middle of a large write."""
    options, section = certified(tmp_path) if tls else ({}, config.Nats())
    async with run_nats(tmp_path, **options) as nats:
        before = sockets()
        async with open_link(Server.parse(nats.url), section) as link:
            nats.stop()
            async with full(link):
                if killed:
                    await nats.kill9()
                    with trio.fail_after(PATIENCE_SECONDS):
                        await link.lost.wait()
                link.lose("the test ends it")
        await gone(before)


async def test_a_peer_that_closes_its_side_and_reads_no_more() -> None:
    """That it says no more is the end of the link, though it takes our bytes for ever."""
    close = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        await close.wait()
        await stream.send_eof()
        await trio.sleep_forever()

    async with serving(serve) as server:
        before = sockets()
        async with open_link(server, config.Nats()) as link, full(link):
            close.set()
            with trio.fail_after(PATIENCE_SECONDS):
                await link.lost.wait()
        assert link.reason == "NATS closed the connection"
        await gone(before, peers=1)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"PONG\r\n-ERR 'Maximum Connections Exceeded'\r\n", "raise max_connections"),
        (b"-ERR 'Authorization Violation'\r\n", "check the credentials"),
        (b"-ERR 'Something New'\r\n", "Something New"),
        (b"HTTP/1.1 400 Bad Request\r\n", "no command of a NATS server"),
    ],
)
async def test_a_refusal_at_the_door(answer: bytes, cause: str) -> None:
    """The server refuses while the link is being opened, and leaves it to us to close it."""

    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream, answer)
        await trio.sleep_forever()

    async with serving(serve) as server:
        before = sockets()
        with pytest.raises(Unavailable, match=cause):
            async with open_link(server, config.Nats()) as link:
                await link.flush()
        await gone(before, peers=1)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (b"", "no answer within 2 s"),
        (info(), "no answer within 2 s"),
        (info(version="2.10.29"), r"2\.10\.29.*at least 2\.11"),
        (b"INFO {}\r\n", "INFO of the server cannot be read"),
        (b"220 mail.example.org ESMTP\r\n", "no command of a NATS server"),
        (b"PING\r\n", "this is no NATS server"),
        (info(tls_required=True) + b"PING\r\n", "plain text where TLS begins"),
        (info(tls_required=True) + b"HTTP", "plain text where TLS begins"),
    ],
)
async def test_what_stands_behind_the_port_is_no_server_for_us(said: bytes, cause: str) -> None:
    """It falls silent, is too old, or something else."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(said)
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                if b"PING" in data:
                    await stream.send_all(b"PONG\r\n" if b"2.10" in said else b"")
        await trio.sleep_forever()

    async with serving(serve) as server:
        before = sockets()
        with pytest.raises(Unavailable, match=cause):
            async with open_link(server, config.Nats()):
                pass
        await gone(before, peers=1)


async def test_nobody_is_there() -> None:
    """The message names the server, and says why."""
    async with serving(greet) as server:
        pass
    with pytest.raises(Unavailable, match=f"{server}: .*Connection refused"):
        async with open_link(server, config.Nats()):
            pass


async def test_cancelled_at_any_step() -> None:
    """Whoever opens a link is cancelled, each time a step of the loop later, until the link is open first."""
    opened = 0

    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        async for _ in stream:
            pass

    async def connect(server: Server, scope: trio.CancelScope) -> None:
        nonlocal opened
        async with open_link(server, config.Nats()):
            opened += 1
        scope.cancel()

    async with serving(serve) as server:
        before = sockets()
        for step in count():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect, server, nursery.cancel_scope)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            await gone(before)
            if opened == 3:
                break


async def test_a_file_that_is_missing(nats: NatsServer, tmp_path: Path) -> None:
    before = sockets()
    section = config.Nats(user="svc", password_file=tmp_path / "gone")
    with pytest.raises(Unavailable, match="No such file"):
        async with open_link(Server.parse(nats.url), section):
            pass
    await gone(before)


async def test_a_lost_link_stays_lost(nats: NatsServer) -> None:
    """Requests under way end at once, and later ones too, with the reason."""
    async with open_link(Server.parse(nats.url), config.Nats()) as link, trio.open_nursery() as nursery:

        async def ask(*_: object) -> None:
            with pytest.raises(Unavailable, match="cut"), trio.fail_after(45):
                await link.request("nobody.at.all", b"", seconds=60)

        async def flush() -> None:
            with pytest.raises(Unavailable, match="cut"), trio.fail_after(45):
                await link.flush(60)

        await link.subscribe("nobody.at.all", lambda *_: None)  # so that no "no responders" comes
        await link.flush()
        nats.stop()
        nursery.start_soon(ask)
        nursery.start_soon(flush)
        await trio.testing.wait_all_tasks_blocked()
        link.lose("cut")
        for call in link.flush(), link.send("a", b""), link.subscribe("a", lambda *_: None):
            with pytest.raises(Unavailable, match="cut"):
                await call
        nats.cont()


async def test_what_is_published_after_a_subscription_is_delivered_to_it(nats: NatsServer) -> None:
    """Both go over one connection in one order; nobody has to wait in between."""
    async with open_link(Server.parse(nats.url), config.Nats()) as link:
        for n in range(100):
            heard: list[bytes] = []
            number = await link.subscribe(f"own.{n}", lambda *message, to=heard: to.append(message[3]))
            for body in b"1", b"2":
                await link.send(f"own.{n}", body)
            link.unsubscribe(number)
            await link.flush()
            assert heard == []
            number = await link.subscribe(f"own.{n}", lambda *message, to=heard: to.append(message[3]))
            for body in b"1", b"2":
                await link.send(f"own.{n}", body)
            await link.flush()
            assert heard == [b"1", b"2"]


async def test_a_late_answer_is_nobody_s_error(nats: NatsServer) -> None:
    """A flush that is cancelled takes no later one's answer."""
    async with open_link(Server.parse(nats.url), config.Nats()) as link:
        nats.stop()
        with trio.move_on_after(0.05) as hurry:
            await link.flush()
        assert hurry.cancelled_caught
        nats.cont()
        await link.flush()
        assert not link.pongs


async def test_a_server_that_does_not_answer_a_ping_costs_the_connection(nats: NatsServer) -> None:
    async with open_link(Server.parse(nats.url), config.Nats()) as link:
        nats.stop()
        with pytest.raises(Unavailable, match="did not answer a ping"):
            await link.flush(0.05)
        assert link.lost.is_set()
        nats.cont()


async def test_a_silent_server_costs_the_connection(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks anything, and the loss is noticed all the same."""
    monkeypatch.setattr(module, "PING_SECONDS", 0.01)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    news: list[None] = []
    async with open_link(Server.parse(nats.url), config.Nats(), on_news=lambda: news.append(None)) as link:
        await link.flush()
        told = len(news)
        nats.stop()
        with trio.fail_after(PATIENCE_SECONDS):
            await link.lost.wait()
        assert len(news) > told
        assert "did not answer a ping" in link.reason
        nats.cont()


@pytest.mark.parametrize("failure", [ZeroDivisionError(), OSError("disk"), Unavailable("other")])
async def test_a_handler_that_fails_ends_the_block(nats: NatsServer, failure: Exception) -> None:
    """Whatever it raises: that is no failure of the connection."""

    def fail(*_: bytes) -> None:
        raise failure

    before = sockets()
    with pytest.RaisesGroup(type(failure), flatten_subgroups=True), trio.fail_after(PATIENCE_SECONDS):
        async with open_link(Server.parse(nats.url), config.Nats()) as link:
            await link.subscribe("own", fail)
            await link.send("own", b"")
            await link.lost.wait()
    await gone(before)


async def test_what_the_server_does_not_take(nats: NatsServer) -> None:
    """A message over its limit, and a subject that is none, are refused before they are sent."""
    nats.options["max_payload"] = 1000
    await nats.restart()
    async with open_link(Server.parse(nats.url), config.Nats()) as link:
        for size, fields in [(1001, {}), (983, {"A": "1"})]:
            with pytest.raises(TooLarge, match="at most 1000"):
                await link.send("a", bytes(size), fields=fields)
        await link.send("a", bytes(1000))
        for subject in "", "a b", "a\nPING":
            with pytest.raises(ValueError, match="is not a subject"):
                await link.send(subject, b"")
            with pytest.raises(ValueError, match="is not a subject"):
                await link.subscribe(subject, lambda *_: None)
        await link.flush()


async def test_tls_begins_first(tmp_path: Path) -> None:
    """The server waits for the handshake before it says anything."""
    options, section = certified(tmp_path, handshake_first=True)
    async with run_nats(tmp_path, **options) as nats:
        server = Server.parse(nats.url)
        first = config.Nats(tls_ca=section.tls_ca, tls_first=True)
        async with open_link(server, first) as link:
            await link.flush()
        with pytest.raises(Unavailable, match="no answer within"):
            async with open_link(server, section):
                pass


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_tls_is_never_given_up(nats: NatsServer, tmp_path: Path, scheme: str) -> None:
    """Where the configuration wants TLS, a server without it gets no password."""
    _, section = certified(tmp_path)
    server = Server.parse(nats.url.replace("nats:", f"{scheme}:"))
    with pytest.raises(Unavailable, match="has no TLS"):
        async with open_link(server, section if scheme == "nats" else config.Nats()):
            pass


async def test_one_subscription_too_many(tmp_path: Path) -> None:
    """The server does not say which one; it costs the link nothing, and nothing that is made later."""
    async with (
        run_nats(tmp_path, max_subscriptions=2) as nats,
        open_link(Server.parse(nats.url), config.Nats()) as link,
    ):
        first = await link.subscribe("a", lambda *_: None)
        await link.flush()
        assert link.refusal("a", first) is None
        number = await link.subscribe("b", lambda *_: None)
        await link.flush()
        link.unsubscribe(first)
        another = await link.subscribe("c", lambda *_: None)  # before the other one looks
        refusal = link.refusal("b", number)
        assert refusal is not None
        assert refusal.text == "maximum subscriptions exceeded"
        await link.flush()
        assert link.refusal("c", another) is None


@pytest.mark.parametrize("name", ["a", '"', "\\", "\u200d", "\ue000", "\u00e9", "\U0001f600"])
async def test_a_refused_subject_is_told_at_once(tmp_path: Path, name: str) -> None:
    """Also where the server has to quote it."""
    denied = {"publish": {"deny": ["no.>"]}, "subscribe": {"deny": ["no.>"]}}
    users = [{"user": "svc", "password": "pw", "permissions": denied}]
    async with (
        run_nats(tmp_path, authorization={"users": users}) as nats,
        open_link(Server.parse(nats.url.replace("//", "//svc:pw@")), config.Nats()) as link,
    ):
        with pytest.raises(NotPermitted, match="Permissions Violation for Publish"):
            await link.request(f"no.{name}", b"", seconds=PATIENCE_SECONDS)
        number = await link.subscribe(f"no.{name}", lambda *_: None)
        await link.flush()
        assert link.refusal(f"no.{name}", number) is not None


async def test_a_refusal_is_of_one_message() -> None:
    """The server sends one for each that it refuses, in their order."""

    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        said = bytearray()
        while len(inboxes := re.findall(rb"PUB own (\S+) 1\r\nx\r\n", said)) < 2:
            said += await stream.receive_some()
        await stream.send_all(b"-ERR 'Permissions Violation for Publish to \"own\"'\r\n")
        await stream.send_all(b"MSG %b 1 2\r\nOK\r\n" % inboxes[1])
        await trio.sleep_forever()

    async def refused(link: Link) -> None:
        with pytest.raises(NotPermitted):
            await link.request("own", b"x", seconds=PATIENCE_SECONDS)

    async with (
        serving(serve) as server,
        open_link(server, config.Nats()) as link,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(refused, link)
        await trio.testing.wait_all_tasks_blocked()
        assert await link.request("own", b"x", seconds=PATIENCE_SECONDS) == [(b"", b"OK")]


async def test_an_answer_counts_though_the_link_is_lost_with_it() -> None:
    """Whoever waits for more is told of the loss."""

    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        said = bytearray()
        while not (inbox := re.search(rb"PUB one (\S+) 0\r\n", said)) or b"PUB other" not in said:
            said += await stream.receive_some()
        await stream.send_all(b"MSG %b 1 2\r\nOK\r\n-ERR 'Stale Connection'\r\n" % inbox[1])
        await trio.sleep_forever()

    async def wait_in_vain(link: Link) -> None:
        with pytest.raises(Unavailable, match="Stale"):
            await link.request("other", b"", seconds=PATIENCE_SECONDS)

    async with serving(serve) as server, open_link(server, config.Nats()) as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_vain, link)
            assert await link.request("one", b"", seconds=PATIENCE_SECONDS) == [(b"", b"OK")]
        assert link.lost.is_set()


async def test_the_time_for_an_answer_has_that_for_the_question_in_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The server takes nothing: a request ends in its time, and not in that of a flush."""
    near, _ = trio.testing.lockstep_stream_pair()
    said = Info(version=(2, 12, 0), max_payload=module.UNSENT_BYTES)
    link = module.Link(Server.parse("nats://x"), said, near, Decoder(), lambda: None, lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        link.put(bytes(module.UNSENT_BYTES))
        began = trio.current_time()
        with pytest.raises(Unavailable, match=r"within 0\.5 s"):
            await link.request("a", b"", seconds=0.5)
        assert trio.current_time() - began == pytest.approx(0.5)
        assert not link.answers
        link.lose("the end")
