"""The façade behind the admin API: inspect the running broker, and act on it.

Everything here is about this process alone: each of several brokers knows only its own clients.
"""

from __future__ import annotations

import time
from heapq import nsmallest
from typing import TYPE_CHECKING, Any

import attrs
import structlog
import trio

from broker import config
from broker import log as logging
from broker.errors import CloseCode, NotFound
from broker.eventlog.places import sequence_of
from broker.operations import reports
from broker.wire.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from broker.actors.connection import Connection
    from broker.actors.supervisor import Supervisor
    from broker.actors.tenant import Tenant
    from broker.eventlog.selection import Selection
    from broker.features.durable.feature import Durable
    from broker.flow.flow import Flow
    from broker.permissions import Principal

log = structlog.get_logger()


@attrs.define(eq=False)
class Operations:
    """Inspection of the actors, and actions on them."""

    supervisor: Supervisor

    # --- this process -------------------------------------------------------------------------------

    def readiness(self) -> reports.Readiness:
        reason = self.supervisor.not_ready()
        return reports.Readiness(
            ready=reason is None,
            reasons=[] if reason is None else [reason],
            connected=self.supervisor.connected,
            draining=self.supervisor.draining,
        )

    def log_level(self) -> reports.LogLevel:
        return reports.LogLevel(level=logging.level())

    def set_log_level(self, wish: reports.LogLevel) -> reports.LogLevel:
        log.warning("log_level_set", level=wish.level)
        logging.set_level(wish.level)
        return wish

    def configuration(self) -> reports.Configuration:
        """Return the configuration in force, with the present log level and without secrets."""
        running = self.supervisor.config
        return config.shown(attrs.evolve(running, log=attrs.evolve(running.log, level=logging.level())))

    # --- connections --------------------------------------------------------------------------------

    def connections(self, wish: reports.ConnectionFilter) -> reports.ConnectionPage:
        """Return a page in the order of ids, so that pages stay consistent while connections come and go."""
        found = (each for each in self.supervisor.connections if each.id > wish.cursor and fits(each, wish))
        page = nsmallest(wish.limit + 1, found, key=lambda each: each.id)
        more = len(page) > wish.limit
        page = page[: wish.limit]
        return reports.ConnectionPage(
            connections=[reports.ConnectionSummary(**summary(each)) for each in page],
            next=page[-1].id if more else None,
        )

    def connection(self, connection_id: str) -> reports.ConnectionReport:
        found = self.find(connection_id)
        return full(found, self.supervisor.durables.of(found))

    def find(self, connection_id: str) -> Connection:
        for each in self.supervisor.connections:
            if each.id == connection_id:
                return each
        raise NotFound(f"{connection_id[:40]}: this broker has no such connection; it may have ended")

    async def disconnect(self, connection_id: str, wish: reports.Farewell) -> reports.Disconnected:
        return await self.end([self.find(connection_id)], wish)

    async def disconnect_all(self, wish: reports.Disconnect) -> reports.Disconnected:
        which = reports.ConnectionFilter(tenant=wish.tenant, user=wish.user)
        return await self.end([each for each in self.supervisor.connections if fits(each, which)], wish)

    async def end(self, connections: Iterable[Connection], wish: reports.Farewell) -> reports.Disconnected:
        ended = 0
        for each in connections:
            ended += not each.closing
            each.end(CloseCode(wish.code), wish.reason, by="operator")
            await trio.lowlevel.checkpoint()  # there may be many, and others wait
        log.info("disconnected_by_operator", connections=ended, code=wish.code)
        return reports.Disconnected(disconnected=ended)

    # --- tenants ------------------------------------------------------------------------------------

    def tenants(self) -> reports.TenantList:
        running = self.supervisor.tenants.running
        return reports.TenantList(
            tenants=[reports.TenantSummary(**tenant_summary(running[name])) for name in sorted(running)]
        )

    def tenant(self, name: str) -> reports.TenantReport:
        tenant = self.supervisor.tenants.running.get(name)
        if tenant is None:
            raise NotFound(f"{name[:64]}: this tenant has had no clients on this broker for a minute")
        log, inbox, until = tenant.log, tenant.inbox, tenant.failed_until
        statistics = tenant.statistics()
        users = {each.who()["user"] for each in self.supervisor.connections if each.tenant is tenant}
        return reports.TenantReport(
            **tenant_summary(tenant),
            users=len(users),
            topics=statistics.selections,
            catch_ups=sum(len(flow.beside) for flow in tenant.flows),
            rests_seconds=max(0.0, until - trio.current_time()) if until is not None else 0.0,
            ring=reports.RingReport(
                events=statistics.ring_events,
                bytes=statistics.ring_bytes,
                since=log.text(sequence_of(log.ring.floor)),
            ),
            inbox=reports.InboxReport(events=len(inbox.records), bytes=inbox.size, lost=inbox.lost),
        )


def fits(connection: Connection, wish: reports.ConnectionFilter) -> bool:
    """Return whether a connection matches all given fields."""
    principal = connection.session.principal
    return (
        wish.tenant in (None, principal and principal.tenant)
        and wish.user in (None, principal and principal.user)
        and wish.transport in (None, connection.transport.name)
        and wish.address in (None, host(connection.peer))
        and wish.behind in (None, connection.flow.main is not None)
    )


def host(peer: str) -> str:
    """Return the host of "HOST:PORT"."""
    return peer.rpartition(":")[0].strip("[]")


def wall_clock(then: float) -> str:
    """Return a time of the monotonic clock as a date."""
    return rfc3339(time.time() - trio.current_time() + then)


def summary(connection: Connection) -> dict[str, Any]:
    """Return the fields of a `ConnectionSummary`."""
    principal, flow = connection.session.principal, connection.flow
    return {
        "id": connection.id,
        "tenant": principal.tenant if principal else None,
        "user": principal.user if principal else None,
        "address": connection.peer,
        "transport": connection.transport.name,
        "since": wall_clock(connection.session.began),
        "subscriptions": len(connection.flow.subscriptions()),
        "behind": flow.main is not None,
        "lag": max(0, flow.log.position() - sequence_of(flow.place())) if flow.log else 0,
        "unsent_bytes": flow.unsent,
    }


def full(connection: Connection, durables: Mapping[str, Durable]) -> reports.ConnectionReport:
    session, flow = connection.session, connection.flow
    log, main = flow.log, flow.main
    now = trio.current_time()
    return reports.ConnectionReport(
        **summary(connection),
        principal=principal_report(session.principal) if session.principal else None,
        certificate=connection.certificate,
        position=connection.position(),
        head=log.text(log.position()) if log else None,
        resuming=main.resuming if main else False,
        unsent_replies=len(flow.rest) - 1 if flow.rest else 0,
        heard=wall_clock(connection.heard),
        progress=wall_clock(connection.progress) if main else None,
        closing=connection.closing,
        channels=[
            subscription_report(flow, selection, durables)
            for selection in sorted(flow.selections(), key=lambda each: each.pattern)
        ],
        catch_ups=[
            reports.CatchUpReport(
                number=each.number,
                position=log.text(sequence_of(each.place)),
                snapshot=each.snapshot is not None,
                channels=sorted(selection.pattern for selection in each.selections),
            )
            for each in flow.beside
            if log and each.number is not None
        ],
        durables=[
            reports.DurableReport(
                name=name,
                channels=sorted(durable.patterns),
                acknowledged=str(durable.cursor.position),
                stored=str(durable.cursor.stored),
            )
            for name, durable in durables.items()
        ],
        bad_messages=session.bad.count(now) if session.bad else 0,
        refusals=session.refusals.count(now) if session.refusals else 0,
    )


def subscription_report(
    flow: Flow, selection: Selection, durables: Mapping[str, Durable]
) -> reports.SubscriptionReport:
    pattern = selection.pattern
    numbers = [each.number for each in flow.beside if selection in each.selections]
    waiting = any(selection in group.selections for each in flow.readers() for group in each.groups)
    names = [name for name, durable in durables.items() if pattern in durable.patterns]
    lane = flow.lanes.get(selection)
    return reports.SubscriptionReport(
        channel=pattern,
        deny=list(selection.deny),
        filter=selection.filter.text.decode() if selection.filter else None,
        every_ms=lane.every_ms if lane else None,
        lag=flow.policy(selection),
        live=not (numbers or waiting),
        catch_up=numbers[0] if numbers else None,
        durable=names[0] if names else None,
    )


def principal_report(principal: Principal) -> reports.PrincipalReport:
    return reports.PrincipalReport(
        tenant=principal.tenant,
        user=principal.user,
        private=principal.private,
        token_id=principal.token_id,
        expires_at=rfc3339(principal.expires_at),
        monitoring=principal.monitoring,
        subscribe=list(principal.subscribe),
        publish=list(principal.publish),
        deny=list(principal.deny),
    )


def tenant_summary(tenant: Tenant) -> dict[str, Any]:
    """Return the fields of a `TenantSummary`."""
    statistics = tenant.statistics()
    return {
        "tenant": tenant.name,
        "connections": statistics.connections,
        "behind": statistics.behind,
        "position": tenant.log.text(tenant.log.position()),
        "restarts": statistics.restarts,
        "resting": tenant.failed_until is not None and trio.current_time() < tenant.failed_until,
    }
