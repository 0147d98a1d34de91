"""One client's side of the protocol as a state machine without I/O: what to say, and what an answer means.

`Session` (Trio) and `AsyncioSession` are shells around it, which own the connection. Between `begin` and
the end of a connection a shell sends what `outgoing` gives, asks again at `due` or when something has
changed, hands each text to `receive`, and leaves when `overdue` says so. Time is an argument (seconds on a
monotonic clock).
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import attrs
import msgspec

from broker.client import checks, said, tokens
from broker.client.asking import SMALL, Asking
from broker.client.gate import Allowed, Gate
from broker.client.items import Event, Gap, Item, Lost, Message, SessionEnded
from broker.client.outbox import Outbox
from broker.client.resume import Resume
from broker.client.tokens import Credentials
from broker.errors import CloseCode, NotSubscribed, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.backoff import Backoff
    from broker.client.checks import Lag
    from broker.client.items import Payload, Published
    from broker.client.outbox import Pending
    from broker.client.said import Delivery

SUBPROTOCOL = "broker.v1"
HEARTBEAT_SECONDS = 25.0  # until the broker says its own
LONGEST_HEARTBEAT = 300.0
OPENED_SECONDS = 9.0  # from the first byte to the answer to the token
REPLY_SECONDS = 30.0  # for an answer; then the two sides do not understand each other, and begin anew
HELD_UP_SECONDS = 1.0  # between a message and the next: the application did not take it
PROVEN_SECONDS = 5.0  # a connection that lived so long was a good one
ASKED_SECONDS = 20.0  # for how long at most anybody can send us away: it may be an error page
DRAIN_SECONDS = 300.0  # a broker that goes spreads its clients
READ_AHEAD = 10_000  # items, while some task waits for an answer, which comes behind them
UNHEARD = 16  # messages that are kept for somebody who need not take them
STOPPED = "the session was stopped"
SIGNS_OF_SUCCESS = ("subscribed", "published", "acknowledged", "pong")


@attrs.define(eq=False, kw_only=True)
class Engine:
    """`renewable`: another token can be had, so that one that has expired is no reason to end."""

    url: str = attrs.field(validator=attrs.validators.matches_re(r"wss?://[^/?#]+.*"))
    tenant: str | None
    renewable: bool
    backoff: Backoff
    wall: Callable[[], float] = time.time
    resume: Resume = attrs.field(factory=Resume)
    gate: Gate = attrs.field(factory=Gate)
    outbox: Outbox = attrs.field(init=False)
    asking: Asking = attrs.field(init=False)
    credentials: Credentials = attrs.field(init=False)
    ended: SessionEnded | None = None
    over: bool = False
    failures: int = 0
    # Of the connection that there is.
    authenticated: bool = False
    opened_by: float = inf  # or it is left
    opened_at: float = inf
    token_due: float = inf  # when another token is wanted
    token_failures: int = 0
    renewal: str | None = None  # the messageId of the token that is under way
    heartbeat: float = HEARTBEAT_SECONDS
    quiet_since: float = inf
    pinged: bool = False
    heard_at: float = inf
    listens_since: float = -inf  # without having been held up
    leave_at: float = inf  # when the broker asked us to go elsewhere
    last_error: Payload = attrs.field(factory=dict)
    frames: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.outbox = Outbox(gate=self.gate, wall=self.wall)
        self.asking = Asking(self.resume, self.gate, self.backoff.delay)
        self.credentials = Credentials(renewable=self.renewable, wall=self.wall)

    # --- the application's side --------------------------------------------------------------------

    def subscribe(
        self, channels: tuple[str, ...], starts: Mapping[str, Any], lag: Lag | None, durable: str | None
    ) -> str:
        self.check_running()
        start = {name: value for name, value in starts.items() if value is not None and value is not False}
        allowed = self.gate.allowed
        checks.check_subscribe(channels, start, lag, durable, allowed.last_events)
        if durable is not None and self.asking.fitting(list(channels)) < len(channels):
            raise TooLarge(f"durable: {len(channels)} channels do not fit into one message to this broker")
        return self.resume.ask(channels, start, lag, durable)

    def unsubscribe(self, channels: tuple[str, ...]) -> None:
        self.check_running()
        checks.check_patterns(channels)
        self.asking.unsubscribe(channels)

    def publish(
        self, channel: str, event: Any, event_id: str | None, on_done: Callable[[], None]
    ) -> Pending[Published]:
        self.check_running()
        checks.check_channel(channel)
        if event_id is not None:
            checks.check_id(event_id)
        return self.outbox.publish(channel, checks.event_json(event), event_id, on_done)

    def acknowledge(self, durable: str, position: str, on_done: Callable[[], None] | None) -> Pending[str]:
        self.check_running()
        checks.check_position(position)
        if not self.resume.holds(durable):
            raise NotSubscribed(f"{durable!r:.80}: no subscription of this session has this name")
        return self.outbox.acknowledge(durable, position, on_done)

    def check_running(self) -> None:
        if self.over:
            raise self.ended or SessionEnded(STOPPED)

    # --- the connection's side ---------------------------------------------------------------------

    def address(self) -> str:
        if self.tenant is None:
            return self.url
        return f"{self.url}{'&' if urlsplit(self.url).query else '?'}{urlencode({'tenant': self.tenant})}"

    def begin(self, token: str, now: float) -> None:
        """There is to be a new connection, with this token."""
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
        """Return what is to be sent now."""
        if self.authenticated:
            for frame in self.asking.take(now):
                self.say(*frame)
            for frame in self.outbox.take(self.resume, now):
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
        """Return when to ask again, if nothing happens before."""
        own = min(self.ping_at(), self.leave_at, self.token_due, self.answer_by())
        if not self.authenticated:
            return min(own, self.opened_by)
        return min(own, self.asking.due(now), self.outbox.due(now))

    def overdue(self, now: float) -> Lost | None:
        """Return why to leave this connection now."""
        if now >= self.leave_at:
            return Lost("the broker is going down")
        if self.pinged and now >= self.ping_at():
            return Lost(f"silent for {self.heartbeat:g} s")
        if now >= self.answer_by():
            self.asking.doubt()
            return Lost(f"no answer to a request within {REPLY_SECONDS:g} s")
        if not self.authenticated and now >= self.opened_by:
            return Lost("no answer to the token", after=self.asked_away())
        return None

    def answer_by(self) -> float:
        """Return when a request will have waited too long for its answer, while there was somebody who
        listened.
        """
        if self.quiet_since == inf:
            return inf
        sent_at = min([self.outbox.sent_at(), *self.asking.sent_at.values()])
        return max(sent_at, self.listens_since) + REPLY_SECONDS

    def listening(self, now: float) -> None:
        """From here on silence is the broker's; until then nobody listened."""
        if now - self.heard_at > HELD_UP_SECONDS:
            self.listens_since = now
        self.quiet_since, self.pinged = now, False

    def receive(self, text: str | bytes, now: float) -> Item | Lost | None:
        """Return what a message is for the application; None when it is nothing."""
        self.quiet_since, self.heard_at = inf, now
        try:
            envelope, payload = said.read(text)
        except said.Nonsense as error:
            return Lost(f"{self.url} does not speak {SUBPROTOCOL}: {error}")
        if not isinstance(payload, dict):
            return self.event(payload)
        kind, message_id = envelope.type, envelope.message_id
        self.heed(kind, payload, message_id, now)
        if self.asking.answered(kind, payload, message_id, now):
            return None
        self.resume.received(kind, payload, message_id)
        if self.outbox.answered(kind, payload, message_id, now):
            return None
        if kind == "gap":
            return said.gap(payload)
        return Message(type=kind, payload=payload, message_id=message_id)

    def notices(self) -> list[Item]:
        """Return what the application is to be told beside what comes."""
        found: list[Item] = [*self.asking.refused]
        self.asking.refused = []
        return found

    def is_free(self, item: Item) -> bool:
        """Return whether nobody need take it: who subscribes to nothing, and only publishes, does not
        listen.
        """
        return not isinstance(item, Event | Gap) and not self.resume.requests

    def is_wanted(self, item: Item) -> bool:
        """Return whether it is still for anybody: what was let go meanwhile is not."""
        return not isinstance(item, Event) or self.resume.wants(item.channel)

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
        """Do what a message asks of the client itself."""
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

    # --- tokens ------------------------------------------------------------------------------------

    def token_wanted(self, now: float) -> bool:
        """Return whether to get another token now; it is asked for once."""
        if now < self.token_due:
            return False
        self.token_due = inf
        return True

    def token_missing(self, now: float) -> None:
        """There was none to be had for now."""
        self.token_due = now + self.backoff.delay(self.token_failures)
        self.token_failures += 1

    def renewed(self, token: str, now: float) -> None:
        """Another token, for the connection that there is."""
        self.credentials.presented(token, now)
        self.credentials.renewed = now
        self.renewal = f"t{self.resume.next_id()}"
        self.gate.count("requests", now)
        self.say("authenticate", {"token": token}, self.renewal)

    def token_answered(self, payload: Payload, now: float) -> None:
        """The token was refused: of a live connection the old one holds, and of a new one it may do later."""
        after = bounded(payload.get("retry_after_ms"), ASKED_SECONDS)
        if payload.get("retryable"):
            self.token_due = now + max(after, self.backoff.delay(self.token_failures))
            self.opened_by = max(self.opened_by, self.token_due + OPENED_SECONDS)
        elif self.authenticated:
            self.token_due = now + max(tokens.RENEW_SECONDS, self.backoff.delay(self.token_failures))
        self.token_failures += 1

    # --- how it ends -------------------------------------------------------------------------------

    def closed(self, code: int, words: str | None, now: float) -> Lost | SessionEnded:
        """Return what a close code asks for. Codes of the broker's own follow an `error` that says more."""
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
        """A message was over somebody's limit. The largest will not do; a list can be cut."""
        lists = {key: self.asking.size(key) for key in self.asking.asked}
        largest = max(lists, key=lambda key: lists[key], default=None)
        if largest is None or lists[largest] < self.outbox.largest():
            if self.outbox.largest() >= SMALL:
                self.outbox.too_big()
        elif not self.asking.shorten(largest):
            self.asking.refuse(largest, TooLarge("closed with 1009: over the limit `message_bytes`"))

    def refused(self, status: int, retry_after: str, body: bytes) -> Lost:
        """Return what an HTTP answer instead of the upgrade asks for.

        It is not known whose it is: proxies, and what stands in the broker's place for a while, answer too.
        """
        after = retry_after if retry_after.isascii() and retry_after.isdecimal() else "0"
        return Lost(
            f"refused with HTTP {status}{said.title(body)}", after=bounded(1000 * float(after), ASKED_SECONDS)
        )

    def wait(self, lost: Lost, now: float) -> float:
        """Return how long to stay away after a connection was lost, in seconds."""
        if now - self.opened_at >= PROVEN_SECONDS:
            self.failures = 0
        self.authenticated, self.opened_at = False, inf
        self.outbox.cut(now)
        self.failures += 1
        return max(lost.after, self.backoff.delay(self.failures - 1))

    def end(self, why: SessionEnded | None) -> None:
        """There will be no other connection, and no answer to anything; `why` if the broker wants it so."""
        self.ended, self.over = why, True
        self.outbox.end(why or SessionEnded(STOPPED))


def bounded(milliseconds: float | None, most: float) -> float:
    """Return what the other side asks for, in seconds and within reason."""
    return min(max(milliseconds or 0.0, 0.0) / 1000, most)
