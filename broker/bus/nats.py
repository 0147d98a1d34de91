"""The bus over NATS: one connection that is re-established for ever, and all requests over it."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.backoff import Backoff
from broker.beats import beat
from broker.bus import api, streams
from broker.bus.archive import StreamArchive
from broker.bus.generations import Generations
from broker.bus.history import History
from broker.bus.ingest import HELD_BYTES, HELD_RECORDS, SILENCE_SECONDS, Ingest
from broker.bus.keeper import Keeper
from broker.bus.keyed import NatsKeyed
from broker.bus.live import HELD_MESSAGES, Live
from broker.bus.looks import Looks
from broker.bus.probe import Probe
from broker.bus.values import Values
from broker.errors import BadAnswer, Timeout, TooLarge, Unavailable
from broker.nats.headers import check_lines, parse, status
from broker.nats.link import NobodyAnswers, NotPermitted, away, open_link
from broker.nats.servers import Servers
from broker.signals import Signal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from broker import config
    from broker.bus.base import Message, Page, PublishAck, Record, Sink, Standing, StreamState, Usage
    from broker.bus.streams import Wanted
    from broker.nats.link import Link
    from broker.nats.login import Server
    from broker.nats.protocol import Info
    from broker.subjects import Names

log = structlog.get_logger("broker.bus")

BACKOFF = Backoff(first=0.05, longest=1.0, jitter=0.5)  # short: all clients wait for it
PUBLISH_TRIES = 2
RETRY_SECONDS = 0.2
UPKEEP_SECONDS = 5.0


@attrs.define(eq=False, kw_only=True)
class NatsBus:
    """`bus.base.Bus` over NATS JetStream.

    `milestones` is the file for the milestone outside of NATS (see `bus.generations`). `embedded`: the
    server is the broker's own. `kept_by_key` are the keyed streams. `held_records`, `held_bytes` and
    `held_live` bound what was read and is not handed over yet.
    """

    nats: config.Nats
    stream: config.Stream
    names: Names
    audit: config.Audit
    milestones: Path | None = None
    embedded: bool = False
    kept_by_key: Sequence[Wanted] = ()
    held_records: int = HELD_RECORDS
    held_bytes: int = HELD_BYTES
    held_live: int = HELD_MESSAGES

    servers: Servers = attrs.field(init=False)
    sink: Sink | None = attrs.field(default=None, init=False)  # while it is being fed
    arrived: Signal = attrs.field(factory=Signal, init=False)
    jetstream: api.JetStream = attrs.field(init=False)
    history: History = attrs.field(init=False)
    keeper: Keeper = attrs.field(init=False)
    generations: Generations = attrs.field(init=False)
    looks: Looks = attrs.field(init=False)
    ingest: Ingest = attrs.field(init=False)
    live: Live = attrs.field(init=False)
    takes: Probe = attrs.field(init=False)
    cursors: Values = attrs.field(init=False)
    control: Values = attrs.field(init=False)
    by_key: dict[str, NatsKeyed] = attrs.field(init=False)
    info: Info | None = attrs.field(default=None, init=False)  # of the server, as last looked at
    looking: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    questions: int = attrs.field(default=0, init=False)  # requests of `state` begun
    seen: StreamState | Unavailable | None = attrs.field(default=None, init=False)  # outcome of the last

    def __attrs_post_init__(self) -> None:
        self.servers = Servers.parse(self.nats.urls)
        domain = self.nats.jetstream_domain
        prefix = f"$JS.{domain}.API" if domain else "$JS.API"
        self.jetstream = api.JetStream(prefix, self.nats.request_seconds)
        self.history = History(self.jetstream, self.stream.name)
        self.control = Values(self.jetstream, self.stream.control_bucket)
        self.keeper = Keeper(
            jetstream=self.jetstream,
            control=self.control,
            wanted={each.name: each for each in self.wanted()},
            embedded=self.embedded,
            adopted=frozenset([self.stream.name] if self.stream.adopt else []),
        )
        self.generations = Generations(
            jetstream=self.jetstream,
            values=self.control,
            stream=self.stream.name,
            file=self.milestones,
            changed=lambda: self.ingest.outdated(),
            owns=self.keeper.owns,
        )
        self.looks = Looks(self.generations)
        self.ingest = Ingest(
            self.jetstream,
            self.generations,
            self.looks,
            self.history,
            self.stream.name,
            self.arrived.set,
            held_records=self.held_records,
            held_bytes=self.held_bytes,
        )
        self.live = Live(held_messages=self.held_live)
        self.takes = Probe(self.jetstream, self.stream.name, self.names)
        self.cursors = Values(self.jetstream, self.stream.cursor_bucket)
        self.by_key = {
            each.name: NatsKeyed(
                jetstream=self.jetstream,
                keeper=self.keeper,
                control=self.control,
                wanted=each,
                milestones=self.milestones and self.milestones.with_name(f"stream.{each.name}.json"),
            )
            for each in self.kept_by_key
        }

    async def run(self, sink: Sink, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, make the streams, feed `sink`, and begin again whenever the connection is lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.generations.keep)
            nursery.start_soon(self.upkeep)
            task_status.started()
            await self.connect_again(sink)

    async def connect_again(self, sink: Sink) -> None:
        """Feed the sink over one connection after another."""
        said = ""
        while True:
            for failures, server in enumerate(self.servers.rounds()):
                told = False
                try:
                    async with self.connected(server) as link:
                        self.look_around(link)  # before all that may fail here, and work with another one
                        await self.prepare()
                        await self.live.renew(link)
                        await sink.reached()
                        await self.ingest.open(sink)
                        log.info("nats_reached", server=str(server), head=self.ingest.head)
                        told, said = True, ""
                        for each in self.by_key.values():
                            each.reached(link)
                        await self.feed(link, sink)
                except Unavailable as error:
                    self.jetstream.trouble = error.message
                    if error.message != said:
                        log.warning("nats_unreachable", error=error.message)
                        said = error.message
                if told:
                    sink.interrupted()
                await trio.sleep(BACKOFF.delay(0 if told else failures))
                if told:
                    break

    @asynccontextmanager
    async def connected(self, server: Server) -> AsyncIterator[Link]:
        """Open a connection, and use it for all requests while it lasts."""
        async with open_link(server, self.nats, on_news=self.news, on_read=self.hand_over) as link:
            self.jetstream.link = link
            try:
                yield link
            finally:
                self.jetstream.link, self.jetstream.trouble = None, link.reason or self.jetstream.trouble
                self.live.forget()

    def wanted(self) -> list[Wanted]:
        """Return the streams that the broker works with; first the control bucket, which knows ours."""
        found = [
            streams.control(self.stream),
            streams.events(self.stream, self.names),
            streams.dead_letters(self.stream, self.names),
            streams.own(self.stream, self.names),
            streams.cursors(self.stream),
        ]
        if self.audit.enabled:
            found.append(streams.audit(self.audit, self.stream.replicas))
        return [*found, *self.kept_by_key]

    async def prepare(self) -> None:
        """Make the streams that are missing and that events cannot do without."""
        for name in self.keeper.wanted:
            if name != self.audit.name and name not in self.by_key:
                await self.keeper.ensure(name)

    async def upkeep(self) -> None:
        """Recreate deleted streams, for ever: the connection gives no sign of a deletion."""
        said = ""
        while True:
            await beat(UPKEEP_SECONDS)
            link = self.jetstream.link
            try:
                if link is not None:
                    await self.keeper.keep([name for name in self.keeper.wanted if name != self.audit.name])
                    said = ""
            except Unavailable as error:
                if error.message != said and link is self.jetstream.link:  # else that is logged
                    log.warning("streams_not_kept", error=error.message)
                    said = error.message

    async def feed(self, link: Link, sink: Sink) -> None:
        """Give `sink` what arrives until the connection is lost. Raises `Unavailable` then."""
        self.sink = sink
        try:
            while True:
                if self.ingest.waiting or self.live.waiting:
                    await trio.lowlevel.checkpoint()
                else:
                    with trio.move_on_after(SILENCE_SECONDS):
                        await self.arrived.wait()
                link.check()
                self.look_around(link)
                self.live.hand_over(sink)
                await self.ingest.mend(sink)
        finally:
            self.sink = None

    def news(self) -> None:
        """Wake whoever feeds a sink: the connection is lost, or has something else to say."""
        self.arrived.set()
        for each in self.by_key.values():
            each.arrived.set()

    def hand_over(self) -> None:
        """Give the sink what has just been read; what that leaves over is for `feed`."""
        if self.sink is not None:
            self.live.hand_over(self.sink)
            if not self.ingest.hand_over(self.sink) or self.live.waiting:
                self.arrived.set()
        for each in self.by_key.values():
            each.hand_over()

    def look_around(self, link: Link) -> None:
        """Note which servers the cluster has. Raises `Unavailable` when this one is about to leave it."""
        if link.info is not self.info:
            self.info = link.info
            self.servers.name(link.info.servers, link.server)
            if link.info.lame_duck and self.servers.leave(link.server):
                raise away(f"{link.server} closes its connections soon (lame duck): on to the next")

    async def publish(
        self,
        subject: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
    ) -> PublishAck:
        """Store one message and wait for the stream's acknowledgement.

        Without one it is sent again under the same id. Raises `TooLarge` above the server's limit,
        `ValueError` for an invalid subject or header, and `Unavailable`; the message may then have been
        stored all the same.
        """
        fields = {**(headers or {}), "Nats-Msg-Id": message_id or secrets.token_hex(16)}
        check_lines(fields)
        for attempt in range(1, PUBLISH_TRIES + 1):
            try:
                ack = await self.store(subject, body, fields)
            except api.ApiError as error:
                if error.number == api.MESSAGE_TOO_LARGE:
                    raise TooLarge(error.message) from error
                self.takes.refused(subject, error)
                raise
            except Unavailable as error:
                if self.jetstream.link is None:
                    raise
                if attempt == PUBLISH_TRIES:
                    self.takes.refused(subject, error)
                    raise
                await trio.sleep(RETRY_SECONDS)
            else:
                self.takes.accepted(subject)
                # A duplicate by our own repetition is nobody else's concern.
                return ack if message_id else attrs.evolve(ack, duplicate=False)
        raise AssertionError("the last try returns or raises")

    async def store(self, subject: str, body: bytes, fields: Mapping[str, str]) -> PublishAck:
        link = await self.jetstream.up()
        seconds = self.nats.request_seconds / PUBLISH_TRIES
        parts = await link.request(subject, body, seconds=seconds, fields=fields)
        return api.acknowledged(parts[0][1], subject)

    async def publish_all(self, messages: Sequence[Message]) -> None:
        """Store messages, all on their way at once, and return when the stream has acknowledged each."""
        link = await self.jetstream.up()
        said = [(subject, body, {"Nats-Msg-Id": message_id}) for subject, body, message_id in messages]
        answers = await link.request_all(said, seconds=self.nats.request_seconds)
        for (subject, _, _), (_, body) in zip(messages, answers, strict=True):
            api.acknowledged(body, subject)

    @property
    def heard(self) -> float | None:
        """The time (Trio's clock) of the feed's last sign of life; None before the first."""
        return self.ingest.signed

    async def probe(self) -> None:
        """Ask the stream whether it would store an event.

        Raises `Unavailable` with the reason it would not.
        """
        await self.takes.ask()

    async def prepare_audit(self) -> None:
        """Make the stream of the audit trail when it is missing."""
        await self.keeper.ensure(self.audit.name)

    @property
    def streams(self) -> list[str]:
        """The names of the streams that the broker works with."""
        return list(self.keeper.wanted)

    async def examine(self, stream: str) -> Standing:
        """Compare one of the broker's streams with the configuration. Raises `NotFound` for another one."""
        async with self.aside() as keeper:
            return await keeper.examine(stream)

    async def adopt(self, stream: str) -> Standing:
        """Make the stream ours and as configured; return how it stood before."""
        async with self.aside() as keeper:
            return await keeper.adopt(stream)

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[Keeper]:
        """Open a keeper over its own connection: there is no other while a stream cannot be used."""
        async with AsyncExitStack() as stack:
            link = await self.reach_any(stack)
            jetstream = attrs.evolve(self.jetstream, link=link)
            control = attrs.evolve(self.control, jetstream=jetstream)
            yield attrs.evolve(self.keeper, jetstream=jetstream, control=control)

    async def reach_any(self, stack: AsyncExitStack) -> Link:
        """Return a connection to the first server that lets us in. Raises `Unavailable` when none does."""
        failures = []
        for server in islice(self.servers.rounds(), self.servers.count):
            try:
                return await stack.enter_async_context(open_link(server, self.nats))
            except Unavailable as error:
                failures.append(error.message)
        raise away("; ".join(failures))

    async def publish_live(
        self, subject: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Hand one message to NATS without storing it, and return when the server has taken it."""
        check_lines(headers or {})
        link = await self.jetstream.up()
        await link.send(subject, body, fields=headers)
        await link.flush(self.nats.request_seconds)

    async def request(
        self, subject: str, body: bytes, *, headers: Mapping[str, str], seconds: float
    ) -> tuple[Mapping[str, str], bytes]:
        """Ask the services that subscribe to `subject`; return the headers and the body of the first answer.

        See `bus.base.Bus`.
        """
        link = await self.jetstream.up()
        link.check()  # up to here nothing has been sent
        try:
            ((block, answer),) = await link.request(subject, body, seconds=seconds, fields=headers)
        except (NobodyAnswers, NotPermitted) as error:
            raise Unavailable(f"no service answers on {subject}", retry_after=error.retry_after) from error
        except Unavailable as error:
            why = error.message if link.lost.is_set() else f"no answer within {seconds:g} s"
            raise Timeout(f"{why}: whether the service has acted is not known") from error
        if code := status(block):  # what NATS says of its own, for example to who passes requests on to it
            raise BadAnswer(f"the answer is a status of NATS: {code}")
        return parse(block), answer

    async def subscribe_live(self, subject: str) -> None:
        """Have messages of `subject` given to `Sink.live`, and return once NATS has confirmed it.

        When this raises `Unavailable` nothing is subscribed, now or later.
        """
        await self.live.subscribe(await self.jetstream.up(), subject)

    async def unsubscribe_live(self, subject: str) -> None:
        """End the subscription, also while NATS is away."""
        await self.live.unsubscribe(self.jetstream.link, subject)

    async def state(self) -> StreamState:
        """Return the state of the stream now. Simultaneous requests share one answer.

        It is never older than the call: a call that comes while a request is under way shares the next.
        """
        begun = self.questions
        async with self.looking:
            if self.questions == begun or self.seen is None:
                self.questions, self.seen = self.questions + 1, None
                try:
                    self.seen = await self.looks.look()
                    self.ingest.compare(self.seen)
                except Unavailable as error:
                    self.seen = error
        if isinstance(self.seen, Unavailable):
            raise away(self.seen.message)
        return self.seen

    async def usage(self) -> Usage:
        """Return how much the stream holds."""
        return await self.history.usage()

    async def tally(self, subject: str, *, token: int) -> Mapping[str, int]:
        """Count the messages under a filter, by one token of their subjects."""
        return await self.history.tally(subject, token=token)

    async def read(self, subject: str, *, after: int, limit: int) -> Page:
        """Return at most `limit` stored records that match the subject filter, after the sequence `after`."""
        return await self.history.read(subject, after=after, limit=limit)

    async def next(self, subject: str, *, after: Sequence[int]) -> Page:
        """Return the first record after each of some sequences that matches the subject filter."""
        return await self.history.next(subject, after=after)

    async def get(self, sequences: Sequence[int]) -> Page:
        """Return the records at some sequences, without those that are not there."""
        return await self.history.exact(sequences)

    async def last(self, subjects: Sequence[str], *, up_to: int) -> list[Record]:
        """Return the newest record at or below `up_to` of each of the subjects, in sequence order."""
        return await self.history.last(subjects, up_to=up_to)

    async def subjects(self, subject: str, *, limit: int) -> list[str] | None:
        """Return the subjects under a filter that hold a message, or None when they are more than `limit`."""
        return await self.history.subjects(subject, limit=limit)

    async def sequence_at(self, time: datetime) -> int | None:
        """Return the sequence of the first record stored at or after `time`; None when there is none yet."""
        return await self.history.sequence_at(time)

    def archive(self, stream: str) -> StreamArchive:
        """Return a stream by its name, for operators."""
        return StreamArchive(self.jetstream, History(self.jetstream, stream))

    def keyed(self, stream: str) -> NatsKeyed:
        """Return one of the keyed streams by its name."""
        return self.by_key[stream]
