"""What an application asks of a session, whichever loop that runs on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import attrs

from broker.client.engine import READ_AHEAD, Backoff, Engine

if TYPE_CHECKING:
    import ssl

    from broker.client.engine import Lag
    from broker.client.items import Published
    from broker.client.outbox import Pending

T = TypeVar("T")
Token: TypeAlias = str | Callable[[], Awaitable[str]]


class Signal(Protocol):
    """An event of Trio's or asyncio's."""

    def set(self) -> None: ...

    async def wait(self) -> object: ...


@attrs.define(eq=False, kw_only=True)
class Calls(ABC):
    """The part of a session that is the same on Trio and on asyncio: its settings, and what may be asked."""

    url: str
    token: Token = attrs.field(repr=False)
    tenant: str | None = None
    ssl_context: ssl.SSLContext | None = None
    backoff: Backoff = attrs.field(factory=Backoff)
    engine: Engine = attrs.field(init=False, repr=False)
    changed: Signal = attrs.field(repr=False)  # there may be something to send
    taken: Signal = attrs.field(repr=False)
    taker: object = attrs.field(init=False, default=None, repr=False)  # the task that iterates
    taker_waits: bool = attrs.field(init=False, default=False)  # for an answer, and takes nothing

    def __attrs_post_init__(self) -> None:
        renewable = not isinstance(self.token, str)
        self.engine = Engine(url=self.url, tenant=self.tenant, renewable=renewable, backoff=self.backoff)

    @abstractmethod
    def signal(self) -> Signal: ...

    @abstractmethod
    def current_task(self) -> object: ...

    async def subscribe(
        self,
        *channels: str,
        position: str | None = None,
        since: str | None = None,
        last: int | None = None,
        snapshot: bool = False,
        durable: str | None = None,
        lag: Lag | None = None,
    ) -> str:
        """Asks for channels and patterns, now and after each cut; says the `messageId` of the reply.

        At most one start: after a `position`, from a time (`since`, RFC 3339), from the newest `last`
        events, or the newest of each channel (`snapshot`). Else from now. Under a `durable` name it starts
        after what was last acknowledged under it, and elsewhere only the first time.
        """
        starts = {"position": position, "since": since, "last": last, "snapshot": snapshot}
        message_id = self.engine.subscribe(channels, starts, lag, durable)
        await self.say()
        return message_id

    async def unsubscribe(self, *channels: str) -> None:
        """Ends subscriptions; `unsubscribed` is the last that is heard of them."""
        self.engine.unsubscribe(channels)
        await self.say()

    async def publish(self, channel: str, event: Any, *, event_id: str | None = None) -> Published:
        """Publishes an event, and returns once the broker has said where it is.

        `event` is any JSON value, or JSON as bytes; b"" is a tombstone. Without a connection it waits for
        one; after a cut, and when the broker has no time for it, it is sent again, with the same id (one is
        made up where none is given), so that it is stored once. Those that are under way at the same time
        may be stored in any order. When this is cancelled before it was sent, it will not be.

        Raises the `BrokerError` that the broker answers; `Unavailable` when it cannot be known any more
        whether it was stored, or a live event sent; `SessionEnded`.
        """
        done = self.signal()
        return await self.answer(self.engine.publish(channel, event, event_id, done.set), done)

    async def acknowledge(self, durable: str, position: str) -> None:
        """Says that everything up to `position` has been dealt with, and returns once that is stored.

        That takes up to a second. Raises as `publish` does.
        """
        done = self.signal()
        await self.answer(self.engine.acknowledge(durable, position, done.set), done)

    def acknowledge_nowait(self, durable: str, position: str) -> None:
        """The same without waiting. Of many only the newest is sent; after a cut it is sent again."""
        self.engine.acknowledge(durable, position, None)
        self.changed.set()

    async def answer(self, promise: Pending[T], done: Signal) -> T:
        """Waits for what was promised. It comes behind events: those are read on meanwhile."""
        mine = self.current_task() is self.taker
        self.taker_waits |= mine
        self.changed.set()
        self.taken.set()
        try:
            await done.wait()
        finally:
            self.engine.outbox.withdraw(promise)
            if mine:
                self.taker_waits = False
        return promise.result()

    async def say(self) -> None:
        """There is something to send."""
        self.changed.set()

    def ahead(self) -> float:
        """How many items may wait to be taken while the next ones are read."""
        return inf if self.taker_waits else READ_AHEAD if self.engine.outbox.awaited else 0

    async def current_token(self) -> str:
        return self.token if isinstance(self.token, str) else await self.token()
