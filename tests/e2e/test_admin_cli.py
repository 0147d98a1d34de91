"""`broker admin` as a process of its own, against a whole broker."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.command import COMMAND, PATIENCE_SECONDS, Result, environment
from tests.support.command import broker as run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.broker import Broker
    from tests.support.rawnats import RawNats


STYLE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def here(broker: Broker, tmp_path: Path) -> tuple[str, Path]:
    """What a command needs to find the broker."""
    return "--data-dir", tmp_path / "broker"


async def document(*arguments: str | Path) -> Any:
    """What a command says when no terminal listens: JSON."""
    result = await run("admin", *arguments)
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


async def on_terminal(*arguments: str | Path) -> str:
    """What a command says on a terminal, 200 columns wide."""
    ours, theirs = pty.openpty()
    variables = environment(COLUMNS="200", TERM="xterm")
    process = await trio.lowlevel.open_process(
        [*COMMAND, "admin", *map(str, arguments)], stdout=theirs, stderr=subprocess.STDOUT, env=variables
    )
    os.close(theirs)
    said = b""
    with trio.fail_after(PATIENCE_SECONDS):
        assert await process.wait() == 0
    while True:
        try:
            said += (part := os.read(ours, 65536))
        except OSError:  # EIO: the other end is closed
            part = b""
        if not part:
            os.close(ours)
            return STYLE.sub("", said.decode())


async def test_json_for_programs(broker: Broker, here: tuple[str, Path], publisher: RawNats) -> None:
    """Each command answers with the API's document, found by the data directory alone."""
    async with broker.client() as client:
        await client.subscribe(["a", "b.>"])
        assert (await document("readiness", *here))["ready"]
        listed = await document("connections", "--tenant", "acme", "--limit", "1", *here)
        [one] = listed["connections"]
        assert (await document("connection", one["id"], *here))["subscriptions"] == 2
        assert [each["tenant"] for each in (await document("tenants", *here))["tenants"]] == ["acme"]
        assert (await document("tenant", "acme", *here))["topics"] == 2
        published = await document("publish", "a", '{"x": 1.0}', "--tenant", "acme", *here)
        assert (await client.events(1))[0]["position"] == published["position"]
        found = await document("history", "a", "--tenant", "acme", "--since", "1h", *here)
        assert [each["event"] for each in found["events"]] == [{"x": 1.0}]
        assert (await document("config", *here))["stream"]["name"] == "EVENTS"
        assert (await document("disconnect", one["id"], "--code", "4501", *here)) == {"disconnected": 1}
        assert await client.closed() == 4501


async def test_dead_letters(broker: Broker, here: tuple[str, Path], publisher: RawNats) -> None:
    """Listed, shown, replayed with another body, purged only when that was said."""
    for _ in range(3):
        await publisher.store("events.acme.a", b"{")
    command = ("dead-letters", "list", "--tenant", "acme", "--reason", "not_json", *here)
    with trio.fail_after(PATIENCE_SECONDS):
        while len((await document(*command))["letters"]) < 3:
            pass
    assert (await document("dead-letters", "show", "1", *here))["body"] == "{"
    assert (await document("dead-letters", "replay", "1", "{}", *here))["channel"] == "a"
    assert await document("dead-letters", "delete", "2", *here) == {"deleted": 1}
    refused = await run("admin", "dead-letters", "purge", *here)
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert await document("dead-letters", "purge", "--yes", *here) == {"deleted": 1}


async def test_keeping_out(broker: Broker, here: tuple[str, Path]) -> None:
    """Revoked and suspended, listed, and let in again; for all of a tenant only when that was said."""
    async with broker.client("acme", "bob") as bob, broker.client("acme", "alice") as alice:
        whose = ("--tenant", "acme", "--user", "bob")
        assert (await document("revoke", *whose, "--for", "1h", *here))["kind"] == "user"
        assert await bob.closed() == 4501
        for command in (("revoke", "--tenant", "acme"), ("suspend", "acme")):
            assert (await run("admin", *command, *here)).code == 2
        await alice.quiet()
        assert (await document("suspend", "acme", "--yes", "--reason", "unpaid", *here))["reason"] == "unpaid"
        assert await alice.closed() == 4501
    assert len((await document("revocations", *here))["revocations"]) == 2
    await document("resume", "acme", *here)
    await document("restore", *whose, *here)
    assert (await document("revocations", *here))["revocations"] == []
    async with broker.client("acme", "bob") as back:
        await back.quiet()


async def test_tables_for_people(broker: Broker, here: tuple[str, Path]) -> None:
    """On a terminal there are tables, in which no name steers the terminal; --json is JSON there too."""
    async with broker.client(user="eve\x1b[2J") as client:
        await client.subscribe("a")
        table = await on_terminal("connections", *here)
        heading, row = table.splitlines()[:2]
        assert heading.split()[:3] == ["id", "tenant", "user"]
        assert "acme" in row
        assert "\x1b[2J" not in table
        identity = row.split()[0]
        shown = await on_terminal("connection", identity, *here)
        assert "position" in shown
        assert "\x1b[2J" not in shown
        assert json.loads(await on_terminal("tenants", "--json", *here))["tenants"]


async def test_by_address_and_token_file(broker: Broker, tmp_path: Path) -> None:
    """Another machine's broker is found by address and token file, from options or the environment."""
    token = tmp_path / "broker" / "admin.token"
    elsewhere = tmp_path / "nothing"
    given = ("--url", broker.running.admin, "--token-file", token, "--data-dir", elsewhere)
    assert (await document("readiness", *given))["ready"]
    found = await run(
        "admin", "readiness", BROKER_ADMIN_URL=broker.running.admin, BROKER_ADMIN_TOKEN_FILE=str(token)
    )
    assert found.code == 0


async def test_adopt(broker: Broker, here: tuple[str, Path], publisher: RawNats) -> None:
    """Old and new are shown and it is asked, or it is told not to; until then nothing changes."""
    found = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
    by_hand = {"max_age": 30 * 86400 * 10**9, "metadata": {"team": "7"}}
    await publisher.api("STREAM.UPDATE.EVENTS", **found | by_hand)
    assert "stream.max_age: 30d → 7d" in await on_terminal("streams", *here)
    refused = await run("admin", "adopt", "EVENTS", *here)
    assert (refused.code, refused.out) == (2, "")
    assert "  stream.max_age: 30d → 7d  (loses)\n" in refused.err
    assert "add --yes" in refused.err
    kept = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
    assert kept["max_age"] == by_hand["max_age"]
    was = await document("adopt", "EVENTS", "--yes", *here)
    assert [(each["key"], each["found"], each["wanted"]) for each in was["differences"]] == [
        ("stream.max_age", "30d", "7d")
    ]
    now = (await publisher.api("STREAM.INFO.EVENTS"))["config"]
    assert (now["max_age"], now["metadata"]["team"]) == (found["max_age"], "7")
    assert (await document("streams", *here))["streams"][1]["differences"] == []
    unknown = await run("admin", "adopt", "ORDERS", "--yes", *here)
    assert (unknown.code, "the broker works with" in unknown.err) == (1, True)


async def test_errors_say_what_to_do(broker: Broker, here: tuple[str, Path], tmp_path: Path) -> None:
    """1 for what failed, 2 for what was used wrongly, and a sentence with the next step."""
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-admin-token\n")
    url = broker.running.admin

    async def fails(code: int, hint: str, *arguments: str | Path) -> Result:
        result = await run("admin", *arguments)
        assert (result.code, result.out) == (code, "")
        assert hint in result.err
        assert "Traceback" not in result.err
        return result

    await fails(1, "it may have ended", "connection", "none", *here)
    refused = await fails(1, "--token-file", "tenants", "--url", url, "--token-file", wrong)
    assert "not-the-admin-token" not in refused.err
    await fails(1, "--token-file", "tenants", "--url", url, "--data-dir", tmp_path)
    await fails(1, "admin port", "tenants", "--url", "http://127.0.0.1:1", *here)
    await fails(1, broker.running.http, "tenants", "--url", broker.running.http, *here)
    await fails(1, "broker dev", "tenants", "--data-dir", tmp_path)
    await fails(2, "http://HOST", "tenants", "--url", "ws://127.0.0.1", *here)
    await fails(2, "--tenant", "disconnect", *here)
    await fails(2, "--yes", "disconnect", "--tenant", "acme", *here)
    await fails(2, "are not stored", "history", "live.a", "--tenant", "acme", *here)
    await fails(2, "loud", "log-level", "loud", *here)
