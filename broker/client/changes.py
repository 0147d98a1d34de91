"""Changes of documents: shown at once, and sent as they were until the broker says what became of them.

The broker knows a change by its id, whose session sends one change of a document at a time. So after a cut,
and where it says that the outcome is not known, the same change is sent again. No I/O; time is an argument.
"""

from __future__ import annotations

from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from uuid import uuid4

import attrs
import msgspec

from broker import errors
from broker.client.draft import ALL, Draft
from broker.client.gate import seconds
from broker.client.outbox import refusal
from broker.documents.patches import parse_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from broker.client.draft import Joint, Wish
    from broker.client.gate import Gate
    from broker.client.items import Payload
    from broker.documents.patches import Path
    from broker.errors import BrokerError

Frame: TypeAlias = "tuple[str, Payload, str]"  # type, payload, messageId

EACH_SECONDS = 0.2  # between two changes of a document
UNKNOWN = (errors.UnknownOutcome.code, errors.Timeout.code, errors.Internal.code)
CERTAIN = (errors.Conflict.code, errors.Rejected.code, errors.TooLarge.code)  # said by who remembers changes
TRIES = 6  # of a change whose outcome stays unknown
DOUBTS = 3  # connections on which it had no answer in time


class Editor(Protocol):
    """Who changes documents, and hears what becomes of that."""

    def shown(self, channel: str) -> None:
        """Another value is shown, or fewer changes are unsaved."""

    def refused(self, channel: str, error: BrokerError, mine: Wish, theirs: Mapping[str, Any] | None) -> None:
        """What was `mine` came to nothing; `theirs` is what is there, if that is the reason."""

    def lost(self, channel: str, ids: Collection[str], revision: str, paths: Mapping[str, Any]) -> None:
        """What was stored is gone."""

    def failed(self, error: BrokerError) -> None:
        """Nothing more comes."""


@attrs.define(eq=False)
class Edited:
    """A document that somebody here may change, whatever it is opened by.

    `leaving` are the editors that have gone, and hear of the changes that are unsaved all the same.
    """

    channel: str
    draft: Draft = attrs.field(factory=Draft)
    editors: dict[Editor, None] = attrs.field(factory=dict)
    leaving: set[Editor] = attrs.field(factory=set)
    sent_at: float = inf  # the change under way, over this connection
    not_before: float = -inf
    tries: int = 0
    doubts: int = 0


@attrs.define(eq=False)
class Changes:
    """`edited` has the documents by channel, `sent` those of changes under way, by `messageId`."""

    gate: Gate
    delay: Callable[[int], float]  # the wait after so many tries
    session: str = attrs.field(factory=lambda: uuid4().hex[:16])
    edited: dict[str, Edited] = attrs.field(factory=dict)
    sent: dict[str, list[Edited]] = attrs.field(factory=dict)
    numbers: Iterator[int] = attrs.field(factory=lambda: count(1))
    ids: Iterator[int] = attrs.field(factory=lambda: count(1))

    # --- the application's side --------------------------------------------------------------------

    def edit(self, channel: str, editor: Editor) -> Draft:
        """Return the draft of a document, of whose changes `editor` hears from now on."""
        edited = self.edited.setdefault(channel, Edited(channel))
        edited.editors[editor] = None
        return edited.draft

    def draft(self, channel: str) -> Draft | None:
        return self.edited[channel].draft if channel in self.edited else None

    def waits(self, editor: Editor) -> bool:
        """Return whether a change of this editor waits until something is known of its document."""
        return any(editor in each.editors and each.draft.early for each in self.edited.values())

    def leave(self, editor: Editor) -> None:
        for edited in list(self.edited.values()):
            if editor in edited.editors:
                edited.leaving.add(editor)
                self.sweep(edited)

    def sweep(self, edited: Edited) -> None:
        """Forget who has left, and then what nobody edits, once all is saved."""
        if edited.draft.unsaved:
            return
        for editor in edited.leaving:
            edited.editors.pop(editor, None)
        edited.leaving.clear()
        if not edited.editors:
            self.edited.pop(edited.channel, None)

    @property
    def awaited(self) -> bool:
        """Whether anything is unsaved."""
        return any(each.draft.unsaved for each in self.edited.values())

    # --- what is heard of documents ----------------------------------------------------------------

    def heard(
        self,
        channel: str,
        revision: str,
        value: Any,
        ids: Collection[str] = (),
        invalid: str | None = None,
    ) -> None:
        if edited := self.edited.get(channel):
            edited.draft.heard(revision, value, ids, invalid)
            self.tell(edited)

    def show(self, channel: str) -> None:
        """Tell all editors of a document what somebody here has changed."""
        if edited := self.edited.get(channel):
            self.tell(edited)

    def tell(self, edited: Edited) -> None:
        """Tell that something else is shown."""
        for editor in list(edited.editors):
            editor.shown(edited.channel)
        self.sweep(edited)

    def lost(self, payload: Mapping[str, Any]) -> None:
        if edited := self.edited.get(payload["channel"]):
            for editor in list(edited.editors):
                editor.lost(edited.channel, payload["ids"], payload["revision"], payload["paths"])

    # --- the connection's side ---------------------------------------------------------------------

    def begin(self, full: Callable[[str], str]) -> None:
        """Begin a new connection; `full` makes names what the broker calls them."""
        before, self.edited = self.edited, {}
        for edited in before.values():
            edited.channel = full(edited.channel)
            self.edited[edited.channel] = edited

    def cut(self) -> None:
        """Handle a lost connection: what had no answer is sent on the next one, as it was."""
        for edited in (each for parts in self.sent.values() for each in parts):
            edited.draft.doubt()
            edited.sent_at = inf
        self.sent = {}

    def waiting(self) -> list[list[Edited]]:
        """Return the documents of each change that is to be sent, if it is its turn in all of them."""
        found: dict[Joint | Edited, list[Edited]] = {}
        for edited in self.edited.values():
            if (head := edited.draft.head) and edited.sent_at == inf:
                found.setdefault(head.joint or edited, []).append(edited)
        return [parts for parts in found.values() if len(parts) == count_of(parts[0])]

    def due(self, now: float) -> float:
        """Return when the next change may be sent, if one is waiting."""
        if not (waiting := self.waiting()):
            return inf
        first = min(max(each.not_before for each in parts) for parts in waiting)
        return max(first, self.gate.opens("changes", now))

    def take(self, now: float) -> Iterator[Frame]:
        """Yield the messages that may be sent now."""
        for parts in self.waiting():
            if now < max(each.not_before for each in parts):
                continue
            self.begin_next(parts)
            size, most = size_of(whole(parts)), self.gate.allowed.message_bytes
            if size > most:
                too_large = f"{size} bytes; the broker's `message_bytes` is {most:g}"
                self.refused(parts, errors.TooLarge(too_large), None)
                continue
            if not self.gate.passes("changes", now):
                return
            message_id = f"c{next(self.numbers)}"
            self.sent[message_id] = parts
            for each in parts:
                each.sent_at, each.not_before = now, now + EACH_SECONDS
            yield "state.change", payload_of(parts), message_id

    def begin_next(self, parts: list[Edited]) -> None:
        """Have the next change be under way, unless one is."""
        head = parts[0].draft.head
        if head and head.joint:
            head.joint.id = head.joint.id or self.make_id()
            for each in parts:
                each.draft.next(head.joint.id)
        elif not parts[0].draft.flying:
            parts[0].draft.next(self.make_id())

    def make_id(self) -> str:
        return f"{self.session}-{next(self.ids)}"

    def answered(self, kind: str, payload: Mapping[str, Any], message_id: str | None, now: float) -> bool:
        """Process an answer; return False for a message that is none."""
        parts = self.sent.pop(message_id or "", None)
        if parts is None:
            return False
        if kind != "error":
            self.stored(parts, payload["revisions"])
            return True
        for each in parts:
            each.sent_at = inf
        code = payload["code"]
        if "conflict" not in payload:  # which the broker does not count as a failure
            self.gate.refused("changes", payload, now)
        if unknown := code in UNKNOWN:
            for each in parts:
                each.tries += 1
                each.draft.doubt()
        if parts[0].tries >= TRIES or not (unknown or payload.get("retryable")):
            self.refused(parts, refusal(payload), payload.get("conflict"))
            return True
        wait = seconds(payload) if "retry_after_ms" in payload else self.delay(parts[0].tries)
        for each in parts:
            each.not_before = max(each.not_before, now + wait)
        return True

    def stored(self, parts: list[Edited], revisions: Mapping[str, str]) -> None:
        """The change under way is stored."""
        flying = parts[0].draft.flying
        for edited in parts:
            edited.sent_at, edited.tries, edited.doubts = inf, 0, 0
            edited.draft.stored(revisions.get(edited.channel, ""))
            self.tell(edited)
        if flying and flying.joint:
            flying.joint.settle(dict(revisions))

    def refused(self, parts: list[Edited], error: BrokerError, conflict: list[Any] | None) -> None:
        """Take back the change under way: it came to nothing, or there, where others were first.

        Not if it was seen stored, whatever is said later. Of a joint change only its caller is told.
        """
        if any(each.draft.echoed for each in parts):
            self.stored(parts, {each.channel: each.draft.revision or "" for each in parts})
            return
        flying = parts[0].draft.flying
        if flying and flying.doubtful and error.code not in CERTAIN:
            error = errors.UnknownOutcome(error.message)
        joint = flying and flying.joint
        for edited in parts:
            edited.sent_at, edited.tries, edited.doubts = inf, 0, 0
            found = [each["paths"] for each in conflict or () if each["channel"] == edited.channel]
            theirs = found[0] if found else None
            mine = edited.draft.refused([path_of(each) for each in theirs] if theirs else (ALL,))
            for editor in list(edited.editors) if not joint else ():
                editor.refused(edited.channel, error, mine, theirs)
            self.tell(edited)
        if joint:
            joint.settle(error)

    def drop(self, joint: Joint) -> None:
        """Give up a change of several documents that has not been sent."""
        for edited in list(self.edited.values()):
            edited.draft.drop(joint)
            self.tell(edited)

    def sent_at(self) -> float:
        """Return since when at least one has no answer."""
        return min((each.sent_at for each in self.edited.values()), default=inf)

    def doubt(self) -> None:
        """Count an unanswered connection against its changes, and give up those that never get an answer."""
        for parts in list(self.sent.values()):
            for each in parts:
                each.doubts += 1
            if parts[0].doubts >= DOUBTS:
                why = f"{parts[0].channel}: no answer after {DOUBTS} tries"
                self.refused(parts, errors.UnknownOutcome(why), None)

    def largest(self) -> int:
        """Return the size of the largest change under way."""
        return max((size_of(payload_of(each)) for each in self.sent.values()), default=0)

    def too_big(self) -> None:
        """Fail the largest change: the connection was closed for a message over the limit."""
        message_id = max(self.sent, key=lambda each: size_of(payload_of(self.sent[each])))
        refused = errors.TooLarge("the broker closed the connection: the message is over `message_bytes`")
        self.refused(self.sent.pop(message_id), refused, None)


def count_of(edited: Edited) -> int:
    """Return how many documents the next change of one is of."""
    head = edited.draft.head
    return head.joint.count if head and head.joint else 1


def payload_of(parts: list[Edited]) -> Payload:
    """Return what is sent of the change under way."""
    found = [
        (each.draft.flying, {"channel": each.channel, **each.draft.flying.payload})
        for each in parts
        if each.draft.flying
    ]
    flying, payload = found[0]
    if flying.joint is None:
        return payload
    changes = [{name: part for name, part in each.items() if name != "id"} for _, each in found]
    return {"id": flying.joint.id, "changes": changes}


def whole(parts: list[Edited]) -> Payload:
    """Return the most that is sent of it: a repetition says more."""
    return payload_of(parts) | {"revisions": [each.draft.revision for each in parts]}


def size_of(payload: Payload) -> int:
    """Return the size of the message in bytes."""
    document = {"type": "state.change", "payload": payload, "messageId": "c" + "0" * 10}
    return len(msgspec.json.encode(document))


def path_of(pointer: str) -> Path:
    """Return the path that the broker means; what it should not have said is the whole document."""
    try:
        return parse_pointer(pointer) if pointer else ALL
    except errors.BadMessage:
        return ALL
