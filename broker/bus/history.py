"""Reads of the past by batched direct get (ADR-31): pages by sequence, the newest by subject.

No consumer, no state in NATS; any replica answers, so a read may lag behind the feed by some seconds.
A batch is a run of messages, each naming the sequence before it, closed by one with a status; a run
with a hole, or without an end, is as good as none.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import attrs
import trio

from broker.bus import headers
from broker.bus.base import Page, Usage
from broker.bus.bridge import away

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.bus.api import JetStream
    from broker.bus.base import Record

PAGE_BYTES = 1024 * 1024  # of one read; a first record that is larger comes all the same
LAST_BYTES = 8 * 1024 * 1024  # of one batch of newest records: the server cuts off who has 64 MB waiting
LATE_SECONDS = (0.1, 0.4, 1.5)  # between questions to replicas, which may be late
LAST_SUBJECTS = 1000  # of one request: the server refuses more than 1,024
END_OF_BATCH = 204
NOTHING = 404

# What the server adds to the fields of a stored record.
ADDED = {
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
}


@attrs.define(eq=False)
class History:
    """Direct gets from one stream. All methods raise `Unavailable`."""

    jetstream: JetStream
    stream: str

    async def read(self, subject: str, *, after: int, limit: int) -> Page:
        """Return the page of `bus.base.Bus.read`."""
        return await self.get(
            {"seq": after + 1, "next_by_subj": subject, "batch": limit, "max_bytes": PAGE_BYTES}
        )

    async def last(self, subjects: Sequence[str], *, up_to: int) -> list[Record]:
        """Return the newest record of each, in the order of `bus.base.Bus.last`."""
        found: list[Record] = []
        if up_to <= 0:  # the server takes 0 for no bound at all
            return found
        for start in range(0, len(subjects), LAST_SUBJECTS):
            wanted = set(subjects[start : start + LAST_SUBJECTS])
            while wanted:
                page = await self.get(
                    {"multi_last": sorted(wanted), "up_to_seq": up_to, "max_bytes": LAST_BYTES}
                )
                found += page.records
                if not page.pending or not page.records:
                    break
                wanted.difference_update(record[1] for record in page.records)
        return sorted(found, key=lambda record: record[0])

    async def subjects(self, subject: str, *, limit: int) -> list[str] | None:
        """Return the subjects of `bus.base.Bus.subjects`; the server gives them in parts of 100,000."""
        names: list[str] = []
        while True:
            query = {"subjects_filter": subject, "offset": len(names)}
            info = await self.jetstream.call(f"STREAM.INFO.{self.stream}", query)
            if info.get("total", 0) > limit:
                return None
            part = info["state"].get("subjects") or {}
            names += part
            if not part or len(names) >= info["total"]:
                return names

    async def usage(self) -> Usage:
        """Return the answer of `bus.base.Bus.usage`."""
        info = await self.jetstream.call(f"STREAM.INFO.{self.stream}")
        state, most = info["state"], info["config"].get("max_bytes", -1)
        return Usage(
            messages=state["messages"],
            bytes=state["bytes"],
            first=state["first_seq"],
            last=state["last_seq"],
            max_bytes=most if most > 0 else None,
        )

    async def tally(self, subject: str, *, token: int) -> Counter[str]:
        """Return the counts of `bus.base.Bus.tally`, from the counts of all subjects in parts of 100,000."""
        found: Counter[str] = Counter()
        offset = 0
        while True:
            query = {"subjects_filter": subject, "offset": offset}
            info = await self.jetstream.call(f"STREAM.INFO.{self.stream}", query)
            part = info["state"].get("subjects") or {}
            for name, count in part.items():
                found[name.split(".", token + 1)[token]] += count
            offset += len(part)
            if not part or offset >= info["total"]:
                return found

    async def sequence_at(self, time: datetime) -> int | None:
        """Return the first sequence of `bus.base.Bus.sequence_at`.

        That there is none is believed only when the stream's leader knows of nothing so new: a replica that
        is late says so too.
        """
        query = {"start_time": time.astimezone(UTC).isoformat(), "batch": 1}
        for pause in LATE_SECONDS:
            page = await self.get(query)
            if page.records:
                return page.records[0][0]
            info = await self.jetstream.call(f"STREAM.INFO.{self.stream}")
            state = info["state"]
            if not state["messages"] or datetime.fromisoformat(state["last_ts"]) < time:
                return None
            await trio.sleep(pause)
        raise away(f"a replica of the stream {self.stream} is late")

    async def get(self, query: dict[str, object]) -> Page:
        """Return one batch as a page."""
        parts, pending = await self.batch(query)
        return Page(records=[record(fields, body) for fields, body in parts], pending=pending)

    async def batch(self, query: Mapping[str, object]) -> tuple[list[tuple[dict[str, str], bytes]], int]:
        """Return one batch, checked for holes: the fields and body of each message, and how many more
        match.
        """
        *parts, (end, _) = await self.jetstream.ask(f"DIRECT.GET.{self.stream}", query)
        status = headers.status(end)
        if status == NOTHING and not parts:
            return [], 0
        if status != END_OF_BATCH:
            raise away(f"reading the stream {self.stream}: {headers.text(end).split(chr(13))[0]}")
        found: list[tuple[dict[str, str], bytes]] = []
        last = 0
        for block, body in parts:
            fields = headers.parse(block)
            if int(fields["Nats-Last-Sequence"]) != last:
                self.hole()
            last = int(fields["Nats-Sequence"])
            found.append((fields, body))
        fields = headers.parse(end)
        if not found or int(fields["Nats-Last-Sequence"]) != last:
            self.hole()
        return found, int(fields["Nats-Num-Pending"])

    def hole(self) -> NoReturn:
        raise away(f"a part of what was read from the stream {self.stream} is missing")


def record(fields: dict[str, str], body: bytes) -> Record:
    own = {name: value for name, value in fields.items() if name not in ADDED}
    return int(fields["Nats-Sequence"]), fields["Nats-Subject"], body, own or None
