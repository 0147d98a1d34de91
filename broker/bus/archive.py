"""A stream for operators: list messages newest first, show one in full, delete one or all of a subject."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import TYPE_CHECKING

import attrs

from broker.bus import api
from broker.bus.base import Entry
from broker.bus.history import ADDED, PAGE_BYTES, History
from broker.nats import headers

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = 256
WIDER = 4  # by which each step backwards grows


@attrs.define(eq=False)
class StreamArchive:
    """`bus.base.Archive` by direct get (ADR-31) and the JetStream API."""

    jetstream: api.JetStream
    history: History

    async def after(self, subject: str, sequence: int, *, limit: int) -> list[Entry]:
        found: list[Entry] = []
        pending = 1
        while pending and len(found) < limit:
            batch = min(PAGE, limit - len(found))
            page, pending = await self.page(subject, found[-1].sequence if found else sequence, batch)
            found += page
        return found

    async def before(self, subject: str, sequence: int | None, *, limit: int) -> list[Entry]:
        info = await self.jetstream.call(f"STREAM.INFO.{self.history.stream}")
        first, last = info["state"]["first_seq"], info["state"]["last_seq"]
        high = last if sequence is None else min(last, sequence - 1)
        start = await self.newest(subject, limit, low=first - 1, high=high)
        found = await self.after(subject, start, limit=limit)
        return [entry for entry in reversed(found) if entry.sequence <= high]

    async def newest(self, subject: str, limit: int, *, low: int, high: int) -> int:
        """Return a sequence that has exactly `limit` matches between it and `high`; `low` when there are
        fewer.

        Search by growing steps, then by bisection: three requests where most messages match, else some
        twenty.
        """
        beyond = await self.count(subject, high)
        few, step = high, limit
        while (at := max(low, high - step)) > low:
            found = await self.count(subject, at) - beyond
            if found >= limit:
                break
            few, step = at, step * WIDER
        while few - at > 1:
            middle = (at + few) // 2
            found = await self.count(subject, middle) - beyond
            if found == limit:
                return middle
            if found < limit:
                few = middle
            else:
                at = middle
        return at

    async def count(self, subject: str, sequence: int) -> int:
        """Return how many match after a sequence."""
        page, pending = await self.page(subject, sequence, 1)
        return len(page) + pending

    async def page(self, subject: str, sequence: int, limit: int) -> tuple[list[Entry], int]:
        """Return the next matches after a sequence, bounded by bytes too, and how many more there are."""
        query = {"seq": sequence + 1, "next_by_subj": subject, "batch": limit, "max_bytes": PAGE_BYTES}
        parts, pending = await self.history.batch(query)
        return [entry(fields, body) for fields, body in parts], pending

    async def sequence_at(self, time: datetime) -> int | None:
        return await self.history.sequence_at(time)

    async def get(self, sequence: int) -> Entry | None:
        try:
            answer = await self.jetstream.call(f"STREAM.MSG.GET.{self.history.stream}", {"seq": sequence})
        except api.ApiError as error:
            if error.number in api.NOT_THERE:
                return None
            raise
        message = answer["message"]
        return Entry(
            sequence=message["seq"],
            subject=message["subject"],
            time=datetime.fromisoformat(message["time"]),
            headers=headers.parse(base64.b64decode(message.get("hdrs", ""))),
            body=base64.b64decode(message.get("data", "")),
        )

    async def delete(self, sequence: int) -> bool:
        try:
            await self.jetstream.call(
                f"STREAM.MSG.DELETE.{self.history.stream}", {"seq": sequence, "no_erase": True}
            )
        except api.ApiError as error:
            if error.number in api.NOT_THERE:
                return False
            raise
        return True

    async def purge(self, subject: str) -> int:
        answer = await self.jetstream.call(f"STREAM.PURGE.{self.history.stream}", {"filter": subject})
        return int(answer["purged"])


def entry(fields: Mapping[str, str], body: bytes) -> Entry:
    """Return the entry for one message of a direct get."""
    return Entry(
        sequence=int(fields["Nats-Sequence"]),
        subject=fields["Nats-Subject"],
        time=datetime.fromisoformat(fields["Nats-Time-Stamp"]),
        headers={name: value for name, value in fields.items() if name not in ADDED},
        body=body,
    )
