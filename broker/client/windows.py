"""Of each channel at most one event in a time, the newest; the first at once.

The browser client has the same rules (`client/windows.js`); `tests/client/windows.json` holds both to them.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import attrs

from broker.client.resume import not_after

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.client.items import Event

MOST = 1000  # channels with an open window; events of further ones are not held
REMEMBERED = 10_000  # channels of which the newest position is known


@attrs.define
class Window:
    end: float
    held: Event | None = None


@attrs.define(eq=False)
class Windows:
    """`every` and all times are in seconds."""

    every: float
    open: dict[str, Window] = attrs.field(factory=dict)  # by channel; the first ends first
    newest: dict[str, str] = attrs.field(factory=dict)  # the newest position of each channel

    def take(self, event: Event, now: float) -> bool:
        """Take an event that has arrived; return whether it is to be handed over now.

        One that has come before is dropped.
        """
        channel, position = event.channel, event.position
        if position is not None:
            if not_after(position, self.newest.get(channel)):
                return False
            self.newest.pop(channel, None)
            self.newest[channel] = position
            if len(self.newest) > REMEMBERED:
                del self.newest[next(iter(self.newest))]
        window = self.open.get(channel)
        if window is not None:
            window.held = event
        elif len(self.open) < MOST:
            self.open[channel] = Window(now + self.every)
        return window is None

    def forget(self, gone: Callable[[str], bool]) -> None:
        """Begin anew in some channels: nothing that is held is handed over, and anything may come again."""
        self.open = {channel: window for channel, window in self.open.items() if not gone(channel)}
        self.newest = {channel: newest for channel, newest in self.newest.items() if not gone(channel)}

    def next(self) -> float:
        """Return when the next window ends."""
        return next((window.end for window in self.open.values()), inf)

    def due(self, now: float) -> list[Event]:
        """Return the events whose windows have ended; new ones begin for them."""
        found = []
        for channel, window in list(self.open.items()):
            if window.end > now:
                break
            del self.open[channel]
            if window.held is not None:
                self.open[channel] = Window(now + self.every)
                found.append(window.held)
        return found
