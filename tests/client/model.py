"""A broker without I/O for lives of a client: the real state machine and budgets, a stream, and faults.

`Life` does with an `Engine` what both sessions do, in virtual time. What goes wrong is drawn by lot from
`FAULTS`; each strikes once or for a while, and at the end the world is as it should be.
"""

from __future__ import annotations

import heapq
import json
import random
from base64 import urlsafe_b64encode
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

import attrs
from msgspec import UNSET, Raw

from broker import limits, subjects
from broker.actors.budgets import Budgets
from broker.backoff import Backoff
from broker.client.engine import Engine
from broker.client.items import Lost, Message, SessionEnded
from broker.config import Limits
from broker.errors import BrokerError
from broker.features.calls import Question
from broker.features.publishing import Send
from broker.features.subscriptions.wishes import Join, Leave
from broker.permissions import Principal
from broker.session.requests import Call, Close, Reply
from broker.session.session import Session
from broker.wire import codec, messages
from tests.support.requests import TABLE, Stood

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.client.outbox import Pending

PEER = "192.0.2.1:1"
FEATURES: dict[str, Any] = {"connection_id": "c", "protocol": "broker.v1", "features": []}
BAD_WORDS = (
    "x",
    b"x",
    "{}",
    '{"type":"event"}',
    '{"type":"subscribed","payload":{"channel":1}}',
    '{"type":"pong","payload":7}',
)
STATUSES = (
    200, 204, 301, 302, 307, 400, 401, 403, 404, 407, 408, 413, 414, 426, 429, 431, 500, 502, 503, 504, 520,
)  # fmt: skip
CODES = (
    1000, 1001, 1002, 1003, 1005, 1006, 1007, 1009, 1011, 1012, 1013, 3000, 4001, 4002, 4008, 4009, 4010,
    4029, 4300, 4500, 4501, 4503, 4510, 4999,
)  # fmt: skip
ERRORS = ("unavailable", "internal", "rate_limited")
TOKENS: tuple[Any, ...] = (
    OSError("away"),
    ValueError("mistake"),
    "<!doctype html>",
    "",
    "a.b",
    None,
    "hangs",
)

# What may go wrong: where, and how.
FAULTS: list[tuple[str, Any]] = [
    *(("token", each) for each in TOKENS),
    *(("http", each) for each in STATUSES),
    ("refused", None),
    ("unopened", None),
    *(("close", each) for each in CODES),
    *(("close_at_once", each) for each in CODES),
    ("cut", "before"),
    ("cut", "after"),
    *(("word", each) for each in BAD_WORDS),
    *(("error_before", each) for each in ERRORS),
    *(("error_after", each) for each in ("unavailable", "internal")),
    ("token_unavailable", None),
    ("silence", None),
    ("chatter", None),
    ("wall", 7200.0),
    ("wall", -7200.0),
]


def token(number: int, life: float) -> str:
    """Like a JWT; each of another number is another one. Its times are by a clock of its own."""
    claims = json.dumps({"iat": 1e9 + number, "exp": 1e9 + number + life, "n": number}).encode()
    return f"e30.{urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


@attrs.frozen(kw_only=True)
class Drawn(Backoff):
    """As long as a seed has it."""

    lots: random.Random

    def delay(self, failures: int) -> float:
        return self.lots.uniform(0, min(self.longest, self.first * 2.0 ** min(failures, 30)))


@attrs.define(eq=False)
class Fault:
    where: str
    how: Any
    begins: float
    ends: float
    once: bool

    def strikes(self, where: str, now: float) -> bool:
        if where != self.where or not self.begins <= now < self.ends:
            return False
        if self.once or where == "wall":
            self.ends = now
        return True


@attrs.define(eq=False)
class Link:
    """The broker's side of one connection."""

    session: Session
    open: bool = True


@attrs.define(eq=False, kw_only=True)
class Life:
    """One client and its broker. `now` is virtual; the engine's wall clock is `now` and what jumped."""

    seed: int
    limits: Limits = attrs.field(factory=Limits)
    window: float = 600.0
    token_life: float = 3600.0
    faults: list[Fault] = attrs.field(factory=list)
    now: float = 0.0
    jumped: float = 0.0
    lots: random.Random = attrs.field(init=False)
    engine: Engine = attrs.field(init=False)
    budgets: Budgets = attrs.field(init=False)
    link: Link | None = None
    flying: list[tuple[float, int, Callable[[], None]]] = attrs.field(factory=list)
    order: count[int] = attrs.field(factory=count)
    stored: list[tuple[float, str, bytes]] = attrs.field(factory=list)  # when, under which id, what
    live: list[bytes] = attrs.field(factory=list)
    outcomes: dict[int, Pending[Any]] = attrs.field(factory=dict)  # by what was published
    asked: dict[int, Pending[Any]] = attrs.field(factory=dict)  # by what a service was asked
    acted: list[bytes] = attrs.field(factory=list)  # on what the service has acted
    alarms: list[tuple[float, int]] = attrs.field(factory=list)  # when a request is given up, and which
    closes: list[int] = attrs.field(factory=list)  # that the broker itself meant
    errors: list[dict[str, Any]] = attrs.field(factory=list)  # that the application heard
    answers: list[Message] = attrs.field(factory=list)
    sizes: list[int] = attrs.field(factory=list)
    kinds: list[str] = attrs.field(factory=list)  # of what the client said
    tokens: int = 0  # that were asked for
    connections: int = 0
    opened: list[float] = attrs.field(factory=list)
    end: Lost | SessionEnded | None = None  # of the present connection

    def __attrs_post_init__(self) -> None:
        self.lots = random.Random(self.seed)
        self.budgets = Budgets(self.limits)
        backoff = Drawn(lots=self.lots)
        self.engine = Engine(
            url="ws://test/ws",
            tenant=None,
            renewable=True,
            backoff=backoff,
            wall=lambda: self.now + self.jumped,
        )

    # --- faults --------------------------------------------------------------------------------------

    def fault(self, where: str) -> Fault | None:
        return next((each for each in self.faults if each.strikes(where, self.now)), None)

    # --- the application -----------------------------------------------------------------------------

    def publish(self, number: int, channel: str = "a.b", event_id: str | None = None) -> None:
        self.outcomes[number] = self.engine.publish(channel, number, event_id, True, lambda: None)

    def ask(self, number: int, seconds: float) -> None:
        until = self.now + seconds
        self.asked[number] = self.engine.request("a.b", number, until, None, lambda: None)
        heapq.heappush(self.alarms, (until, number))

    def subscribe(self, *channels: str, **start: Any) -> str:
        return self.engine.subscribe(channels, start, None, None)

    def unsubscribe(self, *channels: str) -> None:
        self.engine.unsubscribe(channels)

    @property
    def wanted(self) -> set[str]:
        return {name for request in self.engine.resume.requests.values() for name in request.channels}

    # --- time ----------------------------------------------------------------------------------------

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.flying, (self.now + seconds, next(self.order), what))

    def until(self, time: float) -> None:
        """Lives on to that time."""
        while self.now < time and not isinstance(self.end, SessionEnded):
            self.step(time)

    def step(self, most: float) -> None:
        if self.link is None and not self.flying:
            self.later(0.0, self.connect)
        due = self.engine.due(self.now) if self.link and not self.end else inf
        at = self.flying[0][0] if self.flying else inf
        due = min(due, self.alarms[0][0] if self.alarms else inf)
        assert min(due, at, most) < inf, "it waits for nothing"
        if at <= min(due, most):
            self.now = max(self.now, at)
            heapq.heappop(self.flying)[2]()
        else:
            self.now = max(self.now, min(due, most))
        while self.alarms and self.alarms[0][0] <= self.now:
            promise = self.asked[heapq.heappop(self.alarms)[1]]
            if promise.outcome is None:
                self.engine.expire(promise)
        if fault := self.fault("wall"):
            self.jumped += fault.how
        if self.link and not self.end:
            self.write()
        if self.end and not isinstance(self.end, SessionEnded):
            self.leave()
        self.errors += [item.payload for item in self.engine.notices(self.now) if isinstance(item, Message)]

    # --- what a session does -------------------------------------------------------------------------

    def connect(self) -> None:
        """A token, and a connection with it, or neither."""
        if fault := self.fault("token"):
            self.token_missing(fault, self.lose)
            return
        self.tokens += 1
        self.engine.begin(token(self.tokens, self.token_life), self.now)
        self.connections += 1
        if fault := self.fault("http"):
            self.lose(
                self.engine.refused(fault.how, self.lots.choice(["", "5", "²", "soon", "9" * 400]), b"<html>")
            )
        elif self.fault("refused"):
            self.lose(Lost("connection refused"))
        elif self.fault("unopened"):
            self.later(8.0, lambda: self.lose(Lost("no answer")))
        else:
            self.accept()

    def token_missing(self, fault: Fault, then: Callable[[Lost], None]) -> None:
        lost = Lost("the token function")
        self.later(10.0 if fault.how == "hangs" else 0.01, lambda: then(lost))

    def lose(self, lost: Lost) -> None:
        wait = self.engine.wait(lost, self.now)
        assert 0 <= wait <= 300
        self.later(wait, self.connect)

    def leave(self) -> None:
        assert isinstance(self.end, Lost)
        end, self.end = self.end, None
        self.drop()
        self.flying = []
        self.lose(end)

    def write(self) -> None:
        if lost := self.engine.overdue(self.now):
            self.end = lost
            return
        if self.engine.token_wanted(self.now):
            self.renew()
        for text in self.engine.outgoing(self.now):
            self.sizes.append(len(text.encode()))
            self.kinds.append(json.loads(text)["type"])
            self.fly(self.hear, text)

    def renew(self) -> None:
        if fault := self.fault("token"):
            self.token_missing(fault, lambda _: self.engine.token_missing(self.now))
            return
        self.tokens += 1
        self.engine.renewed(token(self.tokens, self.token_life), self.now)

    def fly(self, where: Callable[..., None], *what: Any) -> None:
        """Along the connection that there is, in order."""
        link = self.link
        self.later(0.02, lambda: where(*what) if self.link is link and not self.end else None)

    def read(self, text: str | bytes) -> None:
        item = self.engine.receive(text, self.now)
        self.engine.listening(self.now)
        if isinstance(item, Lost):
            self.end = item
        elif isinstance(item, Message):
            self.answers.append(item)
            if item.type == "connection.authenticated":
                self.opened.append(self.now)
            if item.type == "error" and item.message_id:
                self.errors.append(item.payload)

    # --- the broker ----------------------------------------------------------------------------------

    def accept(self) -> None:
        budgets = self.budgets.arrive(PEER)
        hits = self.budgets.hits
        self.link = Link(
            Session(self.limits, self.now, 60.0, TABLE, standing=Stood(), budgets=budgets, hits=hits)
        )
        self.engine.listening(self.now)
        if self.fault("chatter"):
            self.chatter()
            return
        shown = dict(self.budgets.shown) | {"duplicate_window_seconds": self.window}
        self.tell(messages.Established(**FEATURES, heartbeat_seconds=25.0, limits=shown))
        self.verify(self.engine.credentials.token, None)
        if fault := self.fault("close_at_once"):
            self.close(fault.how, fault=True)
        if fault := self.fault("word"):
            self.fly(self.read, fault.how)

    def chatter(self) -> None:
        self.fly(self.read, '{"type":"rumour"}')
        self.fly(self.chatter)

    def verify(self, text: str, message_id: str | None) -> None:
        assert self.link
        session = self.link.session
        if self.fault("token_unavailable"):
            self.refuse("unavailable", message_id)
            return
        principal = Principal(
            tenant="t", user="u", encoded_user="u",
            expires_at=self.now + self.token_life, life=self.token_life,
            subscribe=(">", "live.>"), publish=(">", "live.>"), request=(">",),
        )  # fmt: skip
        if session.principal is None:
            session.budgets = self.budgets.claim(session.budgets, principal, self.now)
        try:
            self.tell(session.authenticated(principal, now=self.now), message_id)
        except BrokerError as error:
            for effect in session.failed(error, message_id, self.now):
                self.carry_out(effect)
        self.timers(self.link)

    def timers(self, link: Link) -> None:
        if self.link is not link or not link.open:
            return
        effects, due = link.session.timers(self.now)
        for effect in effects:
            self.carry_out(effect)
        if due < inf:
            self.later(max(due - self.now, 0.001), lambda: self.timers(link))

    def hear(self, text: str) -> None:
        if self.link is None or not self.link.open:
            return
        if self.fault("silence"):
            self.link.open = False  # what was lost on the way does not come later
            return
        if fault := self.fault("cut"):
            if fault.how == "after":
                self.process(text)  # and the answer is lost
            self.end = self.engine.closed(1001, None, self.now)
            return
        if fault := self.fault("close"):
            self.close(fault.how, fault=True)
            return
        said = json.loads(text)
        if "messageId" in said and said["type"] != "authenticate":
            if self.fault(f"no answer to {said['type']}"):
                return
            if fault := self.fault("error_before"):
                self.refuse(fault.how, said["messageId"])
                return
            if fault := self.fault("error_after"):
                before = list(self.flying)
                self.process(text)
                self.flying = before
                heapq.heapify(self.flying)
                # `unavailable` says of a request that no service has it.
                self.refuse("internal" if said["type"] == "request" else fault.how, said["messageId"])
                return
        self.process(text)

    def refuse(self, code: str, message_id: str | None) -> None:
        wait: Any = self.lots.choice([UNSET, 0, 700, 3000])
        self.tell(messages.Error(code=code, message=code, retryable=True, retry_after_ms=wait), message_id)

    def process(self, text: str) -> None:
        assert self.link
        if len(text.encode()) > self.limits.message_bytes:
            self.close(1009)
            return
        for effect in self.link.session.receive(text.encode(), self.now):
            self.carry_out(effect)

    def carry_out(self, effect: Any) -> None:
        assert self.link
        match effect:
            case Reply(message, message_id):
                self.tell(message, message_id)
            case Close(code, _):
                self.close(code)
            case Call(_, wish, message_id):
                self.perform(wish, message_id)

    def perform(self, wish: Any, message_id: str | None) -> None:
        assert self.link
        session = self.link.session
        assert isinstance(session.standing, Stood)
        match wish:
            case messages.Ping():
                self.tell(messages.Pong(position="i-0"), message_id)
            case messages.Authenticate():
                self.verify(wish.token, message_id)
            case Leave():
                for pattern in wish.patterns:
                    session.standing.held.pop(pattern, None)
                session.recount()
                self.tell(messages.Unsubscribed(channel=wish.channel), message_id)
            case Join():
                session.standing.held.update(wish.patterns)
                session.recount()
                accepted = [*wish.patterns]
                self.tell(
                    messages.Subscribed(
                        channel=accepted, refused=wish.refused, position="i-0", recovered=True, live=True
                    ),
                    message_id,
                )
            case Send():
                self.store(wish, message_id)
            case Question():
                self.acted.append(wish.body)
                self.tell(messages.Answered(data=Raw(wish.body)), message_id)

    def store(self, wish: Send, message_id: str | None) -> None:
        if subjects.is_live(wish.channel):
            self.live.append(wish.body)
            self.tell(messages.Published(), message_id)
            return
        assert wish.id is not None
        recent = [each for each in self.stored if each[0] > self.now - self.window and each[1] == wish.id]
        if not recent:
            self.stored.append((self.now, wish.id, wish.body))
        answer = messages.Published(id=wish.id, position="i-1", duplicate=bool(recent) or UNSET)
        self.tell(answer, message_id)

    def tell(self, message: Any, message_id: str | None = None) -> None:
        self.fly(self.read, codec.encode(message, message_id).decode())

    def close(self, code: int, *, fault: bool = False) -> None:
        assert self.link
        if not fault:
            self.closes.append(code)
        self.link.open = False
        self.fly(self.closed, code)

    def closed(self, code: int) -> None:
        self.end = self.engine.closed(code, "because", self.now)

    def drop(self) -> None:
        if self.link:
            session = self.link.session
            limits.hold(self.budgets.retire(session.budgets, session.counted), limits.CONNECTIONS, -1)
            self.link = None
