"""Revocations and suspensions by an operator, in force on every broker by `features.control`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs

from broker import subjects
from broker.errors import BadMessage, NotFound, Unavailable
from broker.features.control import EVERY_TENANT, Ban
from broker.operations import reports
from broker.wire.times import parse_time, rfc3339

if TYPE_CHECKING:
    from broker.actors.supervisor import Supervisor
    from broker.features.control import Who

BY = "admin API"


@attrs.define(eq=False)
class Bans:
    """Listing, making and lifting of revocations and suspensions. Raises `BrokerError`s."""

    supervisor: Supervisor

    def revocations(self, wish: reports.BanFilter) -> reports.BanList:
        control = self.supervisor.control
        if reason := control.trouble():
            raise Unavailable(reason, retry_after=1.0)
        listed = [ban for ban in control.listed() if wish.tenant in (None, ban.tenant)]
        return reports.BanList(revocations=[report(ban) for ban in listed])

    def now(self) -> float:
        """Return the time, but not before the newest token in use was issued: our clock may be behind."""
        principals = (connection.session.principal for connection in self.supervisor.connections)
        return max([time.time(), *(each.issued_at or 0.0 for each in principals if each)])

    async def revoke(self, wish: reports.Revoke) -> reports.BanReport:
        now = self.now()
        until = now + self.supervisor.config.limits.token_max_seconds
        if wish.until is not None:
            until = ending(wish.until, now)
        kind, tenant, name = who(wish)
        ban = Ban(kind=kind, tenant=tenant, name=name, at=now, until=until, reason=wish.reason, by=BY)
        return report(await self.supervisor.control.put(ban))

    async def restore(self, wish: reports.BanSelection) -> reports.BanReport:
        return await self.lift(who(wish))

    async def suspend(self, tenant: str, wish: reports.Suspend) -> reports.BanReport:
        now = time.time()
        until = None if wish.until is None else ending(wish.until, now)
        name = checked(tenant)
        ban = Ban(kind="suspension", tenant=name, at=now, until=until, reason=wish.reason, by=BY)
        return report(await self.supervisor.control.put(ban))

    async def resume(self, tenant: str) -> reports.BanReport:
        return await self.lift(("suspension", checked(tenant), ""))

    async def lift(self, which: Who) -> reports.BanReport:
        ban = self.supervisor.control.bans.get(which)
        if ban is None or ban.over(time.time()):
            kind, tenant, name = which
            shown = f"{kind} {name[:40]}".rstrip()
            raise NotFound(f"{shown} of tenant {tenant}: nothing to lift; see the list of revocations")
        return report(await self.supervisor.control.lift(ban))


def who(wish: reports.BanSelection) -> Who:
    """Return whom the request is about. Raises a `BrokerError`."""
    tenant = wish.tenant if wish.tenant == EVERY_TENANT else checked(wish.tenant)
    if wish.user is not None and wish.token_id is not None:
        raise BadMessage("user and token_id exclude each other: the id alone names the token")
    if wish.token_id is not None:
        return "token", tenant, wish.token_id
    if wish.user is not None:
        return "user", tenant, wish.user
    return "tenant", tenant, ""


def checked(tenant: str) -> str:
    if not subjects.is_tenant(tenant):
        raise BadMessage(f"{subjects.shown(tenant)}: is not a tenant name")
    return tenant


def ending(text: str, now: float) -> float:
    until = parse_time(text, "until").timestamp()
    if until <= now:
        raise BadMessage("until: is in the past")
    return until


def report(ban: Ban) -> reports.BanReport:
    return reports.BanReport(
        kind=ban.kind,
        tenant=ban.tenant,
        user=ban.name if ban.kind == "user" else None,
        token_id=ban.name if ban.kind == "token" else None,
        since=rfc3339(ban.at),
        until=None if ban.until is None else rfc3339(ban.until),
        reason=ban.reason,
    )
