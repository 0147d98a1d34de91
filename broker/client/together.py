"""A change of several documents: of all of them, or of none. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from broker import errors
from broker.client import checks
from broker.client.draft import Joint
from broker.documents.judging import OUT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from broker.client.documents import Documents
    from broker.client.draft import Wish
    from broker.client.outbox import Pending
    from broker.errors import BrokerError

MOST = 16  # documents


@attrs.define(eq=False)
class Part:
    """Has one of the documents open meanwhile, so that it is known what is replaced."""

    name: str
    failed: Callable[[BrokerError], None]

    def heard(self, channel: str, value: Any, invalid: str | None) -> None: ...

    def ready(self) -> None: ...

    def shown(self, channel: str) -> None: ...

    def refused(
        self, channel: str, error: BrokerError, mine: Wish, theirs: Mapping[str, Any] | None
    ) -> None: ...

    def lost(self, channel: str, ids: Collection[str], revision: str, paths: Mapping[str, Any]) -> None: ...


@attrs.define(eq=False)
class Together:
    """The change, and its promise of the revisions that have it, by channel."""

    documents: Documents
    promise: Pending[dict[str, str]]
    joint: Joint = attrs.field(init=False)
    parts: list[Part] = attrs.field(factory=list)

    def begin(self, changes: Iterable[Mapping[str, Any]]) -> None:
        """Show it, and have it sent. Raise for what cannot be, with nothing changed."""
        wishes = [wish_of(**each) for each in changes]
        names = [self.documents.full(name) for name, _ in wishes]
        if not 1 <= len(names) <= MOST or len(set(names)) < len(names):
            raise ValueError(f"changes: 1 to {MOST} documents, each once")
        self.joint = Joint(len(names), self.settle)
        self.parts = [Part(name, self.failed) for name, _ in wishes]
        for part, (name, wish) in zip(self.parts, wishes, strict=True):
            self.documents.edit(name, part).change(*wish, self.joint)
        for part in list(self.parts):
            self.documents.open(part)
        for name in names:
            self.documents.changes.show(name)

    def settle(self, outcome: dict[str, str] | BrokerError) -> None:
        self.promise.settle(outcome)
        parts, self.parts = self.parts, []
        for part in parts:
            self.documents.close(part)

    def failed(self, error: BrokerError) -> None:
        """A document cannot be opened, or nothing more comes."""
        if self.documents.over is None and self.joint.id:
            return  # what becomes of it will be said
        self.documents.changes.drop(self.joint)
        self.settle(errors.UnknownOutcome(error.message) if self.joint.id else error)

    def withdraw(self) -> None:
        """Nobody waits for it any more: give it up, unless it was sent."""
        if self.promise.outcome is None and not self.joint.id:
            self.failed(errors.Unavailable("it was withdrawn"))


def wish_of(channel: Any, patch: Any = OUT, add: Any = None) -> tuple[str, tuple[Any, Mapping[Any, float]]]:
    checks.check_document(channel)
    return channel, checks.wish_of(patch, add)
