"""From a client's `state.change` to the changes that it wants, checked without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import msgspec
from msgspec import UNSET

from broker import subjects
from broker.documents import judging, memory
from broker.documents.judging import NONE, OUT, Change
from broker.errors import BadMessage, Forbidden, TooLarge
from broker.wire import positions

if TYPE_CHECKING:
    from broker.features.state.rules import Rule, Rules
    from broker.session.requests import Terms
    from broker.wire import messages as m
    from broker.wire.positions import Position

MAX_DOCUMENTS = 16  # of one change


@attrs.frozen(kw_only=True)
class Part:
    """The change of one document. `made_on` is the revision that it names."""

    channel: str
    rule: Rule
    change: Change
    made_on: Position | None

    def within(self, incarnation: str) -> Change:
        """Return the change for the stream of this incarnation."""
        if self.made_on is None:
            return self.change
        sequence = self.made_on.sequence if self.made_on.incarnation == incarnation else -1
        return attrs.evolve(self.change, revision=sequence)


@attrs.frozen(kw_only=True)
class Wish:
    """Change documents, all or none: `parts` are in the order of their channels."""

    id: str
    parts: tuple[Part, ...]


def check(rules: Rules, terms: Terms, message: m.Change) -> Wish:
    """Return the changes that a client wants. Raise if it may not make them, or does not say enough."""
    size = size_of(message)
    if size > terms.limits.change_bytes:
        most = terms.limits.change_bytes
        raise TooLarge(f"payload: {size} bytes; the limit is {most} (limits.change_bytes)")
    session, n = memory.parse_id(message.id)
    parts = [part_of(rules, terms, each, session, n) for each in listed(message)]
    parts.sort(key=lambda part: part.channel)
    channels = {part.channel for part in parts}
    if len(channels) < len(parts):
        raise BadMessage("payload.changes: a document is there twice")
    if len({part.rule.service for part in parts}) > 1:
        raise BadMessage("payload.changes: documents of the broker and of a service; change them one by one")
    return Wish(id=message.id, parts=tuple(parts))


def size_of(message: m.Change) -> int:
    """Return the size of a change in bytes, without the revision that only its repetition may name."""
    bare = msgspec.structs.replace
    changes = message.changes and [bare(each, revision=None) for each in message.changes]
    return len(msgspec.json.encode(bare(message, revision=None, changes=changes)))


def listed(message: m.Change) -> list[m.Change | m.OneChange]:
    if message.changes is None:
        if message.channel is None:
            raise BadMessage("payload.channel: is required, or changes")
        return [message]
    if not 1 <= len(message.changes) <= MAX_DOCUMENTS:
        raise BadMessage(f"payload.changes: 1 to {MAX_DOCUMENTS} documents")
    for name in ("channel", "revision", "add"):
        if getattr(message, name) is not None:
            raise BadMessage(f"payload.{name}: stands in each of the changes")
    for name in ("patch", "was"):
        if getattr(message, name) is not UNSET:
            raise BadMessage(f"payload.{name}: stands in each of the changes")
    return list(message.changes)


def part_of(rules: Rules, terms: Terms, given: m.Change | m.OneChange, session: str, n: int) -> Part:
    principal = terms.client()
    channel = subjects.parse_channel(subjects.expand_me(given.channel or "", principal.encoded_user))
    principal.check_change(channel)
    rule = None if subjects.is_live(channel) else rules.find(channel)
    if rule is None:
        raise Forbidden(f"{channel}: is no document (state.documents in the configuration)")
    made_on = None if given.revision is None else positions.parse(given.revision)
    change = Change(
        session=session,
        n=n,
        user=principal.encoded_user,
        patch=OUT if given.patch is UNSET else given.patch,
        was=OUT if given.was is UNSET else given.was,
        revision=None if made_on is None else made_on.sequence,
        add=NONE if given.add is None else judging.additions(given.add),
    )
    judging.check(change)
    return Part(channel=channel, rule=rule, change=change, made_on=made_on)
