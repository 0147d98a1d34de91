"""Why a client did not get something: explain, trace, ends of connections, audit trail.

The façade behind this part of the admin API, and its values.
"""

# Without `from __future__ import annotations`: msgspec reads the annotations of the values at run time.

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, Literal

import attrs
import msgspec
import trio

from broker import subjects
from broker.actors.supervisor import Supervisor
from broker.errors import BadMessage, InvalidChannel, NotFound
from broker.features import explain as explaining
from broker.features.audit import Kind
from broker.features.port import Ended
from broker.operations.reports import PageCursor, Size


@attrs.frozen(kw_only=True)
class Question:
    """Whether a token may subscribe to the channel (with `publish`: publish to it, with `change`: change the
    document).

    `channel` is a channel or pattern as a client writes it. `tenant` is for monitoring tokens.
    """

    token: str = attrs.field(repr=False)
    channel: str
    tenant: str | None = None
    publish: bool = False
    change: bool = False


@attrs.frozen(kw_only=True)
class TraceWish:
    """Which events to trace: those of a tenant on the channels of a pattern, how many and for how long."""

    tenant: str
    channel: str
    limit: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0


@attrs.frozen(kw_only=True)
class Tracing:
    """The first line of a trace: events are traced from here on."""

    kind: Literal["tracing"] = "tracing"
    tenant: str
    channel: str
    position: str


@attrs.frozen(kw_only=True)
class TraceEnd:
    """The last line of a trace, and the bound that it reached."""

    kind: Literal["end"] = "end"
    reason: Literal["limit", "seconds"]


@attrs.frozen(kw_only=True)
class CloseFilter:
    """A filter of ended connections: all given fields must match."""

    tenant: str | None = None
    user: str | None = None
    code: int | None = None
    limit: Size = 100


@attrs.frozen(kw_only=True)
class CloseList:
    """Ended connections, newest first; the broker keeps the last `audit.closes`."""

    closes: list[Ended]


@attrs.frozen(kw_only=True)
class AuditFilter:
    """A filter of audit records: all given fields must match. `since` is RFC 3339."""

    tenant: str | None = None
    kind: Kind | None = None
    since: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    limit: Size = 100
    cursor: PageCursor | None = None


@attrs.frozen(kw_only=True)
class AuditPage:
    """Audit records of all brokers, newest first; `next` is the cursor of the next page, null on the last."""

    records: list[dict[str, Any]]
    next: int | None


@attrs.define(eq=False)
class Diagnosis:
    """Diagnosis on the actors of this broker, and the audit trail of all brokers."""

    supervisor: Supervisor

    async def explain(self, wish: Question) -> explaining.Explanation:
        supervisor = self.supervisor
        return await explaining.explain(
            explaining.Question(**attrs.asdict(wish)),
            verifier=supervisor.verifier,
            admit=supervisor.control.check,
            names=supervisor.names,
            limits=supervisor.config.limits,
            held=self.held,
            now=time.time(),
        )

    async def held(self, subject: str) -> explaining.Held:
        bus = self.supervisor.bus
        state = await bus.state()
        page = await bus.read(subject, after=0, limit=1)
        return explaining.Held(
            state=state,
            count=len(page.records) + page.pending,
            oldest=page.records[0][0] if page.records else None,
        )

    def closes(self, wish: CloseFilter) -> CloseList:
        found = self.supervisor.ends.find(tenant=wish.tenant, user=wish.user, code=wish.code)
        return CloseList(closes=[ended for ended, _ in zip(found, range(wish.limit), strict=False)])

    async def audit(self, wish: AuditFilter) -> AuditPage:
        section = self.supervisor.config.audit
        if wish.tenant is not None and not subjects.TENANT.match(wish.tenant):
            raise BadMessage("tenant: is not a tenant name")
        if not section.enabled:
            raise NotFound("this broker keeps no audit trail: audit.enabled is false")
        await self.supervisor.audit.store()  # include what has just happened here
        archive = self.supervisor.bus.archive(section.name)
        subject = f"{section.prefix}.{wish.tenant or '*'}.{wish.kind or '*'}"
        entries = await archive.before(subject, wish.cursor, limit=wish.limit + 1)
        if wish.since is not None:
            entries = [entry for entry in entries if entry.time >= wish.since]
        page = entries[: wish.limit]
        return AuditPage(
            records=[record(entry.body) for entry in page],
            next=page[-1].sequence if len(entries) > wish.limit else None,
        )

    async def trace(self, wish: TraceWish, write: Callable[[object], Awaitable[None]]) -> None:
        """Write a line for each event until a bound is reached."""
        if not subjects.is_tenant(wish.tenant):
            raise BadMessage(f"tenant: {subjects.shown(wish.tenant)} is not a tenant name")
        pattern = subjects.parse_pattern(wish.channel)
        if subjects.expand_me(pattern, "user") != pattern:
            raise InvalidChannel(f"{pattern}: `me` is the user of a token; here write users.<user>.<name>")
        services = self.supervisor.services
        with services.tenants.followers.follow(wish.tenant, pattern) as follower:
            events = services.tenants.get(wish.tenant).log
            if subjects.is_live(pattern):
                await self.supervisor.live_subjects.hold(wish.tenant)
            start = events.text(events.position())
            await write(Tracing(tenant=wish.tenant, channel=pattern, position=start))
            left, deadline = wish.limit, trio.current_time() + wish.seconds
            while left > 0:
                entries = []
                with trio.move_on_at(deadline):
                    entries = await follower.take()
                if not entries:
                    break
                for entry in entries[:left]:
                    await write(entry)
                left -= len(entries)
            await write(TraceEnd(reason="seconds" if left > 0 else "limit"))


def record(body: bytes) -> dict[str, Any]:
    """Return an audit record; of a foreign message only its size."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"unreadable_bytes": len(body)}
