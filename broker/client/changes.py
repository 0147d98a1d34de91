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

    def refused(self, channel: str, error: BrokerError, mine: Any, theirs: Mapping[str, Any] | None) -> None:
        """The patch `mine` came to nothing; `theirs` is what is there, if that is the reason."""

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
    """`edited` has the documents by channel, `sent` those whose change is under way, by `messageId`."""

    gate: Gate
    delay: Callable[[int], float]  # the wait after so many tries
    session: str = attrs.field(factory=lambda: uuid4().hex[:16])
    edited: dict[str, Edited] = attrs.field(factory=dict)
    sent: dict[str, Edited] = attrs.field(factory=dict)
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

    def heard(self, channel: str, revision: str, value: Any, ids: Collection[str] = ()) -> None:
        if edited := self.edited.get(channel):
            edited.draft.heard(revision, value, ids)
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
        for edited in self.sent.values():
            edited.draft.doubt()
            edited.sent_at = inf
        self.sent = {}

    def waiting(self) -> list[Edited]:
        return [
            each
            for each in self.edited.values()
            if each.sent_at == inf and (each.draft.flying or each.draft.typed)
        ]

    def due(self, now: float) -> float:
        """Return when the next change may be sent, if one is waiting."""
        if not (waiting := self.waiting()):
            return inf
        return max(min(each.not_before for each in waiting), self.gate.opens("changes", now))

    def take(self, now: float) -> Iterator[Frame]:
        """Yield the messages that may be sent now."""
        for edited in self.waiting():
            draft = edited.draft
            if now < edited.not_before:
                continue
            change = draft.flying or draft.next(lambda: f"{self.session}-{next(self.ids)}")
            if change is None:
                continue
            payload = {"channel": edited.channel, **change.payload}
            if (size := size_of(payload | {"revision": change.revision})) > (
                most := self.gate.allowed.message_bytes
            ):
                too_large = f"{size} bytes; the broker's `message_bytes` is {most:g}"
                self.refused(edited, errors.TooLarge(too_large), None)
                continue
            if not self.gate.passes("changes", now):
                return
            message_id = f"c{next(self.numbers)}"
            self.sent[message_id] = edited
            edited.sent_at, edited.not_before = now, now + EACH_SECONDS
            yield "state.change", payload, message_id

    def answered(self, kind: str, payload: Mapping[str, Any], message_id: str | None, now: float) -> bool:
        """Process an answer; return False for a message that is none."""
        edited = self.sent.pop(message_id or "", None)
        if edited is None:
            return False
        edited.sent_at = inf
        if kind != "error":
            edited.tries = edited.doubts = 0
            edited.draft.stored(payload["revisions"].get(edited.channel, ""))
            self.tell(edited)
            return True
        code = payload["code"]
        if "conflict" not in payload:  # which the broker does not count as a failure
            self.gate.refused("changes", payload, now)
        if unknown := code in UNKNOWN:
            edited.tries += 1
            edited.draft.doubt()
        if edited.tries >= TRIES or not (unknown or payload.get("retryable")):
            self.refused(edited, refusal(payload), payload.get("conflict"))
        else:
            wait = seconds(payload) if "retry_after_ms" in payload else self.delay(edited.tries)
            edited.not_before = max(edited.not_before, now + wait)
        return True

    def refused(self, edited: Edited, error: BrokerError, conflict: list[Any] | None) -> None:
        """Take back the change under way: it came to nothing, or there, where others were first.

        Not if it was seen stored, whatever is said later.
        """
        edited.tries = edited.doubts = 0
        draft = edited.draft
        if draft.echoed:
            draft.land()
            self.tell(edited)
            return
        if draft.flying and draft.flying.doubtful and error.code not in CERTAIN:
            error = errors.UnknownOutcome(error.message)
        found = [each["paths"] for each in conflict or () if each["channel"] == edited.channel]
        theirs = found[0] if found else None
        mine = draft.refused([path_of(each) for each in theirs] if theirs else (ALL,))
        for editor in list(edited.editors):
            editor.refused(edited.channel, error, mine, theirs)
        self.tell(edited)

    def sent_at(self) -> float:
        """Return since when at least one has no answer."""
        return min((each.sent_at for each in self.edited.values()), default=inf)

    def doubt(self) -> None:
        """Count an unanswered connection against its changes, and give up those that never get an answer."""
        for edited in list(self.sent.values()):
            edited.doubts += 1
            if edited.doubts >= DOUBTS:
                why = f"{edited.channel}: no answer after {DOUBTS} tries"
                self.refused(edited, errors.UnknownOutcome(why), None)

    def largest(self) -> int:
        """Return the size of the largest change under way."""
        return max((size_of(flying(each)) for each in self.sent.values()), default=0)

    def too_big(self) -> None:
        """Fail the largest change: the connection was closed for a message over the limit."""
        message_id = max(self.sent, key=lambda each: size_of(flying(self.sent[each])))
        refused = errors.TooLarge("the broker closed the connection: the message is over `message_bytes`")
        self.refused(self.sent.pop(message_id), refused, None)


def flying(edited: Edited) -> Payload:
    change = edited.draft.flying
    return {"channel": edited.channel, **(change.payload if change else {})}


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
