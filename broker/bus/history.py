"""Reads of stored events by batched direct get (ADR-31): pages by sequence, the newest by subject.

No consumer and no state in NATS; any replica answers, so a read may lag some seconds behind the feed.
A batch is a sequence of messages, each with the sequence of the one before it, ended by one with a status;
a batch with a hole or without an end is discarded.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import attrs
import trio

from broker.bus.api import nanoseconds
from broker.bus.base import Page, Usage
from broker.nats import headers
from broker.nats.link import away

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.bus.api import JetStream
    from broker.bus.base import Record

PAGE_BYTES = 1024 * 1024  # of one read; a first record that is larger is read all the same
LAST_BYTES = 8 * 1024 * 1024  # of one batch of newest records: the server drops a client with 64 MB pending
LATE_SECONDS = (0.1, 0.4, 1.5)  # between requests to replicas, which may lag
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
        """Return the page as `bus.base.Bus.read` does."""
        return await self.get(
            {"seq": after + 1, "next_by_subj": subject, "batch": limit, "max_bytes": PAGE_BYTES}
        )

    async def next(self, subject: str, *, after: Sequence[int]) -> Page:
        """Return the records as `bus.base.Bus.next` does."""
        return await self.each([{"seq": sequence + 1, "next_by_subj": subject} for sequence in after])

    async def exact(self, sequences: Sequence[int]) -> Page:
        """Return the records as `bus.base.Bus.get` does."""
        return await self.each([{"seq": sequence} for sequence in sequences])

    async def each(self, queries: Sequence[Mapping[str, object]]) -> Page:
        """Return what the gets find, each record once, in order; all are on their way at once."""
        parts = await self.jetstream.ask_each(f"DIRECT.GET.{self.stream}", queries)
        for block, _ in parts:
            if headers.status(block) not in (0, NOTHING):
                raise away(f"reading the stream {self.stream}: {headers.text(block).split(chr(13))[0]}")
        found = {block: body for block, body in parts if not headers.status(block)}
        fields = [(headers.parse(block), body) for block, body in found.items()]
        return page(sorted(fields, key=lambda each: int(each[0]["Nats-Sequence"])), 0)

    async def last(self, subjects: Sequence[str], *, up_to: int) -> list[Record]:
        """Return the newest record of each subject, as `bus.base.Bus.last` does."""
        found: list[Record] = []
        if up_to <= 0:  # to the server 0 means no bound at all
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
        """Return the subjects as `bus.base.Bus.subjects` does; the server sends them in parts of 100,000."""
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
        """Return the usage as `bus.base.Bus.usage` does."""
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
        """Count as `bus.base.Bus.tally` does, from the counts of all subjects in parts of 100,000."""
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
        """Return the sequence as `bus.base.Bus.sequence_at` does.

        None only when the stream's leader confirms that nothing is so new: a replica that lags has none
        either.
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
        raise away(f"a replica of the stream {self.stream} lags behind")

    async def get(self, query: dict[str, object]) -> Page:
        """Return one batch as a page."""
        return page(*await self.batch(query))

    async def batch(self, query: Mapping[str, object]) -> tuple[list[tuple[dict[str, str], bytes]], int]:
        """Return the fields and body of each message of a batch without holes, and how many more match."""
        found, end = await self.whole(query)
        return found, int(end.get("Nats-Num-Pending", 0))

    async def whole(
        self, query: Mapping[str, object]
    ) -> tuple[list[tuple[dict[str, str], bytes]], dict[str, str]]:
        """Return the same messages, and the fields of the end; none where nothing matches."""
        *parts, (end, _) = await self.jetstream.ask(f"DIRECT.GET.{self.stream}", query)
        status = headers.status(end)
        if status == NOTHING and not parts:
            return [], {}
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
        return found, fields

    def hole(self) -> NoReturn:
        raise away(f"a message is missing from a batch of the stream {self.stream}")


def page(parts: Sequence[tuple[dict[str, str], bytes]], pending: int) -> Page:
    """Return messages, each as its fields and body, as a page."""
    return Page(
        records=[record(fields, body) for fields, body in parts],
        pending=pending,
        times=[nanoseconds(fields["Nats-Time-Stamp"]) for fields, _ in parts],
    )


def record(fields: dict[str, str], body: bytes) -> Record:
    own = {name: value for name, value in fields.items() if name not in ADDED}
    return int(fields["Nats-Sequence"]), fields["Nats-Subject"], body, own or None
