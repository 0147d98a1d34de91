"""The audit trail: who connected, how connections ended, what was refused, and what operators did.

A record is JSON under `<prefix>.<tenant>.<kind>`, in a stream of its own with limits on age and size. Records
are queued without waiting; one task stores them in batches. No record contains a token or a body.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs
import msgspec
import structlog
import trio

from broker.errors import Unavailable
from broker.features.port import Feature
from broker.signals import Signal
from broker.subjects import BROKER, is_tenant
from broker.wire.times import rfc3339

if TYPE_CHECKING:
    from broker import config
    from broker.bus.base import Bus, Message, StreamState
    from broker.features.port import Ended
    from broker.flow.client import Who
    from broker.permissions import Principal
    from broker.session.requests import Caller

Kind: TypeAlias = Literal["authenticated", "renewed", "ended", "refused", "changed", "admin"]

QUEUE = 32768  # records that wait for NATS, about 400 bytes each; any more are only counted
BATCH = 128  # records stored at a time: a millisecond of the event loop
GATHER_SECONDS = 0.2  # so that one wake-up stores many records
RETRY_SECONDS = 1.0
FLUSH_SECONDS = 2.0
REFUSALS = {"forbidden", "token_invalid", "token_expired", "token_revoked"}  # the errors recorded ...
REFUSALS_PER_SECOND = 3  # ... of one connection; any more are left out
RECORD_BYTES = 8192

log = structlog.get_logger()


@attrs.define(eq=False)
class Audit(Feature):
    """Takes records at any time, without waiting. `broker` names this process.

    `dropped` counts records that could not be kept.
    """

    bus: Bus
    section: config.Audit
    broker: str
    prepared: bool = False  # its stream exists, as far as is known
    fault: str = ""
    dropped: int = 0
    told: int = 0  # dropped records already logged
    number: int = 0
    waiting: deque[Message] = attrs.Factory(deque)
    arrived: Signal = attrs.Factory(Signal)
    writing: trio.Lock = attrs.Factory(trio.Lock)
    second: int = 0  # the second in which `refusals` are counted
    refusals: Counter[str] = attrs.Factory(Counter)  # by connection

    def note(
        self, kind: Kind, *, tenant: str | None, connection: str | None = None, **fields: object
    ) -> None:
        """Queue a record of what has just happened. Without a tenant it is filed under the broker's own name.

        `fields` are JSON values, of which None is left out; never a token or a body.
        """
        if not self.section.enabled:
            return
        known = {name: value for name, value in fields.items() if value is not None}
        body = msgspec.json.encode(
            {
                "time": datetime.now(UTC),
                "kind": kind,
                "broker": self.broker,
                **({"connection": connection} if connection else {}),
                **({"tenant": tenant} if tenant else {}),
                **known,
            }
        )
        if len(self.waiting) >= QUEUE or len(body) > RECORD_BYTES:
            self.dropped += 1
            return
        self.number += 1
        subject = f"{self.section.prefix}.{tenant if tenant and is_tenant(tenant) else BROKER}.{kind}"
        self.waiting.append((subject, body, f"_broker:audit-{self.broker}-{self.number}"))
        self.arrived.set()

    def authenticated(self, caller: Caller, principal: Principal, *, renewed: bool) -> None:
        self.note(
            "renewed" if renewed else "authenticated",
            transport=caller.kind,
            token_id=principal.token_id,
            expires=rfc3339(principal.expires_at),
            monitoring=principal.monitoring or None,
            certificate=caller.certificate,
            **caller.who(),
        )

    def refused(self, who: Who, *, code: str, message: str | None, channel: str | None) -> None:
        """Queue a refusal for lack of rights, unless the connection has had enough of them this second."""
        if code not in REFUSALS:
            return
        second = int(time.monotonic())
        if second != self.second:
            self.second = second
            self.refusals.clear()
        self.refusals[who["connection"]] += 1
        if self.refusals[who["connection"]] <= REFUSALS_PER_SECOND:
            self.note("refused", code=code, message=message, channel=channel, **who)

    def document_changed(self, who: Who, *, channel: str, id: str, revision: str, deleted: bool) -> None:  # noqa: A002
        self.note("changed", channel=channel, id=id, revision=revision, deleted=deleted or None, **who)

    def ended(self, ended: Ended) -> None:
        if ended.tenant is not None:
            self.note(
                "ended",
                connection=ended.connection,
                peer=ended.peer,
                tenant=ended.tenant,
                user=ended.user,
                transport=ended.transport,
                code=ended.code,
                by=ended.by,
                reason=ended.reason or None,
                seconds=ended.seconds,
            )

    def up(self, _: StreamState) -> None:
        """Have `run` prepare the stream again, so that nothing else waits for it."""
        if self.section.enabled:
            self.prepared = False
            self.arrived.set()

    async def run(self) -> None:
        """Store records, until cancelled."""
        while True:
            await self.arrived.wait()
            await trio.sleep(GATHER_SECONDS)
            self.arrived.clear()
            await self.store()
            if self.waiting or not self.prepared:
                self.arrived.set()
                await trio.sleep(RETRY_SECONDS)
            if self.dropped != self.told:
                log.warning("audit_dropped", records=self.dropped - self.told)
                self.told = self.dropped

    async def flush(self) -> None:
        """Store the queued records, unless NATS takes too long."""
        with trio.move_on_after(FLUSH_SECONDS):
            await self.store()

    async def store(self) -> None:
        """Store the queued records, as far as NATS takes them."""
        async with self.writing:
            try:
                if self.section.enabled and not self.prepared:
                    await self.bus.prepare_audit()
                    self.prepared, self.fault = True, ""
                while self.waiting:
                    batch = [self.waiting[index] for index in range(min(BATCH, len(self.waiting)))]
                    await self.bus.publish_all(batch)
                    for _ in batch:
                        self.waiting.popleft()
            except Unavailable as error:
                self.prepared = False  # it may have been deleted
                if error.message != self.fault:
                    self.fault = error.message
                    log.warning("audit_postponed", error=error.message, records=len(self.waiting))
