"""How the last connections ended: who, when, from where, by whom and why. In memory, for operators."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen(kw_only=True)
class Ended:
    """One connection that is gone.

    `seconds` is how long it lasted. `by` is "broker", "operator" or "client", or "link" for one that just
    went away (1006). `messages` counts what the client sent. `position` is the newest that it was given:
    where it would resume. Without a token there is no tenant and no user.
    """

    connection: str
    tenant: str | None
    user: str | None
    peer: str
    transport: str
    opened: str
    ended: str
    seconds: float
    code: int
    by: str
    reason: str
    messages: int
    position: str | None


class Closes:
    """The newest `most` of them."""

    def __init__(self, most: int) -> None:
        self.kept: deque[Ended] = deque(maxlen=most)

    def add(self, ended: Ended) -> None:
        self.kept.append(ended)

    def find(
        self, *, tenant: str | None = None, user: str | None = None, code: int | None = None
    ) -> Iterator[Ended]:
        """Those that match all of what is given, the newest first."""
        for ended in reversed(self.kept):
            if tenant in (None, ended.tenant) and user in (None, ended.user) and code in (None, ended.code):
                yield ended
