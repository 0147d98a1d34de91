"""What was published and acknowledged: the books that deliveries are held against.

Every event carries an id of its own, which is also its `Nats-Msg-Id`; it is published again under that id
until the stream has acknowledged it. So each is in the stream once, and each client must get it once. A live
event is sent once at most.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from random import Random

    from tests.support.rawnats import Message, RawNats

WINDOW, BURST_WINDOW = 32, 256  # publications of a writer that wait for their acknowledgement
BURST_SECONDS = 0.001
RETRY_SECONDS = 3.0
RECONNECT_SECONDS = 0.02
CONNECT_SECONDS = 15.0
PAGE = 1000


@attrs.frozen(kw_only=True)
class Entry:
    """One event that the stream has, or live one that the server took (`sequence` 0).

    `sent` and `taken` are times: before the first attempt, and when it was acknowledged.
    """

    id: str
    subject: str
    sequence: int
    sent: float
    taken: float

    @property
    def tenant(self) -> str:
        return self.subject.split(".", 2)[1]

    @property
    def channel(self) -> str:
        kind, _, rest = self.subject.split(".", 2)
        return f"live.{rest}" if kind == "live" else rest


@attrs.define(eq=False)
class Ledger:
    """`sent` has the subject of each id ever tried, `stored` and `live` what came of them."""

    sent: dict[str, str] = attrs.field(factory=dict)
    stored: dict[str, Entry] = attrs.field(factory=dict)
    live: dict[str, Entry] = attrs.field(factory=dict)
    pending: dict[str, float] = attrs.field(factory=dict)  # since when
    repeated: int = 0  # acknowledgements of a copy that was there already
    changed: trio.Event = attrs.field(factory=trio.Event)

    def new(self, subject: str) -> str:
        """An id for an event that is about to be published there."""
        identity = f"{subject}#{len(self.sent)}"
        self.sent[identity] = subject
        self.pending[identity] = trio.current_time()
        return identity

    def acknowledged(self, identity: str, sequence: int, *, duplicate: bool = False) -> None:
        sent = self.pending.pop(identity, None)
        self.repeated += duplicate
        if sent is None:
            return  # the second answer to the same id
        entry = Entry(
            id=identity,
            subject=self.sent[identity],
            sequence=sequence,
            sent=sent,
            taken=trio.current_time(),
        )
        (self.stored if sequence else self.live)[identity] = entry
        self.tell()

    def abandon(self, identity: str) -> None:
        """Gives one up that has no acknowledgement yet: whether it was taken is nobody's promise."""
        if self.pending.pop(identity, None) is not None:
            self.tell()

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.changed.wait()

    async def more(self, count: int) -> None:
        """Waits until so many further events have been stored."""
        target = len(self.stored) + count
        await self.until(lambda: len(self.stored) >= target)


@attrs.define(eq=False, kw_only=True)
class Writer:
    """A service that publishes events of `rate` a second, stored ones in a pipeline or live ones one by one.

    `pick` chooses the subject of the next. `burst` further ones go out as fast as they are taken. `stopping`:
    no new ones; it ends when all are acknowledged.
    """

    name: str
    connect: Callable[[], AbstractAsyncContextManager[RawNats]]
    ledger: Ledger
    random: Random
    pick: Callable[[Random], str]
    rate: float
    padding: int = 300  # bytes at most
    burst: int = 0
    stopping: bool = False
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    waiting: dict[str, tuple[bytes, float]] = attrs.field(factory=dict)  # id: body, tried at
    links: int = 0

    async def run(self) -> None:
        while not (self.stopping and not self.waiting):
            try:
                with trio.move_on_after(CONNECT_SECONDS) as opening:
                    async with self.connect() as client:
                        opening.deadline = float("inf")
                        self.links += 1
                        with trio.CancelScope() as scope:
                            await self.serve(client, scope)
                        client.stream.socket.close()
            except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # and again
            await trio.sleep(RECONNECT_SECONDS)

    async def serve(self, client: RawNats, scope: trio.CancelScope) -> None:
        async def watch() -> None:
            await client.ended.wait()
            scope.cancel()

        inbox = f"_INBOX.ledger.{self.name}.{self.links}"
        answers = await client.subscribe(f"{inbox}.*")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(self.read_answers, answers)
            for identity, (body, _) in self.waiting.items():
                self.waiting[identity] = (body, 0.0)
            await self.publish(client, inbox)
            nursery.cancel_scope.cancel()

    async def publish(self, client: RawNats, inbox: str) -> None:
        while not (self.stopping and not self.waiting):
            hurry = self.burst > 0
            left = (BURST_WINDOW if hurry else WINDOW) - len(self.waiting)
            for _ in range(0 if self.stopping else min(self.burst if hurry else 1, left)):
                self.burst -= hurry
                identity = self.ledger.new(self.pick(self.random))
                event = {"n": identity, "pad": "x" * self.random.randint(0, self.padding)}
                self.waiting[identity] = (json.dumps(event).encode(), 0.0)
            now = trio.current_time()
            for identity, (body, tried) in list(self.waiting.items()):
                if now > tried + RETRY_SECONDS:
                    self.waiting[identity] = (body, now)
                    await self.send(client, inbox, identity, body)
            full = len(self.waiting) == BURST_WINDOW
            pause = BURST_SECONDS * full if hurry else self.random.uniform(0.5, 1.5) / self.rate
            await trio.sleep(pause)

    async def send(self, client: RawNats, inbox: str, identity: str, body: bytes) -> None:
        subject = self.ledger.sent[identity]
        if subject.startswith("live."):
            # Nothing tells copies of a live event apart: one whose answer is lost is not sent again.
            del self.waiting[identity]
            try:
                await client.publish(subject, body)
                await client.flush()
                self.ledger.acknowledged(identity, 0)
            finally:
                self.ledger.abandon(identity)
            return
        header = f"NATS/1.0\r\nNats-Msg-Id: {subject.split('.')[1]}:{identity}\r\n\r\n".encode()
        token = identity.rpartition("#")[2]
        await client.publish(subject, body, reply=f"{inbox}.{token}".encode(), header=header)

    async def read_answers(self, answers: trio.MemoryReceiveChannel[Message]) -> None:
        known: dict[str, str] = {}
        async for answer in answers:
            token = answer.subject.decode().rpartition(".")[2]
            if token not in known:
                known = {identity.rpartition("#")[2]: identity for identity in self.waiting}
            said = json.loads(answer.body or b"{}")
            if said.get("seq") and token in known:  # a refusal has 0 beside its error
                self.waiting.pop(known[token], None)
                duplicate = said.get("duplicate", False)
                self.ledger.acknowledged(known[token], said["seq"], duplicate=duplicate)


async def read_stream(client: RawNats, stream: str = "EVENTS") -> dict[int, tuple[str, str]]:
    """Everything that the stream holds: subject and id by sequence. The broker's own is left out."""
    found: dict[int, tuple[str, str]] = {}
    after, pending = 0, 1
    answers = await client.subscribe("_INBOX.ledger.all")
    while pending:
        query = {"seq": after + 1, "next_by_subj": "events.>", "batch": PAGE}
        await client.publish(
            f"$JS.API.DIRECT.GET.{stream}", json.dumps(query).encode(), reply=b"_INBOX.ledger.all"
        )
        while True:
            answer = await answers.receive()
            head = answer.header.decode()
            if head.startswith("NATS/1.0 "):
                status = int(head.split(" ", 2)[1].split("\r\n")[0])
                assert status in (204, 404), head
                pending = int(field(head, "Nats-Num-Pending")) if status == 204 else 0
                break
            after = int(field(head, "Nats-Sequence"))
            subject = field(head, "Nats-Subject")
            found[after] = (subject, json.loads(answer.body)["n"])
    return found


def field(head: str, name: str) -> str:
    return head.split(f"\r\n{name}: ", 1)[1].split("\r\n", 1)[0]
