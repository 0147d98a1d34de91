"""Documents that a client follows: which are open, and what they hold. No I/O; time is an argument.

What is open is asked for on each connection, from the position up to which everything has come.
"""

from __future__ import annotations

from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import attrs

from broker import errors, subjects
from broker.client.changes import Changes, Editor
from broker.client.draft import never, superseded
from broker.client.gate import seconds
from broker.client.outbox import refusal
from broker.documents.patches import apply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from broker.client.draft import Draft
    from broker.client.gate import Gate
    from broker.client.items import Payload
    from broker.errors import BrokerError

Frame: TypeAlias = "tuple[str, Payload, str]"  # type, payload, messageId

DOUBTS = 3  # connections on which an open had no answer in time


class Follower(Editor, Protocol):
    """Who follows documents; `name` is as the application gave it."""

    name: str

    def heard(self, channel: str, value: Any, invalid: str | None) -> None:
        """A document has this value, or what is stored is none: why not."""

    def ready(self) -> None:
        """Everything has come that there is."""


@attrs.frozen
class Row:
    """What is stored: a document, none (None), or something that is none, and why."""

    revision: str
    value: Any
    invalid: str | None = None


@attrs.define(eq=False)
class Open:
    """A channel or a pattern; `full` is as the broker calls it.

    `fresh` are the documents that have come since it began anew: at its end the rest is gone.
    """

    name: str
    full: str
    followers: dict[Follower, None] = attrs.field(factory=dict)
    rows: dict[str, Row] = attrs.field(factory=dict)  # by channel
    position: str | None = None
    is_ready: bool = False  # it has come to its end once
    fresh: set[str] | None = None
    doubts: int = 0
    not_before: float = -inf
    # Of the present connection.
    asked: bool = False
    sent_at: float = inf  # until it is answered

    def covers(self, channel: str) -> bool:
        return subjects.covers(self.full, channel)

    def begin_anew(self) -> None:
        self.asked, self.position, self.is_ready = False, None, False


@attrs.define(eq=False)
class Documents:
    """`opens` are by full name; `sent` those that the broker has not answered, by `messageId`."""

    gate: Gate
    delay: Callable[[int], float]
    full: Callable[[str], str]  # makes a name what the broker calls it
    changes: Changes = attrs.field(init=False)
    opens: dict[str, Open] = attrs.field(factory=dict)
    sent: dict[str, Open] = attrs.field(factory=dict)
    leaving: dict[str, None] = attrs.field(factory=dict)  # full names to close
    left: set[str] = attrs.field(factory=set)  # the `messageId`s of closes
    closing: set[Follower] = attrs.field(factory=set)  # once something is known of what they change
    numbers: Iterator[int] = attrs.field(factory=lambda: count(1))
    over: BrokerError | None = None  # why nothing is sent any more

    def __attrs_post_init__(self) -> None:
        self.changes = Changes(self.gate, self.delay)

    # --- the application's side --------------------------------------------------------------------

    def open(self, follower: Follower) -> None:
        full = self.full(follower.name)
        held = self.opens.get(full)
        if held is None and subjects.is_literal(full):  # a pattern that is open brings it too
            held = next((each for each in self.opens.values() if each.covers(full)), None)
        if held is None:
            held = self.opens[full] = Open(follower.name, full)
            self.leaving.pop(full, None)
        held.followers[follower] = None
        if held.is_ready:
            for channel, row in held.rows.items():
                if self.wants(follower, channel):
                    follower.heard(channel, row.value, row.invalid)
            follower.ready()

    def close(self, follower: Follower) -> None:
        """Follow no longer; not before what is changed can be sent."""
        if self.changes.waits(follower):
            self.closing.add(follower)
            return
        self.closing.discard(follower)
        for held in list(self.opens.values()):
            if follower not in held.followers:
                continue
            del held.followers[follower]
            # What was wanted of a pattern by itself is opened by itself once nobody wants the pattern.
            others = [each for each in held.followers if self.full(each.name) != held.full]
            if len(others) < len(held.followers):
                continue
            del self.opens[held.full]
            if held.asked:
                self.leaving[held.full] = None
            for other in others:
                self.open(other)
        self.changes.leave(follower)

    def wants(self, follower: Follower, channel: str) -> bool:
        return subjects.covers(self.full(follower.name), channel)

    def edit(self, channel: str, editor: Editor) -> Draft:
        """Return the draft of a document, of whose changes `editor` hears from now on."""
        full = self.full(channel)
        draft = self.changes.edit(full, editor)
        if draft.revision is None:
            opens = [each for each in self.opens.values() if each.covers(full)]
            rows = [each.rows[full] for each in opens if full in each.rows]
            rows += [Row(never(each.position), None) for each in opens if each.is_ready and each.position]
            if rows:
                draft.heard(rows[0].revision, rows[0].value, invalid=rows[0].invalid)
        return draft

    @property
    def awaited(self) -> bool:
        """Whether anybody may wait for something: also for what others make of what is open."""
        return self.changes.awaited or bool(self.opens)

    # --- the connection's side ---------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a new connection, which has nothing open."""
        before, self.opens = self.opens, {}
        for held in before.values():
            held.full = self.full(held.name)
            self.opens[held.full] = held
        self.changes.begin(self.full)

    def cut(self) -> None:
        self.sent, self.leaving, self.left = {}, {}, set()
        for held in self.opens.values():
            held.asked, held.sent_at = False, inf
        self.changes.cut()

    def due(self, now: float) -> float:
        """Return when the next message may be sent, if one is waiting."""
        waiting = [each.not_before for each in self.opens.values() if not each.asked]
        if self.leaving:
            waiting.append(now)
        own = max(min(waiting), self.gate.opens("requests", now)) if waiting else inf
        return min(own, self.changes.due(now))

    def take(self, now: float) -> Iterator[Frame]:
        """Yield the messages that may be sent now."""
        yield from self.requests(now)
        yield from self.changes.take(now)

    def requests(self, now: float) -> Iterator[Frame]:
        for name in list(self.leaving):
            if not self.gate.passes("requests", now):
                return
            del self.leaving[name]
            message_id = f"x{next(self.numbers)}"
            self.left.add(message_id)
            yield "state.close", {"channel": name}, message_id
        for held in self.opens.values():
            if held.asked or now < held.not_before:
                continue
            if not self.gate.passes("requests", now):
                return
            message_id = f"o{next(self.numbers)}"
            self.sent[message_id] = held
            held.asked, held.sent_at = True, now
            start = {"position": held.position} if held.is_ready and held.position else {}
            yield "state.open", {"channel": held.full} | start, message_id

    def answered(self, kind: str, payload: Mapping[str, Any], message_id: str | None, now: float) -> bool:
        """Process a message; return False for one that does not concern documents."""
        if message_id in self.left:
            self.left.discard(message_id)
            return True
        if asked := self.sent.pop(message_id or "", None):
            asked.sent_at, asked.doubts = inf, 0
            if kind == "error":
                self.open_refused(asked, payload, now)
                return True
        match kind:
            case "state":
                self.heard(payload)
                self.close_others()
            case "state.opened":
                self.opened(payload)
            case "state.ready":
                for held in self.named(payload):
                    self.ready(held, payload["position"])
                self.close_others()
            case "state.closed" if code := payload.get("code"):
                for held in self.named(payload):
                    self.end_open(held, errors.by_code().get(code, errors.BrokerError)(held.full))
            case "state.lost":
                self.changes.lost(payload)
            case "state.closed":
                pass
            case _:
                return self.changes.answered(kind, payload, message_id, now) or kind == "state.changed"
        return True

    def close_others(self) -> None:
        for follower in list(self.closing):
            self.close(follower)

    def named(self, payload: Mapping[str, Any]) -> list[Open]:
        channel = payload["channel"]
        names = [channel] if isinstance(channel, str) else channel
        return [self.opens[each] for each in names if each in self.opens]

    def opened(self, payload: Mapping[str, Any]) -> None:
        for held in self.named(payload):
            held.fresh = None if payload["recovered"] else set()
        for refused in payload.get("refused", ()):
            for held in self.named(refused):
                self.end_open(held, refusal(refused))

    def open_refused(self, held: Open, payload: Mapping[str, Any], now: float) -> None:
        self.gate.refused("requests", payload, now)
        if self.opens.get(held.full) is not held:
            return
        if payload["code"] == errors.InvalidPosition.code and held.position:
            held.begin_anew()
        elif payload.get("retryable"):
            held.asked, held.not_before = False, now + seconds(payload)
        else:
            self.end_open(held, refusal(payload))

    def end_open(self, held: Open, error: BrokerError) -> None:
        if self.opens.get(held.full) is held:
            del self.opens[held.full]
        for follower in list(held.followers):
            self.closing.discard(follower)
            follower.failed(error)

    def heard(self, said: Mapping[str, Any]) -> None:
        channel, revision, position = said["channel"], said["revision"], said["position"]
        opens = [each for each in self.opens.values() if each.asked and each.covers(channel)]
        for held in opens:
            row = held.rows.get(channel)
            before = row.revision if row else None
            if held.fresh is not None:
                held.fresh.add(channel)
            # Where several bring it, each has a place of its own, which a message does not say.
            alone = len(opens) == 1 and held.is_ready and held.fresh is None
            if alone and not superseded(position, held.position):
                held.position = position
            if superseded(revision, before):
                continue
            if "from" not in said:
                invalid = said.get("invalid")
                new = Row(revision, None if invalid else said.get("value"), invalid)
            elif row and before == said["from"]:
                new = Row(revision, apply(row.value, said.get("patch")))
            else:
                held.begin_anew()
                continue
            self.put(held, channel, new, [each.get("id", "") for each in said.get("by", ())])

    def put(self, held: Open, channel: str, row: Row, ids: Iterable[str] = ()) -> None:
        if row.value is None and not row.invalid and not subjects.is_literal(held.full):
            held.rows.pop(channel, None)
        else:
            held.rows[channel] = row
        self.changes.heard(channel, row.revision, row.value, list(ids), row.invalid)
        for follower in list(held.followers):
            if self.wants(follower, channel):
                follower.heard(channel, row.value, row.invalid)

    def ready(self, held: Open, position: str) -> None:
        for channel in list(held.rows) if held.fresh is not None else ():
            if held.fresh is not None and channel not in held.fresh:
                self.put(held, channel, Row(position, None))
        held.fresh, held.position, held.is_ready = None, position, True
        for edited in list(self.changes.edited.values()):
            if edited.draft.revision is None and held.covers(edited.channel):
                self.changes.heard(edited.channel, never(position), None)
        for follower in list(held.followers):
            follower.ready()

    def sent_at(self) -> float:
        """Return since when at least one request has no answer."""
        return min([self.changes.sent_at(), *(each.sent_at for each in self.opens.values())])

    def doubt(self) -> None:
        """Count an unanswered connection against its requests, and give up those that never get an answer."""
        for held in list(self.sent.values()):
            held.doubts += 1
            if held.doubts >= DOUBTS:
                self.end_open(held, errors.BadMessage(f"{held.full}: no answer after {DOUBTS} tries"))
        self.changes.doubt()

    def end(self, why: BrokerError) -> None:
        """Fail everything: there will be no more answers."""
        self.over = why
        users: set[Editor] = {each for held in self.opens.values() for each in held.followers}
        users.update(each for edited in self.changes.edited.values() for each in edited.editors)
        self.opens = {}
        for each in users:
            each.failed(why)
