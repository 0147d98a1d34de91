"""Who is present: the channels that a client enters and watches, and what the broker says of them. No I/O.

On each connection they are entered and watched again, from the position up to which everything has come. Time
is an argument.
"""

from __future__ import annotations

import secrets
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from broker import errors
from broker.client.gate import seconds
from broker.client.items import Member
from broker.client.outbox import Pending, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from broker.client.gate import Gate
    from broker.client.items import Payload
    from broker.errors import BrokerError

Frame: TypeAlias = "tuple[str, Payload, str]"  # type, payload, messageId
Step: TypeAlias = Literal["no", "asked", "done"]
Users: TypeAlias = dict[str, dict[str, Member]]  # by user and session; those of a user are never modified
Kind: TypeAlias = Literal[
    "presence.enter", "presence.watch", "presence.update", "presence.leave", "presence.unwatch"
]

SAY_SECONDS = 0.2  # between two states of a channel: the broker shows no more
LEAST_MS = 100  # for which a state can hold
REPLACED = "replaced"  # another connection has entered with the same session


@attrs.define(eq=False)
class Saying:
    """A state, and who waits until the broker has it. With `until` the state before holds again then."""

    state: Any = None
    until: float | None = None
    promises: list[Pending[bool]] = attrs.field(factory=list)

    def settle(self, outcome: bool | BrokerError = True) -> None:
        for each in self.promises:
            each.settle(outcome)


@attrs.define(eq=False)
class Place:
    """A channel that is watched and, with a `session`, entered. `state` is the one that lasts.

    `stale`: who is there now is not known, and `users` are those known last. `error`: why it has ended.
    """

    name: str
    session: str | None
    state: Any
    on_change: Callable[[], None]
    users: Users = attrs.field(factory=dict)
    users_count: int = 0
    sessions_count: int = 0
    detail: Literal["full", "count"] = "full"
    stale: bool = True
    error: BrokerError | None = None
    position: str | None = None
    not_before: float = -inf
    say_at: float = -inf
    lasting: Saying | None = None  # not sent yet
    brief: Saying | None = None
    # Of the present connection.
    entered: Step = "no"
    watched: Step = "no"
    saying: bool = False  # an update has no answer yet
    parts: Users | None = None  # of a whole set that is not complete

    @property
    def is_live(self) -> bool:
        return not self.stale and (self.session is None or self.entered == "done")

    @property
    def is_entering(self) -> bool:
        return self.session is not None and self.entered == "no"

    def due(self) -> float:
        """Return when something is to be sent."""
        if self.is_entering or self.watched == "no":
            return self.not_before
        if self.entered == "done" and not self.saying and (self.lasting or self.brief):
            return max(self.not_before, self.say_at)
        return inf

    def say(self, state: Any, until: float | None, promise: Pending[bool]) -> None:
        """Have a state said, instead of those that it replaces before they were sent."""
        replaced = [self.brief] if until is not None else [self.lasting, self.brief]
        promises = [each for saying in replaced if saying for each in saying.promises]
        said = Saying(state, until, [*promises, promise])
        if until is None:
            self.state, self.lasting, self.brief = state, said, None
        else:
            self.brief = said

    def say_again(self, saying: Saying | None) -> None:
        """Have a state that had no answer said again. One for a time is over with its connection."""
        if saying is None:
            return
        if saying.until is not None:
            saying.settle()
        elif self.lasting:
            self.lasting.promises += saying.promises
        else:
            self.lasting = Saying(self.state, None, saying.promises)

    def expire(self, now: float) -> None:
        """Drop a state for a time which has passed."""
        if self.brief and self.brief.until is not None and self.brief.until <= now:
            self.brief.settle()
            self.brief = None

    def cut(self) -> None:
        self.entered = self.watched = "no"
        self.parts, self.stale, self.saying = None, True, False
        if self.brief:
            self.brief.settle()
            self.brief = None
        self.on_change()

    def heard(self, said: Mapping[str, Any]) -> None:
        """Take the members of a `presence` message."""
        if self.watched != "done":  # an earlier watch of the same channel
            return
        if said.get("whole"):
            self.parts = put({} if self.parts is None else self.parts, said["set"])
            if not said.get("complete"):
                return
            self.users, self.parts = self.parts, None
        else:
            put(self.users, said["set"])
            for gone in said["gone"]:
                left = dict(self.users.get(gone["user"], {}))
                left.pop(gone["session"], None)
                if left:
                    self.users[gone["user"]] = left
                else:
                    self.users.pop(gone["user"], None)
        self.users_count, self.sessions_count = said["users"], said["sessions"]
        self.position, self.stale = said["position"], False
        self.on_change()


def put(users: Users, members: Iterable[Mapping[str, Any]]) -> Users:
    for each in members:
        member = Member(
            user=each["user"],
            session=each["session"],
            since=each["since"],
            info=each.get("info"),
            state=each.get("state"),
            away=each.get("away"),
        )
        users[member.user] = {**users.get(member.user, {}), member.session: member}
    return users


@attrs.define(eq=False)
class Asked:
    """What is asked of the broker for a place, and the state that goes with it."""

    kind: Kind
    place: Place
    saying: Saying | None = None
    sent_at: float = inf

    def payload(self, now: float) -> Payload:
        place = self.place
        payload: Payload = {"channel": place.name}
        match self.kind:
            case "presence.enter":
                payload["session"] = place.session
                if place.state is not None:
                    payload["state"] = place.state
            case "presence.watch" if place.position is not None:
                payload["position"] = place.position
            case "presence.update" if self.saying is not None:
                payload["state"] = self.saying.state
                if self.saying.until is not None:
                    payload["for_ms"] = max(LEAST_MS, round((self.saying.until - now) * 1000))
        return payload


@attrs.define(eq=False)
class Presence:
    """`places` are those that are wanted; `leaving` is to be sent for those that are not wanted any more."""

    gate: Gate
    full: Callable[[str], str]  # makes a name what the broker calls it
    places: list[Place] = attrs.field(factory=list)
    leaving: list[Asked] = attrs.field(factory=list)
    sent: dict[str, Asked] = attrs.field(factory=dict)  # unanswered, by `messageId`
    numbers: Iterator[int] = attrs.field(factory=lambda: count(1))

    over: BrokerError | None = None  # why nothing is sent any more

    # --- the application's side --------------------------------------------------------------------

    def open(self, place: Place) -> None:
        if self.over:
            raise self.over
        if self.find(self.full(place.name)):
            raise ValueError(f"{place.name}: this session has it open already")
        self.places.append(place)

    def close(self, place: Place, on_done: Callable[[], None] | None = None) -> Pending[bool]:
        """Leave a place; the promise is that the broker knows, or that the connection is lost."""
        promise: Pending[bool] = Pending(on_done)
        if place in self.places:
            self.places.remove(place)
            for saying in (place.lasting, place.brief):
                if saying:
                    saying.settle()
            place.lasting = place.brief = None
            # What has no answer yet is left once it has one.
            if place.watched == "done":
                self.leaving.append(Asked("presence.unwatch", place))
            if place.entered == "done":
                self.leaving.append(Asked("presence.leave", place, Saying(promises=[promise])))
                return promise
        promise.settle(True)
        return promise

    def find(self, full: str) -> Place | None:
        return next((each for each in self.places if self.full(each.name) == full), None)

    @property
    def awaited(self) -> bool:
        """Whether anybody may wait for something: also for what others do."""
        return bool(self.places or self.leaving)

    # --- the connection's side ---------------------------------------------------------------------

    def cut(self) -> None:
        sent, self.sent = self.sent, {}
        leaving, self.leaving = self.leaving, []
        for asked in (*sent.values(), *leaving):
            if asked.place in self.places:
                asked.place.say_again(asked.saying)
            elif asked.saying:
                asked.saying.settle()
        for place in self.places:
            place.cut()

    def due(self, now: float) -> float:
        """Return when the next message may be sent, if one is waiting."""
        first = now if self.leaving else min((each.due() for each in self.places), default=inf)
        return inf if first == inf else max(first, self.gate.opens("requests", now))

    def take(self, now: float) -> Iterator[Frame]:
        """Yield the messages that may be sent now."""
        for place in self.places:
            place.expire(now)
        self.leaving = [each for each in self.leaving if not self.is_void(each)]
        while self.due(now) <= now and self.gate.passes("requests", now):
            asked = self.leaving.pop(0) if self.leaving else self.ask(min(self.places, key=Place.due), now)
            message_id = f"p{next(self.numbers)}"
            self.sent[message_id], asked.sent_at = asked, now
            yield asked.kind, asked.payload(now), message_id

    def is_void(self, asked: Asked) -> bool:
        """Return whether the same channel has been entered or watched anew, instead."""
        place = self.find(self.full(asked.place.name))
        step = place and (place.entered if asked.kind == "presence.leave" else place.watched)
        if step in (None, "no"):
            return False
        if asked.saying:
            asked.saying.settle()
        return True

    def ask(self, place: Place, now: float) -> Asked:
        if place.is_entering:
            place.entered = "asked"
            saying, place.lasting = place.lasting, None
            return Asked("presence.enter", place, saying)
        if place.watched == "no":
            place.watched = "asked"
            return Asked("presence.watch", place)
        place.saying, place.say_at = True, now + SAY_SECONDS
        if place.lasting:
            saying, place.lasting = place.lasting, None
        else:
            saying, place.brief = place.brief, None
        return Asked("presence.update", place, saying)

    def answered(self, kind: str, payload: Mapping[str, Any], message_id: str | None, now: float) -> bool:
        """Process a message; return False for one that does not concern presence."""
        asked = self.sent.pop(message_id or "", None)
        if asked:
            if asked.kind == "presence.update":
                asked.place.saying = False
            if kind == "error":
                self.refused(asked, payload, now)
                return True
            self.accepted(asked)
        place = self.find(payload["channel"]) if kind.split(".")[0] == "presence" else None
        code = payload.get("code")
        match kind:
            case "presence" if place:
                place.heard(payload)
            case "presence.watched" if place:
                place.detail, place.parts = payload["detail"], None
            case "presence.left" if place and code == REPLACED:
                place.session, place.entered = new_session(), "no"
                place.on_change()
            case "presence.left" if place and code:
                place.entered = "no"
                self.fail(place, error_of(code, place.name))
            case "presence.unwatched" if place and code:
                place.watched = "no"
                self.fail(place, error_of(code, place.name))
        return asked is not None or kind.split(".")[0] == "presence"

    def accepted(self, asked: Asked) -> None:
        place = asked.place
        if asked.saying:
            asked.saying.settle()
        match asked.kind:
            case "presence.enter":
                place.entered = "done"
                undo = Asked("presence.leave", place)
            case "presence.watch":
                place.watched = "done"
                undo = Asked("presence.unwatch", place)
            case _:
                return
        if place not in self.places:
            self.leaving.append(undo)
        place.on_change()

    def refused(self, asked: Asked, payload: Mapping[str, Any], now: float) -> None:
        self.gate.refused("requests", payload, now)
        place, code, error = asked.place, payload.get("code"), refusal(payload)
        if place not in self.places:
            if code == errors.RateLimited.code and asked.kind in ("presence.leave", "presence.unwatch"):
                self.leaving.append(asked)
            elif asked.saying:
                asked.saying.settle()
            return
        if asked.kind == "presence.enter":
            place.entered = "no"
        elif asked.kind == "presence.watch":
            place.watched = "no"
        elif code == errors.NotEntered.code and place.entered == "done":
            place.entered = "no"
        retryable = payload.get("retryable") or code == errors.NotEntered.code
        if code == errors.InvalidPosition.code and place.position is not None:
            place.position = None
        elif retryable:
            place.say_again(asked.saying)
            place.not_before = now + seconds(payload)
        elif asked.kind == "presence.update":
            if asked.saying:
                asked.saying.settle(error)
        else:
            if asked.saying:
                asked.saying.settle(error)
            self.fail(place, error)

    def fail(self, place: Place, error: BrokerError) -> None:
        """End a place for good."""
        for saying in (place.lasting, place.brief):
            if saying:
                saying.settle(error)
        place.error, place.stale = error, True
        self.close(place)
        place.on_change()

    def sent_at(self) -> float:
        """Return since when at least one request has no answer."""
        return min((each.sent_at for each in self.sent.values()), default=inf)

    def end(self, why: BrokerError) -> None:
        """Fail everything: there will be no more answers."""
        self.over = why
        places, self.places = self.places, []
        for asked in (*self.sent.values(), *self.leaving):
            if asked.saying:
                asked.saying.settle(why if asked.place in places else True)
        self.sent, self.leaving = {}, []
        for place in places:
            self.fail(place, why)


def new_session() -> str:
    """Return a name of this process in a channel."""
    return secrets.token_urlsafe(12)


def error_of(code: str, name: str) -> BrokerError:
    return errors.by_code().get(code, errors.BrokerError)(name)
