"""The calls of a session, the same on Trio and asyncio."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import attrs

from broker.backoff import Backoff
from broker.client import checks, said
from broker.client.collection import Collection, Document
from broker.client.engine import READ_AHEAD, Engine
from broker.client.items import Lost
from broker.client.outbox import Pending
from broker.client.presence import new_session
from broker.client.room import Room
from broker.client.together import Together
from broker.client.tokens import looked_at

if TYPE_CHECKING:
    import ssl

    from broker.client.checks import Lag
    from broker.client.flags import Flag
    from broker.client.items import Page, Published

T = TypeVar("T")
REQUEST_SECONDS = 5.0  # the time that a service usually has to answer
Token: TypeAlias = str | Callable[[], Awaitable[str]]


@attrs.define(eq=False, kw_only=True)
class Calls(ABC):
    """Base of the sessions on Trio and asyncio: settings and calls."""

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
    taker_waits: bool = attrs.field(
        init=False, default=False
    )  # it waits for an answer, and receives nothing meanwhile

    def __attrs_post_init__(self) -> None:
        renewable = callable(self.token)
        if not renewable:
            self.token = looked_at(self.token)
        self.engine = Engine(url=self.url, tenant=self.tenant, renewable=renewable, backoff=self.backoff)

    @abstractmethod
    def flag(self) -> Flag: ...

    @abstractmethod
    def current_task(self) -> object: ...

    @abstractmethod
    def clock(self) -> float:
        """Return the time in seconds on the monotonic clock of the loop."""

    @abstractmethod
    async def wait(self, flag: Flag, until: float) -> None:
        """Wait for the flag, but not beyond that time of `clock`."""

    async def subscribe(
        self,
        *channels: str,
        position: str | None = None,
        since: str | None = None,
        last: int | None = None,
        snapshot: bool = False,
        durable: str | None = None,
        lag: Lag | None = None,
        filter: Mapping[str, Any] | bytes | None = None,  # noqa: A002  the name in the protocol
        every_ms: int | None = None,
    ) -> str:
        """Subscribe to channels and patterns, and again after each reconnection; return the reply's
        `messageId`.

        Give at most one start: after a `position`, since a time (`since`, RFC 3339), the newest `last`
        events, or the newest event of each channel (`snapshot`). The default is now. With a `durable` name
        it starts after the last position acknowledged under that name; another start counts only the first
        time. With a `filter` (the protocol page, "Filters") only the events come that pass it; with
        `every_ms` (100 to 60000) of each channel at most one in that time, the newest, and the first at once.
        A channel has the filter and the pace of its last `subscribe`; an event that several subscriptions
        match comes if it passes for one of them, at the finest pace of those.

        Subscriptions with the same start and options that are made in one turn of the loop share a message
        and its reply. A list that is longer than the broker accepts is sent in several messages; the id is
        that of the first. Raises `TypeError`, `ValueError` or a `BrokerError`, before anything is sent, for
        an invalid request.
        """
        starts = {"position": position, "since": since, "last": last, "snapshot": snapshot}
        message_id = self.engine.subscribe(channels, starts, lag, durable, filter, every_ms)
        await self.say()
        return message_id

    async def unsubscribe(self, *channels: str) -> None:
        """End subscriptions: from now on no event is handed over for them.

        The request is repeated until the broker has confirmed it.
        """
        self.engine.unsubscribe(channels)
        await self.say()

    async def publish(
        self, channel: str, event: Any, *, event_id: str | None = None, echo: bool = True
    ) -> Published:
        """Publish an event, and return its position once the broker has stored it.

        `event` is any JSON value, or JSON as bytes; `TOMBSTONE` (b"") removes the channel from snapshots.
        Without a connection this waits for one. After a reconnection, or a retryable refusal, the event is
        sent again under the same id (by default random), within the duplicate window of the broker's
        stream. Events that are published concurrently may be stored in any order. An event is not sent when
        this is cancelled before that. Without `echo` this session does not receive it; others of the user do.

        Raises `TypeError`, `ValueError` or a `BrokerError`, before anything is sent, for an invalid event;
        later the `BrokerError` in the broker's answer; `Duplicate` when another event has the id;
        `UnknownOutcome` when the answer was lost and a retry might store the event twice; `SessionEnded`.
        """
        done = self.flag()
        return await self.answer(self.engine.publish(channel, event, event_id, echo, done.set), done)

    async def request(
        self,
        method: str,
        data: Any = None,
        *,
        timeout: float = REQUEST_SECONDS,
        id: str | None = None,  # noqa: A002  the name in the protocol
    ) -> Any:
        """Ask a service, and return its answer as decoded JSON.

        `data` is any JSON value, or JSON as bytes. `timeout` is in seconds, for everything: without a
        connection, or over a limit of the broker, the request waits to be sent. It is sent once and never
        repeated. By `id` a service recognises a repetition of yours. Cancelled before it was sent, it is not
        sent.

        Raises `TypeError`, `ValueError` or a `BrokerError`, before anything is sent, for an invalid request;
        `Rejected`, with `status`, when the service refuses; `Unavailable` when certainly no service has it:
        you may repeat it; `Timeout` when it was sent and not answered, also for a lost connection: whether
        the service has acted is not known; `BadAnswer`, `Forbidden`, `TooLarge` and others as the broker
        answers; `SessionEnded`.
        """
        checks.check_timeout(timeout)
        done, until = self.flag(), self.clock() + timeout
        promise = self.engine.request(method, data, until, id, done.set)
        return (await self.answer(promise, done, until))["data"]

    async def history(
        self,
        *channels: str,
        before: str | None = None,
        after: str | None = None,
        since: str | None = None,
        limit: int | None = None,
        filter: Mapping[str, Any] | bytes | None = None,  # noqa: A002  the name in the protocol
    ) -> Page:
        """Read stored events of channels and patterns back, without subscribing.

        Give at most one start: the newest events below a position (`before`), those after one (`after`), or
        since a time (`since`, RFC 3339). The default is the newest. A page has at most `limit` events (50),
        and fewer where they are large or far apart. With a `filter` (the protocol page, "Filters") it has
        only those that pass it. `older` and `newer` of a page return the next ones.

        Without a connection, or over a limit of the broker, this waits; after a reconnection it asks again.
        Raises `TypeError`, `ValueError` or a `BrokerError`, before anything is sent, for an invalid request;
        later the `BrokerError` in the broker's answer, such as `Forbidden`; `SessionEnded`.
        """
        done = self.flag()
        asked = {"before": before, "after": after, "since": since, "limit": limit, "filter": filter}
        promise = self.engine.history(channels, asked, done.set)
        payload = await self.answer(promise, done)
        return said.page(payload, partial(self.history, *channels, limit=limit, filter=filter))

    async def acknowledge(self, durable: str, position: str) -> None:
        """Acknowledge everything up to `position`, and return once that is stored.

        This takes up to a second. Raises as `publish` does.
        """
        done = self.flag()
        await self.answer(self.engine.acknowledge(durable, position, done.set), done)

    def acknowledge_nowait(self, durable: str, position: str) -> None:
        """Acknowledge without waiting. Only the newest of many is sent, and again after a reconnection."""
        self.engine.acknowledge(durable, position, None)
        self.changed.set()

    def document(self, channel: str) -> Document:
        """Follow a document, which several people change at a time, and change it.

        Leave it with `async with`, at whose beginning it has come, and at whose end one's own changes are
        stored; or wait for `opened` and `saved`, and `close` it. Raises `TypeError` or `InvalidChannel` for
        what is no channel, and `SessionEnded`.
        """
        self.engine.check_running()
        checks.check_document(channel)
        return Document(self, self.engine.documents, channel)

    def collection(self, pattern: str) -> Collection:
        """Follow all documents of a pattern, and change them. It is otherwise as `document`."""
        self.engine.check_running()
        checks.check_collection(pattern)
        return Collection(self, self.engine.documents, pattern)

    def presence(
        self, channel: str, *, state: Any = None, enter: bool = True, session: str | None = None
    ) -> Room:
        """Enter a channel, with a `state` that others see, and see who else is there. Use it by `async with`.

        Without `enter` one only watches. `session` names this client in the channel; by default it is random.
        After a reconnection the channel is entered and watched again. The same one cannot be open twice at a
        time. Raises `TypeError`, `ValueError` or a `BrokerError` for an invalid request, and
        `SessionEnded`.
        """
        self.engine.check_running()
        checks.check_channel(channel)
        if session is not None:
            checks.check_presence_session(session)
        name = (session or new_session()) if enter else None
        return Room(self, self.engine.presence, channel, name, checks.presence_state(state))

    async def change(self, changes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Change several documents, all or none; return the revisions that have it, by channel.

        Each of `changes` (16 at most) has a `channel`, and `patch`, `add` or both, as `Document.change` takes
        them; the documents need not be open. It is shown at once where they are, and sent again until the
        broker has answered; cancelled before it was sent, it is not sent.

        Raises `TypeError`, `ValueError` or a `BrokerError`, before anything is shown, for what cannot be;
        `Conflict` (with `conflict`) where others have changed the same, `Rejected`, `Forbidden` and others as
        the broker answers; `UnknownOutcome` when nobody could say whether it is stored; `SessionEnded`.
        """
        self.engine.check_running()
        done = self.flag()
        together = Together(self.engine.documents, Pending(done.set))
        together.begin(changes)
        try:
            await self.attend(done)
        finally:
            together.withdraw()
        return together.promise.result()

    async def answer(self, promise: Pending[T], done: Flag, until: float = inf) -> T:
        """Wait for an answer, until that time."""
        try:
            await self.attend(done, until)
            if promise.outcome is None:
                self.engine.expire(promise)
        finally:
            self.engine.withdraw(promise)
        return promise.result()

    async def attend(self, flag: Flag, until: float = inf) -> None:
        """Wait for a flag, until that time. Events that arrive before it are read and queued meanwhile."""
        mine = self.current_task() is self.taker
        self.taker_waits |= mine
        self.changed.set()
        self.taken.set()
        try:
            await self.wait(flag, until)
        finally:
            if mine:
                self.taker_waits = False

    def wake(self) -> None:
        """Wake the writer: there is something to send."""
        self.changed.set()

    async def say(self) -> None:
        """Wake the writer, and on Trio let others run."""
        self.wake()

    def ahead(self) -> float:
        """Return how many items may be queued while the next ones are read."""
        return inf if self.taker_waits else READ_AHEAD if self.engine.awaited else 0

    @abstractmethod
    async def ask_for_token(self, ask: Callable[[], Awaitable[str]]) -> str:
        """Await the token function. Raises what it raises, and `TimeoutError` after `token_timeout`."""

    async def current_token(self) -> str | Lost:
        """Return the token to use now, or why there is none; it is requested again later."""
        if isinstance(self.token, str):
            return self.token
        try:
            return looked_at(await self.ask_for_token(self.token))
        except TimeoutError as error:
            return Lost(f"the token function: {error or 'no answer'}", cause=error)
        except Exception as error:  # of any kind: the next call may succeed
            return Lost(f"the token function: {type(error).__name__}: {error}", cause=error)
