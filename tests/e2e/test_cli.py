"""The commands beside a real broker, each a process of its own."""

from __future__ import annotations

import json
import signal
import stat
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.support import command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LAST_LINE = "broker publish orders.7"  # of what `dev` prints


@asynccontextmanager
async def dev(data_dir: Path, listen: str = "127.0.0.1:0") -> AsyncIterator[command.Running]:
    options = ("--data-dir", data_dir, "--listen", listen, "--admin-listen", "127.0.0.1:0")
    async with command.start("dev", *options) as running:
        await running.until(LAST_LINE)
        yield running


def state(data_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data_dir / "broker.json").read_text())
    return found


async def test_the_commands_work_beside_dev_with_nothing_but_its_directory(tmp_path: Path) -> None:
    """publish stores, tail shows it, token's token is believed; SIGTERM ends it cleanly, the key stays."""
    async with dev(tmp_path) as running:
        assert stat.S_IMODE((tmp_path / "broker.json").stat().st_mode) == 0o600
        assert state(tmp_path).keys() == {"pid", "http", "ws", "admin", "nats"}
        beside = ("--data-dir", tmp_path)
        async with command.start("tail", "orders.>", "--since", "1h", *beside) as tail:
            published = await command.broker("publish", "orders.7", '{"state":"new"}', *beside)
            assert (published.code, published.err) == (0, "")
            event = json.loads(await tail.line())
            assert (event["channel"], event["event"]) == ("orders.7", {"state": "new"})
        token = (await command.broker("token", *beside)).out.strip()
        seen = await command.broker(
            *("tail", "orders.7", "--last", "1", "--count", "1", "--raw", "--token", token), *beside
        )
        assert (seen.code, seen.out, seen.err) == (0, '{"state":"new"}\n', "")
        running.process.send_signal(signal.SIGTERM)
        assert await running.end() == 0
    assert not (tmp_path / "broker.json").exists()
    assert (tmp_path / "dev.key").exists()


async def test_a_request_beside_dev(tmp_path: Path) -> None:
    """Its own service answers, in each tenant, knows who asks, and a token may narrow what is asked."""
    beside = ("--data-dir", tmp_path)
    async with dev(tmp_path):
        request = partial(command.broker, "request", *beside)
        result = await request("demo.echo", '{"a": 1}', "--tenant", "acme", "--user", "ann")
        assert (result.code, result.err) == (0, "")
        assert json.loads(result.out) == {"user": "ann", "data": {"a": 1}}
        assert json.loads((await request("demo.clock")).out).keys() == {"time"}
        nobody = await request("orders.approve")
        assert (nobody.code, nobody.out) == (1, "")
        assert nobody.err.startswith("unavailable: ")
        assert "start one that answers, and repeat the request" in nobody.err
        token = (await command.broker("token", *beside, "--request", "demo.echo")).out.strip()
        assert (await request("demo.echo", "--token", token)).code == 0
        refused = await request("demo.clock", "--token", token)
        assert (refused.code, refused.err[:11]) == (1, "forbidden: ")


async def test_tenants_and_users_of_tail(tmp_path: Path) -> None:
    """--tenant and --user decide what is seen: a private channel is its user's alone."""
    async with dev(tmp_path):
        for tenant in ("acme", "globex"):
            result = await command.broker(
                *("publish", "users.alice.inbox", f'"{tenant}"', "--tenant", tenant), "--data-dir", tmp_path
            )
            assert result.code == 0
        options = ("--tenant", "acme", "--snapshot", "--count", "1", "--raw", "--data-dir", tmp_path)
        seen = await command.broker("tail", "me.inbox", "--user", "alice", *options)
        assert (seen.code, seen.out) == (0, '"acme"\n')
        refused = await command.broker("tail", "users.alice.inbox", "--user", "bob", *options)
        assert refused.code == 1
        assert "users.alice.inbox" in refused.err


async def test_tail_goes_on_where_it_was_when_the_broker_was_killed(tmp_path: Path, held: list[int]) -> None:
    """kill -9 and a new broker on the same address: every event once, in order, the cut told."""
    listen = f"127.0.0.1:{held[0]}"
    async with (
        dev(tmp_path, listen) as first,
        command.start("tail", "n", "--raw", "--since", "1h", "--data-dir", tmp_path) as tail,
    ):
        assert (await command.broker("publish", "n", "1", "--data-dir", tmp_path)).code == 0
        assert await tail.line() == "1"
        first.process.kill()
        await first.end()
        async with dev(tmp_path, listen):
            lines = b"".join(b"%d\n" % number for number in range(2, 50))
            assert (await command.broker("publish", "n", "--data-dir", tmp_path, stdin=lines)).code == 0
            assert [await tail.line() for _ in range(2, 50)] == [str(number) for number in range(2, 50)]
        assert "reconnecting" in await tail.line("stderr")


async def test_serve_runs_what_check_config_accepts(tmp_path: Path) -> None:
    """A configuration that is found good starts; options win over it."""
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    file = tmp_path / "broker.toml"
    file.write_text(
        """
        [server]
        listen = "127.0.0.1:1"
        admin_listen = "127.0.0.1:0"
        data_dir = "state"
        [stream]
        max_bytes = "64MiB"
        [permissions]
        subscribe = [">"]
        [[auth.keys]]
        name = "main"
        secret_file = "secret"
        tenants = ["acme"]
        """
    )
    assert (await command.broker("check-config", file)).code == 0
    data_dir = tmp_path / "state"
    async with command.start("serve", "--config", file, "--listen", "127.0.0.1:0") as running:
        await running.until('"ready"', "stderr")
        token = (await command.broker("token", "--config", file, "--tenant", "acme")).out.strip()
        assert (
            await command.broker("publish", "a", "1", "--tenant", "acme", "--data-dir", data_dir)
        ).code == 0
        seen = await command.broker(
            *("tail", "a", "--last", "1", "--count", "1", "--raw", "--token", token), "--data-dir", data_dir
        )
        assert (seen.code, seen.out) == (0, "1\n")
        running.process.send_signal(signal.SIGINT)
        assert await running.end() == 0


async def test_a_second_dev_in_the_same_directory_is_told(tmp_path: Path) -> None:
    """Two brokers on one store would be one too many: the second says so and leaves the first alone."""
    async with dev(tmp_path):
        before = state(tmp_path)
        options = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", tmp_path)
        second = await command.broker("dev", *options)
        assert (second.code, second.out) == (1, "")
        assert "Traceback" not in second.err
        assert state(tmp_path) == before


async def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    """An address that was asked for and is in use is a sentence with its key, not a traceback."""
    async with dev(tmp_path / "one"):
        listen = state(tmp_path / "one")["ws"].removeprefix("ws://").removesuffix("/ws")
        second = await command.broker("dev", "--listen", listen, "--data-dir", tmp_path / "other")
        assert second.code == 1
        assert "Traceback" not in second.err
        assert "server.listen" in second.err
