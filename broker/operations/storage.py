"""Stored events and dead letters for an operator: publish, read, replay, delete."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import structlog

from broker import subjects
from broker.actors.intake import parse
from broker.errors import BadMessage, Conflict, InvalidChannel, InvalidPosition, NotFound, TooLarge
from broker.eventlog.history import filters
from broker.operations import reports
from broker.wire import events, positions
from broker.wire.positions import Position
from broker.wire.times import parse_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from broker.actors.intake import Address
    from broker.actors.supervisor import Supervisor
    from broker.bus.base import Archive, Entry

PAGE = 100  # entries of one read, at most
SCANNED = 10_000  # entries read for one answer, when few of them match
ANSWER_BYTES = 8 * 1024 * 1024  # of bodies in one answer, roughly

log = structlog.get_logger()


@attrs.define(eq=False)
class Storage:
    """Operations on the streams, through the bus. The methods raise `BrokerError`s."""

    supervisor: Supervisor

    @property
    def page(self) -> int:
        """The number of entries to read at a time: fewer where events may be large."""
        return max(1, min(PAGE, ANSWER_BYTES // self.supervisor.config.limits.event_bytes))

    # --- events -------------------------------------------------------------------------------------

    async def publish(self, wish: reports.Publish) -> reports.Published:
        body = bytes(wish.event)
        address = self.address(wish.tenant, wish.channel)
        self.check(address, body)
        subject, bus = self.supervisor.names.subject(wish.tenant, wish.channel), self.supervisor.bus
        log.info("published_by_operator", tenant=wish.tenant, channel=wish.channel, bytes=len(body))
        if subjects.is_live(wish.channel):
            await bus.publish_live(subject, body)
            return reports.Published(position=None, duplicate=False)
        message_id = None if wish.id is None else f"{wish.tenant}:{wish.id}"
        ack = await bus.publish(subject, body, message_id=message_id)
        return reports.Published(position=self.text(ack.sequence), duplicate=ack.duplicate)

    def address(self, tenant: str, channel: str) -> Address:
        """Return the subject for an event. Raises `InvalidChannel`."""
        if subjects.expand_me(channel, "user") != channel:
            raise InvalidChannel(f"{subjects.shown(channel)}: write users.<user>.<name> instead of me.<name>")
        if tenant != subjects.BROADCAST and not subjects.is_tenant(tenant):
            raise InvalidChannel(f"{subjects.shown(tenant)}: is not a tenant name")
        subjects.parse_channel(channel)
        return self.parsed(self.supervisor.names.subject(tenant, channel))

    def parsed(self, subject: str) -> Address:
        address = parse(self.supervisor.names, subject)
        if address.fault:
            raise InvalidChannel(address.fault)
        if address.tenant == subjects.BROKER:
            raise InvalidChannel(f"{subjects.shown(subject)}: is reserved for the broker")
        return address

    def check(self, address: Address, body: bytes) -> None:
        """Raise `BadMessage` or `TooLarge` for what clients would not get as an event."""
        fault = events.fault(address.tenant, body, self.supervisor.config.limits.event_bytes)
        if fault:
            raise (TooLarge if fault.reason == "too_large" else BadMessage)(f"event: {fault.detail}")

    async def history(self, wish: reports.HistoryFilter) -> reports.HistoryPage:
        names, bus = self.supervisor.names, self.supervisor.bus
        pattern = subjects.parse_pattern(wish.channel)
        if subjects.is_live(pattern):
            raise InvalidChannel(f"{subjects.shown(pattern)}: live channels are not stored")
        if not subjects.is_tenant(wish.tenant):
            raise InvalidChannel(f"{subjects.shown(wish.tenant)}: is not a tenant name")
        starts = [name for name in ("since", "after", "last") if getattr(wish, name) is not None]
        if len(starts) > 1:
            raise BadMessage(f"{' and '.join(starts)} exclude each other")
        archive = bus.archive(self.supervisor.config.stream.name)
        state = await bus.state()
        keep = partial(self.is_event, pattern)
        found: list[Entry] = []
        ends: list[int] = []  # where one of the filters has more
        start = await self.start(wish, archive)
        for subject in filters(names, wish.tenant, [pattern]):
            if start is None:
                few = wish.last or wish.limit
                read: Read = partial(archive.before, subject, limit=self.page)
                entries, end = await collect(read, None, keep, few, self.page)
            else:
                read = partial(archive.after, subject, limit=self.page)
                entries, end = await collect(read, start, keep, wish.limit, self.page)
            ends += [] if end is None else [end]
            found += entries
        found.sort(key=lambda entry: entry.sequence)
        if start is None:
            # Older than where one filter stopped, another's would hide a hole.
            complete = [entry for entry in found if entry.sequence >= max(ends, default=0)]
            found, following = complete[-few:], None
        else:
            found, following = first(found, ends, wish.limit)
        return reports.HistoryPage(
            events=[self.event(entry) for entry in found],
            next=None if following is None else self.text(following),
            oldest=self.text(state.first),
        )

    async def start(self, wish: reports.HistoryFilter, archive: Archive) -> int | None:
        """Return the sequence after which to begin; None for the newest."""
        if wish.after is not None:
            position = positions.parse(wish.after)
            if position.incarnation != self.supervisor.intake.incarnation:
                raise InvalidPosition(
                    "after: belongs to an earlier stream; this one has been recreated since"
                )
            return position.sequence
        if wish.since is not None:
            sequence = await archive.sequence_at(parse_time(wish.since, "since"))
            return self.supervisor.intake.head if sequence is None else sequence - 1
        return None

    def is_event(self, pattern: str, entry: Entry) -> bool:
        address = parse(self.supervisor.names, entry.subject)
        limit = self.supervisor.config.limits.event_bytes
        return (
            address.fault is None
            and subjects.covers(pattern, address.channel)
            and events.fault(address.tenant, entry.body, limit) is None
        )

    def event(self, entry: Entry) -> reports.StoredEvent:
        tenant, channel = self.supervisor.names.split(entry.subject)
        return reports.StoredEvent(
            tenant=tenant,
            channel=channel,
            position=self.text(entry.sequence),
            time=rfc3339(entry.time),
            publisher=events.published_by(entry.headers),
            event=msgspec.Raw(events.to_event(entry.body, entry.headers)),
        )

    def text(self, sequence: int) -> str:
        return str(Position(self.supervisor.intake.incarnation, sequence))

    # --- dead letters -------------------------------------------------------------------------------

    @property
    def letters(self) -> Archive:
        return self.supervisor.bus.archive(self.supervisor.config.stream.deadletter_name)

    async def list_letters(self, wish: reports.LetterFilter) -> reports.LetterPage:
        read = partial(self.letters.before, self.letter_filter(wish), limit=self.page)
        found, following = await collect(
            read, wish.cursor, partial(has_reason, wish.reason), wish.limit, self.page
        )
        return reports.LetterPage(
            letters=[reports.LetterSummary(**letter_summary(entry)) for entry in found], next=following
        )

    def letter_filter(self, wish: reports.LetterSelection) -> str:
        if wish.tenant is None:
            return f"{self.supervisor.names.deadletter}.>"
        if not subjects.TENANT.match(wish.tenant):
            raise InvalidChannel(f"{subjects.shown(wish.tenant)}: is not a tenant name")
        return f"{self.supervisor.names.deadletter}.{wish.tenant}.>"

    async def letter(self, sequence: str) -> reports.LetterReport:
        entry = await self.get_letter(sequence)
        text, encoded = readable(entry.body)
        fault = None
        try:
            self.revive(entry)
        except Conflict as error:
            fault = error.message
        return reports.LetterReport(
            **letter_summary(entry),
            headers={printable(name): printable(value) for name, value in entry.headers.items()},
            body=text,
            body_base64=encoded,
            fault=fault,
        )

    async def get_letter(self, sequence: str) -> Entry:
        wanted = number(sequence)
        entry = await self.letters.get(wanted) if wanted else None
        if entry is None:
            raise NotFound(
                f"{sequence[:20]}: there is no such dead letter; it may have been replayed or deleted"
            )
        return entry

    def revive(self, entry: Entry, event: bytes | None = None) -> Address:
        """Return the subject and body for a replay, with another event or unchanged.

        Raises `Conflict` when it would be a dead letter again, and as `check` for the event that was given.
        """
        try:
            address = self.parsed(entry.headers.get("Broker-Subject", ""))
        except InvalidChannel as error:
            raise Conflict(f"{error.message}; publish it elsewhere, and delete it here") from None
        if event is not None:
            self.check(address, event)
            return address
        if "Broker-Body" in entry.headers:
            raise Conflict("its body was too large to be kept; give the event to publish instead")
        try:
            self.check(address, entry.body)
        except (BadMessage, TooLarge) as error:
            raise Conflict(f"{error.message}; give the event to publish instead") from None
        return address

    async def replay(self, sequence: str, wish: reports.Replay) -> reports.Replayed:
        """Publish a letter under its original subject, then delete it here.

        A retry is harmless: the stream knows the same letter with the same body.
        """
        entry = await self.get_letter(sequence)
        event = bytes(wish.event) if isinstance(wish.event, msgspec.Raw) else None
        address = self.revive(entry, event)
        body = entry.body if event is None else event
        digest = hashlib.sha256(body).hexdigest()[:16]
        ack = await self.supervisor.bus.publish(
            self.supervisor.names.subject(address.tenant, address.channel),
            body,
            message_id=f"{subjects.BROKER}:replay-{entry.sequence}-{digest}",
        )
        await self.letters.delete(entry.sequence)
        log.info(
            "dead_letter_replayed", sequence=entry.sequence, tenant=address.tenant, edited=event is not None
        )
        return reports.Replayed(
            tenant=address.tenant,
            channel=address.channel,
            position=self.text(ack.sequence),
            duplicate=ack.duplicate,
        )

    async def delete_letter(self, sequence: str) -> reports.Deleted:
        entry = await self.get_letter(sequence)
        return reports.Deleted(deleted=int(await self.letters.delete(entry.sequence)))

    async def purge_letters(self, wish: reports.LetterSelection) -> reports.Deleted:
        """Delete all that match; for a reason one by one, since only headers have it."""
        subject, deleted = self.letter_filter(wish), 0
        if wish.reason is None:
            deleted = await self.letters.purge(subject)
        else:
            page, before = await self.letters.before(subject, None, limit=self.page), 0
            while page:
                for entry in filter(partial(has_reason, wish.reason), page):
                    deleted += await self.letters.delete(entry.sequence)
                before = page[-1].sequence
                page = await self.letters.before(subject, before, limit=self.page)
        log.warning("dead_letters_purged", tenant=wish.tenant, reason=wish.reason, deleted=deleted)
        return reports.Deleted(deleted=deleted)


if TYPE_CHECKING:
    Read = Callable[[Any], Awaitable[list[Entry]]]


async def collect(
    read: Read, start: int | None, keep: Callable[[Entry], bool], limit: int, most: int
) -> tuple[list[Entry], int | None]:
    """Read pages until `limit` entries are kept; return them and where to continue, None at the end.

    `read` returns pages of `most` entries, the last one fewer. Stops earlier, perhaps with none, when it has
    read enough for one answer.
    """
    found: list[Entry] = []
    scanned = size = 0
    at = start
    while len(found) < limit and scanned < SCANNED and size < ANSWER_BYTES:
        page = await read(at)
        kept = list(filter(keep, page))
        found += kept
        if len(page) < most and len(found) <= limit:
            return found, None
        scanned, size = scanned + len(page), size + sum(len(entry.body) for entry in kept)
        at = page[-1].sequence
    return found[:limit], found[limit - 1].sequence if len(found) > limit else at


def first(found: list[Entry], ends: list[int], limit: int) -> tuple[list[Entry], int | None]:
    """Merge the entries of several filters as far as all are complete; return them and where to continue."""
    if ends:
        found = [entry for entry in found if entry.sequence <= min(ends)]
    if len(found) > limit:
        return found[:limit], found[limit - 1].sequence
    return found, min(ends) if ends else None


def has_reason(reason: str | None, entry: Entry) -> bool:
    return reason in (None, entry.headers.get("Broker-Reason"))


def letter_summary(entry: Entry) -> dict[str, Any]:
    """Return the fields of a `LetterSummary`."""
    return {
        "sequence": entry.sequence,
        "time": rfc3339(entry.time),
        "subject": printable(entry.headers.get("Broker-Subject", entry.subject)),
        "reason": printable(entry.headers.get("Broker-Reason", "")),
        "detail": printable(entry.headers.get("Broker-Detail", "")),
        "stored_sequence": number(entry.headers.get("Broker-Sequence", "")),
        "size": len(entry.body),
    }


def number(text: str) -> int:
    """Return a sequence in a header that anybody may have written; 0 for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def rfc3339(time: datetime) -> str:
    """Return the time to the millisecond."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def readable(body: bytes) -> tuple[str | None, str | None]:
    """Return a body as text, or in base64 when it is not text."""
    try:
        return body.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(body).decode()


def printable(text: str) -> str:
    """Return the text of a header, which may contain any byte."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
