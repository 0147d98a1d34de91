"""The server configuration in config/nats, loaded by a real nats-server, and what its users may do."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats
import trio

from broker.bus.server import ended, find_binary, spawn
from tests.support.broker import configure, run_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FILE = Path(__file__).parents[2] / "config" / "nats" / "nats.conf"
PASSWORDS = {"BROKER_PASSWORD": "b-secret", "ACME_PASSWORD": "a-secret", "ANNOUNCER_PASSWORD": "n-secret"}
START_SECONDS = 20
SETTLE_SECONDS = 0.5  # in which a server would have objected


@asynccontextmanager
async def server(directory: Path) -> AsyncIterator[str]:
    """The configuration as it is, on free ports and with a store of its own; where it listens."""
    text = FILE.read_text()
    for ours, free in (
        ('"127.0.0.1:4222"', '"127.0.0.1:-1"'),
        ('"127.0.0.1:8222"', '"127.0.0.1:-1"'),
        ('"/var/lib/nats"', json.dumps(str(directory / "store"))),
    ):
        assert text.count(ours) == 1
        text = text.replace(ours, free)
    file = directory / "nats.conf"
    file.write_text(f"ports_file_dir: {json.dumps(str(directory))}\n{text}")
    log = directory / "nats.log"
    process = spawn([find_binary(), "-c", str(file), "-l", str(log)], env=os.environ | PASSWORDS)
    try:
        with trio.fail_after(START_SECONDS):
            while not (ports := list(directory.glob("*.ports"))) or not ports[0].read_text().endswith("}"):
                assert process.poll() is None, log.read_text()
                await trio.sleep(0.02)
        yield json.loads(ports[0].read_text())["nats"][0].removeprefix("nats://")
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await ended(process)


def attempt(address: str, user: str, subjects: list[str]) -> tuple[list[str], list[str]]:
    """A service publishes into each subject: which of them were stored, and what the server objected to."""
    stored: list[str] = []
    refused: list[str] = []

    async def main() -> None:
        async def objected(error: Exception) -> None:
            refused.append(str(error))

        client: Any = await nats.connect(
            f"nats://{address}",
            user=user,
            password=PASSWORDS[f"{user.upper()}_PASSWORD"],
            inbox_prefix=f"_INBOX_{user}".encode(),
            error_cb=objected,
        )
        jetstream = client.jetstream(timeout=SETTLE_SECONDS)
        for subject in subjects:
            try:
                await jetstream.publish(subject, b'"hello"')
                stored.append(subject)
            except (TimeoutError, nats.errors.TimeoutError, nats.js.errors.NoStreamResponseError):
                pass
        await client.close()

    asyncio.run(main())
    return stored, refused


async def test_each_user_keeps_to_its_own(tmp_path: Path) -> None:
    """The broker runs as its user; a tenant's service reaches its tenant's clients and nothing else."""
    secret = tmp_path / "nats.password"
    secret.touch(mode=0o600)
    secret.write_text(PASSWORDS["BROKER_PASSWORD"])
    async with server(tmp_path) as address:
        login = {"user": "broker", "password_file": secret}
        settings = configure(tmp_path / "broker", f"nats://{address}", nats=login)
        async with (
            run_broker(tmp_path / "broker", settings) as broker,
            broker.client("acme") as client,
            broker.client("globex") as other,
        ):
            await client.subscribe(">")
            await other.subscribe(">")
            wanted = ["events.acme.a", "events.globex.a", "events._all.a", "deadletter.acme.a"]
            wanted += ["$JS.API.STREAM.PURGE.EVENTS", "$KV.broker_cursors.a"]
            stored, refused = await trio.to_thread.run_sync(attempt, address, "acme", wanted)
            assert stored == ["events.acme.a"]
            assert len(refused) == len(wanted) - 1
            stored, _ = await trio.to_thread.run_sync(
                attempt, address, "announcer", ["events._all.b", "events.acme.b"]
            )
            assert stored == ["events._all.b"]
            assert [event["channel"] for event in await client.events(2)] == ["a", "b"]
            assert [event["channel"] for event in await other.events(1)] == ["b"]
            await client.quiet()
