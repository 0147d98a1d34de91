"""Clients without WebSocket over restarts of the broker and cuts: they get what everybody gets."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs
import trio

from tests.support.broker import Broker, configure, run_broker
from tests.support.polling import Poller
from tests.support.sse import listen

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

EVENTS, LIVES = 300, 3
LONG_AGO = "2020-01-01T00:00:00Z"


@attrs.define(eq=False)
class Follower:
    """A client that comes back for as long as it has not seen all; `broker` is the one that runs."""

    broker: Broker | None = None
    seen: list[int] = attrs.Factory(list)

    async def until_all(self) -> None:
        while len(self.seen) < EVENTS:
            if self.broker is not None:
                with contextlib.suppress(OSError, AssertionError, trio.BrokenResourceError):
                    await self.follow(self.broker)
            await trio.sleep(0.02)

    async def follow(self, broker: Broker) -> None:
        raise NotImplementedError


@attrs.define(eq=False)
class Streaming(Follower):
    """By Last-Event-ID alone, as an EventSource."""

    place: str = ""
    cuts: int = 0

    async def follow(self, broker: Broker) -> None:
        headers = {"Last-Event-ID": self.place} if self.place else {}
        token = broker.token(user="streaming")
        async with listen(broker.running.http, "a.*", token=token, headers=headers, since=LONG_AGO) as stream:
            for _ in range(40):  # then it cuts the link itself
                event = await stream.until("event")
                self.seen.append(event["event"])
                self.place = stream.place
        self.cuts += 1


@attrs.define(eq=False)
class Polling(Follower):
    """By its session, and by its position when that is gone with its broker."""

    poller: Poller | None = None

    async def follow(self, broker: Broker) -> None:
        url, token = broker.running.http, broker.token(user="polling")
        old, self.poller = self.poller, Poller(url, token, ["a.*"], {"since": LONG_AGO})
        if old:
            self.poller.session, self.poller.position = old.session, old.position
        found = await self.poller.poll(1)
        self.seen += [each["event"] for each in found["events"]]


async def test_over_restarts(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """A stream and a poll that are cut and drained again and again see each event once, in order."""
    streaming, polling = Streaming(), Polling()
    settings = configure(tmp_path / "b", nats.url)

    async def publish() -> None:
        for number in range(EVENTS):
            await publisher.store(f"events.acme.a.{number % 7}", b"%d" % number)
            await trio.sleep(0.01)

    async with run_broker(tmp_path / "b", settings):
        pass  # the stream is there
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        nursery.start_soon(streaming.until_all)
        nursery.start_soon(polling.until_all)
        for life in range(LIVES):
            async with run_broker(tmp_path / "b", settings) as broker:
                streaming.broker = polling.broker = broker
                with trio.fail_after(60):
                    goal = EVENTS if life == LIVES - 1 else EVENTS * (life + 1) // (LIVES + 1)
                    while min(len(streaming.seen), len(polling.seen)) < goal:
                        await trio.sleep(0.05)
                streaming.broker = polling.broker = None
    assert streaming.seen == polling.seen == list(range(EVENTS))
    assert streaming.cuts >= EVENTS // 40 - 2 * LIVES
