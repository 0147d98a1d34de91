"""A client that also reads the past: a catch-up beside its live flow, asked for again after each cut."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import attrs
import trio

from tests.faults.support.client import RETRY_MS, Client
from tests.faults.support.entitled import matches
from tests.faults.support.follower import Lost

if TYPE_CHECKING:
    from tests.faults.support.follower import Received

HISTORY = "history"  # the id of that request


@attrs.define(eq=False, kw_only=True)
class Historian(Client):
    """Subscribes `past` too, some time after its list stands: from the beginning of the stream that it knows.

    `marked` is what its catch-ups brought. When one has come to the live position (`joined`), the rest comes
    unmarked, and `past` is one of its list.
    """

    past: str
    asking: bool = False
    marked: list[Received] = attrs.field(factory=list)
    newest: str | None = None  # marked position, where an unfinished catch-up goes on after a cut
    joined: int | None = None  # how many unmarked events had come by then
    number: int | None = None  # of the catch-up on this connection

    async def remember(self, delay: float) -> None:
        """Begins to ask for the past."""
        await trio.sleep(delay)
        await self.subscribed.wait()
        self.asking = True
        with contextlib.suppress(Lost, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            await self.ask_for_the_past()  # else when its list stands again

    def wanted(self) -> list[str]:
        return self.patterns if self.joined is None else [*self.patterns, self.past]

    async def live(self) -> None:
        await super().live()
        self.number = None
        if self.asking and self.joined is None:
            await self.ask_for_the_past()

    async def ask_for_the_past(self) -> None:
        await self.say("subscribe", {"channel": self.past, "position": self.newest or self.first()}, HISTORY)

    def first(self) -> str:
        """Before everything, in the stream that it knew first."""
        assert self.baseline
        return f"{self.baseline.rpartition('-')[0]}-0"

    async def heard(self, kind: str, payload: dict[str, Any], message_id: str | None) -> None:
        match kind:
            case "subscribed" if message_id == HISTORY:
                self.number = payload.get("catch_up")
                if payload["live"]:
                    self.joined = len(self.events)
            case "subscription.live":
                assert payload["catch_up"] == self.number
                self.joined = len(self.events)
            case "gap" if "catch_up" in payload:
                self.newest = payload.get("to", self.newest)
            case "error" if message_id == HISTORY:
                assert payload["retryable"], payload
                await trio.sleep(payload.get("retry_after_ms", RETRY_MS) / 1000)
                await self.ask_for_the_past()

    def received(self, event: Received) -> None:
        if event.catch_up is None:
            super().received(event)
        else:
            assert event.catch_up == self.number, event
            self.marked.append(event)
            self.newest = f"{event.incarnation}-{event.sequence}"

    def of_the_past(self) -> list[Received]:
        """What it got of `past`, in the order in which it came."""
        if self.joined is None:
            return self.marked
        return self.marked + [
            event for event in self.events[self.joined :] if matches(self.past, event.channel)
        ]

    async def reached(self, sequence: int) -> None:
        """Waits until its live position is there, and its catch-up over."""
        await super().reached(sequence)
        while self.asking and self.joined is None:
            await trio.sleep(0.1)
