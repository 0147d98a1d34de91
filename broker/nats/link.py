"""One connection to one NATS server: subscriptions, messages and requests.

A lost connection is never repaired: its owner opens another, so there is one way to recover and not two. What
is sent and what arrives goes over one socket in one order: a message that is published after a subscription
was sent is delivered to it.
"""

from __future__ import annotations

import secrets
from collections import deque
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

import attrs
import structlog
import trio

from broker.errors import TooLarge, Unavailable
from broker.nats import headers, protocol
from broker.nats.opening import Refused, open_stream, reason, receive, send
from broker.nats.protocol import Info, ProtocolError, Refusal, Sign
from broker.signals import Signal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from broker import config
    from broker.nats.login import Server
    from broker.nats.protocol import Decoder, Event

    # Subject, reply subject, header block and body of one message. Called by the reading task for each:
    # it leaves whatever takes time to others, and what it raises ends the block of `open_link`.
    Handler: TypeAlias = Callable[[bytes, bytes, bytes, bytes], None]

log = structlog.get_logger("broker.nats")

Part: TypeAlias = tuple[bytes, bytes]  # header block and body of an answer
Said: TypeAlias = "tuple[str, bytes, Mapping[str, str]]"  # subject, body and headers of a message

PING_SECONDS = 5.0
SILENT_SECONDS = 10.0  # without the answer to a ping
FLUSH_SECONDS = 5.0
RETRY_AFTER_SECONDS = 1.0  # told to clients that ask while NATS is away
FAILURES = (OSError, ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError)
UNSENT_BYTES = 1 << 20  # more than that has to be taken by the server before anything else is sent
# Prefix of brokers' inboxes: a login that may read those of services, `_INBOX.>`, cannot read ours.
INBOX = "_INBOX_broker"


def away(message: str) -> Unavailable:
    """Return the error for NATS, or a part of it, that cannot be reached now."""
    return Unavailable(message, retry_after=RETRY_AFTER_SECONDS)


def absent(subject: str) -> str:
    """Return what a subject lacks that nobody answers on."""
    if subject.startswith("$JS."):
        return "is JetStream enabled?"
    return "no stream keeps this subject; `broker admin streams` shows how the streams differ from the file"


class NotPermitted(Unavailable):
    """The server does not permit our login to publish to that subject."""


class NobodyAnswers(Unavailable):
    """Nobody subscribes to that subject (ADR-7 of NATS): the message has reached no one."""


@attrs.define(eq=False)
class Answer:
    """The answer to one request: one message, or with `many` all up to a message with a status."""

    subject: str
    many: bool
    refusal: str = ""  # why none will come
    parts: list[Part] = attrs.field(factory=list)
    whole: bool = False
    done: trio.Event = attrs.field(factory=trio.Event)  # it is whole, or the link is lost

    def complete(self) -> None:
        self.whole = True
        self.done.set()


@attrs.define(eq=False)
class Link:
    """One connection to one server. Once `lost` it stays so; `reason` says why.

    All that is awaited raises `Unavailable` when it is lost. `on_news` is called when it is lost, and when
    the server has said something new of itself (`info`); `on_read` when handlers may have been called.
    """

    server: Server
    info: Info
    stream: trio.abc.Stream
    decoder: Decoder
    on_news: Callable[[], None]
    on_read: Callable[[], None]
    lost: trio.Event = attrs.field(factory=trio.Event)
    reason: str = ""
    inbox: str = attrs.field(factory=lambda: f"{INBOX}.{secrets.token_hex(8)}")
    number: int = 0  # of the last subscription
    handlers: dict[int, Handler] = attrs.field(factory=dict)
    answers: dict[bytes, Answer] = attrs.field(factory=dict)
    tokens: count[int] = attrs.field(factory=count)
    # Of subscriptions, by their subject ("" where it is not said), with the last number at that time.
    refused: dict[str, tuple[int, Refusal]] = attrs.field(factory=dict)
    pongs: deque[trio.Event] = attrs.field(factory=deque)
    unsent: list[bytes] = attrs.field(factory=list)
    held: int = 0  # bytes that were not given to the socket yet
    written: Signal = attrs.field(factory=Signal)
    tasks: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self) -> None:
        """Read, write and ping until the connection is lost."""
        with self.tasks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.read)
                for task in self.write_on, self.ping:
                    nursery.start_soon(self.guard, task)

    async def guard(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task that writes. When it fails, the connection is lost."""
        try:
            await task()
        except Unavailable:  # a ping without an answer, which has said so
            pass
        except FAILURES as error:
            self.fail(error)

    async def read(self) -> None:
        """Read and handle what the server says. Only what fails in reading it is a failure of the link."""
        while True:
            try:
                data = await receive(self.stream)
                events = self.decoder.receive(data)
            except FAILURES as error:
                return self.fail(error)
            if not data:
                return self.lose("NATS closed the connection")
            self.take(events)
            self.on_read()

    def take(self, events: Sequence[Event]) -> None:
        """Handle what the server has said."""
        handlers = self.handlers
        for event in events:
            if type(event) is tuple:
                number, subject, reply, block, body = event
                handler = handlers.get(number)
                if handler is not None:
                    handler(subject, reply, block, body)
            elif event is Sign.PING:
                self.put(protocol.PONG)
            elif event is Sign.PONG:
                if self.pongs:  # else the answer to the one of the opening
                    self.pongs.popleft().set()
            elif isinstance(event, Info):
                self.info = event
                self.on_news()
            elif isinstance(event, Refusal):
                self.refuse(event)

    async def write_on(self) -> None:
        """Give the socket what is put, all of it at once."""
        while True:
            await self.written.wait()
            while self.unsent:
                data, self.unsent = b"".join(self.unsent), []
                await send(self.stream, data)
                self.held -= len(data)

    async def ping(self) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            await self.flush(SILENT_SECONDS)

    def put(self, *commands: bytes) -> None:
        """Have commands written, in order, in the next turn of the loop."""
        self.unsent += commands
        self.held += sum(map(len, commands))
        self.written.set()

    async def write(self, *commands: bytes) -> None:
        """Have commands written. Waits only while the server has much to take yet."""
        if self.lost.is_set():
            await trio.lowlevel.checkpoint()  # so that a loop of failing calls does not block all other tasks
        self.check()
        self.put(*commands)
        if self.held > UNSENT_BYTES:
            await self.flush()

    async def subscribe(self, subject: str, handler: Handler) -> int:
        """Have `handler` called for each message of `subject`; return the number of the subscription.

        It is sent but not confirmed: `flush` waits for that. Raises `ValueError` for an invalid subject.
        """
        number = self.number + 1
        command = protocol.subscribe(subject, number)
        self.number = number
        self.handlers[number] = handler
        await self.write(command)
        return number

    def refusal(self, subject: str, number: int) -> Refusal | None:
        """Return why a subscription that was just made does not stand, once a `flush` has returned.

        Where the server has not said which one it refuses, it may be another.
        """
        for key in subject, "":
            last, refusal = self.refused.get(key, (0, None))
            if number <= last:
                return refusal
        return None

    def unsubscribe(self, number: int) -> None:
        """End a subscription, also when the link is lost. Its handler is not called any more."""
        self.handlers.pop(number, None)
        if not self.lost.is_set():
            self.put(protocol.unsubscribe(number))

    async def send(
        self, subject: str, body: bytes, *, reply: str = "", fields: Mapping[str, str] | None = None
    ) -> None:
        """Have one message written.

        Raises `TooLarge` above the server's limit, `ValueError` for an invalid subject or header.
        """
        await self.write(self.message(subject, body, reply, fields))

    def message(self, subject: str, body: bytes, reply: str, fields: Mapping[str, str] | None) -> bytes:
        command = protocol.publish(subject, body, reply=reply, fields=fields)
        limit = self.info.max_payload
        if len(command) > limit:  # the server would end the connection
            size = len(body) + len(headers.block(fields))
            if size > limit:
                raise TooLarge(f"{size} bytes; the NATS server takes at most {limit}")
        return command

    async def request(
        self,
        subject: str,
        body: bytes,
        *,
        seconds: float,
        fields: Mapping[str, str] | None = None,
        many: bool = False,
    ) -> list[Part]:
        """Return the answer to one message; with `many` all parts up to the message with a status.

        Cancelling is safe: a late answer is dropped.
        """
        (answer,) = await self.ask([(subject, body, fields or {})], seconds=seconds, many=many)
        return answer.parts

    async def request_all(self, messages: Sequence[Said], *, seconds: float) -> list[Part]:
        """Send all messages, then return the answer to each."""
        return [answer.parts[0] for answer in await self.ask(messages, seconds=seconds)]

    async def ask(self, messages: Sequence[Said], *, seconds: float, many: bool = False) -> list[Answer]:
        """Send all messages, and return when each has been answered. All requests share one inbox."""
        answers = {str(next(self.tokens)).encode(): Answer(subject, many) for subject, _, _ in messages}
        self.answers.update(answers)
        try:
            with trio.move_on_after(seconds):
                await self.write(
                    *(
                        self.message(subject, body, f"{self.inbox}.{token.decode()}", fields)
                        for token, (subject, body, fields) in zip(answers, messages, strict=True)
                    )
                )
                for answer in answers.values():
                    if not answer.done.is_set():  # else waiting is a turn of the loop for each
                        await answer.done.wait()
        finally:
            for token in answers:
                del self.answers[token]
        if not all(answer.whole for answer in answers.values()):
            self.check()
            raise away(f"NATS did not answer within {seconds:g} s")
        for answer in answers.values():
            if answer.refusal:
                raise NotPermitted(f"NATS refuses: {answer.refusal}", retry_after=RETRY_AFTER_SECONDS)
            if headers.status(answer.parts[-1][0]) == 503:
                detail = f"nobody answers on {answer.subject}: {absent(answer.subject)}"
                raise NobodyAnswers(detail, retry_after=RETRY_AFTER_SECONDS)
        return list(answers.values())

    def answered(self, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:  # noqa: ARG002  one shape for all
        answer = self.answers.get(subject[len(self.inbox) + 1 :])
        if answer is not None and not answer.whole:
            answer.parts.append((block, body))
            if not answer.many or block.startswith(headers.STATUS):
                answer.complete()

    async def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Return when the server has taken everything that was sent before.

        Without an answer in time the link is lost.
        """
        await trio.lowlevel.checkpoint()
        self.check()
        pong = trio.Event()
        self.pongs.append(pong)
        self.put(protocol.PING)
        with trio.move_on_after(seconds):
            await pong.wait()
        if not pong.is_set():
            self.lose(f"NATS did not answer a ping within {seconds:g} s")
        self.check()

    def check(self) -> None:
        """Raise `Unavailable` when the link is lost."""
        if self.lost.is_set():
            raise away(self.reason)

    def lose(self, reason: str) -> None:
        """End the link, and everything that waits for the server."""
        if not self.lost.is_set():
            self.reason = reason
            self.lost.set()
            self.tasks.cancel()
            for answer in self.answers.values():
                answer.done.set()
            for pong in self.pongs:
                pong.set()
            self.on_news()

    def fail(self, error: BaseException) -> None:
        self.lose(f"the connection to NATS failed: {reason(error)}")

    def refuse(self, refusal: Refusal) -> None:
        """Handle an error that the server reports."""
        if refusal.fatal:
            self.lose(f"NATS closed the connection: {refusal}")
            return
        log.error("nats_refused", error=refusal.text)
        subject = refusal.publish
        if subject is None:
            self.refused[refusal.subscription or ""] = self.number, refusal
            return
        for answer in self.answers.values():
            if answer.subject == subject and not answer.whole:
                answer.refusal = refusal.text
                answer.complete()
                break  # there is a refusal for each message, in their order


@asynccontextmanager
async def open_link(
    server: Server,
    options: config.Nats,
    *,
    on_news: Callable[[], None] = lambda: None,
    on_read: Callable[[], None] = lambda: None,
) -> AsyncIterator[Link]:
    """Open a connection to one server, and close it at the end, whatever was still to be written.

    Raises `Unavailable` when it cannot be opened, whatever the cause.
    """
    try:
        stream, decoder, info, early = await open_stream(server, options)
    except (*FAILURES, Refused, ValueError, trio.TooSlowError) as error:
        raise away(f"{server}: {reason(error)}") from error
    link = Link(server, info, stream, decoder, on_news, on_read)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            try:
                link.take(early)
                await link.subscribe(f"{link.inbox}.*", link.answered)
                yield link
            except Exception as error:  # a nursery would wrap it into a group
                failure = error
            link.lose("the connection to NATS is being closed")
    finally:
        link.lose("the connection to NATS is being closed")
        await trio.aclose_forcefully(stream)
    if failure is not None:
        raise failure
