"""Small values by key, the same for every broker: JetStream key-value buckets (ADR-8).

A put names the revision that it replaces, so that when two brokers write at once one of them is refused.
A key is read from the stream's leader, since a replica may not have the newest revision yet.
"""

from __future__ import annotations

import base64
import json
import secrets
from math import ceil
from typing import TYPE_CHECKING

import attrs

from broker.bus import api
from broker.bus.base import Mark, Stale, Value
from broker.bus.history import History

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.bus.base import Put
    from broker.nats.link import Part

PAGE = 1000
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
BATCHES_DISABLED = 10174  # the server's `err_code`
LONGEST_SECONDS = 100 * 366 * 86400  # the server counts nanoseconds in 64 bits: 292 years


@attrs.define(eq=False)
class Values:
    """`bus.base.Values` over the bucket called `name`."""

    jetstream: api.JetStream
    name: str
    atomic: bool = True  # until the server refuses a batch

    @property
    def stream(self) -> str:
        return f"KV_{self.name}"

    async def get(self, key: str) -> Value | None:
        """Return the newest value under a key, from the bucket's leader."""
        return await self.led({"last_by_subj": f"$KV.{self.name}.{key}"})

    async def led(self, query: Mapping[str, object]) -> Value | None:
        """Return one message from the bucket's leader; None when there is none."""
        try:
            answer = await self.jetstream.call(f"STREAM.MSG.GET.{self.stream}", query)
        except api.ApiError as error:
            if error.number in api.NOT_THERE:
                return None
            raise
        message = answer["message"]
        return Value(data=base64.b64decode(message.get("data", "")), revision=message["seq"])

    async def put(self, key: str, data: bytes, *, revision: int, ttl: float | None = None) -> int:
        """Replace a revision and return the new one. Raises `Stale`.

        `ttl` is rounded up to seconds (ADR-43).
        """
        link = await self.jetstream.up()
        fields = {EXPECTED: str(revision)}
        if ttl is not None:
            fields["Nats-TTL"] = f"{min(max(1, ceil(ttl)), LONGEST_SECONDS)}s"
        parts = await link.request(
            f"$KV.{self.name}.{key}", data, seconds=self.jetstream.seconds, fields=fields
        )
        try:
            return int(api.decode(parts[0][1], key)["seq"])
        except api.ApiError as error:
            if error.number == api.WRONG_LAST_SEQUENCE:
                raise Stale from error
            raise

    async def put_all(self, puts: Sequence[Put]) -> list[int | None]:
        """Replace revisions of different keys; return the new ones, None for each that was stale.

        As one atomic batch where the bucket supports that (ADR-50), so that the server syncs its disk once.
        When a batch is refused, each value is put by itself, all at once.
        """
        if self.atomic and len(puts) > 1 and (revisions := await self.put_batch(puts)) is not None:
            return revisions
        return outcomes(puts, await self.ask(puts, [{} for _ in puts]))

    async def put_batch(self, puts: Sequence[Put]) -> list[int | None] | None:
        """Put one batch and return the revisions; None when nothing of it was stored."""
        batch = secrets.token_hex(8)
        fields = [
            {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)} for number in range(1, len(puts) + 1)
        ]
        fields[-1]["Nats-Batch-Commit"] = "1"
        answers = await self.ask(puts, fields)
        told = [json.loads(body) for _, body in answers if body]
        last = told[-1] if told else {}
        if "batch" in last:
            return list(range(last["seq"] - len(puts) + 1, last["seq"] + 1))
        if any("error" not in each for each in told):
            self.atomic = False  # the server knows no batches, and stored each by itself
            return outcomes(puts, answers)
        if any(each["error"].get("err_code") == BATCHES_DISABLED for each in told):
            self.atomic = False
        return None

    async def ask(self, puts: Sequence[Put], fields: Sequence[Mapping[str, str]]) -> list[Part]:
        link = await self.jetstream.up()
        messages = [
            (f"$KV.{self.name}.{key}", data, {EXPECTED: str(revision), **more})
            for (key, data, revision), more in zip(puts, fields, strict=True)
        ]
        return await link.request_all(messages, seconds=self.jetstream.seconds)

    async def count(self, prefix: str) -> int:
        """Count the keys under a prefix."""
        query = {"subjects_filter": f"$KV.{self.name}.{prefix}.>"}
        info = await self.jetstream.call(f"STREAM.INFO.{self.stream}", query)
        return len(info["state"].get("subjects") or {})

    async def news(self, prefix: str, mark: Mark | None) -> tuple[list[bytes], Mark]:
        """Return what was put under a prefix since `mark`, and the new mark.

        Nothing is read while nothing in the bucket is newer. Pages come from any replica; one that has no
        more may lag, so the leader is asked too.
        """
        info = await self.jetstream.call(f"STREAM.INFO.{self.stream}")
        state = api.stream_state(info, incarnation=api.incarnation(info, 0))
        if mark is None or mark.incarnation != state.incarnation or mark.sequence > state.last:
            mark = Mark(incarnation=state.incarnation, sequence=0)
        found: list[bytes] = []
        reached = mark.sequence
        history = History(self.jetstream, self.stream)
        everything = f"$KV.{self.name}.{prefix}.>"
        while reached < state.last:
            page = await history.read(everything, after=reached, limit=PAGE)
            found += [body for _, _, body, _ in page.records]
            if page.records:
                reached = page.records[-1][0]
            elif value := await self.led({"seq": reached + 1, "next_by_subj": everything}):
                found.append(value.data)
                reached = value.revision
            else:
                reached = state.last  # the values there have expired
        return found, Mark(incarnation=state.incarnation, sequence=reached)


def outcomes(puts: Sequence[Put], answers: Sequence[Part]) -> list[int | None]:
    """Return the revision of each value that was stored, None for each that was stale.

    Raises `ApiError` for other refusals.
    """
    found: list[int | None] = []
    for (key, _, _), (_, body) in zip(puts, answers, strict=True):
        try:
            found.append(int(api.decode(body, key)["seq"]))
        except api.ApiError as error:
            if error.number != api.WRONG_LAST_SEQUENCE:
                raise
            found.append(None)
    return found
