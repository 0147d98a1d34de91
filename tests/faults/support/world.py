"""A broker under load: three tenants, their publishers, 50 clients, and everything that can go wrong.

`open_world` starts it all, gives it to the test, and afterwards holds what has happened against the ledger.
"""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import attrs
import trio

from tests.faults.support import documents as docs
from tests.faults.support import held
from tests.faults.support.books import Books
from tests.faults.support.client import RETRY_MS, Client
from tests.faults.support.editor import Editor
from tests.faults.support.historian import Historian
from tests.faults.support.http import get
from tests.faults.support.ledger import Ledger, Writer
from tests.faults.support.process import BrokerProcess
from tests.faults.support.proxy import Proxy, run_proxy
from tests.faults.support.visitor import SESSION_SECONDS, Listener, Poller
from tests.support.nats import NatsServer, run_nats
from tests.support.rawnats import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.faults.support.follower import Follower
    from tests.faults.support.judge import Verdict
    from tests.support.rawnats import RawNats

TENANTS = ("acme", "globex", "initech")
USERS = 5  # of each tenant
CHANNELS = 4  # of each kind
CLIENTS = 50
POLL_SECONDS = 0.05
PUBLISH_SECONDS = 0.5  # between two publications of a client
REMEMBER_SECONDS = 5.0  # after so long at most some clients ask for the past
PATIENCE_SECONDS = 200.0  # a bound for what must come; nothing is measured by it
# How much longer than promised a machine may take that is busy with other things. The report has the figures;
# these bounds only tell what comes by itself from what comes because something else gave up in the end.
SLACK = 10.0

# What clients subscribe to; `me` is filled in. With a third of them some channels are denied.
LISTS = (
    ["orders.>", "me.>"],
    [">", "live.>", "me.>", "live.me.>"],
    ["orders.*", "stock.>", "me.>"],
    ["orders.1", "orders.>", "notices"],
    ["stock.eu.*", "live.cursor.*"],
    ["live.>"],
    ["me.>"],
)
EVERYTHING = [">", "live.>"]
DENIED: tuple[list[str], ...] = (["orders.secret.>"], [], [])
KINDS = (Client, Client, Client, Listener, Poller)
OFTEN = {"heartbeat_seconds": 2}  # so that streams that are quiet soon tell where they stand


@attrs.frozen
class State:
    """`/readyz` at a time: 200, 503 with its reason, or 0 when nobody answered."""

    at: float
    status: int
    reason: str = ""


@attrs.frozen
class Refusal:
    """A publication was refused."""

    at: float
    code: str
    follower: Follower


@attrs.define(eq=False)
class World:
    """What runs, and what a test does to it."""

    seed: int
    random: Random
    nats: NatsServer
    proxy: Proxy  # between broker and NATS
    front: Proxy  # between clients and broker
    broker: BrokerProcess
    ledger: Ledger
    connect: Callable[[], AbstractAsyncContextManager[RawNats]]  # to NATS, for the publishers
    nursery: trio.Nursery
    clients: list[Follower] = attrs.field(factory=list)
    writers: list[Writer] = attrs.field(factory=list)
    readiness: list[State] = attrs.field(factory=list)
    outages: list[tuple[float, float]] = attrs.field(factory=list)
    recoveries: list[float] = attrs.field(factory=list)
    refusals: list[Refusal] = attrs.field(factory=list)  # of publications
    trims: bool = False  # the test takes acknowledged events out of the stream
    forgets: bool = False  # and what NATS knows of publish ids
    quiet: bool = False  # the end has begun: no further publications, no further cuts
    ended: float = 0.0  # when everybody had come to the end of the stream
    mixed: bool = False  # some clients do without WebSocket
    embedded: bool = False  # the broker has a nats-server of its own, and `nats` is not used
    cut_short: list[str] = attrs.field(factory=list)  # publications under way that a drain left unanswered
    documents: bool = False  # some clients and services change documents
    books: Books = attrs.field(factory=Books)  # of the documents
    verdict: Verdict | None = None

    def address(self) -> str | None:
        """Where clients connect: through `front`, while there is a broker."""
        return f"ws://127.0.0.1:{self.front.port}/ws" if self.broker.ws else None

    # --- clients and publishers --------------------------------------------------------------------

    def client(
        self,
        patterns: list[str],
        *,
        tenant: str,
        user: str,
        denied: list[str],
        start: dict[str, Any] | None = None,
        past: str | None = None,
        kind: Callable[..., Follower] = Client,
        change: list[str] | None = None,
    ) -> Follower:
        """A client more, connected soon. With `past` it reads that from the beginning, after a while."""
        number = len(self.clients)
        spelled = [each.replace("me.", f"users.{user}.") for each in patterns]
        make = partial(Historian, past=past) if past else kind
        follower = make(
            name=f"client{number}",
            tenant=tenant,
            user=user,
            patterns=spelled,
            denied=denied,
            start=start or {},
            token=partial(
                self.broker.token,
                tenant,
                user,
                subscribe=EVERYTHING,
                publish=EVERYTHING,
                deny=denied,
                change=change or [],
            ),
            address=self.address,
            random=Random(f"{self.seed}.{number}"),
        )
        self.clients.append(follower)
        self.nursery.start_soon(follower.run)
        if isinstance(follower, Historian):
            self.nursery.start_soon(follower.remember, self.random.uniform(0, REMEMBER_SECONDS))
        return follower

    def crowd(self, count: int) -> None:
        """So many clients, spread over tenants, users, lists and what is denied.

        A fifth of them publish, some read the past as well; where there are documents, a fifth changes them.
        Where the world is `mixed`, two fifths of those that do neither come without WebSocket.
        """
        kinds = Random(f"{self.seed}.kinds")
        for number in range(count):
            tenant = TENANTS[number % len(TENANTS)]
            user = f"u{number // len(TENANTS) % USERS}"
            wanted = LISTS[self.random.randrange(len(LISTS))] if number >= len(LISTS) else LISTS[number]
            denied = DENIED[number // len(TENANTS) % len(DENIED)]
            beside = wanted not in (["live.>"], LISTS[0], LISTS[3])  # stored channels, and not the same
            past = "orders.>" if number % 4 == 1 and beside else None
            kind: Callable[..., Follower] = kinds.choice(KINDS) if self.mixed else Client
            edits = self.documents and number % 5 == 2
            if edits:
                kind, past = partial(Editor, books=self.books, over=partial(getattr, self, "quiet")), None
            follower = self.client(
                wanted,
                tenant=tenant,
                user=user,
                denied=denied,
                past=past,
                kind=kind,
                change=docs.CHANGE if edits else None,
            )
            if number % 5 == 0:
                self.nursery.start_soon(self.keep_publishing, follower)

    def subject(self, tenant: str, choice: Random) -> str:
        """Where the next stored event of a tenant's service goes."""
        number = choice.randrange(CHANNELS)
        match choice.randrange(20):
            case 0 if tenant == TENANTS[0]:
                return "events._all.notices"
            case 0 | 1:
                return f"events.{tenant}.orders.secret.{number}"
            case 2 | 3 | 4:
                return f"events.{tenant}.users.u{choice.randrange(USERS)}.inbox"
            case 5 | 6 | 7:
                return f"events.{tenant}.stock.eu.{number}"
            case _:
                return f"events.{tenant}.orders.{number}"

    def live_subject(self, tenant: str, choice: Random) -> str:
        if choice.randrange(5):
            return f"live.{tenant}.cursor.{choice.randrange(CHANNELS)}"
        return f"live.{tenant}.users.u{choice.randrange(USERS)}.hint"

    def write(self, rate: float) -> None:
        """Two services of each tenant begin: stored events of `rate` a second, live ones a quarter of it."""
        for tenant in TENANTS:
            for pick, each in ((self.subject, rate), (self.live_subject, rate / 4)):
                name = f"{tenant}{len(self.writers)}"
                writer = Writer(
                    name=name,
                    connect=self.connect,
                    ledger=self.ledger,
                    random=Random(f"{self.seed}.{name}"),
                    pick=partial(pick, tenant),
                    rate=each,
                )
                self.writers.append(writer)
                self.nursery.start_soon(writer.run)

    def burst(self, count: int, *, padding: int = 300) -> None:
        """So many events more, stored and live, as fast as NATS takes them, of `padding` bytes at most."""
        for index, writer in enumerate(self.writers):
            writer.burst += count // len(self.writers) + (index < count % len(self.writers))
            writer.padding = padding

    async def until_burst_is_out(self) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            await self.ledger.until(lambda: not any(writer.burst > 0 for writer in self.writers))

    async def keep_publishing(self, follower: Follower) -> None:
        """A client publishes, again under the same id until it is told that the event is stored."""
        while not self.quiet:
            await self.publish(follower, f"orders.{follower.random.randrange(CHANNELS)}")
            await trio.sleep(follower.random.uniform(0.5, 1.5) * PUBLISH_SECONDS)

    async def publish(self, follower: Follower, channel: str) -> list[str]:
        """One event of a client, until it is acknowledged; the codes of the refusals before that."""
        refusals: list[str] = []
        identity = self.ledger.new(f"events.{follower.tenant}.{channel}")
        payload = {"channel": channel, "event": {"n": identity}, "id": identity.rpartition("#")[2]}
        while not follower.ended:
            await follower.subscribed.wait()
            sent = trio.current_time()
            answer = await follower.ask("publish", payload)
            if answer is None:
                told = [note.at for note in follower.notes if note.kind == "connection.draining"]
                # A request of its own may have come when nobody listened any more.
                if told and told[-1] > sent and isinstance(follower, Client):
                    self.cut_short.append(identity)
                continue
            said = answer["payload"]
            if answer["type"] == "published":
                sequence = int(said["position"].rpartition("-")[2])
                self.ledger.acknowledged(identity, sequence, duplicate=said.get("duplicate", False))
                return refusals
            assert said["retryable"], said
            refusals.append(said["code"])
            self.refusals.append(Refusal(trio.current_time(), said["code"], follower))
            await trio.sleep(said.get("retry_after_ms", RETRY_MS) / 1000)
        self.ledger.abandon(identity)
        return refusals

    async def churn(self, count: int) -> None:
        """So many of the clients lose their connection again and again, at times of their own.

        Every second time they have come back before, however long that takes on a busy machine.
        """

        async def cut(follower: Follower) -> None:
            for number in itertools.count():
                await trio.sleep(follower.random.uniform(0.3, 3.0))
                if number % 2:
                    await follower.subscribed.wait()
                if self.quiet:
                    return
                follower.cut()

        for follower in self.random.sample(self.clients, count):
            self.nursery.start_soon(cut, follower)

    # --- what happens ------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Asks `/readyz` all the time, and keeps each change of its answer."""
        while True:
            status, body = 0, b""
            if self.broker.admin:
                status, body = await get(self.broker.admin, "/readyz")
            if not self.readiness or self.readiness[-1].status != status:
                self.readiness.append(State(trio.current_time(), status, body.decode()))
            await trio.sleep(POLL_SECONDS)

    async def status(self, *wanted: int) -> float:
        """Waits until `/readyz` answers so; how many seconds that took."""
        began = trio.current_time()
        with trio.fail_after(PATIENCE_SECONDS):
            while self.readiness[-1].status not in wanted:
                await trio.sleep(POLL_SECONDS)
        return trio.current_time() - began

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Within it nothing can be delivered: readiness must go red before it ends, and green afterwards.

        How long it then takes until every busy client has got an event stored since is kept.
        """
        await self.status(200)
        began = trio.current_time()
        try:
            yield
        finally:
            healed = trio.current_time()
        self.outages.append((began, healed))
        await self.recovered(healed)

    async def recovered(self, since: float | None = None) -> None:
        """Waits until every busy client has got an event stored since then, and `/readyz` is green."""
        began = since or trio.current_time()
        self.recoveries.append(await self.delivered_again(began) - began)
        await self.status(200)

    async def red(self) -> float:
        """Waits for readiness to go red; after how many seconds."""
        return await self.status(503, 0)

    async def delivered_again(self, since: float) -> float:
        """Waits until each client that follows all orders got one stored after `since`; when the last did."""
        busy = [each for each in self.clients if {">", "orders.>"} & set(each.patterns)]
        times: list[float] = []
        with trio.fail_after(PATIENCE_SECONDS):
            for follower in busy:
                while (at := self.first_since(follower, since)) is None:
                    await trio.sleep(POLL_SECONDS)
                times.append(at)
        return max(times)

    def first_since(self, follower: Follower, since: float) -> float | None:
        found = None
        for event in reversed(follower.events):
            if event.at < since:
                break
            entry = self.ledger.stored.get(event.id)
            if entry and entry.sent > since:
                found = event.at
        return found

    async def flows(self, count: int | None = None) -> None:
        """Lets so many events be stored, by default some dozens to hundreds."""
        with trio.fail_after(PATIENCE_SECONDS):
            await self.ledger.more(count or self.random.randrange(50, 400))

    async def all_subscribed(self) -> None:
        with trio.move_on_after(PATIENCE_SECONDS) as patience:
            for follower in self.clients:
                await follower.subscribed.wait()
        late = [each.describe() for each in self.clients if not each.subscribed.is_set()]
        assert not patience.cancelled_caught, f"not subscribed: {late}"

    async def with_nats(self, call: Callable[..., Awaitable[Any]]) -> Any:
        """Calls with a NATS client of the test's own."""
        async with self.connect() as client:
            return await call(client)

    # --- the end -----------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Everything published is acknowledged, every client at the end of the stream, and `/readyz` green.

        On a machine with too much to do it may have been red for a moment just now.
        """
        self.quiet = True
        for writer in self.writers:
            writer.stopping = True
        with trio.move_on_after(PATIENCE_SECONDS):
            await self.ledger.until(lambda: not self.ledger.pending)
        assert not self.ledger.pending, f"never acknowledged: {self.ledger.pending}"
        last = (await self.with_nats(lambda client: client.api("STREAM.INFO.EVENTS")))["state"]["last_seq"]
        behind = list(self.clients)

        async def follow(follower: Follower) -> None:
            await follower.reached(last)
            behind.remove(follower)

        with trio.move_on_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for follower in self.clients:
                    nursery.start_soon(follow, follower)
        self.ended = trio.current_time()
        assert not behind, f"never came to {last}: {[each.describe() for each in behind]}"
        if self.documents:
            await docs.settle(self)
        with trio.move_on_after(PATIENCE_SECONDS):
            await self.status(200)  # else `held.check` says why not


@asynccontextmanager
async def open_world(
    directory: Path,
    seed: int,
    *,
    churning: int = 8,
    rate: float = 40.0,
    options: dict[str, Any] | None = None,
    jetstream: dict[str, Any] | None = None,
    prefix: tuple[str, ...] = (),
    login: Callable[[dict[str, Any]], dict[str, str]] | None = None,
    nats_section: dict[str, Any] | None = None,
    files: dict[str, str] | None = None,
    variables: dict[str, str] | None = None,
    keys: list[dict[str, Any]] | None = None,
    embedded: bool = False,
    mixed: bool = False,
    documents: bool = False,
    before: Callable[[RawNats], Awaitable[None]] | None = None,
    broker_prefix: tuple[str, ...] = (),
    state: Path | None = None,
    **sections: dict[str, Any],
) -> AsyncIterator[World]:
    """NATS, a broker, publishers and clients at work; afterwards everything of "Held after every test".

    `options`, `jetstream` and `prefix` are for nats-server, `login` is how the publishers log in there;
    `sections`, `nats_section`, `files`, `variables` and `keys` are for the broker: its configuration, what it
    refers to, its environment, and whom else it believes. `embedded`: with a nats-server of its own.
    `churning` clients come and go all the time; `mixed`: some of them do without WebSocket; `documents`: some
    of them, and services, change documents. `before` is done with NATS before the broker is there.
    `broker_prefix` runs the broker, whose data directory is `state`.
    """
    if mixed:
        sections["limits"] = OFTEN | sections.get("limits", {})
    if documents:
        sections["state"] = docs.SECTION
    (directory / "nats").mkdir()
    settings = {
        "http": "127.0.0.1:-1",
        "jetstream": {"store_dir": str(directory / "nats" / "store"), **(jetstream or {})},
    }
    async with (
        run_nats(directory / "nats", prefix=prefix, **settings, **(options or {})) as nats,
        run_proxy(lambda: nats.port) as proxy,
        trio.open_nursery() as nursery,
    ):
        urls = [] if embedded else [f"nats://127.0.0.1:{proxy.port}"]
        broker = BrokerProcess(
            directory=directory / "broker",
            nats={"urls": urls} | (nats_section or {}),
            sections=sections,
            files=files or {},
            variables={"FAULTS_SESSION": str(SESSION_SECONDS)} | (variables or {}),
            keys=keys or [],
            prefix=broker_prefix,
            state=state,
        )

        def to_nats() -> AbstractAsyncContextManager[RawNats]:
            return connect(broker.nats_url if embedded else nats.url, login=login)

        async with run_proxy(lambda: broker.port) as front:
            world = World(
                seed=seed,
                random=Random(seed),
                nats=nats,
                proxy=proxy,
                front=front,
                broker=broker,
                ledger=Ledger(),
                connect=to_nats,
                nursery=nursery,
                mixed=mixed,
                embedded=embedded,
                documents=documents,
            )
            try:
                if before:
                    await world.with_nats(before)
                await broker.start()
                if documents:
                    await docs.there(world)
                await held.followed(world)
                base = await held.in_nats(world)
                nursery.start_soon(world.watch)
                world.crowd(CLIENTS)
                world.write(rate)
                await world.all_subscribed()
                if documents:
                    docs.begin(world, TENANTS)
                await world.churn(churning)
                yield world
                await world.settle()
                await held.check(world, base)
            finally:
                with trio.CancelScope(shield=True):
                    await broker.end()
        nursery.cancel_scope.cancel()
