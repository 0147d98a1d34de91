"""Who is present in a channel, as applications have it.

::

    async with session.presence("orders.7", state={"field": "amount"}) as room:
        draw(room.users)
        async for change in room:
            print(change.joined, change.left, change.updated)
            await room.set({"field": "note"}, for_seconds=5)
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import attrs

from broker.client import checks, flags
from broker.client.items import PresenceChanged
from broker.client.outbox import Pending
from broker.client.presence import Place
from broker.errors import NotEntered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from broker.client.flags import Flag, Host
    from broker.client.items import Member
    from broker.client.presence import Presence, Users


@attrs.define(eq=False)
class Room:
    """A channel that is watched and, unless it is only watched, entered. Use it by `async with`.

    The block begins once the channel is entered and all others have come; oneself may be shown a moment
    later. At its end the channel is left. Raises the `BrokerError` by which the broker has refused it, such
    as `Forbidden`. Iterate to hear who comes and goes.
    """

    host: Host = attrs.field(repr=False)
    presence: Presence = attrs.field(repr=False)
    name: str
    session_name: str | None = attrs.field(repr=False)  # None: it is not entered
    state: Any = attrs.field(repr=False)
    place: Place = attrs.field(init=False, repr=False)
    told: Users = attrs.field(init=False, factory=dict, repr=False)
    told_else: tuple[object, ...] = attrs.field(init=False, default=(), repr=False)
    waiting: set[Flag] = attrs.field(init=False, factory=set, repr=False)
    closed: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self.place = Place(self.name, self.session_name, self.state, self.happened)

    async def __aenter__(self) -> Self:
        if self.closed:
            raise RuntimeError(f"{self.name}: it was closed")
        self.presence.open(self.place)
        self.host.wake()
        try:
            await self.until(lambda: self.place.is_live or self.place.error is not None)
            if self.place.error:
                raise self.place.error
        except BaseException:
            self.close()
            raise
        self.tell()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = self.close()
        if error is None:
            await self.until(lambda: left.outcome is not None)

    def close(self) -> Pending[bool]:
        """Leave it; the promise is that the broker knows, or that the connection is lost."""
        self.closed = True
        left = self.presence.close(self.place, self.happened)
        self.happened()
        self.host.wake()
        return left

    # --- who is here -------------------------------------------------------------------------------

    @property
    def users(self) -> Mapping[str, Mapping[str, Member]]:
        """The members by user and session, at this time. With `detail` "count" it is not all of them."""
        return MappingProxyType(self.place.users)

    @property
    def users_count(self) -> int:
        """How many users are present."""
        return self.place.users_count

    @property
    def sessions_count(self) -> int:
        """How many sessions of users are present."""
        return self.place.sessions_count

    @property
    def detail(self) -> Literal["full", "count"]:
        """Whether all members are shown; "count": one's own user and a sample of the others."""
        return self.place.detail

    @property
    def stale(self) -> bool:
        """Whether the connection is lost: the members are then those that were here before."""
        return self.place.stale

    @property
    def session(self) -> str | None:
        """The name under which this client is present; None: it only watches."""
        return self.place.session

    async def set(self, state: Any, *, for_seconds: float | None = None) -> None:
        """Have others see this state (any JSON of 1 KiB at most), and return once the broker has it.

        None is no state. With `for_seconds` (0.1 to 60) the state before holds again after that time, or when
        the connection is lost. Of states that follow each other quickly only the newest is sent. Without a
        connection this waits for one. Raises `TypeError`, `ValueError` or a `BrokerError` for what is no
        state, or as the broker answers; `NotEntered` where one only watches.
        """
        if self.place.session is None or self.closed:
            raise self.place.error or NotEntered(f"{self.name}: it is not entered")
        if self.place.error:
            raise self.place.error
        copied = checks.presence_state(state)
        checks.check_for(for_seconds)
        flag = self.host.flag()
        promise: Pending[bool] = Pending(flag.set)
        until = None if for_seconds is None else self.host.clock() + for_seconds
        self.place.say(copied, until, promise)
        await self.host.attend(flag)
        promise.result()

    # --- what changes ------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PresenceChanged:
        """Return what has changed since the last time; several changes may be told as one."""
        await self.host.say()
        await self.until(lambda: self.news or self.place.error is not None or self.closed)
        if self.news and not self.closed:
            return self.tell()
        if self.place.error:
            raise self.place.error
        raise StopAsyncIteration

    @property
    def news(self) -> bool:
        return self.place.users != self.told or self.now_else != self.told_else

    @property
    def now_else(self) -> tuple[object, ...]:
        place = self.place
        return (place.stale, place.detail, place.users_count, place.sessions_count)

    def tell(self) -> PresenceChanged:
        before, now = self.told, self.place.users
        self.told, self.told_else = dict(now), self.now_else
        return PresenceChanged(
            joined=tuple(user for user in now if user not in before),
            left=tuple(user for user in before if user not in now),
            updated=tuple(user for user in now if user in before and now[user] != before[user]),
        )

    def happened(self) -> None:
        """Wake who waits for anything here."""
        for flag in self.waiting:
            flag.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        await flags.until(self.host, self.waiting, condition)
