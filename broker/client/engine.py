"""One client's side of the protocol as a state machine without I/O: what to say, and what an answer means.

`Session` (Trio) and `AsyncioSession` are shells around it, which own the connection. Between `begin` and
the end of a connection a shell sends what `outgoing` gives, asks again at `due` or when something has
changed, hands each text to `receive`, and leaves when `overdue` says so. Time is an argument (seconds on a
monotonic clock).
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from secrets import SystemRandom
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode, urlsplit

import attrs
import msgspec

from broker import subjects
from broker.client.items import Event, Gap, Item, Lost, Message, SessionEnded
from broker.client.outbox import Outbox
from broker.client.resume import Resume
from broker.errors import BadMessage, CloseCode, NotSubscribed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.client.items import Payload, Published
    from broker.client.outbox import Pending

Lag = Literal["replay", "latest", "drop", "close"]

SUBPROTOCOL = "broker.v1"
HEARTBEAT_SECONDS = 25.0  # until the broker says its own
READ_AHEAD = 10_000  # items, while some task waits for an answer, which comes behind them
UNHEARD = 16  # messages that are kept for somebody who need not take them
STOPPED = "the session was stopped"
TRY_AGAIN = (408, 425, 429)  # of the HTTP 4xx the ones that pass; all 5xx do
SIGNS_OF_SUCCESS = ("subscribed", "published", "acknowledged", "pong")

jitter = SystemRandom()


class Envelope(msgspec.Struct, rename={"message_id": "messageId"}):
    type: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    message_id: str | None = None


class Delivery(msgspec.Struct):
    channel: str
    event: msgspec.Raw
    position: str | None = None
    publisher: dict[str, Any] | None = None
    catch_up: int | None = None


@attrs.frozen(kw_only=True)
class Backoff:
    """Full jitter: the wait is anything from 0 to a bound that doubles from `first` to `most` seconds."""

    first: float = 0.5
    most: float = 20.0

    def delay(self, failures: int) -> float:
        return jitter.uniform(0, min(self.most, self.first * 2.0 ** min(failures, 30)))


@attrs.define(eq=False, kw_only=True)
class Engine:
    """`renewable`: another token can be had, so that one that has expired is no reason to end."""

    url: str = attrs.field(validator=attrs.validators.matches_re(r"wss?://[^/?#]+.*"))
    tenant: str | None
    renewable: bool
    backoff: Backoff
    resume: Resume = attrs.field(factory=Resume)
    outbox: Outbox = attrs.field(factory=Outbox)
    ended: SessionEnded | None = None
    over: bool = False
    failures: int = 0
    # Of the connection that there is.
    authenticated: bool = False
    expiring: bool = False  # a new token is wanted: `renewed` is to be called with it
    heartbeat: float = HEARTBEAT_SECONDS
    quiet_since: float = inf
    pinged: bool = False
    leave_at: float = inf  # when the broker asked us to go elsewhere
    retries: dict[str, float] = attrs.field(factory=dict)  # when a refused `subscribe` is sent again
    last_error: Payload = attrs.field(factory=dict)
    frames: list[str] = attrs.field(factory=list)

    # --- the application's side --------------------------------------------------------------------

    def subscribe(
        self, channels: tuple[str, ...], starts: Mapping[str, Any], lag: Lag | None, durable: str | None
    ) -> str:
        start = {name: value for name, value in starts.items() if value not in (None, False)}
        if len(start) > 1:
            raise ValueError(f"a subscription has one start, not {' and '.join(start)}")
        message_id = self.resume.ask(channels, start, lag, durable)
        self.say("subscribe", self.resume.requests[message_id].payload, message_id)
        return message_id

    def unsubscribe(self, channels: tuple[str, ...]) -> None:
        self.resume.forget(channels)
        self.resume.count += 1
        self.say("unsubscribe", {"channel": list(channels)}, str(self.resume.count))

    def publish(
        self, channel: str, event: Any, event_id: str | None, on_done: Callable[[], None]
    ) -> Pending[Published]:
        self.check_running()
        subjects.parse_channel(channel)
        if isinstance(event, bytes):
            try:
                event = msgspec.json.decode(event or b"null")
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BadMessage(f"the event is refused: {error}") from None
        msgspec.json.encode(event)  # what is no JSON is the caller's mistake, here and now
        return self.outbox.publish(channel, event, event_id, on_done)

    def acknowledge(self, durable: str, position: str, on_done: Callable[[], None] | None) -> Pending[str]:
        self.check_running()
        if not self.resume.holds(durable):
            raise NotSubscribed(f"{durable}: no subscription of this session has this name")
        return self.outbox.acknowledge(durable, position, on_done)

    def check_running(self) -> None:
        if self.over:
            raise self.ended or SessionEnded(STOPPED)

    # --- the connection's side ---------------------------------------------------------------------

    def address(self) -> str:
        if self.tenant is None:
            return self.url
        return f"{self.url}{'&' if urlsplit(self.url).query else '?'}{urlencode({'tenant': self.tenant})}"

    def begin(self) -> None:
        """There is a new connection."""
        self.authenticated = self.expiring = self.pinged = False
        self.quiet_since = self.leave_at = inf
        self.retries, self.last_error, self.frames = {}, {}, []

    def say(self, kind: str, payload: Payload, message_id: str | None = None) -> None:
        """Sends a message when there is a connection. After a cut the subscriptions are sent anyway."""
        if self.authenticated:
            document = {"type": kind, "payload": payload}
            if message_id is not None:
                document["messageId"] = message_id
            self.frames.append(msgspec.json.encode(document).decode())

    def outgoing(self, now: float) -> list[str]:
        """What is to be sent now."""
        for message_id in [key for key, at in self.retries.items() if now >= at]:
            del self.retries[message_id]
            if message_id in self.resume.requests:
                self.say("subscribe", self.resume.requests[message_id].payload, message_id)
        if self.authenticated:
            for frame in self.outbox.take(self.resume, now):
                self.say(*frame)
        if now >= self.ping_at() and not self.pinged:
            self.quiet_since, self.pinged = now, True
            self.say("ping", {})
        frames, self.frames = self.frames, []
        return frames

    def ping_at(self) -> float:
        return self.quiet_since + self.heartbeat / 2

    def due(self) -> float:
        """When to ask again, if nothing happens before."""
        outbox = self.outbox.due() if self.authenticated else inf
        return min(self.ping_at(), self.leave_at, outbox, *self.retries.values())

    def overdue(self, now: float) -> Lost | None:
        """Why to leave this connection now."""
        if now >= self.leave_at:
            return Lost("the broker is going down")
        if self.pinged and now >= self.ping_at():
            return Lost(f"silent for {self.heartbeat:g} s")
        return None

    def listening(self, now: float) -> None:
        """From here on silence is the broker's; until then nobody listened."""
        self.quiet_since, self.pinged = now, False

    def receive(self, text: str | bytes, now: float) -> Item | None:
        """What a message is for the application; None when it is nothing. Raises `SessionEnded`."""
        self.quiet_since = inf
        try:
            envelope = msgspec.json.decode(text, type=Envelope)
            if envelope.type == "event":
                return self.event(msgspec.json.decode(envelope.payload, type=Delivery))
            payload = msgspec.json.decode(envelope.payload, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SessionEnded(f"{self.url} does not speak {SUBPROTOCOL}: {error}") from None
        self.resume.received(envelope.type, payload, envelope.message_id)
        self.heed(envelope.type, payload, envelope.message_id, now)
        if self.outbox.answered(envelope.type, payload, envelope.message_id, now):
            return None
        if envelope.type == "gap":
            return gap(payload)
        return Message(type=envelope.type, payload=payload, message_id=envelope.message_id)

    def is_free(self, item: Item) -> bool:
        """Whether nobody need take it: who subscribes to nothing, and only publishes, does not listen."""
        return isinstance(item, Message) and not self.resume.requests

    def event(self, found: Delivery) -> Event | None:
        noted = {"position": found.position, "catch_up": found.catch_up}
        self.resume.received("event", noted, None)
        if self.resume.handed_over(found.channel, found.position, found.catch_up):
            return None
        return Event(
            channel=found.channel,
            data=bytes(found.event),
            position=found.position,
            publisher=found.publisher,
            catch_up=found.catch_up,
        )

    def heed(self, kind: str, payload: Payload, message_id: str | None, now: float) -> None:
        """Does what a message asks of the client itself."""
        after = (payload.get("retry_after_ms") or payload.get("reconnect_after_ms") or 0) / 1000
        match kind:
            case "connection.established":
                self.heartbeat = payload.get("heartbeat_seconds", HEARTBEAT_SECONDS)
            case "connection.authenticated" if not self.authenticated:
                self.authenticated = True
                self.resume.again()
                self.outbox.again(now)
                for key, request in self.resume.requests.items():
                    self.say("subscribe", request.payload, key)
            case "connection.expiring":
                self.expiring = self.renewable
            case "connection.draining":
                self.leave_at = now + after
            case "error":
                self.last_error = payload
                if message_id in self.resume.requests:
                    self.retries[message_id] = now + after + self.backoff.delay(0)
        if kind in SIGNS_OF_SUCCESS:
            self.failures = 0

    def renewed(self, token: str) -> None:
        """Another token, for the connection that there is."""
        self.expiring = False
        self.say("authenticate", {"token": token})

    # --- how it ends -------------------------------------------------------------------------------

    def closed(self, code: int, said: str | None, now: float) -> Lost | SessionEnded:
        """What a close code asks for. Codes of the broker's own follow an `error` that says more."""
        if code >= 4000:
            said = self.last_error.get("message", said)
        reason = f"closed with {int(code)}" + (f": {said}" if said else "")
        if code == CloseCode.TOO_BIG:
            self.outbox.too_big()
        same_again = code == CloseCode.TOKEN_EXPIRED and not self.renewable
        if 4500 <= code <= 4999 or same_again:
            return SessionEnded(reason, closed_with=code)
        if self.leave_at < inf:
            return Lost(reason, after=self.leave_at - now)
        return Lost(reason, after=self.last_error.get("retry_after_ms", 0) / 1000)

    def refused(self, status: int, retry_after: str, body: bytes) -> Lost | SessionEnded:
        """What an HTTP answer instead of the upgrade asks for."""
        reason = f"refused with HTTP {status}{title(body)}"
        if status < 500 and status not in TRY_AGAIN:
            return SessionEnded(reason, status=status)
        return Lost(reason, after=float(retry_after) if retry_after.isdigit() else 0.0)

    def wait(self, lost: Lost) -> float:
        """How long to stay away after a connection was lost, in seconds."""
        self.authenticated = False
        self.failures += 1
        return max(lost.after, self.backoff.delay(self.failures - 1))

    def end(self, why: SessionEnded | None) -> None:
        """There will be no other connection, and no answer to anything; `why` if the broker wants it so."""
        self.ended, self.over = why, True
        self.outbox.end(why or SessionEnded(STOPPED))


def gap(payload: Mapping[str, Any]) -> Gap:
    channel = payload.get("channel", ())
    return Gap(
        channels=(channel,) if isinstance(channel, str) else tuple(channel),
        reason=payload.get("reason", ""),
        start=payload.get("from"),
        end=payload.get("to"),
        count=payload.get("count"),
        catch_up=payload.get("catch_up"),
    )


def title(body: bytes) -> str:
    """What an `application/problem+json` body (RFC 9457) says, for a sentence."""
    said = None
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        problem = msgspec.json.decode(body, type=dict[str, Any])
        said = problem.get("detail") or problem.get("title")
    return f": {said}" if isinstance(said, str) else ""
