"""What a client has asked and has no answer to: the part that is the same whatever is asked. No I/O."""

from __future__ import annotations

from bisect import insort
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.client.gate import Gate
    from broker.client.outbox import Pending


class Asked(Protocol):
    """One of them; `number` is its place in the order in which they were asked."""

    @property
    def number(self) -> int: ...
    @property
    def promise(self) -> Pending[Any]: ...


T = TypeVar("T", bound=Asked)


@attrs.define(eq=False)
class Unanswered(Generic[T]):
    """`waiting` are those to be sent, in their order; `sent` those that were, by `messageId`."""

    gate: Gate
    waiting: list[T] = attrs.field(factory=list)
    sent: dict[str, T] = attrs.field(factory=dict)
    numbers: Iterator[int] = attrs.field(factory=lambda: count(1))

    def withdraw(self, promise: Pending[Any]) -> None:
        """Record that nobody waits for an answer any more: unless it was sent, it will not be."""
        promise.withdrawn = True
        self.waiting = [each for each in self.waiting if each.promise is not promise]

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self.waiting) or any(not each.promise.withdrawn for each in self.sent.values())

    def again(self, asked: T) -> None:
        """Have it sent again in its old place, if anybody still waits for the answer."""
        if not asked.promise.withdrawn:
            insort(self.waiting, asked, key=attrgetter("number"))
