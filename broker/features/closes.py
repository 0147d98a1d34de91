"""The ends of the last connections: who, when, from where, by whom and why; in memory, for operators."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from broker.features.port import Feature

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.features.port import Ended


class Closes(Feature):
    """The newest `most` ends."""

    def __init__(self, most: int) -> None:
        self.kept: deque[Ended] = deque(maxlen=most)

    def ended(self, ended: Ended) -> None:
        self.kept.append(ended)

    def find(
        self, *, tenant: str | None = None, user: str | None = None, code: int | None = None
    ) -> Iterator[Ended]:
        """Yield the ends that match all given criteria, newest first."""
        for ended in reversed(self.kept):
            if tenant in (None, ended.tenant) and user in (None, ended.user) and code in (None, ended.code):
                yield ended
