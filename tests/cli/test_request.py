"""`broker request` as a process against a scripted broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker.cli import local
from tests.support import command
from tests.support.peer import Peer, broker

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with a key, and no broker that runs."""
    local.make_key(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (("a.b", '{"n": 1}', "--id", "x-1", "--timeout", "20s"), b"", {"data": {"n": 1}, "id": "x-1"}),
        (("a.b",), b"", {"data": None}),
        (("a.b", "-"), b"[1,\n 2]\n", {"data": [1, 2]}),
    ],
)
async def test_the_answer_alone(
    data_dir: Path, arguments: tuple[str, ...], stdin: bytes, expected: dict[str, Any]
) -> None:
    """What is asked, and the answer on a line of its own and nothing else."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        payload, message_id = await peer.hear("request")
        assert payload.pop("timeout_ms") <= (20_000 if "--timeout" in arguments else 5000)
        assert payload == {"method": "a.b", **expected}
        await peer.say("reply", {"data": {"é": [1.5, None]}}, message_id)

    async with broker(script) as url:
        result = await command.broker(
            "request", *arguments, "--url", url, "--data-dir", data_dir, stdin=stdin
        )
    assert (result.code, result.out, result.err) == (0, '{"é":[1.5,null]}\n', "")


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "rejected": ({"status": 409}, "rejected (409): no; the service says so itself; correct the request\n"),
    "unavailable": (
        {"retryable": True},
        "unavailable: no; no service has received it; start one that answers, and repeat the request\n",
    ),
    "timeout": ({}, "timeout: no; find out whether it has acted before you repeat the request\n"),
    "forbidden": ({}, "forbidden: no; a token may ask what `broker token --request PATTERN` says\n"),
    "novelty": ({"message": "n\x1b[2Jo"}, "internal: n\N{REPLACEMENT CHARACTER}[2Jo\n"),
}


@pytest.mark.parametrize("code", ERRORS)
async def test_errors(data_dir: Path, code: str) -> None:
    """The code, the words and what to do next, on standard error."""
    fields, words = ERRORS[code]

    async def script(peer: Peer) -> None:
        await peer.welcome()
        _, message_id = await peer.hear_request()
        await peer.say("error", {"code": code, "message": "no", "retryable": False} | fields, message_id)

    async with broker(script) as url:
        result = await command.broker("request", "a", "--url", url, "--data-dir", data_dir)
    assert (result.code, result.out, result.err) == (1, "", words)


async def test_a_cut_after_it_was_sent(data_dir: Path) -> None:
    """It is not sent again."""

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.hear_request()
        await peer.cut()

    async with broker(script) as url:
        result = await command.broker("request", "a", "--url", url, "--data-dir", data_dir)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("timeout: a: the connection was lost before the answer")


async def test_a_token_that_is_refused(data_dir: Path) -> None:
    """The reason that the broker gives, at once."""

    async def script(peer: Peer) -> None:
        await peer.say("connection.established", {"connection_id": "c", "limits": {}})
        await peer.link.aclose(4501, "revoked")

    async with broker(script) as url:
        result = await command.broker("request", "a", "--url", url, "--data-dir", data_dir)
    assert (result.code, result.out, result.err) == (1, "", "closed with 4501: revoked\n")


async def test_no_broker(data_dir: Path) -> None:
    """It says so at once, and how to come by one."""
    url = "ws://127.0.0.1:1"
    result = await command.broker("request", "a", "--url", url, "--data-dir", data_dir)
    assert result.code == 1
    assert result.err.startswith("no broker answers at ws://127.0.0.1:1/ws")
    assert "`broker dev`" in result.err


@pytest.mark.parametrize(
    "arguments",
    [("me.a",), ("a.*",), ("a", "{"), ("a", "--timeout", "31s"), ("a", "--url", "http://x"), ("a", "1", "2")],
)
async def test_used_wrongly(data_dir: Path, arguments: tuple[str, ...]) -> None:
    result = await command.broker("request", *arguments, "--data-dir", data_dir)
    assert (result.code, result.out) == (2, "")
    assert result.err
