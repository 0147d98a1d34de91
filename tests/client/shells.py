"""Both sessions, used alike: that of asyncio runs in a thread of its own, and is called from Trio."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import attrs
import trio

from broker.client import AsyncioSession, Backoff, Event, Message, Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from broker.client import Item, Page, Published

T = TypeVar("T")
QUICK = Backoff(first=0.001, longest=0.2)


@attrs.define(eq=False)
class Elsewhere:
    """What `Session` offers, done by an `AsyncioSession` on another loop."""

    session: AsyncioSession
    loop: asyncio.AbstractEventLoop
    home: trio.lowlevel.TrioToken

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        done = trio.Event()
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        future.add_done_callback(lambda _: self.home.run_sync_soon(done.set))
        try:
            await done.wait()
        finally:
            future.cancel()
        return future.result()

    async def subscribe(self, *channels: str, **options: Any) -> str:
        return await self.call(self.session.subscribe(*channels, **options))

    async def unsubscribe(self, *channels: str) -> None:
        await self.call(self.session.unsubscribe(*channels))

    async def publish(
        self, channel: str, event: Any, *, event_id: str | None = None, echo: bool = True
    ) -> Published:
        return await self.call(self.session.publish(channel, event, event_id=event_id, echo=echo))

    async def request(self, method: str, data: Any = None, **options: Any) -> Any:
        return await self.call(self.session.request(method, data, **options))

    async def history(self, *channels: str, **options: Any) -> Page:
        page = await self.call(self.session.history(*channels, **options))
        kept = {name: options.get(name) for name in ("limit", "filter")}
        return attrs.evolve(page, read=partial(self.history, *channels, **kept))

    async def acknowledge(self, durable: str, position: str) -> None:
        await self.call(self.session.acknowledge(durable, position))

    def acknowledge_nowait(self, durable: str, position: str) -> None:
        self.loop.call_soon_threadsafe(self.session.acknowledge_nowait, durable, position)

    def __aiter__(self) -> Elsewhere:
        return self

    async def __anext__(self) -> Item:
        # A StopAsyncIteration cannot leave a task.
        item = await self.call(anext(self.session, None))
        if item is None:
            raise StopAsyncIteration
        return item


Shell: TypeAlias = Session | Elsewhere


@asynccontextmanager
async def on_trio(url: str, token: Any = "to.k.en", **options: Any) -> AsyncIterator[Shell]:
    session = Session(url=url, token=token, **{"backoff": QUICK} | options)
    async with trio.open_nursery() as nursery:
        await nursery.start(session.run)
        yield session
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def on_asyncio(url: str, token: Any = "to.k.en", **options: Any) -> AsyncIterator[Shell]:
    home = trio.lowlevel.current_trio_token()
    ready = trio.Event()
    made: list[tuple[Elsewhere, asyncio.Event]] = []

    async def work() -> None:
        stop = asyncio.Event()
        async with AsyncioSession(url=url, token=token, **{"backoff": QUICK} | options) as session:
            made.append((Elsewhere(session, asyncio.get_running_loop(), home), stop))
            home.run_sync_soon(ready.set)
            await stop.wait()

    def run() -> None:
        # Not `asyncio.run`: in a process with trio_asyncio that is no asyncio loop any more.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(work())

    thread = threading.Thread(target=run)
    thread.start()
    await ready.wait()
    [(elsewhere, stop)] = made
    try:
        yield elsewhere
    finally:
        elsewhere.loop.call_soon_threadsafe(stop.set)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(thread.join)


Running: TypeAlias = "Callable[..., AbstractAsyncContextManager[Shell]]"
SHELLS: dict[str, Running] = {"trio": on_trio, "asyncio": on_asyncio}


async def inside(session: Shell, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Do what needs no other library than the session where that runs."""
    if isinstance(session, Elsewhere):
        return await session.call(work(session.session))
    return await work(session)


async def until(session: Shell, kind: str) -> Message:
    async for item in session:
        if isinstance(item, Message) and item.type == kind:
            return item
    raise AssertionError(f"no {kind}")


async def events(session: Shell, count: int) -> list[int]:
    found: list[int] = []
    async for item in session:
        if isinstance(item, Event):
            found.append(item.value)
            if len(found) == count:
                return found
    raise AssertionError(f"only {found}")
