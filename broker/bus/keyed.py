"""A keyed stream: one message per subject, read by an ordered feed, written by compare-and-set.

It has its own task over the connection of the bus, so that events wait for nothing here.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import structlog
import trio

from broker.backoff import Backoff
from broker.beats import beat
from broker.bus import api
from broker.bus.base import Count, NoRoom, OutcomeUnknown, Stale
from broker.bus.epochs import Epochs
from broker.bus.generations import Generations
from broker.bus.history import LAST_BYTES, LAST_SUBJECTS, LATE_SECONDS, History, record
from broker.bus.ingest import HELD_BYTES, HELD_RECORDS, SILENCE_SECONDS, Ingest
from broker.bus.looks import Looks
from broker.bus.streams import MARKER_SECONDS
from broker.errors import BrokerError, TooLarge, Unavailable
from broker.nats import headers as fields_of
from broker.nats.link import NobodyAnswers, NotPermitted, away
from broker.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from broker.bus.base import AnyPut, Feed, KeyedPut, Record
    from broker.bus.keeper import Keeper
    from broker.bus.streams import Wanted
    from broker.bus.values import Values
    from broker.nats.link import Link, Part, Said

log = structlog.get_logger("broker.bus")

BACKOFF = Backoff(first=0.1, longest=2.0, jitter=0.5)
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
LOOK_SECONDS = 600.0  # between looks whether a mark is due
HOUR = 3600.0
HOURS = int(MARKER_SECONDS / HOUR) + 24  # of which marks are kept


@attrs.define(eq=False, kw_only=True)
class NatsKeyed:
    """`bus.base.Keyed` over a stream of NATS JetStream. `milestones` is as in `NatsBus`."""

    jetstream: api.JetStream
    keeper: Keeper
    control: Values
    wanted: Wanted
    milestones: Path | None = None

    history: History = attrs.field(init=False)
    generations: Generations | Epochs = attrs.field(init=False)
    looks: Looks = attrs.field(init=False)
    ingest: Ingest = attrs.field(init=False)
    link: Link | None = attrs.field(default=None, init=False)
    linked: Signal = attrs.field(factory=Signal, init=False)
    arrived: Signal = attrs.field(factory=Signal, init=False)
    feed: Feed | None = attrs.field(default=None, init=False)  # while it is being fed
    crash: Exception | None = attrs.field(default=None, init=False)  # that the feed has raised
    marked: int = attrs.field(default=0, init=False)  # the head at the last mark

    def __attrs_post_init__(self) -> None:
        self.history = History(self.jetstream, self.name)
        if self.in_memory:
            epoch = f"{self.prefix}_broker.epoch"
            self.generations = Epochs(
                jetstream=self.jetstream,
                stream=self.name,
                subject=epoch,
                changed=lambda: self.ingest.outdated(),
            )
        else:
            self.generations = Generations(
                jetstream=self.jetstream,
                values=self.control,
                stream=self.name,
                file=self.milestones,
                changed=lambda: self.ingest.outdated(),
                owns=self.keeper.owns,
            )
        self.looks = Looks(self.generations, reads=False)
        self.ingest = Ingest(
            self.jetstream,
            self.generations,
            self.looks,
            self.history,
            self.name,
            self.arrived.set,
            held_records=HELD_RECORDS,
            held_bytes=HELD_BYTES,
            head_start=False,
        )

    @property
    def name(self) -> str:
        return self.wanted.name

    @property
    def prefix(self) -> str:
        """The beginning of all its subjects."""
        filter_: str = self.wanted.required["subjects"][0]
        return filter_.removesuffix(">")

    @property
    def in_memory(self) -> bool:
        return bool(self.wanted.required["storage"] == "memory")

    # --- the feed ------------------------------------------------------------------------------------

    def reached(self, link: Link) -> None:
        """Work over this connection, on which events are fed already."""
        self.link = link
        self.linked.set()

    async def run(self, feed: Feed) -> None:
        """Feed `feed` for ever, see `bus.base.Keyed`."""
        crashed: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.generations.keep)
            nursery.start_soon(self.mark_hours)
            try:
                await self.feed_on(feed)
            except Exception as error:  # a nursery would wrap it into a group
                crashed = error
            nursery.cancel_scope.cancel()
        if crashed is not None:
            raise crashed

    async def feed_on(self, feed: Feed) -> None:
        said, failures = "", 0
        while True:
            link = self.link
            if link is None or link.lost.is_set():
                await self.linked.wait()
                continue
            told = False
            try:
                await self.keeper.ensure(self.name)
                await self.ingest.open(feed)
                told, said, failures = True, "", 0
                await self.hand_on(link, feed)
            except Unavailable as error:
                if error.message != said and not link.lost.is_set():  # else that is logged
                    log.warning("stream_unavailable", stream=self.name, error=error.message)
                    said = error.message
            if told:
                feed.interrupted()
            await trio.sleep(BACKOFF.delay(failures))
            failures += 1

    async def hand_on(self, link: Link, feed: Feed) -> None:
        """Give `feed` what arrives until the connection is lost. Raises `Unavailable` then."""
        self.feed, self.crash = feed, None
        try:
            while True:
                if self.ingest.waiting:
                    await trio.lowlevel.checkpoint()
                else:
                    with trio.move_on_after(SILENCE_SECONDS):
                        await self.arrived.wait()
                if self.crash is not None:
                    raise self.crash
                link.check()
                await self.ingest.mend(feed)
        finally:
            self.feed = None

    def hand_over(self) -> None:
        """Give the feed what has just been read. What fails here must not fail for the events."""
        if self.feed is None or self.crash is not None:
            return
        try:
            if not self.ingest.hand_over(self.feed):
                self.arrived.set()
        except Exception as error:  # any: it ends the feed of documents alone
            self.crash = error
            self.arrived.set()

    # --- reading -------------------------------------------------------------------------------------

    async def load(
        self, filters: Sequence[str], *, at_least: int, take: Callable[[list[Record]], None]
    ) -> str:
        """Give `take` the newest record of each key under some filters: first the names, then by these.

        A get by names takes a millisecond where one by a wildcard scans the stream.
        """
        subjects = [each for each in filters if not wild(each)]
        info = await self.generations.info()
        for each in filters:
            if wild(each):
                names = await self.history.subjects(each, limit=1 << 62)
                subjects += names or ()
        state = await self.looks.understand(info)
        if state.last < at_least:
            raise away(f"the stream {self.name} ends before {at_least}; it may have another leader")
        replicas = info["config"].get("num_replicas", 1) > 1
        names = list(dict.fromkeys(subjects))
        for start in range(0, len(names), LAST_SUBJECTS):
            missing = await self.newest(names[start : start + LAST_SUBJECTS], at_least, take)
            if replicas and missing:  # a replica may not have them yet
                take(await self.led(sorted(missing)))
        return state.incarnation

    async def newest(
        self, subjects: Sequence[str], at_least: int, take: Callable[[list[Record]], None]
    ) -> set[str]:
        """Take the newest records of at most `LAST_SUBJECTS` keys, from a replica that is not too late.

        Return the keys that have none.
        """
        wanted = set(subjects)
        late = iter(LATE_SECONDS)
        while wanted:
            query = {"multi_last": sorted(wanted), "max_bytes": LAST_BYTES}
            parts, end = await self.history.whole(query)
            if parts and int(end.get("Nats-UpTo-Sequence", at_least)) < at_least:
                if (pause := next(late, None)) is None:
                    raise away(f"a replica of the stream {self.name} lags behind")
                await trio.sleep(pause)
                continue
            page = [record(fields, body) for fields, body in parts]
            take(page)
            wanted.difference_update(each[1] for each in page)
            if not page or not int(end["Nats-Num-Pending"]):
                break
        return wanted

    async def led(self, subjects: Iterable[str]) -> list[Record]:
        """Return the newest records of some keys from the stream's leader."""
        path = f"{self.jetstream.prefix}.STREAM.MSG.GET.{self.name}"
        queries: list[Said] = [(path, json.dumps({"last_by_subj": each}).encode(), {}) for each in subjects]
        if not queries:
            return []
        link = await self.jetstream.up()
        answers = await link.request_all(queries, seconds=self.jetstream.seconds)
        found: list[Record] = []
        for _, body in answers:
            try:
                found.append(message(api.decode(body, path)["message"]))
            except api.ApiError as error:
                if error.number not in api.NOT_THERE:
                    raise
        return found

    async def count(self) -> Count:
        """Return how many keys there are."""
        info = await self.generations.info()
        state = await self.looks.understand(info)
        return Count(incarnation=state.incarnation, last=state.last, messages=int(info["state"]["messages"]))

    async def keys(self, filter_: str, *, at_least: int) -> list[str]:
        """Return the subjects of all keys under a filter."""
        count = await self.count()
        if count.last < at_least:
            raise away(f"the stream {self.name} ends before {at_least}; it may have another leader")
        return await self.history.subjects(filter_, limit=1 << 62) or []

    async def get(self, subject: str) -> Record | None:
        """Return the newest record of a key, from the stream's leader."""
        found = await self.led([subject])
        return found[0] if found else None

    # --- writing -------------------------------------------------------------------------------------

    async def put(self, subject: str, body: bytes, *, headers: Mapping[str, str], revision: int) -> int:
        """Replace a message by compare-and-set, see `bus.base.Keyed`."""
        said = (subject, body, {**headers, EXPECTED: str(revision)})
        [(_, answer)] = await self.send([said])
        return int(accepted(answer, subject)["seq"])

    async def put_each(self, puts: Sequence[AnyPut]) -> list[int | Stale | BrokerError]:
        """Replace messages, each by itself, see `bus.base.Keyed`."""
        said = [
            (subject, body, headers if revision is None else {**headers, EXPECTED: str(revision)})
            for subject, body, headers, revision in puts
        ]
        found: list[int | Stale | BrokerError] = []
        for (subject, _, _), (_, answer) in zip(said, await self.send(said), strict=True):
            try:
                found.append(int(accepted(answer, subject)["seq"]))
            except (Stale, BrokerError) as error:
                found.append(error)
        return found

    async def put_all(self, puts: Sequence[KeyedPut]) -> list[int]:
        """Replace messages of different subjects in one atomic batch (ADR-50)."""
        batch = secrets.token_hex(8)
        said = [
            (
                subject,
                body,
                {
                    **headers,
                    EXPECTED: str(revision),
                    "Nats-Batch-Id": batch,
                    "Nats-Batch-Sequence": str(number),
                },
            )
            for number, (subject, body, headers, revision) in enumerate(puts, 1)
        ]
        said[-1][2]["Nats-Batch-Commit"] = "1"
        if not self.batches():
            raise away("several documents at once need nats-server 2.12")
        answers = await self.send(said)
        for (subject, _, _), (_, answer) in zip(said, answers, strict=True):
            if answer:  # of all but the last only a refusal has a body
                last = accepted(answer, subject)
        end = int(last["seq"])
        return list(range(end - len(puts) + 1, end + 1))

    def batches(self) -> bool:
        """Return whether the server knows atomic batches; an older one stores each message by itself."""
        return self.link is not None and self.link.info.version >= (2, 12)

    async def send(self, said: Sequence[tuple[str, bytes, Mapping[str, str]]]) -> list[Part]:
        """Send messages, and return the answer to each."""
        for _, _, fields in said:
            fields_of.check_lines(fields)
        link = await self.jetstream.up()
        link.check()  # up to here nothing has been sent
        try:
            return await link.request_all(list(said), seconds=self.jetstream.seconds)
        except (NobodyAnswers, NotPermitted) as error:
            raise away(f"{said[0][0]}: {error.message}") from error
        except Unavailable as error:
            raise OutcomeUnknown(error.message) from error

    # --- deletions -----------------------------------------------------------------------------------

    async def remembers(self, sequence: int) -> bool:
        """Return whether all deletions after a sequence are still there.

        They stay for `MARKER_SECONDS`; so all is well if nothing after it is older. The first message that is
        younger tells, since one of them is at most as old as the last mark before.
        """
        if self.in_memory:  # nothing is left there that dates a sequence
            return False
        since = time.time() - MARKER_SECONDS
        info = await self.generations.info()
        if created_at(info) > since:
            return True
        first = await self.history.sequence_at(datetime.fromtimestamp(since, UTC))
        return sequence + 1 >= (info["state"]["last_seq"] + 1 if first is None else first)

    async def mark_hours(self) -> None:
        """Store a mark in each hour in which there is something new, for `remembers`.

        Of a stream in which the same keys are written again and again nothing else is left to tell when it
        had reached a sequence. All brokers together store one an hour.
        """
        while not self.in_memory:
            await beat(LOOK_SECONDS)
            if self.feed is None or self.ingest.head <= self.marked:
                continue
            try:
                await self.mark(int(time.time() / HOUR))
            except (Unavailable, Stale, OutcomeUnknown) as error:  # another broker was first, or later
                log.debug("mark_not_stored", stream=self.name, error=repr(error))

    async def mark(self, hour: int) -> None:
        """Store the mark of an hour, if it is not there."""
        subject = f"{self.prefix}_broker.mark.{hour % HOURS}"
        body = b"%d" % hour
        there = await self.get(subject)
        if there is None or there[2] != body:
            await self.put(subject, body, headers={}, revision=there[0] if there else 0)
        self.marked = self.ingest.head + 1


def created_at(info: Mapping[str, Any]) -> float:
    return api.nanoseconds(info["created"]) / 1e9


def wild(filter_: str) -> bool:
    return not {"*", ">"}.isdisjoint(filter_.split("."))


def accepted(answer: bytes, subject: str) -> dict[str, Any]:
    """Return the acknowledgement. Raises `Stale`, `TooLarge` and `Unavailable`."""
    try:
        found = api.decode(answer, subject)
    except api.ApiError as error:
        if error.number in (api.WRONG_LAST_SEQUENCE, api.WRONG_SEQUENCE):
            raise Stale from error
        if error.number == api.MESSAGE_TOO_LARGE:
            raise TooLarge(error.message) from error
        if error.number == api.STORE_FAILED:
            raise NoRoom(error.message, retry_after=error.retry_after) from error
        raise
    if type(found.get("seq")) is not int:
        raise away(f"{subject}: the answer is not that of a stream; does a service reply there?")
    return found


def message(found: Mapping[str, Any]) -> Record:
    """Return a message of `STREAM.MSG.GET` as a record."""
    return (
        found["seq"],
        found["subject"],
        base64.b64decode(found.get("data", "")),
        fields_of.parse(base64.b64decode(found.get("hdrs", ""))) or None,
    )
