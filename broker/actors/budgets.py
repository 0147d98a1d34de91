"""The budgets of users, tenants and addresses with clients, and of the process.

What is not limited has no budget, except users and the process, whose connections are always limited.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

from broker import limits
from broker.errors import RateLimited, TooManyConnections, TooManyConnects, Unavailable
from broker.limits import CONNECTIONS, CONNECTS, SUBSCRIPTIONS, Budget
from broker.parts import Part

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.config import Config, Limits
    from broker.limits import Bounds, Excess
    from broker.permissions import Principal

CONNECTIONS_RETRY_SECONDS = 5.0  # when a place will be free is unknown
SHOWN = (
    "message_bytes", "publish_bytes", "event_bytes", "connections_per_user", "subscriptions_per_connection",
    "filters_per_connection", "filters_per_tenant", "paced_channels",
    "messages_per_minute", "messages_burst", "requests_per_second", "requests_burst",
    "calls_per_second", "calls_burst", "requests_in_flight",
    "changes_per_second", "changes_burst", "change_bytes",
    "history_per_minute", "history_channels", "history_bytes", "history_reads",
    "authentication_seconds", "last_events", "snapshot_channels", "replay_events", "catch_ups_per_connection",
)  # fmt: skip


@attrs.define(eq=False)
class Budgets(Part):
    """Creates budgets on demand, and forgets those that carry no information.

    `hits` counts what was refused or delayed, by scope and resource. `elsewhere` is what users and tenants
    hold at other brokers; `touched` are the budgets here that may have to be reported to them: see `Usage`.
    """

    limits: Limits
    hits: Counter[tuple[str, str]] = attrs.Factory(Counter)
    process: Budget = attrs.field(init=False)
    shared: dict[tuple[str, ...], Budget] = attrs.Factory(dict)  # of (tenant,) and (tenant, user)
    addresses: dict[str, Budget] = attrs.Factory(dict)
    elsewhere: Mapping[tuple[str, ...], Mapping[str, int]] = attrs.Factory(dict)
    touched: set[Budget] = attrs.Factory(set)
    bounds: Mapping[str, Bounds] = attrs.field(init=False)  # by scope
    tenants: Mapping[str, Bounds] = attrs.field(init=False)  # of tenants that have their own
    suspensions: frozenset[str] = attrs.field(init=False)
    shown: Mapping[str, float] = attrs.field(init=False)  # the limits that a client is told

    def __attrs_post_init__(self) -> None:
        self.read(self.limits)
        self.process = Budget(self.bounds[limits.PROCESS])

    def read(self, wanted: Limits) -> None:
        """Derive the bounds from the configuration."""
        self.limits = wanted
        own = {
            limits.POSTS: (wanted.messages_per_minute / 60, wanted.messages_burst),
            limits.REQUESTS: (wanted.requests_per_second, wanted.requests_burst),
            limits.CALLS: (wanted.calls_per_second, wanted.calls_burst),
            limits.CHANGES: (wanted.changes_per_second, wanted.changes_burst),
            limits.HISTORY: (wanted.history_per_minute / 60, wanted.history_per_minute),
        }
        per_user, in_all = wanted.connections_per_user, wanted.connections
        self.bounds = {
            limits.CONNECTION: limits.bounds(limits.CONNECTION, wanted.connection),
            limits.USER: limits.bounds(limits.USER, wanted.user, connections=per_user, further=own),
            limits.TENANT: limits.bounds(limits.TENANT, wanted.tenant),
            limits.ADDRESS: limits.bounds(limits.ADDRESS, wanted.address),
            limits.PROCESS: limits.bounds(limits.PROCESS, wanted.process, connections=in_all),
        }
        self.tenants = {
            each.name: limits.bounds(limits.TENANT, wanted.tenant, over=each) for each in wanted.tenants
        }
        self.suspensions = frozenset(each.name for each in wanted.tenants if each.suspended)
        self.shown = {name: getattr(wanted, name) for name in SHOWN} | {
            f"{scope}.{key}": value
            for scope in (limits.CONNECTION, limits.USER)
            for key, value in attrs.asdict(getattr(wanted, scope)).items()
            if value
        }

    def settings_changed(self, config: Config) -> None:
        """Apply other limits; holders that exceed them keep what they hold."""
        self.read(config.limits)
        self.process.set_bounds(self.bounds[limits.PROCESS])
        for budget in self.addresses.values():
            budget.set_bounds(self.bounds[limits.ADDRESS])
        for key, budget in self.shared.items():
            budget.set_bounds(self.bounds_of(key))
        self.touched.update(self.shared.values())

    def bounds_of(self, key: tuple[str, ...]) -> Bounds:
        if len(key) > 1:
            return self.bounds[limits.USER]
        return self.tenants.get(key[0], self.bounds[limits.TENANT])

    def suspended(self, tenant: str) -> bool:
        """Return whether the configuration suspends this tenant."""
        return tenant in self.suspensions

    # --- the life of a connection -------------------------------------------------------------------

    def admit(self, peer: str, now: float) -> tuple[Budget, ...]:
        """Reserve a place for a connection from "HOST:PORT" that is being opened; return the budgets of it.

        They are to be given to `let_go`, after `arrive` if the connection takes the place. Raises
        `Unavailable` when the process is full, and `TooManyConnections` or `RateLimited` when the address has
        reached a limit.
        """
        budgets = self.of_link(peer)
        if excess := limits.acquire(budgets, CONNECTIONS):
            raise self.refusal(excess)
        if excess := limits.charge(budgets, {CONNECTS: 1}, now):
            self.let_go(budgets)
            raise self.refusal(excess)
        return budgets

    def let_go(self, budgets: tuple[Budget, ...]) -> None:
        """Give back what `admit` has reserved."""
        limits.hold(budgets, CONNECTIONS, -1)

    def refusal(self, excess: Excess) -> Unavailable | TooManyConnections | RateLimited:
        """Return the error for a connection that is not admitted."""
        wait = self.count(excess).seconds or CONNECTIONS_RETRY_SECONDS
        if excess.scope == limits.PROCESS:
            return Unavailable(f"{excess}; other brokers may have room", retry_after=wait)
        if excess.resource == CONNECTIONS:
            return TooManyConnections(f"{excess}; close one before the next", retry_after=wait)
        return TooManyConnects(f"{excess}; wait before the next", retry_after=wait)

    def count(self, excess: Excess) -> Excess:
        self.hits[excess.scope, excess.resource] += 1
        return excess

    def of_link(self, peer: str) -> tuple[Budget, ...]:
        """Return the budgets that limit a client without a token, except its connection's own."""
        bounds = self.bounds[limits.ADDRESS]
        if not bounds:
            return (self.process,)
        name = limits.network(peer)
        found = self.addresses.get(name)
        if found is None:
            found = self.addresses[name] = Budget(bounds)
        return found, self.process

    def of_connection(self) -> tuple[Budget, ...]:
        bounds = self.bounds[limits.CONNECTION]
        return (Budget(bounds),) if bounds else ()

    def of_principal(self, principal: Principal) -> tuple[Budget, ...]:
        keys: tuple[tuple[str, ...], ...] = ((principal.tenant, principal.user), (principal.tenant,))
        return tuple(self.share(key) for key in keys if self.bounds_of(key))

    def share(self, key: tuple[str, ...]) -> Budget:
        found = self.shared.get(key)
        if found is None:
            found = self.shared[key] = Budget(self.bounds_of(key), key=key, touched=self.touched)
            found.elsewhere = self.elsewhere.get(key, limits.NOTHING)
        return found

    def arrive(self, peer: str) -> tuple[Budget, ...]:
        """Return the budgets of a new connection, which has no token yet."""
        budgets = (*self.of_connection(), *self.of_link(peer))
        limits.hold(budgets, CONNECTIONS, 1)
        return budgets

    def claim(self, held: tuple[Budget, ...], principal: Principal, now: float) -> tuple[Budget, ...]:
        """Add the budgets of the token's user and tenant.

        Raises `TooManyConnections` and `TooManyConnects`.
        """
        budgets = self.of_principal(principal)
        if excess := limits.acquire(budgets, CONNECTIONS):
            raise self.refusal(excess)
        if excess := limits.charge(budgets, {CONNECTS: 1}, now):
            limits.hold(budgets, CONNECTIONS, -1)
            raise self.refusal(excess)
        return *budgets, *held

    def again(
        self, held: tuple[Budget, ...], peer: str, principal: Principal | None, subscriptions: int
    ) -> tuple[Budget, ...]:
        """Return a connection's budgets under another configuration, and move what it holds to them."""
        own = tuple(each for each in held if each.bounds.scope == limits.CONNECTION)
        for budget in own:
            budget.set_bounds(self.bounds[limits.CONNECTION])
        wanted = (
            *(self.of_principal(principal) if principal else ()),
            *(own or self.of_connection()),
            *self.of_link(peer),
        )
        for changed, sign in ((set(wanted) - set(held), 1), (set(held) - set(wanted), -1)):
            limits.hold(changed, CONNECTIONS, sign)
            limits.hold(changed, SUBSCRIPTIONS, sign * subscriptions)
        return wanted

    def retire(self, held: tuple[Budget, ...], subscriptions: int) -> tuple[Budget, ...]:
        """Give back what an ending connection has held, except for what its link still holds."""
        limits.hold(held, SUBSCRIPTIONS, -subscriptions)
        of_link = tuple(each for each in held if each.bounds.scope in limits.OF_THE_LINK)
        limits.hold(set(held) - set(of_link), CONNECTIONS, -1)
        return of_link

    def tidy(self, now: float) -> None:
        """Forget the budgets that carry no information."""
        for key, shared in list(self.shared.items()):
            if shared.idle(now):
                del self.shared[key]
                self.touched.discard(shared)  # also while reports cannot be sent
        for name, address in list(self.addresses.items()):
            if address.idle(now):
                del self.addresses[name]
