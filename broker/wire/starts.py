"""Where a subscription starts, other than from now."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from datetime import datetime

    from broker.wire import positions


@attrs.frozen
class After:
    """After a position that the client has seen."""

    position: positions.Position


@attrs.frozen
class Since:
    """From the first event stored at or after a time."""

    time: datetime


@attrs.frozen
class Last:
    """From the newest `count` events on."""

    count: int


@attrs.frozen
class Snapshot:
    """From the newest event of each channel on."""


Start: TypeAlias = After | Since | Last | Snapshot
