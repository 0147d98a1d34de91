"""Documents for an operator: list, read, replace, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import msgspec
import structlog

from broker import subjects
from broker.bus.base import OutcomeUnknown, Stale
from broker.documents import values
from broker.documents.values import Invalid
from broker.errors import (
    BadMessage,
    Conflict,
    InvalidChannel,
    InvalidPosition,
    NotFound,
    Unavailable,
    UnknownOutcome,
)
from broker.features.state import store
from broker.operations import reports
from broker.operations.storage import collect, rfc3339
from broker.wire import positions
from broker.wire.events import published_by
from broker.wire.positions import Position

if TYPE_CHECKING:
    from broker.actors.supervisor import Supervisor
    from broker.bus.base import Archive, Entry, Keyed, Record

PAGE = 100  # entries of one read
TRIES = 5  # to replace a document that others change

log = structlog.get_logger()


@attrs.define(eq=False)
class Documents:
    """Operations on the stream of the documents. The methods raise `BrokerError`s."""

    supervisor: Supervisor

    @property
    def stream(self) -> str:
        """The name of the stream. Raises `NotFound` where no documents are configured."""
        if not self.supervisor.config.state.used:
            raise NotFound("there are no documents here; the section state.documents names some")
        return self.supervisor.config.state.name

    @property
    def keyed(self) -> Keyed:
        return self.supervisor.bus.keyed(self.stream)

    @property
    def archive(self) -> Archive:
        return self.supervisor.bus.archive(self.stream)

    def subject(self, tenant: str, channel: str) -> str:
        """Return the subject of a document. Raises `InvalidChannel`."""
        if not subjects.is_tenant(tenant):
            raise InvalidChannel(f"{subjects.shown(tenant)}: is not a tenant name")
        if subjects.is_live(subjects.parse_channel(channel)):
            raise InvalidChannel(f"{subjects.shown(channel)}: live channels are not stored")
        return self.supervisor.names.document(tenant, channel)

    async def list_documents(self, wish: reports.DocumentFilter) -> reports.DocumentPage:
        """Return the documents of a tenant in the order in which they were changed."""
        pattern = subjects.parse_pattern(wish.channel)
        if not subjects.is_tenant(wish.tenant):
            raise InvalidChannel(f"{subjects.shown(wish.tenant)}: is not a tenant name")
        archive = self.archive

        async def read(after: int) -> list[Entry]:
            return await archive.after(self.supervisor.names.document(wish.tenant, ">"), after, limit=PAGE)

        def keep(entry: Entry) -> bool:
            return bool(entry.body) and subjects.covers(pattern, self.channel(entry.subject))

        found, following = await collect(read, wish.cursor or 0, keep, wish.limit, PAGE)
        return reports.DocumentPage(documents=[self.report(entry) for entry in found], next=following)

    async def show_document(self, tenant: str, channel: str) -> reports.DocumentReport:
        record = await self.keyed.get(self.subject(tenant, channel))
        entry = await self.archive.get(record[0]) if record and record[2] else None
        if entry is None:
            raise NotFound(f"{channel}: tenant {tenant} has no such document")
        return self.report(entry)

    async def put_document(
        self, tenant: str, channel: str, wish: reports.PutDocument
    ) -> reports.DocumentWritten:
        """Replace a document as a whole, or make one. Neither a schema nor its service is asked."""
        body = bytes(wish.value)
        value = values.parse(body)
        if isinstance(value, Invalid):
            raise BadMessage(f"value: {value.reason}")
        return await self.write(tenant, channel, values.encode(value), wish.revision)

    async def delete_document(
        self, tenant: str, channel: str, wish: reports.DocumentRevision
    ) -> reports.DocumentWritten:
        """Delete a document. Clients that have it open see it go."""
        return await self.write(tenant, channel, b"", wish.revision)

    async def write(
        self, tenant: str, channel: str, body: bytes, revision: str | None
    ) -> reports.DocumentWritten:
        """Write as a service does: the document still knows the changes that it has."""
        subject, wanted = self.subject(tenant, channel), None
        if revision is not None:
            wanted = positions.parse(revision)
            if wanted.incarnation != self.incarnation:
                raise InvalidPosition("revision: belongs to another stream")
        for _ in range(TRIES):
            record = await self.keyed.get(subject)
            sequence = record[0] if record else 0
            if wanted is not None and wanted.sequence != sequence:
                raise Conflict(f"{channel}: has been changed since, to revision {self.text(sequence)}")
            if not body and not (record and record[2]):
                raise NotFound(f"{channel}: tenant {tenant} has no such document")
            try:
                written = await self.keyed.put(subject, body, headers=kept(record, body), revision=sequence)
            except Stale:
                continue
            except OutcomeUnknown:
                raise UnknownOutcome("it may have been written: NATS has not answered; look at it") from None
            log.warning("document_written_by_operator", tenant=tenant, channel=channel, deleted=not body)
            return reports.DocumentWritten(revision=self.text(written))
        raise Conflict(f"{channel}: others change it all the time; try again")

    @property
    def incarnation(self) -> str:
        found = self.supervisor.reading.view.stream if self.supervisor.reading else None
        if found is None:
            raise Unavailable("the stream of the documents has not been reached yet", retry_after=1.0)
        return found

    def channel(self, subject: str) -> str:
        return subject.split(".", 2)[2]

    def text(self, sequence: int) -> str:
        return str(Position(self.incarnation, sequence))

    def report(self, entry: Entry) -> reports.DocumentReport:
        invalid = store.read((entry.sequence, entry.subject, entry.body, entry.headers)).invalid
        return reports.DocumentReport(
            channel=self.channel(entry.subject),
            revision=self.text(entry.sequence),
            time=rfc3339(entry.time),
            publisher=published_by(entry.headers),
            size=len(entry.body),
            invalid=invalid,
            value=msgspec.Raw(b"null" if invalid else entry.body),
        )


def kept(record: Record | None, body: bytes) -> dict[str, str]:
    """Return the headers of what replaces a record: it knows the same changes."""
    known = (record[3] or {}).get(store.CHANGES) if record else None
    headers = {store.BASE: str(record[0] if record else 0)}
    if known is not None:
        headers[store.CHANGES] = known
    return headers if body else headers | {store.TTL: store.TOMBSTONE_TTL}
