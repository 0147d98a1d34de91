"""`broker publish` as a process against a real nats-server."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support import command

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats


@pytest.fixture
async def data_dir(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> Path:
    """A data directory that tells where NATS is, and NATS with the stream that a broker makes."""
    await publisher.api("STREAM.CREATE.EVENTS", name="EVENTS", subjects=["events.>"])
    (tmp_path / "broker.json").write_text(json.dumps({"nats": nats.url}))
    return tmp_path


async def stored(publisher: RawNats) -> list[tuple[str, bytes]]:
    """Subject and body of everything in the stream."""
    count = (await publisher.api("STREAM.INFO.EVENTS"))["state"]["messages"]
    answers = [await publisher.api("STREAM.MSG.GET.EVENTS", seq=number) for number in range(1, count + 1)]
    messages = [answer["message"] for answer in answers]
    return [(message["subject"], base64.b64decode(message.get("data", ""))) for message in messages]


async def test_one_event(data_dir: Path, publisher: RawNats) -> None:
    """JSON as an argument is stored untouched in the tenant, and where it is stored is printed."""
    result = await command.broker("publish", "orders.7", '{"n" : 1.0e2}', "--data-dir", data_dir)
    assert (result.code, result.out, result.err) == (0, "orders.7 stored at 1\n", "")
    result = await command.broker("publish", "a", "", "--tenant", "_all", "--quiet", "--data-dir", data_dir)
    assert (result.code, result.out, result.err) == (0, "", "")
    assert await stored(publisher) == [("events.dev.orders.7", b'{"n" : 1.0e2}'), ("events._all.a", b"")]


async def test_the_same_id_twice(data_dir: Path, publisher: RawNats) -> None:
    """A retry with the same id stores nothing, and says where the first one is."""
    arguments = ("publish", "orders.7", "{}", "--id", "42", "--data-dir", data_dir)
    assert (await command.broker(*arguments)).out == "orders.7 stored at 1\n"
    assert (await command.broker(*arguments)).out == "orders.7 stored at 1 before, under the same id\n"
    assert len(await stored(publisher)) == 1


async def test_a_line_each(data_dir: Path, publisher: RawNats) -> None:
    """Lines of standard input are stored in their order, more than may be in flight; blanks are no events."""
    lines = b"\n".join(b"%d\n" % number for number in range(1000))
    result = await command.broker("publish", "orders.7", "--data-dir", data_dir, stdin=lines)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [f"orders.7 stored at {number}" for number in range(1, 1001)]
    assert [body for _, body in await stored(publisher)] == [b"%d" % number for number in range(1000)]


async def test_a_line_that_fails(data_dir: Path, publisher: RawNats) -> None:
    """The line is named, what was stored before it is printed, nothing that was stored is left unsaid."""
    lines = b'{"n":1}\n{"n":2}\n{"n":\n' + b'{"n":4}\n' * 5000
    result = await command.broker("publish", "orders.7", "-", "--data-dir", data_dir, stdin=lines)
    assert result.code == 1
    assert result.err.startswith("line 3: the event is refused: ")
    count = len(await stored(publisher))
    assert len(result.out.splitlines()) == count < 5000
    assert f"{count} stored; nothing after line " in result.err


async def test_it_reports_before_the_input_ends(data_dir: Path) -> None:
    """A pipe that stays open is no reason to wait: each event is told when it is stored."""
    async with command.start("publish", "orders.7", "--data-dir", data_dir) as running:
        assert running.process.stdin is not None
        for number in (1, 2):
            await running.process.stdin.send_all(b"{}\n")
            assert await running.line() == f"orders.7 stored at {number}"
        await running.process.stdin.send_all(b"{\n")
        assert (await running.line("stderr")).startswith("line 3: ")
        assert await running.end() == 1


async def test_nats_is_lost_while_lines_come(data_dir: Path, nats: NatsServer) -> None:
    """When NATS dies the line that was not stored is named; the exit code says that not all were."""
    async with command.start("publish", "orders.7", "--data-dir", data_dir) as running:
        assert running.process.stdin is not None
        await running.process.stdin.send_all(b"1\n")
        assert await running.line() == "orders.7 stored at 1"
        await nats.kill9()
        await running.process.stdin.send_all(b"2\n")
        assert (await running.until("line 2", "stderr")).startswith("line 2: ")
        assert await running.end() == 1


async def test_a_live_event(data_dir: Path, publisher: RawNats) -> None:
    """A live channel is handed to NATS and not stored."""
    heard = await publisher.subscribe("live.acme.cursor")
    await publisher.flush()
    result = await command.broker("publish", "live.cursor", "7", "--tenant", "acme", "--data-dir", data_dir)
    assert (result.code, result.out) == (0, "live.cursor sent; a live channel is not stored\n")
    with trio.fail_after(30):
        assert (await heard.receive()).body == b"7"
    assert not await stored(publisher)


async def test_another_address_and_prefix(data_dir: Path, nats: NatsServer, publisher: RawNats) -> None:
    """--url is used without a data directory; the subject prefix is the broker's, from the environment."""
    await publisher.api("STREAM.UPDATE.EVENTS", name="EVENTS", subjects=["history.>"])
    result = await command.broker(
        "publish", "a", "1", "--url", nats.url, BROKER_SUBJECTS__EVENTS="history", BROKER_SERVER__DATA_DIR="/"
    )
    assert result.code == 0
    assert await stored(publisher) == [("history.dev.a", b"1")]


@pytest.mark.parametrize("state", [None, '{"nats": "nats://127.0.0.1:1"}', "{"])
async def test_no_broker(tmp_path: Path, state: str | None) -> None:
    """Without a running broker, also beside the remains of one, it says how to start one."""
    if state is not None:
        (tmp_path / "broker.json").write_text(state)
    result = await command.broker("publish", "a", "1", "--data-dir", tmp_path)
    assert (result.code, result.out) == (1, "")
    (sentence,) = result.err.splitlines()
    assert "start" in sentence
    assert "`broker dev`" in sentence
