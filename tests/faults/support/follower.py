"""A client of the broker, whatever its transport, and the protocol's rules for coming back.

It keeps every event, gap and change of state with its time, and comes back by itself whenever its connection
ends, with its whole list and its resume position. The transports are in `client`, `streamer` and `poller`.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import trio

from tests.faults.support.proxy import Gate, open_gate

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

RECONNECT_SECONDS = 0.05, 0.3
OPENING_SECONDS = 60.0
NARROW, WIDE = 4096, 1 << 20  # receive buffers: of a client that takes nothing, of one that catches up
MOVES = {"gap": "to"} | dict.fromkeys(
    ("event", "subscribed", "subscription.live", "pong", "connection.draining"), "position"
)  # which message moves the resume position by which field


class Lost(Exception):
    """The connection has ended; `code` is the close code, where the broker said one."""

    def __init__(self, code: int | None = None) -> None:
        super().__init__(code)
        self.code = code


@attrs.frozen
class Received:
    """One `event`: when and on which connection, the channel, the position and the id within."""

    at: float
    connection: int
    channel: str
    incarnation: str
    sequence: int  # 0: of a live channel
    id: str
    catch_up: int | None


@attrs.frozen
class Noted:
    """Any other message of the broker."""

    at: float
    connection: int
    kind: str
    payload: dict[str, Any]


@attrs.frozen
class Stay:
    """One connection: `since` its subscriptions stood, and when and how it ended (None: it stands)."""

    number: int
    since: float
    until: float | None = None
    code: int | None = None


@attrs.define(eq=False, kw_only=True)
class Follower:
    """One client. `address` says where the broker is (None: nowhere now).

    What the judge holds it to: `events` of stored channels come once and in order, whatever the connection,
    from `baseline` up to `position`; those of live channels once on each `connection`, and none is missing
    on one of the `stays` unless a note of that connection says so.
    """

    subscribe_id: ClassVar[str | None] = None  # in the answer to its list
    name: str
    tenant: str
    user: str
    patterns: list[str]  # as it sends them; `me` is spelled out
    denied: list[str]
    token: Callable[[], str]
    address: Callable[[], str | None]
    random: random.Random
    start: dict[str, Any] = attrs.field(factory=dict)  # of its first subscription
    lag: str | None = None  # its policy, where it asks for one
    reading: Gate = attrs.field(factory=open_gate)
    position: str | None = None
    baseline: str | None = None  # the position of its first subscription: from there it is entitled
    connection: int = 0
    stream: trio.SocketStream | None = None
    subscribed: trio.Event = attrs.field(factory=trio.Event)  # on the present connection, and live
    away: bool = False  # it does not come back while this is set
    ended: bool = False
    events: list[Received] = attrs.field(factory=list)
    notes: list[Noted] = attrs.field(factory=list)
    stays: list[Stay] = attrs.field(factory=list)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self) -> None:
        with self.scope:
            while not self.ended:
                if not self.away and (address := self.address()):
                    await self.connect(address)
                await trio.sleep(self.random.uniform(*RECONNECT_SECONDS))

    def cut(self) -> None:
        """Ends the connection rudely; it comes back by itself."""
        if self.stream:
            self.stream.socket.close()

    def go_away(self) -> None:
        """Ends the connection, not to come back before `away` is reset."""
        self.away = True
        self.cut()

    def leave(self) -> None:
        """Ends it for good."""
        self.ended = True
        self.cut()
        self.scope.cancel()

    def stop_reading(self) -> None:
        """From now on takes nothing off its link; its kernel takes little."""
        self.take_at_once(NARROW)
        self.reading.shut()

    def read_again(self) -> None:
        self.take_at_once(WIDE)
        self.reading.open()

    def take_at_once(self, size: int) -> None:
        """Sets how many bytes the kernel takes for it."""
        if self.stream:
            with contextlib.suppress(OSError):  # it was cut just now
                self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    # --- one connection ----------------------------------------------------------------------------

    async def connect(self, address: str) -> None:
        code: int | None = None
        try:
            await self.follow(address)
        except Lost as lost:
            code = lost.code
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.closed(code)

    async def follow(self, address: str) -> None:
        """Opens a connection, and reads for as long as it stands."""
        self.connection += 1
        with trio.move_on_after(OPENING_SECONDS) as opening:
            buffer = await self.open(address)
            opening.deadline = float("inf")
            await self.read(buffer)

    async def open(self, address: str) -> bytearray:
        """Sends the request; what has come after the head of its answer."""
        raise NotImplementedError

    async def read(self, buffer: bytearray) -> None:
        """Reads until the connection ends, which is `Lost`."""
        raise NotImplementedError

    def closed(self, code: int | None) -> None:
        self.let_go()
        self.end_stay(code)

    def let_go(self) -> None:
        """The link has ended."""
        if self.stream:
            self.stream.socket.close()
        self.stream = None
        if self.subscribed.is_set():  # else somebody may wait for the next one
            self.subscribed = trio.Event()

    def end_stay(self, code: int | None) -> None:
        if self.stays and self.stays[-1].until is None:
            self.stays[-1] = attrs.evolve(self.stays[-1], until=trio.current_time(), code=code)

    async def more(self) -> bytes | bytearray:
        await self.reading.passed()
        if self.stream is None:
            raise Lost
        data = await self.stream.receive_some()
        if not data:
            raise Lost
        return data

    # --- what the broker says ----------------------------------------------------------------------

    async def hear(self, message: dict[str, Any]) -> None:
        now = trio.current_time()
        kind, payload, message_id = message["type"], message["payload"], message.get("messageId")
        if kind == "event":
            self.event(now, payload)
        else:
            self.notes.append(Noted(now, self.connection, kind, payload))
            self.move(kind, payload)
        match kind:
            case "connection.authenticated":
                await self.subscribe()
            case "subscribed" if message_id == self.subscribe_id:
                assert not payload["refused"], payload
                self.baseline = self.baseline or payload["position"]
                self.stays.append(Stay(self.connection, now))
                if payload["live"]:
                    await self.live()
            case "subscription.live" if "catch_up" not in payload:
                await self.live()
            case _:
                await self.heard(kind, payload, message_id)

    async def live(self) -> None:
        """Its list is up to date."""
        self.subscribed.set()

    async def heard(self, kind: str, payload: dict[str, Any], message_id: str | None) -> None:
        """For clients that do more."""

    async def subscribe(self) -> None:
        """Sends its whole list, where the request has not."""

    @property
    def wish(self) -> dict[str, Any]:
        """Where to begin, and its policy: what it asks for beside its list."""
        start = {"position": self.position} if self.position else self.start
        return start | ({"lag": self.lag} if self.lag else {})

    def event(self, now: float, payload: dict[str, Any]) -> None:
        position = payload.get("position")
        incarnation, _, sequence = (position or "-0").rpartition("-")
        catch_up = payload.get("catch_up")
        self.received(
            Received(
                now,
                self.connection,
                payload["channel"],
                incarnation,
                int(sequence),
                payload["event"]["n"],
                catch_up,
            )
        )
        self.move("event", payload)

    def received(self, event: Received) -> None:
        assert event.catch_up is None, event
        self.events.append(event)

    def move(self, kind: str, payload: dict[str, Any]) -> None:
        """The last live position that it was told is where it resumes; a catch-up has one of its own."""
        position = payload.get(MOVES.get(kind, ""))
        if position is not None and not (kind in ("event", "gap") and "catch_up" in payload):
            self.position = position

    # --- what a test asks of it --------------------------------------------------------------------

    async def ask(self, kind: str, payload: dict[str, Any]) -> dict[str, Any] | None:
        """The reply to one message; None when the connection ended first."""
        raise NotImplementedError

    async def hurry(self) -> None:
        """Asks for its position, where its transport can."""

    def describe(self) -> str:
        """Where it is, for a test that waited for it in vain."""
        state = "live" if self.subscribed.is_set() else "connected" if self.stream else "away"
        last = self.notes[-1] if self.notes else None
        return (
            f"{self.name} ({type(self).__name__}) at {self.position}, {state}, connection {self.connection},"
            f" last told {last}"
        )

    async def reached(self, sequence: int) -> None:
        """Waits until its live position is there, in whatever incarnation."""
        while True:
            await self.subscribed.wait()
            await self.hurry()
            if self.position and int(self.position.rpartition("-")[2]) >= sequence:
                return
            await trio.sleep(0.1)
