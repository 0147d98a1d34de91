"""The client's side of the protocol as a state machine without I/O.

`Session` (Trio) and `AsyncioSession` are shells around it, which own the connection. From `begin` to the end
of a connection a shell sends what `outgoing` yields, calls it again at `due` or after a change, passes each
text to `receive`, and closes the connection when `overdue` says so. Time is an argument (seconds on a
monotonic clock).
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import attrs
import msgspec

from broker import subjects
from broker.client import checks, said, tokens
from broker.client.asking import SMALL, Asking
from broker.client.documents import Documents
from broker.client.gate import Allowed, Gate
from broker.client.items import Event, Gap, Item, Lost, Message, SessionEnded
from broker.client.outbox import Outbox
from broker.client.pages import Pages
from broker.client.presence import Presence
from broker.client.questions import Questions
from broker.client.resume import Resume
from broker.client.tokens import Credentials
from broker.client.windows import Windows
from broker.errors import CloseCode, NotSubscribed, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.backoff import Backoff
    from broker.client.checks import Lag
    from broker.client.items import Payload, Published
    from broker.client.outbox import Pending
    from broker.client.said import Delivery

SUBPROTOCOL = "broker.v1"
HEARTBEAT_SECONDS = 25.0  # until the broker announces its own
LONGEST_HEARTBEAT = 300.0
OPENED_SECONDS = 9.0  # from the first byte to the answer to the token
REPLY_SECONDS = 30.0  # for an answer; then the connection is replaced
HELD_UP_SECONDS = 1.0  # between two messages: longer means that the application was not reading
PROVEN_SECONDS = 5.0  # a connection that lived so long resets the back-off
ASKED_SECONDS = 20.0  # the longest wait that an answer can impose: it may be an error page
DRAIN_SECONDS = 300.0  # a stopping broker spreads its clients over this time
READ_AHEAD = 10_000  # items, while a task waits for an answer that comes after them
UNHEARD = 16  # messages that are kept for an application that need not receive them
STOPPED = "the session was stopped"
SIGNS_OF_SUCCESS = (
    "subscribed", "published", "acknowledged", "reply", "state.opened", "presence.watched", "pong",
)  # fmt: skip


@attrs.define(eq=False, kw_only=True)
class Engine:
    """`renewable`: the token can be replaced, so an expired one does not end the session."""

    url: str = attrs.field(validator=attrs.validators.matches_re(r"wss?://[^/?#]+.*"))
    tenant: str | None
    renewable: bool
    backoff: Backoff
    wall: Callable[[], float] = time.time
    resume: Resume = attrs.field(factory=Resume)
    gate: Gate = attrs.field(factory=Gate)
    outbox: Outbox = attrs.field(init=False)
    questions: Questions = attrs.field(init=False)
    pages: Pages = attrs.field(init=False)
    documents: Documents = attrs.field(init=False)
    presence: Presence = attrs.field(init=False)
    asking: Asking = attrs.field(init=False)
    credentials: Credentials = attrs.field(init=False)
    ended: SessionEnded | None = None
    over: bool = False
    paces: dict[int, Windows] = attrs.field(factory=dict)  # of subscriptions, by pace (ms)
    failures: int = 0
    # Of the present connection.
    authenticated: bool = False
    opened_by: float = inf  # else the connection is closed
    opened_at: float = inf
    token_due: float = inf  # when to request another token
    token_failures: int = 0
    renewal: str | None = None  # the messageId of the token in flight
    heartbeat: float = HEARTBEAT_SECONDS
    quiet_since: float = inf
    pinged: bool = False
    heard_at: float = inf
    listens_since: float = -inf  # without the application blocking
    leave_at: float = inf  # set when the broker asked us to reconnect
    last_error: Payload = attrs.field(factory=dict)
    frames: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.outbox = Outbox(gate=self.gate, wall=self.wall)
        self.questions = Questions(self.gate)
        self.pages = Pages(self.gate)
        self.documents = Documents(self.gate, self.backoff.delay, self.resume.expanded)
        self.presence = Presence(self.gate, self.resume.expanded)
        self.asking = Asking(self.resume, self.gate, self.backoff.delay)
        self.credentials = Credentials(renewable=self.renewable, wall=self.wall)

    # --- the application's side --------------------------------------------------------------------

    def subscribe(
        self,
        channels: tuple[str, ...],
        starts: Mapping[str, Any],
        lag: Lag | None,
        durable: str | None,
        filter_: Any = None,
        every_ms: int | None = None,
    ) -> str:
        self.check_running()
        start = {name: value for name, value in starts.items() if value is not None and value is not False}
        allowed = self.gate.allowed
        checks.check_subscribe(channels, start, lag, durable, allowed.last_events)
        if durable is not None and self.asking.fitting(list(channels)) < len(channels):
            raise TooLarge(f"durable: {len(channels)} channels do not fit into one message to this broker")
        checks.check_every(every_ms)
        wanted = checks.filter_of(filter_, start)
        if start or durable:
            self.begin_anew(channels)
        return self.resume.ask(channels, start, lag, durable, wanted, every_ms)

    def unsubscribe(self, channels: tuple[str, ...]) -> None:
        self.check_running()
        checks.check_patterns(channels)
        self.asking.unsubscribe(channels)
        self.begin_anew(channels)

    def begin_anew(self, channels: tuple[str, ...]) -> None:
        """Forget what came at a pace in some channels, and what is held of them."""
        names = [self.resume.expanded(each) for each in channels]
        for windows in self.paces.values():
            windows.forget(lambda channel: any(subjects.covers(name, channel) for name in names))

    def publish(
        self, channel: str, event: Any, event_id: str | None, echo: bool, on_done: Callable[[], None]
    ) -> Pending[Published]:
        self.check_running()
        checks.check_channel(channel)
        if event_id is not None:
            checks.check_id(event_id)
        return self.outbox.publish(channel, checks.event_json(event), event_id, echo, on_done)

    def acknowledge(self, durable: str, position: str, on_done: Callable[[], None] | None) -> Pending[str]:
        self.check_running()
        checks.check_position(position)
        if not self.resume.holds(durable):
            raise NotSubscribed(f"{durable!r:.80}: no subscription of this session has this name")
        return self.outbox.acknowledge(durable, position, on_done)

    def request(
        self, method: str, data: Any, until: float, request_id: str | None, on_done: Callable[[], None]
    ) -> Pending[Payload]:
        """Ask a service; the promise is the payload of its `reply`. Call `expire` at the time `until`."""
        self.check_running()
        checks.check_method(method)
        if request_id is not None:
            checks.check_request_id(request_id)
        return self.questions.ask(method, checks.data_json(data), request_id, until, on_done)

    def history(
        self, channels: tuple[str, ...], asked: Mapping[str, Any], on_done: Callable[[], None]
    ) -> Pending[Payload]:
        """Ask for a page; the promise is the payload of the reply."""
        self.check_running()
        given = {name: value for name, value in asked.items() if value is not None}
        checks.check_history(channels, given, self.gate.allowed.last_events)
        if wanted := checks.filter_of(given.get("filter"), {}):
            given["filter"] = msgspec.Raw(wanted.text)
        return self.pages.ask({"channel": list(channels)} | given, on_done)

    def expire(self, promise: Pending[Any]) -> None:
        """Settle the promise of a request whose time has ended."""
        self.questions.expire(promise)

    def withdraw(self, promise: Pending[Any]) -> None:
        """Record that nobody waits for an answer any more: what is not in flight will not be sent."""
        self.outbox.withdraw(promise)
        self.questions.withdraw(promise)
        self.pages.withdraw(promise)

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for an answer."""
        parts = (self.outbox, self.questions, self.pages, self.documents, self.presence)
        return any(each.awaited for each in parts)

    def check_running(self) -> None:
        if self.over:
            raise self.ended or SessionEnded(STOPPED)

    # --- the connection's side ---------------------------------------------------------------------

    def address(self) -> str:
        if self.tenant is None:
            return self.url
        return f"{self.url}{'&' if urlsplit(self.url).query else '?'}{urlencode({'tenant': self.tenant})}"

    def begin(self, token: str, now: float) -> None:
        """Begin a new connection with this token."""
        self.credentials.presented(token, now)
        self.authenticated = self.pinged = False
        self.opened_by, self.opened_at = now + OPENED_SECONDS, inf
        self.quiet_since = self.leave_at = self.token_due = self.heard_at = inf
        self.listens_since = now
        self.heartbeat, self.renewal = HEARTBEAT_SECONDS, None
        self.last_error, self.frames = {}, []

    def say(self, kind: str, payload: Payload, message_id: str | None = None) -> None:
        document = {"type": kind, "payload": payload}
        if message_id is not None:
            document["messageId"] = message_id
        self.frames.append(msgspec.json.encode(document).decode())

    def outgoing(self, now: float) -> list[str]:
        """Return the texts to send now."""
        if self.authenticated:
            for frame in self.asking.take(now):
                self.say(*frame)
            for frame in self.outbox.take(self.resume, now):
                self.say(*frame)
            for each in (self.questions, self.pages, self.documents, self.presence):
                for frame in each.take(now):
                    self.say(*frame)
        if now >= self.ping_at() and not self.pinged:
            self.quiet_since, self.pinged = now, True
            self.gate.count("requests", now)
            self.say("ping", {})
        frames, self.frames = self.frames, []
        return frames

    def ping_at(self) -> float:
        return self.quiet_since + self.heartbeat / 2

    def due(self, now: float) -> float:
        """Return when to call `outgoing` again, if nothing changes before."""
        paced = min((each.next() for each in self.paces.values()), default=inf)
        own = min(self.ping_at(), self.leave_at, self.token_due, self.answer_by(), paced)
        if not self.authenticated:
            return min(own, self.opened_by)
        parts = (self.asking, self.outbox, self.questions, self.pages, self.documents, self.presence)
        return min(own, *(each.due(now) for each in parts))

    def overdue(self, now: float) -> Lost | None:
        """Return why to close this connection now; None to keep it."""
        if now >= self.leave_at:
            return Lost("the broker is shutting down")
        if self.pinged and now >= self.ping_at():
            return Lost(f"silent for {self.heartbeat:g} s")
        if now >= self.answer_by():
            self.asking.doubt()
            self.documents.doubt()
            return Lost(f"no answer to a request within {REPLY_SECONDS:g} s")
        if not self.authenticated and now >= self.opened_by:
            return Lost("no answer to the token", after=self.asked_away())
        return None

    def answer_by(self) -> float:
        """Return when an unanswered request is overdue; only time in which we were reading counts."""
        if self.quiet_since == inf:
            return inf
        parts = (self.outbox, self.documents, self.presence)
        sent_at = min([*(each.sent_at() for each in parts), *self.asking.sent_at.values()])
        return max(sent_at, self.listens_since) + REPLY_SECONDS

    def listening(self, now: float) -> None:
        """Record that we are reading: until now silence may have been our own fault."""
        if now - self.heard_at > HELD_UP_SECONDS:
            self.listens_since = now
        self.quiet_since, self.pinged = now, False

    def receive(self, text: str | bytes, now: float) -> Item | Lost | None:
        """Process a message and return the item for the application, if any."""
        self.quiet_since, self.heard_at = inf, now
        try:
            envelope, payload = said.read(text)
        except said.Nonsense as error:
            return Lost(f"{self.url} does not speak {SUBPROTOCOL}: {error}")
        if not isinstance(payload, dict):
            return self.event(payload, now)
        kind, message_id = envelope.type, envelope.message_id
        self.heed(kind, payload, message_id, now)
        if self.asking.answered(kind, payload, message_id, now):
            return None
        self.resume.received(kind, payload, message_id)
        for each in (self.outbox, self.questions, self.pages, self.documents, self.presence):
            if each.answered(kind, payload, message_id, now):
                return None
        if kind == "gap":
            return said.gap(payload)
        return Message(type=kind, payload=payload, message_id=message_id)

    def notices(self, now: float) -> list[Item]:
        """Return further items for the application, beside those received."""
        found: list[Item] = [*self.asking.refused]
        self.asking.refused = []
        for each in self.paces.values():
            found += each.due(now)
        return found

    def is_free(self, item: Item) -> bool:
        """Return whether nobody need receive it: an application that only publishes does not iterate."""
        return not isinstance(item, Event | Gap) and not self.resume.requests

    def is_wanted(self, item: Item) -> bool:
        """Return whether an item is still wanted: its subscription may have ended meanwhile."""
        return not isinstance(item, Event) or self.resume.wants(item.channel)

    def event(self, found: Delivery, now: float) -> Event | None:
        if not found.paced or found.catch_up is not None:  # else it moves no position
            noted = {"position": found.position, "catch_up": found.catch_up}
            self.resume.received("event", noted, None)
        if self.resume.handed_over(found.channel, found.position, found.catch_up) or self.is_echo(found):
            return None
        every_ms = self.resume.pace(found.channel, found.event, paced=found.paced)
        if every_ms is None:
            return None
        event = Event(
            channel=found.channel,
            data=bytes(found.event),
            position=found.position,
            publisher=found.publisher,
            catch_up=found.catch_up,
        )
        if every_ms and not self.windows(every_ms).take(event, now):
            return None
        return event

    def windows(self, every_ms: int) -> Windows:
        """Return the windows of a pace."""
        if every_ms not in self.paces:
            self.paces[every_ms] = Windows(every_ms / 1000)
        return self.paces[every_ms]

    def is_echo(self, found: Delivery) -> bool:
        """Return whether it is an event of this session that is not to be sent back."""
        event_id = (found.publisher or {}).get("id")  # which the broker shows to its user alone
        channel = self.outbox.unechoed.get(event_id) if isinstance(event_id, str) else None
        return channel is not None and self.resume.expanded(channel) == found.channel

    def heed(self, kind: str, payload: Payload, message_id: str | None, now: float) -> None:
        """Act on a message that concerns the client itself."""
        match kind:
            case "connection.established":
                heartbeat = payload.get("heartbeat_seconds", HEARTBEAT_SECONDS)
                self.heartbeat = min(heartbeat, LONGEST_HEARTBEAT) if heartbeat > 0 else HEARTBEAT_SECONDS
                self.gate.begin(Allowed.said(payload.get("limits") or {}), now)
            case "connection.authenticated":
                self.token_failures = 0
                self.credentials.accepted()
                if not self.authenticated:
                    self.opened(payload, now)
            case "connection.expiring" if self.renewable:
                self.token_due = self.credentials.renew_at(now)
            case "connection.draining":
                self.leave_at = now + bounded(payload.get("reconnect_after_ms"), DRAIN_SECONDS)
            case "error":
                self.last_error = payload
                if message_id == self.renewal and (message_id or not self.authenticated):
                    self.token_answered(payload, now)
        if kind in SIGNS_OF_SUCCESS:
            self.failures = 0

    def opened(self, payload: Payload, now: float) -> None:
        self.authenticated, self.opened_at = True, now
        self.resume.private = payload.get("private")
        self.resume.again()
        self.asking.again()
        self.documents.begin()

    # --- tokens ------------------------------------------------------------------------------------

    def token_wanted(self, now: float) -> bool:
        """Return whether to request another token now; True once per request."""
        if now < self.token_due:
            return False
        self.token_due = inf
        return True

    def token_missing(self, now: float) -> None:
        """Record that no token could be obtained for now."""
        self.token_due = now + self.backoff.delay(self.token_failures)
        self.token_failures += 1

    def renewed(self, token: str, now: float) -> None:
        """Take another token for the present connection."""
        self.credentials.presented(token, now)
        self.credentials.renewed = now
        self.renewal = f"t{self.resume.next_id()}"
        self.gate.count("requests", now)
        self.say("authenticate", {"token": token}, self.renewal)

    def token_answered(self, payload: Payload, now: float) -> None:
        """Handle a refused token: a live connection keeps the old one, a new one may succeed later."""
        after = bounded(payload.get("retry_after_ms"), ASKED_SECONDS)
        if payload.get("retryable"):
            self.token_due = now + max(after, self.backoff.delay(self.token_failures))
            self.opened_by = max(self.opened_by, self.token_due + OPENED_SECONDS)
        elif self.authenticated:
            self.token_due = now + max(tokens.RENEW_SECONDS, self.backoff.delay(self.token_failures))
        self.token_failures += 1

    # --- how it ends -------------------------------------------------------------------------------

    def closed(self, code: int, words: str | None, now: float) -> Lost | SessionEnded:
        """Return what a close code calls for. The broker's own codes follow an `error` with details."""
        if code >= 4000:
            words = self.last_error.get("message", words)
        reason = f"closed with {int(code)}" + (f": {words}" if words else "")
        if code == CloseCode.TOO_BIG:
            self.too_big()
        if self.credentials.is_final(code):
            return SessionEnded(reason, closed_with=code)
        if self.leave_at < inf:
            return Lost(reason, after=max(self.leave_at - now, 0.0))
        return Lost(reason, after=self.asked_away())

    def asked_away(self) -> float:
        return bounded(self.last_error.get("retry_after_ms"), ASKED_SECONDS)

    def too_big(self) -> None:
        """Handle a message over a limit on the way: give up the largest, or cut lists of channels shorter."""
        lists = {key: self.asking.size(key) for key in self.asking.asked}
        largest = max(lists, key=lambda key: lists[key], default=None)
        changes = self.documents.changes
        if changes.largest() > max(SMALL, self.questions.largest(), self.outbox.largest(), *lists.values()):
            changes.too_big()
        elif self.questions.largest() > max(SMALL, self.outbox.largest(), lists.get(largest or "", 0)):
            self.questions.too_big()
        elif largest is None or lists[largest] < self.outbox.largest():
            if self.outbox.largest() >= SMALL:
                self.outbox.too_big()
        elif not self.asking.shorten(largest):
            self.asking.refuse(largest, TooLarge("closed with 1009: over the limit `message_bytes`"))

    def refused(self, status: int, retry_after: str, body: bytes) -> Lost:
        """Return what an HTTP response instead of the upgrade calls for.

        It may not be the broker's: proxies answer too, and so does whatever temporarily replaces the broker.
        """
        after = retry_after if retry_after.isascii() and retry_after.isdecimal() else "0"
        return Lost(
            f"refused with HTTP {status}{said.title(body)}", after=bounded(1000 * float(after), ASKED_SECONDS)
        )

    def wait(self, lost: Lost, now: float) -> float:
        """Return the seconds to wait before reconnecting."""
        if now - self.opened_at >= PROVEN_SECONDS:
            self.failures = 0
        self.authenticated, self.opened_at = False, inf
        self.outbox.cut(now)
        self.questions.cut()
        self.pages.cut()
        self.documents.cut()
        self.presence.cut()
        self.failures += 1
        return max(lost.after, self.backoff.delay(self.failures - 1))

    def end(self, why: SessionEnded | None) -> None:
        """End the session: no more connections or answers. `why` is set if the broker ended it."""
        self.ended, self.over = why, True
        for each in (self.outbox, self.questions, self.pages, self.documents, self.presence):
            each.end(why or SessionEnded(STOPPED))


def bounded(milliseconds: float | None, most: float) -> float:
    """Return the requested wait in seconds, bounded."""
    return min(max(milliseconds or 0.0, 0.0) / 1000, most)
