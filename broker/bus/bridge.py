"""asyncio ⇄ Trio: one nats-py connection to a nats-server, for use from Trio.

The only place that knows nats-py and asyncio. nats-py opens the connection (addresses, TLS, every
kind of credentials), writes and pings; reading is ours, see `Reader`. A lost connection is never
repaired: the bus opens another, so there is one way to recover and not two.

A call from Trio into asyncio costs about 95 µs and five turns of the event loop, setting a `trio.Event` from
asyncio 0.4 µs. So a plain function queues whatever arrives, and Trio takes all that is queued at once; and a
message is written to asyncio's transport directly, which takes it without waiting.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit
from weakref import WeakKeyDictionary

import attrs
import nats.errors
import nkeys
import structlog
import trio
import trio_asyncio
from nats.aio.client import Client
from nats.protocol.parser import Parser

from broker.bus import headers
from broker.errors import TooLarge, Unavailable

if TYPE_CHECKING:
    from broker import config

log = structlog.get_logger("broker.bus")

# Subject, reply subject, header block and body of one message. Called by the reading task for each:
# it must not raise, and leaves whatever takes time to others.
Handler: TypeAlias = Callable[[bytes, bytes, bytes, bytes], None]
Part: TypeAlias = tuple[bytes, bytes]  # header block and body of an answer
Said: TypeAlias = "tuple[str, bytes, Mapping[str, str]]"  # subject, body and headers of a message

OLDEST_SERVER = (2, 11)
CONNECT_SECONDS = 2
PING_SECONDS = 5  # two unanswered ones and the connection is lost: 15 s at most
FLUSH_SECONDS = 5
CLOSE_SECONDS = 2
RETRY_AFTER_SECONDS = 1.0  # told to clients that ask while NATS is away
CRLF = b"\r\n"
UNSENT_BYTES = 1 << 20  # more than that has to be taken by the server before anything else is sent
NO_SUBJECT = re.compile(r"[ \t\r\n]|\A\Z")
# Prefix of brokers' inboxes: a login that may read those of services, `_INBOX.>`, cannot read ours.
INBOX = "_INBOX_broker"

links: WeakKeyDictionary[asyncio.AbstractEventLoop, set[Link]] = WeakKeyDictionary()


def away(message: str) -> Unavailable:
    """Return the error for NATS, or a part of it, that cannot be reached now."""
    return Unavailable(message, retry_after=RETRY_AFTER_SECONDS)


class NotPermitted(Unavailable):
    """The server does not permit our login to publish to that subject."""


@asynccontextmanager
async def open_loop() -> AsyncIterator[None]:
    """Open the asyncio loop that every bus within runs on: once, at the top of the program.

    Otherwise a failed background task of nats-py would end the whole loop whenever it is garbage-collected.
    Here it costs the connections, which are opened again.
    """
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(background_failed)
        yield


def background_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, OSError):
        # From a client whose socket was reset in the middle of a write: nats-py's task fails as it closes
        # that, and is reported when it is collected, long after another client has taken its place.
        log.debug("nats_client_remains", error=repr(error))
        return
    log.error("nats_client_failed", what=context["message"], error=repr(error))
    for link in list(links.get(loop, ())):
        link.lose(f"the NATS client failed: {error or context['message']}")


@attrs.define(eq=False)
class Answer:
    """The answer to one request: one message, or with `many` all up to a message with a status."""

    subject: str
    many: bool
    refusal: str = ""  # why none will come
    parts: list[Part] = attrs.field(factory=list)
    done: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class Link:
    """One connection to one server. Once `lost` it stays so; `reason` says why.

    Requests raise `Unavailable` when it is lost and when no answer comes in time.
    """

    client: Client
    on_lost: Callable[[], None]
    writer: asyncio.StreamWriter = attrs.field(init=False)  # nats-py's
    lost: trio.Event = attrs.field(factory=trio.Event)
    reason: str = ""
    inbox: str = attrs.field(factory=lambda: f"{INBOX}.{secrets.token_hex(8)}")
    handlers: dict[int, Handler] = attrs.field(factory=dict)
    answers: dict[bytes, Answer] = attrs.field(factory=dict)
    tokens: count[int] = attrs.field(factory=count)
    crossings: set[trio.CancelScope] = attrs.field(factory=set)
    refused: deque[str] = attrs.field(factory=lambda: deque(maxlen=64))  # by the server, in its own words
    error: Exception | None = None  # the last one that nats-py reported

    async def subscribe(self, subject: str, handler: Handler) -> int:
        """Have `handler` called for each message of `subject`; return the number of the subscription.

        It is sent but not confirmed: `flush` waits for that.
        """
        # With a future nats-py makes neither a queue nor a task, which `Reader` would not use.
        subscription = await self.cross(self.client.subscribe, subject, future=asyncio.Future())
        number: int = subscription._id
        self.handlers[number] = handler
        return number

    async def unsubscribe(self, number: int) -> None:
        self.handlers.pop(number, None)
        if not self.lost.is_set():
            await self.cross(self.client._send_unsubscribe, number)
            self.client._remove_sub(number)

    async def send(
        self, subject: str, body: bytes, *, reply: str = "", fields: Mapping[str, str] | None = None
    ) -> None:
        """Write one message to the socket. Raises `TooLarge` for one above the server's limit."""
        await self.write([self.command(subject, body, reply, fields)])

    def command(self, subject: str, body: bytes, reply: str, fields: Mapping[str, str] | None) -> bytes:
        """Return a message as the protocol has it. Raises `TooLarge` and `ValueError`."""
        if NO_SUBJECT.search(subject):
            raise ValueError(f"{subject!r} is not a subject")
        block = headers.block(fields)
        size = len(block) + len(body)
        if size > self.client.max_payload:  # the server would end the connection
            raise TooLarge(f"{size} bytes; the NATS server takes at most {self.client.max_payload}")
        # A byte that is not UTF-8 came from the subject of another publisher: escape it.
        address = subject.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        words = f"HPUB {address} {reply} {len(block)}" if block else f"PUB {address} {reply}"
        return b"%b %d\r\n%b%b\r\n" % (words.encode(), size, block, body)

    async def write(self, commands: Sequence[bytes]) -> None:
        """Write commands to the socket, after what nats-py has queued.

        asyncio's transport keeps what the socket does not take. Waits only when that is much.
        """
        if self.lost.is_set():
            await trio.lowlevel.checkpoint()  # so that a loop of failing calls does not block all other tasks
        self.check()
        client = self.client
        self.writer.writelines([*client._pending, *commands])
        client._pending, client._pending_data_size = [], 0
        if self.writer.transport.get_write_buffer_size() > UNSENT_BYTES:
            await self.flush()

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

        All requests share one inbox. Cancelling is safe: a late answer is dropped.
        """
        token = str(next(self.tokens))
        answer = self.answers[token.encode()] = Answer(subject, many)
        try:
            await self.send(subject, body, reply=f"{self.inbox}.{token}", fields=fields)
            with trio.move_on_after(seconds):
                await answer.done.wait()
        finally:
            del self.answers[token.encode()]
        self.check()
        if not answer.done.is_set():
            raise away(f"NATS did not answer within {seconds:g} s")
        if answer.refusal:
            raise NotPermitted(f"NATS refuses: {answer.refusal}", retry_after=RETRY_AFTER_SECONDS)
        if headers.status(answer.parts[-1][0]) == 503:
            raise away(f"nobody answers on {subject}: is JetStream enabled?")
        return answer.parts

    async def request_all(self, messages: Sequence[Said], *, seconds: float) -> list[Part]:
        """Send all messages, then return the answer to each."""
        tokens = [str(next(self.tokens)) for _ in messages]
        answers = [Answer(subject, many=False) for subject, _, _ in messages]
        self.answers.update(zip((token.encode() for token in tokens), answers, strict=True))
        try:
            await self.write(
                [
                    self.command(subject, body, f"{self.inbox}.{token}", fields)
                    for token, (subject, body, fields) in zip(tokens, messages, strict=True)
                ]
            )
            with trio.move_on_after(seconds) as patience:
                for answer in answers:
                    if not answer.done.is_set():  # else waiting is a turn of the loop for each
                        await answer.done.wait()
        finally:
            for token in tokens:
                del self.answers[token.encode()]
        self.check()
        if patience.cancelled_caught:
            raise away(f"NATS did not answer within {seconds:g} s")
        if refused := next((answer for answer in answers if answer.refusal), None):
            raise NotPermitted(f"NATS refuses: {refused.refusal}", retry_after=RETRY_AFTER_SECONDS)
        if any(headers.status(answer.parts[0][0]) == 503 for answer in answers):
            raise away(f"nobody answers on {messages[0][0]}: is JetStream enabled?")
        return [answer.parts[0] for answer in answers]

    def answered(self, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:  # noqa: ARG002  one shape for all
        answer = self.answers.get(subject[len(self.inbox) + 1 :])
        if answer is not None and not answer.done.is_set():
            answer.parts.append((block, body))
            if not answer.many or block.startswith(headers.STATUS):
                answer.done.set()

    async def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Return when the server has taken everything that was sent before.

        Without an answer in time the link is lost.
        """
        await self.cross(self.client.flush, seconds)
        self.check()

    async def close(self) -> None:
        """Close the connection, within `CLOSE_SECONDS` and shielded from cancellation.

        Then its socket is closed too, whatever was still to be written. nats-py alone would leave it open
        for ever where the peer reads no more.
        """
        self.lose("closed")
        transport: Any = self.client._transport
        if transport is None:  # never asked to connect, and nats-py cannot close such a client
            return
        try:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await trio_asyncio.aio_as_trio(self.client.close)()
        except (nats.errors.Error, OSError) as error:
            log.debug("nats_close_failed", error=repr(error))
        finally:
            if transport._bare_io_writer is not None:  # the one below TLS, where there is that
                transport._bare_io_writer.transport.abort()

    async def cross(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run one short call in asyncio.

        Shielded, since asyncio would swallow a cancellation, but for `lose`.
        """
        await trio.lowlevel.checkpoint()  # so that a loop of failing calls does not block all other tasks
        self.check()
        with trio.CancelScope(shield=True) as scope:
            self.crossings.add(scope)
            try:
                return await trio_asyncio.aio_as_trio(call)(*args, **options)
            except nats.errors.BadSubjectError as error:
                raise ValueError(str(error)) from error
            except (nats.errors.Error, OSError) as error:
                self.lose(f"the connection to NATS failed: {error!r}")
            finally:
                self.crossings.discard(scope)
        raise away(self.reason)

    def check(self) -> None:
        """Raise `Unavailable` when the link is lost."""
        if self.lost.is_set():
            raise away(self.reason)

    def lose(self, reason: str) -> None:
        if not self.lost.is_set():
            self.reason = reason
            self.lost.set()
            for group in links.values():
                group.discard(self)
            for answer in self.answers.values():
                answer.done.set()
            for scope in self.crossings:
                scope.cancel()
            self.on_lost()

    def refuse(self, message: str) -> None:
        """Handle an error that the server reports. All but a missing permission end the link."""
        if "permissions violation" in message.lower():
            log.error("nats_refused", error=message)
            self.refused.append(message)
            for answer in self.answers.values():
                if f'publish to "{answer.subject.lower()}"' in message.lower():
                    answer.refusal = message
                    answer.done.set()
        else:
            self.lose(f"NATS closed the connection: {message}")

    async def failed(self, error: Exception) -> None:
        self.error = error

    async def closed(self) -> None:
        self.lose("the connection to NATS is lost")


class Reader(Parser):
    """Parser of what the server sends, from bytes to calls of handlers, in place of nats-py's.

    nats-py's parser rejects a subject with a vertical tab and gives up the connection; one that is not UTF-8
    ends its reading task silently. The server stores both from any publisher, and no consumer would ever get
    past such a record. This one decodes nothing, and takes a fifth of the time.
    https://docs.nats.io/reference/reference-protocols/nats-protocol
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link.client)
        self.link = link

    async def parse(self, data: bytes = b"") -> None:
        buffer = self.buf
        buffer += data
        handlers = self.link.handlers
        done = 0
        while (end := buffer.find(CRLF, done)) >= 0:
            line = bytes(buffer[done:end])
            start = end + 2
            words = line.split(b" ")
            if words[0] not in (b"MSG", b"HMSG"):
                await self.control(line)
                done = start
                continue
            stop = start + int(words[-1])
            if len(buffer) < stop + 2:
                break
            split = start + int(words[-2]) if words[0] == b"HMSG" else start
            handler = handlers.get(int(words[2]))
            if handler is not None:
                reply = words[3] if len(words) == (6 if split > start else 5) else b""
                handler(words[1], reply, bytes(buffer[start:split]), bytes(buffer[split:stop]))
            done = stop + 2
        del buffer[:done]

    async def control(self, line: bytes) -> None:
        if line == b"PING":
            await self.link.client._process_ping()
        elif line == b"PONG":
            pongs = self.link.client._pongs
            if pongs and pongs[0].done():  # its waiter has given up, which nats-py does not expect
                del pongs[0]
            else:
                await self.link.client._process_pong()
        elif line.startswith(b"-ERR"):
            self.link.refuse(line[4:].decode(errors="replace").strip(" '"))


async def open_link(url: str, options: config.Nats, *, on_lost: Callable[[], None]) -> Link:
    """Connect to one server. Raises `Unavailable` when that fails, whatever the cause.

    Credentials are read from their files each time, so that they may change while the broker runs.
    """
    link = Link(Client(), on_lost)
    link.client._ps = Reader(link)
    links.setdefault(asyncio.get_running_loop(), set()).add(link)
    try:
        await connect(link, url, options)
    except BaseException:
        await link.close()
        raise
    return link


async def connect(link: Link, url: str, options: config.Nats) -> None:
    try:
        await trio_asyncio.aio_as_trio(link.client.connect)(
            error_cb=link.failed, closed_cb=link.closed, **connect_options(url, options)
        )
    except (nats.errors.Error, nkeys.NkeysError, OSError, ValueError) as error:
        cause = link.error or error
        raise away(f"{shown(url)}: {cause or type(cause).__name__}") from error
    link.writer = link.client._transport._io_writer  # type: ignore[union-attr]
    version = link.client.connected_server_version
    if (version.major, version.minor) < OLDEST_SERVER:
        raise away(
            f"{shown(url)}: nats-server {version.major}.{version.minor} has no batched direct get; "
            f"it must be at least {OLDEST_SERVER[0]}.{OLDEST_SERVER[1]}"
        )
    await link.subscribe(f"{link.inbox}.*", link.answered)


def connect_options(url: str, options: config.Nats) -> dict[str, Any]:
    """Return the arguments of nats-py for one attempt.

    Raises `OSError` and `ValueError` for unusable files.
    """
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    address = parts.netloc.rpartition("@")[2]
    result: dict[str, Any] = {
        "servers": [f"{parts.scheme}://{address}"],
        "name": "broker",
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0,
        "connect_timeout": CONNECT_SECONDS,
        "ping_interval": PING_SECONDS,
        "max_outstanding_pings": 2,
        "flush_timeout": FLUSH_SECONDS,
    }
    if parts.password is not None:
        result |= {"user": unquote(parts.username or ""), "password": unquote(parts.password)}
    elif parts.username:
        result["token"] = unquote(parts.username)
    if options.user is not None:
        result["user"] = options.user
    if options.password_file is not None:
        result["password"] = options.password_file.read_text().strip()
    if options.credentials_file is not None:
        result["user_credentials"] = str(options.credentials_file)
    if options.nkey_file is not None:
        result["nkeys_seed"] = str(options.nkey_file)
    if options.tls_ca is not None or options.tls_certificate is not None:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_certificate is not None:
            context.load_cert_chain(options.tls_certificate, options.tls_key)
        result["tls"] = context
    return result


def shown(url: str) -> str:
    """Return an address without its credentials, for a message."""
    return urlsplit(url if "://" in url else f"nats://{url}").netloc.rpartition("@")[2]
