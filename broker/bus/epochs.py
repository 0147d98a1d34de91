"""The epoch of a stream in memory: a random name, in a key of its own.

Such a stream comes back with the same `created` and without its messages when its servers restart, so that
nothing of the stream itself tells one life from the next. Whoever finds no name stores one.
"""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker.bus import api
from broker.nats.link import away

if TYPE_CHECKING:
    from collections.abc import Mapping

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EPOCH = "epoch"  # in an answer to `STREAM.INFO`
TRIES = 5  # against other brokers that do the same


@attrs.define(eq=False, kw_only=True)
class Epochs:
    """What `bus.generations.Generations` is for a stream on disk; `subject` is the key of the epoch."""

    jetstream: api.JetStream
    stream: str
    subject: str

    def incarnation(self, info: Mapping[str, Any]) -> str:
        return str(info.get(EPOCH, ""))

    def advance(self, sequence: int, stored: int) -> None:
        """Do nothing: no position outlives the epoch."""

    async def keep(self) -> None:
        await trio.sleep_forever()

    async def info(self, **query: object) -> dict[str, Any]:
        """Return the answer to `STREAM.INFO`, with the epoch, if there is one."""
        info = await self.jetstream.call(f"STREAM.INFO.{self.stream}", query or None)
        return info | {EPOCH: await self.read()}

    async def settle(self) -> dict[str, Any]:
        """Return the same with an epoch, a new one if need be. Raise `Unavailable`."""
        for _ in range(TRIES):
            info = await self.info()
            if info[EPOCH]:
                return info
            await self.begin()
        raise away(f"other brokers keep changing the epoch of the stream {self.stream}")

    async def read(self) -> str:
        try:
            path = f"STREAM.MSG.GET.{self.stream}"
            found = await self.jetstream.call(path, {"last_by_subj": self.subject})
        except api.ApiError as error:
            if error.number in api.NOT_THERE:
                return ""
            raise
        return base64.b64decode(found["message"].get("data", "")).decode("ascii", "replace")

    async def begin(self) -> None:
        """Store a new epoch, unless another broker is first."""
        link = await self.jetstream.up()
        body = secrets.token_hex(6).encode()
        [(_, answer)] = await link.request_all(
            [(self.subject, body, {EXPECTED: "0"})], seconds=self.jetstream.seconds
        )
        try:
            api.acknowledged(answer, self.subject)
        except api.ApiError as error:
            if error.number not in (api.WRONG_LAST_SEQUENCE, api.WRONG_SEQUENCE):
                raise
