"""Limits that hold, approximately, over all brokers: what users and tenants hold and spend at each of them.

Each second a broker publishes a report (`_broker.usage.<broker>`, plain NATS, since it is worthless a second
later) about its users and tenants that hold a quarter of a limit or more, or that have spent a quarter of a
second's allowance since the last report. Other brokers add what is held to their own counts, and take what
was spent from their own buckets.

So where `n` may be held at a time, over `b` brokers, at most ``n + (b - 1) * (ceil(n / 4) - 1)`` are held,
plus what reached other brokers within about a second. A rate is exceeded by what the brokers admit before
they have heard from each other, ``(b - 1) * 2.25`` seconds' worth at a time, and holds on average. A broker
that is silent for 3 s is forgotten; until then its report counts, so that its clients may be refused by
another broker for that long. Only the `MOST_HOLDERS` with the largest share of a limit are reported. Without
NATS each broker applies its limits alone.
"""

from __future__ import annotations

from collections import Counter
from heapq import nlargest
from typing import TYPE_CHECKING, Annotated, TypeAlias

import attrs
import msgspec
import structlog
import trio

from broker import limits, subjects
from broker.beats import beat
from broker.errors import Unavailable
from broker.limits import CONNECTIONS, SUBSCRIPTIONS, WORTH_TELLING, Budget
from broker.parts import Part

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.actors.budgets import Budgets
    from broker.bus.base import Bus, StreamState

EVERY_SECONDS = 1.0
SILENT_SECONDS = 3.0
MOST_HOLDERS = 256  # up to about 400 bytes each
CHANNEL = "usage."

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Usage:
    """What one user or tenant (`key`) holds at a broker, and has spent since the last report."""

    key: tuple[str, ...]
    connections: Count
    subscriptions: Count
    spent: dict[str, float]  # negative where a send was charged and then cut short


DECODER = msgspec.json.Decoder(list[Usage])


@attrs.frozen
class Report:
    """The last report of a broker, and when it arrived."""

    at: float
    usages: list[Usage]


@attrs.define(eq=False)
class Sharing(Part):
    """Reports to other brokers what is held here, and applies their reports. `broker` names this one."""

    bus: Bus
    names: subjects.Names
    broker: str
    budgets: Budgets
    reports: dict[str, Report] = attrs.Factory(dict)
    begun: trio.Event = attrs.Factory(trio.Event)  # set when NATS is reached for the first time
    listening: bool = False
    failing: bool = False
    reported: bool = False  # the last report was not empty: an empty one must follow when it no longer holds

    channel = CHANNEL

    def up(self, _: StreamState) -> None:
        self.begun.set()

    async def run(self) -> None:
        await self.begun.wait()
        while True:
            try:
                await self.listen()
                await self.report()
                self.failing = False
            except Unavailable as error:
                if not self.failing:
                    log.warning(
                        "usage_not_shared", why=error.message, next="each broker applies its limits alone"
                    )
                self.failing = True
            await beat(EVERY_SECONDS)
            self.forget(trio.current_time())

    async def listen(self) -> None:
        """Subscribe once; the bus renews the subscription after each reconnect."""
        if not self.listening:
            await self.bus.subscribe_live(f"{self.names.own}.{CHANNEL}*")
            self.listening = True

    async def report(self) -> None:
        usages = self.collect()
        if usages or self.reported:
            subject = f"{self.names.own}.{CHANNEL}{self.broker}"
            await self.bus.publish_live(subject, msgspec.json.encode(usages))
            self.reported = bool(usages)

    def collect(self) -> list[Usage]:
        """Return the usages to report, and count them as reported."""
        touched = self.budgets.touched
        worth = {each: share for each in touched if (share := each.share()) >= WORTH_TELLING}
        for budget in touched - worth.keys():
            touched.discard(budget)
        usages = []
        for budget in nlargest(MOST_HOLDERS, worth, key=worth.__getitem__):
            usages.append(
                Usage(
                    key=budget.key,
                    connections=budget.connections,
                    subscriptions=budget.subscriptions,
                    spent={key: round(amount, 3) for key, amount in budget.spent.items()},
                )
            )
            budget.spent = {}
        return usages

    def heard(self, channel: str, body: bytes) -> None:
        """Apply a report."""
        broker = channel.removeprefix(CHANNEL)
        if broker == self.broker:
            return
        try:
            usages = DECODER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # or the format of another version
            log.warning("usage_not_understood", broker=broker)
            return
        now = trio.current_time()
        self.reports[broker] = Report(now, usages)
        for usage in usages:
            if budget := self.budgets.shared.get(usage.key):
                charge(budget, usage.spent, now)
        self.add_up()

    def forget(self, now: float) -> None:
        silent = [broker for broker, each in self.reports.items() if each.at < now - SILENT_SECONDS]
        for broker in silent:
            del self.reports[broker]
        if silent:
            self.add_up()

    def add_up(self) -> None:
        """Count here what is held at other brokers."""
        before, held = self.budgets.elsewhere, dict[tuple[str, ...], Counter[str]]()
        for report in self.reports.values():
            for usage in report.usages:
                there = held.setdefault(usage.key, Counter())
                there[CONNECTIONS] += usage.connections
                there[SUBSCRIPTIONS] += usage.subscriptions
        self.budgets.elsewhere = held
        for key in before.keys() | held.keys():
            if budget := self.budgets.shared.get(key):
                budget.elsewhere = held.get(key, limits.NOTHING)


def charge(budget: Budget, spent: Mapping[str, float], now: float) -> None:
    """Take what was spent at other brokers; it is not reported again."""
    for resource, amount in spent.items():
        if bucket := budget.bucket(resource, now):
            bucket.spend(now, amount)
