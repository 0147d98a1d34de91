"""A tenant that takes all it can get, as a process with the arguments NATS_URL WS_URL TOKEN.

It publishes 4,000 stored events a second, and ten clients subscribe and unsubscribe what they can, reading
what comes without a look at it.
"""

from __future__ import annotations

import itertools
import json
import random
import sys

import trio

from tests.faults.support.client import Client
from tests.support.rawnats import connect

RATE, BATCH = 4000, 40
CLIENTS = 10
CHANNELS = 100


async def publish(url: str) -> None:
    async with connect(url) as nats:
        due = trio.current_time()
        for number in itertools.count():
            body = json.dumps({"n": f"noise{number}"}).encode()
            channel = number % CHANNELS
            line = b"PUB events.noisy.orders.%d %d\r\n%b\r\n" % (channel, len(body), body)
            await nats.write(line * BATCH)
            due += BATCH / RATE
            await trio.sleep_until(due)


class Loud(Client):
    """Subscribes and unsubscribes all the time; what comes is read and thrown away."""

    async def read(self, buffer: bytearray) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.talk)
            while await self.more():
                pass

    async def talk(self) -> None:
        for number in itertools.cycle(range(CHANNELS)):
            channels = [f"orders.{(number + each) % CHANNELS}" for each in range(CHANNELS)]
            await self.say("subscribe", {"channel": channels})
            await self.say("unsubscribe", {"channel": channels[:50]})
            await trio.sleep(0.1)


async def main(*arguments: str) -> None:
    url, ws, token = arguments
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish, url)
        for number in range(CLIENTS):
            follower = Loud(
                name=f"loud{number}",
                tenant="noisy",
                user="loud",
                patterns=[],
                denied=[],
                token=lambda: token,
                address=lambda: ws,
                random=random.Random(number),
            )
            nursery.start_soon(follower.run)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
