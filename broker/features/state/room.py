"""How much each tenant has stored as documents, and whether there is room for more.

A tenant is counted when a change would make a document, or a larger one; from then on the feed keeps the
count. It does not tell what the server removes by itself, such as deletions that are old enough, or what an
operator purges. So nothing is refused by a count that is not fresh. Each broker counts for itself, and
changes that are under way are in no count: a tenant may come to have a little more than its limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from broker.documents.values import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker import config
    from broker.bus.base import Keyed, Record

FRESH_SECONDS = 60.0  # a count by which something is refused is at most as old
IDLE_SECONDS = 600.0  # after which a count that nobody needs is dropped
AMPLE_DOCUMENTS = 16  # with so much left nobody has to find out how much a change takes
AMPLE_BYTES = AMPLE_DOCUMENTS * MAX_BYTES


@attrs.define(eq=False)
class Count:
    """What a tenant has stored in the stream of an `incarnation`.

    `sizes` are the bytes under each subject, negative where a deletion is all that is there; `taken` is the
    sum of both.
    """

    incarnation: str
    began: float
    sizes: dict[str, int] = attrs.Factory(dict)
    documents: int = 0
    taken: int = 0

    def put(self, subject: str, body: bytes, headers: Mapping[str, str] | None) -> None:
        """Take the newest message of a subject."""
        size = size_of(subject, body, headers)
        before = self.sizes.get(subject, 0)
        self.sizes[subject] = size if body else -size
        self.documents += bool(body) - (before > 0)
        self.taken += size - abs(before)


@attrs.define(eq=False)
class Holding:
    """The `count` of a tenant, and the one in the `making`. `used` is when somebody last needed it."""

    used: float
    count: Count | None = None
    making: Count | None = None
    turn: trio.Lock = attrs.Factory(trio.Lock)


@attrs.define(eq=False, repr=False, kw_only=True)
class Room:
    """The room of all tenants. `prefix` is that of the subjects.

    `incarnation` returns that of the stream, `head` the sequence up to which the feed has told of it.
    """

    keyed: Keyed
    prefix: str
    incarnation: Callable[[], str]
    head: Callable[[], int]
    limits: config.Limits
    holdings: dict[str, Holding] = attrs.Factory(dict)  # by tenant
    own: Mapping[str, config.TenantAllowance] = attrs.field(init=False)  # of tenants with limits of their own

    def __attrs_post_init__(self) -> None:
        self.set_limits(self.limits)

    def set_limits(self, limits: config.Limits) -> None:
        self.limits = limits
        self.own = {each.name: each for each in limits.tenants}

    # --- what is stored --------------------------------------------------------------------------------

    def wrote(self, subject: str, sequence: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Take what this broker has written, unless the feed has told of it, or of what came after it."""
        if sequence > self.head():
            self.hear(subject, body, headers)

    def hear(self, subject: str, body: bytes, headers: Mapping[str, str] | None) -> None:
        """Take a record of the feed."""
        holding = self.holdings.get(self.tenant(subject))
        if holding is not None:
            for each in (holding.count, holding.making):
                if each is not None:
                    each.put(subject, body, headers)

    def tenant(self, subject: str) -> str:
        return subject[len(self.prefix) + 1 :].partition(".")[0]

    # --- whether there is room -------------------------------------------------------------------------

    def ample(self, subject: str) -> bool:
        """Return whether there is room for any change."""
        tenant = self.tenant(subject)
        holding = self.holdings.get(tenant)
        count = holding.count if holding is not None else None
        if holding is None or count is None or count.incarnation != self.incarnation():
            return False
        holding.used = trio.current_time()
        return self.excess(tenant, count, AMPLE_DOCUMENTS, AMPLE_BYTES) is None

    async def fault(self, subject: str, documents: int, size: int) -> str | None:
        """Return why so many more documents, or bytes, cannot be stored. Raise `Unavailable`."""
        if documents <= 0 and size <= 0:
            return None
        tenant = self.tenant(subject)
        self.tidy()
        holding = self.holdings.setdefault(tenant, Holding(trio.current_time()))
        async with holding.turn:
            now = holding.used = trio.current_time()
            count = holding.count
            if count is None or count.incarnation != self.incarnation():
                count = await self.count(tenant, holding)
            fault = self.excess(tenant, count, documents, size)
            if fault is not None and count.began < now - FRESH_SECONDS:
                count = await self.count(tenant, holding)
                fault = self.excess(tenant, count, documents, size)
        return fault

    def excess(self, tenant: str, count: Count, documents: int, size: int) -> str | None:
        own = self.own.get(tenant)
        most, most_bytes = own and own.documents, own and own.document_bytes
        most = self.limits.documents if most is None else most
        most_bytes = self.limits.document_bytes if most_bytes is None else most_bytes
        if documents > 0 and most and count.documents + documents > most:
            return (
                f"tenant {tenant} has {count.documents} documents, and may have {most} (limits.documents); "
                "delete some, or have the limit raised"
            )
        if size > 0 and most_bytes and count.taken + size > most_bytes:
            return (
                f"the documents of tenant {tenant} take {count.taken} bytes, and may take {most_bytes} "
                "(limits.document_bytes); delete or shorten some, or have the limit raised"
            )
        return None

    async def count(self, tenant: str, holding: Holding) -> Count:
        """Count what a tenant has, while the feed tells what is stored meanwhile."""
        made = holding.making = Count(self.incarnation(), trio.current_time())

        def take(records: list[Record]) -> None:
            for _, subject, body, headers in records:
                if subject not in made.sizes:  # the feed knows better
                    made.put(subject, body, headers)

        try:
            made.incarnation = await self.keyed.load(
                [f"{self.prefix}.{tenant}.>"], at_least=self.head(), take=take
            )
        finally:
            holding.making = None
        holding.count = made
        return made

    def tidy(self) -> None:
        """Forget the counts that nobody has needed for a while."""
        before = trio.current_time() - IDLE_SECONDS
        for tenant, holding in list(self.holdings.items()):
            if holding.used < before and not holding.turn.locked():
                del self.holdings[tenant]


def size_of(subject: str, body: bytes, headers: Mapping[str, str] | None) -> int:
    """Return the bytes that a message takes, as the server counts them, nearly."""
    fields = sum(len(name) + len(value) + 4 for name, value in (headers or {}).items())
    return len(subject) + len(body) + fields
