"""The audit trail is worth no outage: without its stream the broker serves, and catches up when it can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from tests.support.broker import configure, run_broker

if TYPE_CHECKING:
    from pathlib import Path

    from broker.actors.supervisor import Supervisor
    from tests.support.broker import Broker
    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

PATIENCE_SECONDS = 45


async def kept(publisher: RawNats, kind: str) -> None:
    """Waits until the trail has a record of this kind."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            info: Any = await publisher.api("STREAM.INFO.AUDIT", subjects_filter=f"audit.acme.{kind}")
            if "error" not in info and info["state"].get("subjects"):
                return
            await trio.sleep(0.05)


async def test_its_stream_is_made_again(broker: Broker, publisher: RawNats) -> None:
    """Deleted while the broker runs, the stream comes back with the next record, which is not lost."""
    async with broker.client():
        await kept(publisher, "authenticated")
    await kept(publisher, "ended")
    assert (await publisher.api("STREAM.DELETE.AUDIT"))["success"]
    async with broker.client() as client:
        await kept(publisher, "authenticated")
        await client.subscribe(["a"])
        await publisher.store("events.acme.a", b"1")
        await client.events(1)


async def test_a_stream_in_its_way(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, supervisors: list[Supervisor]
) -> None:
    """Where its stream cannot be had the broker is ready all the same; once it can, the records are kept."""
    await publisher.api("STREAM.CREATE.AUDIT", name="AUDIT", subjects=["elsewhere.>"])
    settings = configure(tmp_path / "broker", nats.url)
    async with run_broker(tmp_path / "broker", settings) as broker, broker.client() as client:
        await client.subscribe(["a"])
        await publisher.store("events.acme.a", b"1")
        await client.events(1)
        trail = supervisors[0].audit
        with trio.fail_after(PATIENCE_SECONDS):
            while "elsewhere" not in trail.fault:
                await trio.sleep(0.05)
        assert trail.waiting
        await publisher.api("STREAM.DELETE.AUDIT")
        await kept(publisher, "authenticated")
