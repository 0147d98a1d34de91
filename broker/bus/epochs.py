"""The epoch of a stream in memory: a random name, in a key of its own.

Such a stream comes back with the same `created` and without its messages when its servers restart, so that
nothing of the stream itself tells one life from the next. Whoever finds no name stores one.
"""

from __future__ import annotations

import base64
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from broker.beats import beat
from broker.bus import api
from broker.errors import Unavailable
from broker.nats.link import away

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EPOCH, SEQUENCE = "epoch", "epoch_sequence"  # in an answer to `STREAM.INFO`
FORM = re.compile(r"[0-9a-f]{12}\Z")
LOOK_SECONDS = 2.0
TRIES = 5  # against other brokers that do the same


@attrs.define(eq=False, kw_only=True)
class Epochs:
    """What `bus.generations.Generations` is for a stream on disk; `subject` is the key of the epoch.

    `changed` is called when that is no longer the `current` one.
    """

    jetstream: api.JetStream
    stream: str
    subject: str
    changed: Callable[[], None]
    current: str = ""

    def incarnation(self, info: Mapping[str, Any]) -> str:
        return str(info.get(EPOCH, ""))

    def advance(self, sequence: int, stored: int) -> None:
        """Do nothing: no position outlives the epoch."""

    async def keep(self) -> None:
        """Look whether it is still the same, for ever: nothing tells of a purge."""
        while True:
            await beat(LOOK_SECONDS)
            with suppress(Unavailable):
                if self.current and (await self.read())[0] != self.current:
                    self.changed()

    async def info(self, **query: object) -> dict[str, Any]:
        """Return the answer to `STREAM.INFO`, with the epoch, if there is one."""
        info = await self.jetstream.call(f"STREAM.INFO.{self.stream}", query or None)
        epoch, sequence = await self.read()
        return info | {EPOCH: epoch, SEQUENCE: sequence}

    async def settle(self) -> dict[str, Any]:
        """Return the same with an epoch, a new one if need be. Raise `Unavailable`."""
        for _ in range(TRIES):
            info = await self.info()
            if info[EPOCH]:
                self.current = info[EPOCH]
                return info
            await self.begin(info[SEQUENCE])
        raise away(f"other brokers keep changing the epoch of the stream {self.stream}")

    async def read(self) -> tuple[str, int]:
        """Return the epoch, "" where there is none of a broker, and the sequence of its message, or 0."""
        try:
            path = f"STREAM.MSG.GET.{self.stream}"
            found = await self.jetstream.call(path, {"last_by_subj": self.subject})
        except api.ApiError as error:
            if error.number in api.NOT_THERE:
                return "", 0
            raise
        text = base64.b64decode(found["message"].get("data", "")).decode("ascii", "replace")
        return text if FORM.match(text) else "", found["message"]["seq"]

    async def begin(self, sequence: int) -> None:
        """Store a new epoch in place of that message, unless another broker is first."""
        link = await self.jetstream.up()
        body = secrets.token_hex(6).encode()
        [(_, answer)] = await link.request_all(
            [(self.subject, body, {EXPECTED: str(sequence)})], seconds=self.jetstream.seconds
        )
        try:
            api.acknowledged(answer, self.subject)
        except api.ApiError as error:
            if error.number not in (api.WRONG_LAST_SEQUENCE, api.WRONG_SEQUENCE):
                raise
