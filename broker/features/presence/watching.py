"""Those who see who is present: each connection gets what has changed, as fast as it may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import trio

from broker.beats import next_beat
from broker.keyed.watch import framed
from broker.signals import Signal
from broker.turns import Turn
from broker.wire import messages as m

if TYPE_CHECKING:
    from broker.features.presence.room import Room
    from broker.session.requests import Caller
    from broker.wire.positions import Position

WINDOW_SECONDS, LONGEST_SECONDS = 0.1, 2.0  # between two frames to a connection
BYTES_PER_SECOND = 65_536  # of presence for a connection
COUNT_SECONDS = 1.0  # between the numbers of a large channel
WATCHERS = 16  # that get a frame between two looks at the clock


@attrs.define(eq=False)
class Watcher:
    """A connection that watches a room, and what it has been told of it."""

    screen: Screen
    room: Room
    user: str
    detail: Literal["full", "count"]
    version: int = 0
    next: float = 0.0


@attrs.define(eq=False)
class Screen:
    """The channels that a connection watches; `next` is when it may get the next frame."""

    caller: Caller
    watchers: dict[str, Watcher] = attrs.Factory(dict)
    next: float = 0.0

    def write(self, messages: list[bytes], now: float) -> None:
        flow = self.caller.flow
        data = b"".join(framed(each, flow) for each in messages)
        flow.push(data)
        pause = min(LONGEST_SECONDS, max(WINDOW_SECONDS, len(data) / BYTES_PER_SECOND))
        self.next = now + pause


@attrs.define(eq=False)
class Watching:
    """Gives the watchers of rooms that have `changed` what is due to them."""

    watchers: dict[Room, dict[Watcher, None]] = attrs.Factory(dict)
    changed: dict[Room, None] = attrs.Factory(dict)
    woken: Signal = attrs.Factory(Signal)

    def note(self, room: Room) -> None:
        if room in self.watchers:
            self.changed[room] = None
            self.woken.set()

    def begin(self, watcher: Watcher, position: Position | None, message_id: str | None) -> None:
        """Tell a client that it watches, and who is there or, since its position, has come and gone."""
        room, caller = watcher.room, watcher.screen.caller
        recovered = position is not None and room.resumes(position) and watcher.detail == "full"
        self.watchers.setdefault(room, {})[watcher] = None
        caller.tell(self.watched(watcher, recovered=recovered or position is None), message_id)
        now = trio.current_time()
        if position is not None and recovered:
            message = room.since(position.sequence, watcher.user)
            watcher.screen.write([message], now)
        else:
            watcher.screen.write(room.whole(watcher.user), now)
        watcher.version = room.version

    def watched(self, watcher: Watcher, *, recovered: bool) -> m.PresenceWatched:
        room = watcher.room
        return m.PresenceWatched(
            channel=room.channel, position=room.position, recovered=recovered, detail=watcher.detail
        )

    def end(self, watcher: Watcher) -> None:
        found = self.watchers[watcher.room]
        del found[watcher]
        if not found:
            del self.watchers[watcher.room]
            self.changed.pop(watcher.room, None)

    async def run(self) -> None:
        turn = Turn()
        while True:
            now = trio.current_time()
            again = now + LONGEST_SECONDS
            for room in list(self.changed):
                due = None
                for number, watcher in enumerate(list(self.watchers.get(room, ())), 1):
                    if watcher not in self.watchers.get(room, ()):  # it has ended meanwhile
                        continue
                    later = self.give(watcher, now)
                    if later is not None:
                        due = later if due is None else min(due, later)
                    if number % WATCHERS == 0:
                        await turn.pass_on()
                if due is None:
                    if all(each.version == room.version for each in self.watchers.get(room, ())):
                        self.changed.pop(room, None)
                    else:
                        again = now
                else:
                    again = min(again, due)
            if self.changed:
                with trio.move_on_at(again):
                    await self.woken.wait()
            else:
                await self.woken.wait()

    def give(self, watcher: Watcher, now: float) -> float | None:
        """Give a watcher what has changed; return when to try again, if it may not get that yet."""
        room, screen = watcher.room, watcher.screen
        if watcher.version == room.version or watcher.screen.caller.closing:
            return None
        if screen.caller.flow.rest is not None:  # it reads what it has first
            return now + WINDOW_SECONDS
        due = max(screen.next, watcher.next)
        if due > now:
            return due
        try:
            if watcher.detail != room.detail:
                watcher.detail = room.detail
                screen.caller.tell(self.watched(watcher, recovered=False))
                screen.write(room.whole(watcher.user), now)
            else:
                screen.write([room.after(watcher.version, watcher.user)], now)
        except Exception as error:  # any: it ends that connection alone
            screen.caller.flow.client.crashed(error)
        watcher.version = room.version
        if room.detail == "count":  # all at the same time, so that they are told the same
            watcher.next = next_beat(COUNT_SECONDS)
        return None
