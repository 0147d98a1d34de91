"""Small values by key, the same for every broker: a JetStream key-value bucket (ADR-8).

A put names the revision that it replaces, so that of two brokers that write at once one is told.
Reads ask the stream's leader, since a replica may not have the newest revision yet.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import attrs

from broker.bus import api
from broker.bus.base import Stale, Value

if TYPE_CHECKING:
    from broker import config

HISTORY_LOST = 10037  # the server's `err_code`s: no message found,
WRONG_LAST_SEQUENCE = 10071  # and another revision than the one that was to be replaced


def bucket(section: config.Stream) -> dict[str, Any]:
    """The configuration of the stream behind the bucket for cursors."""
    return {
        "name": f"KV_{section.cursor_bucket}",
        "subjects": [f"$KV.{section.cursor_bucket}.>"],
        "max_msgs_per_subject": 1,
        "max_age": round(section.cursor_max_age * 1e9),
        "num_replicas": section.replicas,
    }


@attrs.define(eq=False)
class Values:
    """The values of one bucket. All methods raise `Unavailable`."""

    jetstream: api.JetStream
    name: str

    async def get(self, key: str) -> Value | None:
        try:
            answer = await self.jetstream.call(
                f"STREAM.MSG.GET.KV_{self.name}", {"last_by_subj": f"$KV.{self.name}.{key}"}
            )
        except api.ApiError as error:
            if error.number == HISTORY_LOST:
                return None
            raise
        message = answer["message"]
        return Value(data=base64.b64decode(message.get("data", "")), revision=message["seq"])

    async def put(self, key: str, data: bytes, *, revision: int) -> int:
        """Replaces `revision` (0: there is none yet); the new one. Raises `Stale`."""
        link = await self.jetstream.up()
        parts = await link.request(
            f"$KV.{self.name}.{key}",
            data,
            seconds=self.jetstream.seconds,
            fields={"Nats-Expected-Last-Subject-Sequence": str(revision)},
        )
        try:
            return int(api.decode(parts[0][1], key)["seq"])
        except api.ApiError as error:
            if error.number == WRONG_LAST_SEQUENCE:
                raise Stale from error
            raise

    async def count(self, prefix: str) -> int:
        """How many keys there are under a prefix."""
        query = {"subjects_filter": f"$KV.{self.name}.{prefix}.>"}
        info = await self.jetstream.call(f"STREAM.INFO.KV_{self.name}", query)
        return len(info["state"].get("subjects") or {})
