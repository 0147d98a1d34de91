"""What an application asks of a session, whichever loop that runs on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import attrs

from broker.backoff import Backoff
from broker.client.engine import READ_AHEAD, Engine
from broker.client.items import Lost
from broker.client.tokens import looked_at

if TYPE_CHECKING:
    import ssl

    from broker.client.checks import Lag
    from broker.client.items import Published
    from broker.client.outbox import Pending

T = TypeVar("T")
Token: TypeAlias = str | Callable[[], Awaitable[str]]


class Flag(Protocol):
    """An event of Trio's or asyncio's."""

    def set(self) -> None: ...

    async def wait(self) -> object: ...


@attrs.define(eq=False, kw_only=True)
class Calls(ABC):
    """The part of a session that is the same on Trio and on asyncio: its settings, and what may be asked."""

    url: str
    token: Token = attrs.field(repr=False)
    token_timeout: float = 10.0  # seconds for a token function to return
    tenant: str | None = None
    ssl_context: ssl.SSLContext | None = None
    backoff: Backoff = attrs.field(factory=Backoff)
    engine: Engine = attrs.field(init=False, repr=False)
    changed: Flag = attrs.field(repr=False)  # there may be something to send
    taken: Flag = attrs.field(repr=False)
    taker: object = attrs.field(init=False, default=None, repr=False)  # the task that iterates
    taker_waits: bool = attrs.field(init=False, default=False)  # for an answer, and takes nothing

    def __attrs_post_init__(self) -> None:
        renewable = callable(self.token)
        if not renewable:
            self.token = looked_at(self.token)
        self.engine = Engine(url=self.url, tenant=self.tenant, renewable=renewable, backoff=self.backoff)

    @abstractmethod
    def flag(self) -> Flag: ...

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
        """Ask for channels and patterns, now and after each cut; return the `messageId` of the reply.

        At most one start: after a `position`, from a time (`since`, RFC 3339), from the newest `last`
        events, or the newest of each channel (`snapshot`). Else from now. Under a `durable` name it starts
        after what was last acknowledged under it, and elsewhere only the first time.

        What is asked for in one turn, and begins alike, is asked in one message and has one reply. A list
        that is longer than the broker takes goes in several, and what it says is the reply to the first.
        Raises, before anything is sent, `TypeError`, `ValueError` or a `BrokerError` for what the broker
        would refuse for its form.
        """
        starts = {"position": position, "since": since, "last": last, "snapshot": snapshot}
        message_id = self.engine.subscribe(channels, starts, lag, durable)
        await self.say()
        return message_id

    async def unsubscribe(self, *channels: str) -> None:
        """End subscriptions: no event that is for them alone is handed over from here on.

        The broker is asked until it has confirmed it.
        """
        self.engine.unsubscribe(channels)
        await self.say()

    async def publish(self, channel: str, event: Any, *, event_id: str | None = None) -> Published:
        """Publish an event, and return once the broker has said where it is.

        `event` is any JSON value, or JSON as bytes; `TOMBSTONE` (b"") removes the channel from snapshots.
        Without a connection it waits for one; after a cut, and when the broker has no time for it, it is
        sent again, with the same id (a random one where none is given), for as long as the broker's stream
        compares ids. Those that are under way at the same time may be stored in any order. When this is
        cancelled before it was sent, it will not be.

        Raises, before anything is sent, `TypeError`, `ValueError` or a `BrokerError` for what is no event;
        later the `BrokerError` that the broker answers; `Duplicate` when another event has the id;
        `UnknownOutcome` when the answer was lost and cannot be had any more; `SessionEnded`.
        """
        done = self.flag()
        return await self.answer(self.engine.publish(channel, event, event_id, done.set), done)

    async def acknowledge(self, durable: str, position: str) -> None:
        """Say that everything up to `position` has been dealt with, and return once that is stored.

        That takes up to a second. Raises as `publish` does.
        """
        done = self.flag()
        await self.answer(self.engine.acknowledge(durable, position, done.set), done)

    def acknowledge_nowait(self, durable: str, position: str) -> None:
        """The same without waiting. Of many only the newest is sent; after a cut it is sent again."""
        self.engine.acknowledge(durable, position, None)
        self.changed.set()

    async def answer(self, promise: Pending[T], done: Flag) -> T:
        """Wait for what was promised. It comes behind events: those are read on meanwhile."""
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
        """Return how many items may wait to be taken while the next ones are read."""
        return inf if self.taker_waits else READ_AHEAD if self.engine.outbox.awaited else 0

    @abstractmethod
    async def ask_for_token(self, ask: Callable[[], Awaitable[str]]) -> str:
        """Await the token function. Raises what that raises, and `TimeoutError` after `token_timeout`."""

    async def current_token(self) -> str | Lost:
        """Return the token to present now, or why there is none: it is asked for again later."""
        if isinstance(self.token, str):
            return self.token
        try:
            return looked_at(await self.ask_for_token(self.token))
        except TimeoutError as error:
            return Lost(f"the token function: {error or 'no answer'}", cause=error)
        except Exception as error:  # whatever it is, it may be gone the next time
            return Lost(f"the token function: {type(error).__name__}: {error}", cause=error)
