"""Rates and quotas. The clock is an argument: seconds on any monotonic clock.

A connection has *budgets*: its own, its user's, its tenant's, its address's and the process's, wherever a
limit is configured. An operation must fit into all of them; it is charged to all or to none.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from broker.config import Allowance

# Resources, by their configuration keys: some are held and given back, others are spent at a rate.
CONNECTIONS, SUBSCRIPTIONS = "connections", "subscriptions"
CONNECTS, MESSAGES, BYTES = "connects_per_second", "messages_per_second", "bytes_per_second"
PUBLISHES, DELIVERED = "publishes_per_second", "delivered_bytes_per_second"
POSTS = "messages_per_minute"  # per user: publications and failed messages
CALLS = "calls_per_second"  # per user: requests to services
IN_FLIGHT = "requests_in_flight"  # per connection: of these
CHANGES = "changes_per_second"  # per user: of documents
HISTORY = "history_per_minute"  # per user: pages of history that are read from the stream
REQUESTS = "requests_per_second"  # all others: per connection, or per user without one
HELD = (CONNECTIONS, SUBSCRIPTIONS)
FLOWING = (CONNECTS, MESSAGES, BYTES, PUBLISHES, DELIVERED)

CONNECTION, USER, TENANT, ADDRESS, PROCESS = "connection", "user", "tenant", "address", "process"  # scopes
OF_THE_LINK = (ADDRESS, PROCESS)  # from the first byte to the last; the others depend on the token

LONGEST_DEBT_SECONDS = 20.0  # cap on the debt of what is spent on credit: below a heartbeat interval
WORTH_TELLING = 0.25  # of a limit: smaller shares are not reported to other brokers
NETWORK_BITS = 64  # the IPv6 prefix that one site is assigned (RFC 6177)

NOTHING: Mapping[str, int] = MappingProxyType({})


class TokenBucket:
    """Admits `rate` per second on average, and `burst` at once."""

    __slots__ = ("burst", "level", "rate", "time")

    def __init__(self, *, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.level = burst
        self.time = now

    def set_rate(self, *, rate: float, burst: float) -> None:
        """Apply other bounds, and reduce any debt to the longest that they allow."""
        self.rate, self.burst = rate, burst
        self.level = max(self.level, -LONGEST_DEBT_SECONDS * rate)

    def charge(self, now: float, amount: float = 1) -> float:
        """Spend `amount` and return 0, or spend nothing and return the seconds until it is available."""
        if wait := self.wait(now, amount):
            return wait
        self.level -= amount
        return 0.0

    def wait(self, now: float, amount: float = 1) -> float:
        """Return the seconds until `amount` may be spent (more than the burst: until the bucket is full)."""
        self.level = min(self.burst, self.level + (now - self.time) * self.rate)
        self.time = now
        return max(0.0, (min(amount, self.burst) - self.level) / self.rate)

    def spend(self, now: float, amount: float) -> float:
        """Spend `amount` at once, on credit if necessary; return the seconds of debt before that."""
        debt = self.wait(now, 0)
        self.level = max(min(self.level - amount, self.burst), -LONGEST_DEBT_SECONDS * self.rate)
        return debt

    def full(self, now: float) -> bool:
        """Return whether the whole burst is available: the bucket may be dropped and recreated."""
        return self.level + (now - self.time) * self.rate >= self.burst


class Window:
    """Counts the occurrences within the last `seconds`."""

    __slots__ = ("limit", "seconds", "times")

    def __init__(self, *, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self.times: deque[float] = deque()

    def hit(self, now: float) -> bool:
        """Record an occurrence; return whether that makes `limit` of them."""
        self.times.append(now)
        while self.times[0] <= now - self.seconds:
            self.times.popleft()
        return len(self.times) >= self.limit

    def count(self, now: float) -> int:
        """Return the number of occurrences within the window."""
        return sum(time > now - self.seconds for time in self.times)


@attrs.frozen(kw_only=True)
class Bounds:
    """The limits of each holder in a scope: how much may be held, and rates as (per second, at once)."""

    scope: str
    held: Mapping[str, int] = NOTHING
    rates: Mapping[str, tuple[float, float]] = MappingProxyType({})

    def __bool__(self) -> bool:
        return bool(self.held or self.rates)


def bounds(
    scope: str,
    allowance: Allowance,
    *,
    over: Allowance | None = None,
    connections: int = 0,
    further: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> Bounds:
    """Return the bounds that an allowance sets.

    A value in `over` overrides that of `allowance`; `connections` and `further` come from other keys.
    """

    def said(key: str) -> float:
        own = getattr(over, key) if over else None
        return (getattr(allowance, key) if own is None else own) or 0

    held = {key: int(said(key)) for key in HELD} | ({CONNECTIONS: connections} if connections else {})
    rates = {key: (said(key), max(1.0, said(key))) for key in FLOWING if said(key)}
    return Bounds(
        scope=scope,
        held={key: most for key, most in held.items() if most},
        rates={**rates, **further},
    )


@attrs.frozen
class Excess:
    """A limit that has been reached: its scope, its key, and for how many seconds."""

    scope: str
    resource: str
    seconds: float

    def __str__(self) -> str:
        return f"limit of the {self.scope} reached: {self.resource}"


class Budget:
    """What one holder holds and has spent, over all its connections to this broker.

    `holders` are a user's connections, including those that hold no place here at the moment.

    `key` names a holder that other brokers may know too: (tenant,) or (tenant, user). For such a holder
    `elsewhere` is what it holds on other brokers, and `spent` what they have not been told yet; the budget
    adds itself to `touched` whenever something has been taken.
    """

    __slots__ = (
        "bounds", "buckets", "connections", "elsewhere", "holders", "key", "spent", "subscriptions",
        "touched",
    )  # fmt: skip

    def __init__(
        self, bounds: Bounds, *, key: tuple[str, ...] = (), touched: set[Budget] | None = None
    ) -> None:
        self.bounds = bounds
        self.key = key
        self.touched = touched
        self.connections = 0
        self.subscriptions = 0
        self.holders: tuple[Any, ...] = ()
        self.elsewhere = NOTHING
        self.buckets: Mapping[str, TokenBucket] = MappingProxyType({})  # created on first use
        self.spent: Mapping[str, float] = MappingProxyType({})

    def set_bounds(self, bounds: Bounds) -> None:
        """Apply other bounds; what is already held beyond them stays held."""
        self.bounds = bounds
        self.buckets = {key: each for key, each in self.buckets.items() if key in bounds.rates}
        self.spent = {key: amount for key, amount in self.spent.items() if key in bounds.rates}
        for key, bucket in self.buckets.items():
            rate, burst = bounds.rates[key]
            bucket.set_rate(rate=rate, burst=burst)

    def bucket(self, resource: str, now: float) -> TokenBucket | None:
        found = self.buckets.get(resource)
        if found is None and resource in self.bounds.rates:
            rate, burst = self.bounds.rates[resource]
            found = TokenBucket(rate=rate, burst=burst, now=now)
            self.buckets = {**self.buckets, resource: found}
        return found

    def has_room(self, resource: str) -> bool:
        """Return whether one more may be held."""
        most = self.bounds.held.get(resource)
        held: int = getattr(self, resource)
        return most is None or held + self.elsewhere.get(resource, 0) < most

    def hold(self, resource: str, count: int) -> None:
        """Record that `count` more are held, or fewer if it is negative."""
        setattr(self, resource, getattr(self, resource) + count)
        if self.touched is not None:
            self.touched.add(self)

    def note(self, resource: str, amount: float) -> None:
        """Record what has been spent, for the report to other brokers."""
        if amount and self.touched is not None:
            self.spent = {**self.spent, resource: self.spent.get(resource, 0.0) + amount}
            self.touched.add(self)

    def share(self) -> float:
        """Return the largest share of a limit that is held, or spent and not yet reported."""
        held = [getattr(self, key) / most for key, most in self.bounds.held.items()]
        spent = [amount / self.bounds.rates[key][1] for key, amount in self.spent.items()]
        return max(held + spent, default=0.0)

    def idle(self, now: float) -> bool:
        """Return whether it carries no information, so that it may be dropped and recreated."""
        return not (self.connections or self.subscriptions or self.holders) and all(
            bucket.full(now) for bucket in self.buckets.values()
        )


def acquire(budgets: Sequence[Budget], resource: str) -> Excess | None:
    """Hold one more in all budgets, or in none; then return the limit that has been reached."""
    for budget in budgets:
        if not budget.has_room(resource):
            return Excess(budget.bounds.scope, resource, 0.0)
    hold(budgets, resource, 1)
    return None


def hold(budgets: Iterable[Budget], resource: str, count: int) -> None:
    """Hold `count` more, whether there is room or not; a negative count gives back."""
    for budget in budgets:
        budget.hold(resource, count)


def charge(budgets: Iterable[Budget], amounts: Mapping[str, float], now: float) -> Excess | None:
    """Spend the amounts of all budgets, or nothing; then return the limit with the longest wait."""
    worst: Excess | None = None
    buckets: list[tuple[Budget, TokenBucket, str, float]] = []
    for budget in budgets:
        if not budget.bounds.rates:
            continue
        for resource, amount in amounts.items():
            if bucket := budget.bucket(resource, now):
                wait = bucket.wait(now, amount)
                if wait > (worst.seconds if worst else 0.0):
                    worst = Excess(budget.bounds.scope, resource, wait)
                buckets.append((budget, bucket, resource, amount))
    if worst:
        return worst
    for budget, bucket, resource, amount in buckets:
        bucket.level -= amount
        budget.note(resource, amount)
    return None


def spend(budgets: Iterable[Budget], resource: str, amount: float, now: float) -> Excess | None:
    """Spend `amount` at once, on credit if necessary; return the longest debt before that, if any."""
    worst: Excess | None = None
    for budget in budgets:
        if bucket := budget.bucket(resource, now):
            debt = bucket.spend(now, amount)
            if debt > (worst.seconds if worst else 0.0):
                worst = Excess(budget.bounds.scope, resource, debt)
            budget.note(resource, amount)
    return worst


def level(budgets: Iterable[Budget], resource: str, now: float) -> float:
    """Return how much of a resource is left in all budgets (`inf`: unlimited)."""
    found = inf
    for budget in budgets:
        if bucket := budget.bucket(resource, now):
            bucket.wait(now)
            found = min(found, bucket.level)
    return found


def network(peer: str) -> str:
    """Return what counts as one address for a client "HOST:PORT": an IPv4 address, or an IPv6 /64."""
    host = peer.rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), NETWORK_BITS), strict=False))
