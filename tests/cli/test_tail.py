"""`broker tail` as a process against a scripted broker."""

from __future__ import annotations

import json
import re
import signal
import ssl
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import click
import pytest
import trio
import trustme

from broker.cli import local, options
from broker.cli.connecting import remedy
from tests.support import command
from tests.support.peer import Peer, broker

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with a key, and no broker that runs."""
    local.make_key(tmp_path)
    return tmp_path


async def test_an_event_a_line(data_dir: Path) -> None:
    """Events are one line each whatever they look like, with who published them; it ends when asked to."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        assert await peer.accept() == {"channel": ["orders.>", "me.>"], "last": 3}
        await peer.link.send_message(
            '{"type":"event","payload":{"channel":"orders.7","position":"a-2","event":{\n  "n" : 1.0e2\r\n}}}'
        )
        await peer.event(0, "live.x", position=None, publisher={"user": "bob"})

    async with broker(script) as url:
        result = await command.broker(
            *("tail", "orders.>", "me.>", "--last", "3", "--count", "2"), "--url", url, "--data-dir", data_dir
        )
    assert (result.code, result.err) == (0, "")
    first, second = result.out.splitlines()
    assert json.loads(first) == {"channel": "orders.7", "position": "a-2", "event": {"n": 100.0}}
    assert '"n" : 1.0e2' in first
    assert json.loads(second) == {"channel": "live.x", "publisher": {"user": "bob"}, "event": 0}


async def test_a_filter(data_dir: Path) -> None:
    """It is sent as it is; one that is none ends it before it has connected."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        assert await peer.accept() == {"channel": ["a"], "filter": {"/n": {"gt": 1}}}
        for number in (1, 2):
            await peer.event(number, "a", event={"n": number})

    async with broker(script) as url:
        asked = ("tail", "a", "--count", "1", "--url", url, "--data-dir", data_dir)
        result = await command.broker(*asked, "--filter", '{"/n": {"gt": 1}}')
        assert json.loads(result.out)["event"] == {"n": 2}
        for wrong, why in (
            (("--filter", '{"/n": {"gtt": 1}}'), "gtt"),
            (("--filter", "{}", "--snapshot"), "snapshot"),
        ):
            result = await command.broker(*asked, *wrong)
            assert result.code == 2
            assert why in result.err


async def test_a_pace(data_dir: Path) -> None:
    """It is sent in milliseconds."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        assert await peer.accept() == {"channel": ["a"], "every_ms": 1500}
        await peer.event(1, "a", event=1, paced=True)

    async with broker(script) as url:
        asked = ("tail", "a", "--count", "1", "--url", url, "--data-dir", data_dir)
        result = await command.broker(*asked, "--every", "1.5s")
        assert json.loads(result.out) == {"channel": "a", "position": "a-1", "event": 1}
    for wrong, why in (("50ms", "100 to 60000"), ("2m", "100 to 60000"), ("soon", "soon")):
        with pytest.raises(click.BadParameter, match=why):
            options.pace(wrong)


async def test_the_events_alone(data_dir: Path) -> None:
    """--raw prints what was published and nothing around it."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        await peer.event(7)

    async with broker(script) as url:
        result = await command.broker(
            "tail", "a", "--raw", "--count", "1", "--url", url, "--data-dir", data_dir
        )
    assert (result.code, result.out) == (0, "7\n")


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (("--snapshot",), {"snapshot": True}),
        (("--position", "a-5"), {"position": "a-5"}),
        (("--since", "2026-01-01T00:00:00Z"), {"since": "2026-01-01T00:00:00+00:00"}),
        ((), {}),
    ],
)
async def test_starts(data_dir: Path, arguments: tuple[str, ...], start: dict[str, object]) -> None:
    """Each start is asked for as the protocol page has it."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        assert await peer.accept() == {"channel": ["a"], **start}
        await peer.event(1)

    async with broker(script) as url:
        result = await command.broker(
            "tail", "a", *arguments, "--count", "1", "--url", url, "--data-dir", data_dir
        )
    assert result.code == 0


async def test_so_long_ago(data_dir: Path) -> None:
    """--since takes how long ago, and asks with a time."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        assert re.fullmatch(r"20\d\d-.*T.*\+00:00", (await peer.accept())["since"])
        await peer.event(1)

    async with broker(script) as url:
        result = await command.broker(
            *("tail", "a", "--since", "1h30m", "--count", "1"), "--url", url, "--data-dir", data_dir
        )
    assert result.code == 0


async def test_it_goes_on_after_a_cut_and_tells(data_dir: Path) -> None:
    """After a cut it resumes; gaps, refusals and the cut itself are told on standard error."""

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept(refused=[{"channel": "b", "code": "forbidden", "message": "no"}])
        await peer.event(2)
        await peer.say("gap", {"channel": "a", "to": "a-5", "reason": "trimmed", "count": 3})
        await peer.say("source", {"state": "interrupted"})
        await peer.link.aclose(1012, "restart")

    async def second(peer: Peer) -> None:
        await peer.welcome()
        assert await peer.accept() == {"channel": ["a"], "position": "a-5"}
        await peer.event(6)

    async with broker(first, second) as url:
        result = await command.broker(
            "tail", "a", "b", "--raw", "--count", "2", "--url", url, "--data-dir", data_dir
        )
    assert (result.code, result.out) == (0, "2\n6\n")
    refused, gap, source, cut = result.err.splitlines()
    assert refused == "b: refused, forbidden"
    assert gap == "gap in a: trimmed, 3 events"
    assert source == "the broker lost NATS"
    assert cut.startswith("closed with 1012: restart; reconnecting in ")


async def test_a_given_token_and_the_tenant_it_looks_at(data_dir: Path) -> None:
    """--token is sent as it is, --tenant beside it; a second refusal ends, with the broker's own words."""

    async def script(peer: Peer) -> None:
        assert dict(peer.request.headers)[b"authorization"] == b"Bearer to.k.en"
        assert peer.request.path == "/ws?tenant=acme"
        await peer.say("error", {"code": "token_invalid", "message": "exp: missing", "retryable": False})
        await peer.link.aclose(4500)

    async with broker(script, script) as url:
        result = await command.broker(
            *("tail", "a", "--token", "to.k.en", "--tenant", "acme"), "--url", url, "--data-dir", data_dir
        )
    assert (result.code, result.out) == (1, "")
    once, twice = result.err.splitlines()
    assert once.startswith("closed with 4500: exp: missing; reconnecting in ")
    assert twice == "closed with 4500: exp: missing"


async def test_a_token_that_is_none(data_dir: Path) -> None:
    """What cannot be a token is used wrongly, and not shown."""
    result = await command.broker(
        *("tail", "a", "--token", "s3cret", "--url", "ws://127.0.0.1:1"), "--data-dir", data_dir
    )
    assert (result.code, result.out) == (2, "")
    assert "--token" in result.err
    assert "three base64url parts" in result.err
    assert "s3cret" not in result.err


async def test_a_subscription_that_is_refused(data_dir: Path) -> None:
    """Where nothing was accepted there is nothing to wait for."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        _, message_id = await peer.hear("subscribe")
        refusal = {"code": "forbidden", "message": "a: not within a pattern", "retryable": False}
        await peer.say("error", refusal, message_id)

    async with broker(script) as url:
        result = await command.broker("tail", "a", "--url", url, "--data-dir", data_dir)
    assert (result.code, result.out, result.err) == (1, "", "a: not within a pattern\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_end_it(data_dir: Path, number: signal.Signals) -> None:
    """Ctrl-C is how it is meant to end: exit code 0 and no traceback."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        await peer.event(1)

    async with (
        broker(script) as url,
        command.start("tail", "a", "--url", url, "--data-dir", data_dir) as tail,
    ):
        await tail.line()
        tail.process.send_signal(number)
        assert await tail.end() == 0
        assert not tail.buffers["stderr"]


async def test_a_reader_that_leaves(data_dir: Path) -> None:
    """`broker tail … | head -1` ends quietly with the next event."""
    taken = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.accept()
        await peer.event(1)
        await taken.wait()
        await peer.event(2)

    async with (
        broker(script) as url,
        command.start("tail", "a", "--url", url, "--data-dir", data_dir) as tail,
    ):
        await tail.line()
        assert tail.process.stdout is not None
        await tail.process.stdout.aclose()
        taken.set()
        assert await tail.process.wait() == 0
        assert tail.process.stderr is not None
        assert not await tail.process.stderr.receive_some()


async def test_no_broker(data_dir: Path) -> None:
    """Where nothing answers at first it fails at once and says how to start a broker."""
    for arguments in ((), ("--url", "ws://127.0.0.1:1")):
        result = await command.broker("tail", "a", *arguments, "--data-dir", data_dir)
        assert (result.code, result.out) == (1, "")
        (sentence,) = result.err.splitlines()
        assert "`broker dev`" in sentence


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("TLS failed: certificate verify failed: self-signed certificate", "SSL_CERT_FILE"),
        ("all attempts to connect to 127.0.0.1:1 failed", "`broker dev`"),
    ],
)
def test_what_to_do_about_it(reason: str, words: str) -> None:
    """A certificate that is not trusted is not cured by another broker."""
    assert words in remedy(reason)


async def test_a_certificate_of_nobody_known(data_dir: Path, tmp_path: Path) -> None:
    """The broker is there: what is missing is its authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, shake_hands, 0, context, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        port = listener.transport_listener.socket.getsockname()[1]
        url = f"wss://127.0.0.1:{port}"
        result = await command.broker("tail", "a", "--url", url, "--data-dir", data_dir)
        nursery.cancel_scope.cancel()
    assert result.code == 1
    assert "TLS failed" in result.err
    assert "SSL_CERT_FILE" in result.err


async def shake_hands(stream: trio.SSLStream[trio.SocketStream]) -> None:
    with suppress(trio.BrokenResourceError):
        await stream.do_handshake()
