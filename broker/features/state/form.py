"""What clients are told of documents: the `state` messages, spliced of the stored bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import msgspec

from broker.documents import memory, patches
from broker.documents.values import Invalid
from broker.features.state import store
from broker.keyed.rows import NOT_JUDGED
from broker.wire.events import header_text

if TYPE_CHECKING:
    from broker.documents.values import Value
    from broker.keyed.rows import Row


@attrs.frozen
class DocumentForm:
    """`keyed.watch.Form` of documents."""

    def whole(self, row: Row, stream: str, upto: int) -> bytes:
        """Return the message with the whole of a document, or why it is none."""
        return message(row, stream, upto, content(row))

    def step(self, old: Row, new: Row, stream: str, upto: int) -> bytes | None:
        """Return the message with the merge patch from one value to another.

        None if that is not smaller than half of the value, or the value holds a null, of which a patch could
        say less than the value does.
        """
        if b"null" in new.body:
            return None
        before, now = value_of(old), value_of(new)
        if before is None or now is None:
            return None
        patch = patches.diff(before, now)
        if patch is None:
            return None
        encoded = msgspec.json.encode(patch)
        if 2 * len(encoded) >= len(new.body):
            return None
        rest = b'"from":"%b-%d","patch":%b' % (stream.encode(), old.revision, encoded)
        if authors := authors_of(new, old.revision):
            rest += b',"by":%b' % msgspec.json.encode(authors)
        return message(new, stream, upto, rest)

    def absent(self, key: str, stream: str, upto: int) -> bytes:
        """Return the message that there is no document, and never was: it has revision 0."""
        return frame(key, stream, 0, upto, b'"value":null')


def message(row: Row, stream: str, upto: int, rest: bytes) -> bytes:
    return frame(row.key, stream, row.revision, upto, rest)


def frame(key: str, stream: str, revision: int, upto: int, rest: bytes) -> bytes:
    inc = stream.encode()
    return b'{"type":"state","payload":{"channel":%b,"revision":"%b-%d","position":"%b-%d",%b}}' % (
        msgspec.json.encode(key),
        *(inc, revision, inc, upto, rest),
    )


def authors_of(row: Row, after: int) -> list[dict[str, str]]:
    """Return the changes that a version knows to have come after a revision: of each session the last."""
    known = memory.parse((row.headers or {}).get(store.CHANGES), row.revision)
    return [{"user": header_text(each.user), "id": each.id} for each in known.entries if each.base >= after]


def content(row: Row) -> bytes:
    """Return the fields of a message that say what is stored."""
    if reason := fault_of(row):
        return b'"invalid":%b' % msgspec.json.encode(reason)
    return b'"value":%b' % (row.body or b"null")


def fault_of(row: Row) -> str | None:
    """Return why what is stored is no document, found out once."""
    if row.fault is NOT_JUDGED:
        found = None if row.deleted else store.document(row.body, row.headers)
        row.fault = found.reason if isinstance(found, Invalid) else None
    reason: str | None = row.fault
    return reason


def value_of(row: Row) -> Value | None:
    """Return the value of a document; None if it is deleted, or none.

    It is not kept: decoded it takes many times the memory of the body.
    """
    if row.deleted or fault_of(row) is not None:
        return None
    return store.decode(row.body)
