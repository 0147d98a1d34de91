"""Test whether the event stream would store an event, without storing one: it may not be ours to write to.

A publish that expects an impossible last sequence is answered by the stream's leader and stores nothing
(`Nats-Expected-Last-Sequence`, ADR-4). It does not detect a full stream: the server checks that later. So a
stream with `discard: new` is also asked how full it is, and the outcome of real publishes is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker.bus import api
from broker.nats.link import away
from broker.subjects import BROKER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.errors import Unavailable
    from broker.subjects import Names

ANSWER_SECONDS = 2.0
# A refusal expires: without publishers nothing else would clear it.
REMEMBERED_SECONDS = 30.0
IMPOSSIBLE = str(2**64 - 1)
PER_SUBJECT = "per subject"  # in the refusal of a message whose subject has reached its own limit


@attrs.define(eq=False)
class Probe:
    """Probe of the stream called `stream`; `accepted` and `refused` report publishes under any subject."""

    jetstream: api.JetStream
    stream: str
    names: Names
    refusal: str = ""
    refused_at: float = 0.0  # Trio's clock

    def accepted(self, subject: str) -> None:
        if self.concerns(subject):
            self.refusal = ""

    def refused(self, subject: str, error: Unavailable) -> None:
        """Record a refusal, or a missing answer, as from a server whose disk is full."""
        if self.concerns(subject) and PER_SUBJECT not in error.message:
            self.refusal, self.refused_at = error.message, trio.current_time()

    def concerns(self, subject: str) -> bool:
        return subject.startswith(f"{self.names.events}.")

    async def ask(self) -> None:
        """Raise `Unavailable` when the stream would not store an event."""
        subject = self.names.subject(BROKER, "probe")
        info = f"{self.jetstream.prefix}.STREAM.INFO.{self.stream}"
        link = await self.jetstream.up()
        (_, refusal), (_, state) = await link.request_all(
            [(subject, b"", {"Nats-Expected-Last-Sequence": IMPOSSIBLE}), (info, b"", {})],
            seconds=ANSWER_SECONDS,
        )
        try:
            api.decode(refusal, subject)
        except api.ApiError as error:
            if error.number != api.WRONG_LAST_SEQUENCE:
                raise
        if fault := full(api.decode(state, info)):
            raise away(f"the stream {self.stream} is full: {fault}")
        if self.refusal and trio.current_time() < self.refused_at + REMEMBERED_SECONDS:
            raise away(f"the stream {self.stream} did not store the last event: {self.refusal}")


def full(info: Mapping[str, Any]) -> str | None:
    """Return why a stream with `discard: new` has no room for another message of average size, or None."""
    settings, state = info["config"], info["state"]
    if settings.get("discard") != "new" or not state["messages"]:
        return None
    messages, size = state["messages"], state["bytes"]
    if 0 < settings["max_msgs"] <= messages:
        return f"max_msgs={settings['max_msgs']} with discard=new"
    if 0 < settings["max_bytes"] < size + size // messages:
        return f"max_bytes={settings['max_bytes']} with discard=new"
    return None
