"""`broker explain`, `broker trace` and the lists of `broker admin`, as processes of their own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import trio

from tests.support.command import broker as run
from tests.support.command import start

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.broker import Broker
    from tests.support.rawnats import RawNats


async def test_explain(broker: Broker, tmp_path: Path) -> None:
    """The exit code says whether it is allowed; the token comes from the line, a file or standard input."""
    here = ("--data-dir", tmp_path / "broker")
    token = broker.token(subscribe=["orders.>"], publish=[])
    file = tmp_path / "token"
    file.write_text(token + "\n")
    for given in (("--token", token), ("--token-file", file), ("--token", "-")):
        result = await run("explain", *given, "--channel", "orders.7", *here, stdin=token.encode())
        assert (result.code, result.err) == (0, "")
        assert json.loads(result.out)["allowed"]
    denied = await run("explain", "--token", token, "--channel", "orders.7", "--publish", *here)
    assert denied.code == 1
    assert denied.err.startswith("not allowed to publish: within no allowed pattern (")
    assert token not in denied.out + denied.err
    bad = await run("explain", "--token", "abc", "--channel", "orders.7", *here)
    assert (bad.code, "three parts" in bad.err) == (1, True)
    absent = await run("explain", "--token-file", tmp_path / "absent", "--channel", "orders.7", *here)
    assert (absent.code, "does not exist" in absent.err) == (2, True)
    file.write_bytes(b"\xff\xfe")
    binary = await run("explain", "--token-file", file, "--channel", "orders.7", *here)
    assert (binary.code, "not ASCII" in binary.err) == (1, True)
    unsaid = await run("explain", "--channel", "orders.7", *here)
    assert unsaid.code == 2


async def test_trace(broker: Broker, publisher: RawNats, tmp_path: Path) -> None:
    """A line of JSON for each event, from the one that says that it has begun on, up to the count."""
    arguments = (
        "--tenant",
        "acme",
        "--channel",
        "orders.>",
        "--count",
        "2",
        "--data-dir",
        tmp_path / "broker",
    )
    async with broker.client(user="bob") as client, start("trace", *arguments) as trace:
        await client.subscribe(["orders.>"])
        assert json.loads(await trace.line())["kind"] == "tracing"
        for channel in ("orders.1", "stock.1", "orders.2"):
            await publisher.store(f"events.acme.{channel}", b"1")
        lines = [json.loads(await trace.line()) for _ in range(3)]
        assert [each.get("channel") for each in lines] == ["orders.1", "orders.2", None]
        assert lines[0]["outcomes"] == {"written": 1}
        assert lines[2] == {"kind": "end", "reason": "limit"}
        assert await trace.end() == 0


async def test_a_trace_that_is_broken_off(broker: Broker, tmp_path: Path) -> None:
    """When the broker stops, the trace does not end as if all had been said."""
    async with start("trace", "--tenant", "acme", "--data-dir", tmp_path / "broker") as trace:
        await trace.line()
        broker.stop.wanted.set()
        assert "ended the trace early" in await trace.line("stderr")
        assert await trace.end() == 1


async def test_closes_and_audit(broker: Broker, tmp_path: Path) -> None:
    """What ended is listed, and the same is in the audit trail."""
    here = ("--data-dir", tmp_path / "broker")
    async with broker.client(user="bob"):
        pass
    with trio.fail_after(30):
        while not (found := json.loads((await run("admin", "closes", *here)).out)["closes"]):
            pass
        assert [each["user"] for each in found] == ["bob"]
        while not (
            found := json.loads((await run("admin", "audit", "--kind", "ended", *here)).out)["records"]
        ):
            pass
        assert [each["user"] for each in found] == ["bob"]
    result = await run("admin", "audit", "--kind", "nonsense", *here)
    assert result.code == 2
    assert "nonsense" in result.err
