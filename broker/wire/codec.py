"""Conversion between JSON text and message classes.

Decoding is strict: no value is coerced, and an unknown field is refused by name, with the nearest known one.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from broker.errors import BadMessage, UnknownType
from broker.wire.events import MAX_DEPTH, is_deeper
from broker.wire.messages import (
    CLIENT_MESSAGES,
    ClientMessage,
    Hidden,
    Lag,
    OneChange,
    OneOrMany,
    ServerMessage,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from msgspec.structs import FieldInfo

MAX_MESSAGE_ID_BYTES = 64
ENVELOPE = ("type", "payload", "messageId")
AROUND_EVENT = 2  # levels of a publish around its event
MAX_NAMED = 40  # characters of a client's own text in an error
# Tokens of the outline of a frame, found in linear time: a message id, other strings, brackets.
OUTLINE = re.compile(
    rb'"messageId"[ \t\r\n]*:[ \t\r\n]*(?P<id>"(?:[^"\\]|\\.)*+")'
    rb'|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|(?P<begin>[\[{]+)|(?P<end>[\]}]+)',
    re.DOTALL,
)
# The name of each field type in an error; an optional field has the same.
REQUIRED: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    dict[str, Any]: "an object",
    OneOrMany: "a channel, or a list of at least one",
    Lag: f"one of {', '.join(get_args(Lag))}",
    list[OneChange]: "a list of changes: {channel, patch, …}",
}
EXPECTED = REQUIRED | {kind | None: text for kind, text in REQUIRED.items()}
EXPECTED[dict[str, Any] | msgspec.UnsetType | None] = "an object, or null"
EXPECTED[Hidden | None] = EXPECTED[Hidden | msgspec.UnsetType | None] = 'true, false or "hidden"'
FIELDS = {kind: msgspec.structs.fields(kind) for kind in CLIENT_MESSAGES.values()}


class Decoded(msgspec.Struct, frozen=True):
    """A client's message, and the id that its replies carry."""

    message: ClientMessage
    message_id: str | None


class Undecodable(Exception):
    """A message that cannot be decoded: the error for the client, and the message's id if readable."""

    def __init__(self, error: BadMessage | UnknownType, message_id: str | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.message_id = message_id


def decode(data: bytes) -> Decoded:
    """Return the message in one text frame. Raises `Undecodable`."""
    if is_deeper(data, MAX_DEPTH + AROUND_EVENT):
        raise Undecodable(BadMessage("not JSON: nested too deeply"), stray_id(data))
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Undecodable(BadMessage(f"not JSON: {error}"), stray_id(data)) from None
    if not isinstance(document, dict):
        raise Undecodable(BadMessage('a message is an object: {"type": …, "payload": {…}}'), None)
    message_id = document.get("messageId")
    if message_id is not None and not is_message_id(message_id):
        raise Undecodable(BadMessage(f"messageId: a string of at most {MAX_MESSAGE_ID_BYTES} bytes"), None)
    try:
        return Decoded(structure(document), message_id)
    except (BadMessage, UnknownType) as error:
        raise Undecodable(error, message_id) from None


def is_message_id(value: object) -> bool:
    return isinstance(value, str) and len(value.encode()) <= MAX_MESSAGE_ID_BYTES


def stray_id(data: bytes) -> str | None:
    """Return the message id in a frame that is not JSON, found by its outline, for the error to carry."""
    if data.lstrip(b" \t\r\n")[:1] != b"{":
        return None
    depth, found = 0, None
    for token in OUTLINE.finditer(data):
        depth += len(token["begin"] or b"") - len(token["end"] or b"")
        if depth == 1 and token["id"] is not None:
            found = token["id"]  # of duplicate keys the last one counts
    try:
        message_id = None if found is None else msgspec.json.decode(found)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return message_id if is_message_id(message_id) else None


def structure(document: dict[str, Any]) -> ClientMessage:
    name = document.get("type")
    if not isinstance(name, str):
        raise BadMessage("type: a string is required")
    if unknown := unknown_field(document, ENVELOPE):
        raise BadMessage(unknown)
    kind = CLIENT_MESSAGES.get(name)
    if kind is None:
        raise UnknownType(f"type: {name[:MAX_NAMED]!r} is unknown{nearest(name, CLIENT_MESSAGES)}")
    payload = document.get("payload", {})
    if not isinstance(payload, dict):
        raise BadMessage("payload: an object is required")
    try:
        return msgspec.convert(payload, kind)
    except msgspec.ValidationError:
        raise BadMessage(f"payload.{fault(payload, kind)}") from None


def fault(payload: Mapping[str, Any], kind: type[ClientMessage]) -> str:
    """Return what is wrong with a payload that cannot be converted."""
    if unknown := unknown_field(payload, kind.__struct_fields__):
        return unknown
    wrong = next(field for field in FIELDS[kind] if not fits(payload, field))
    return f"{wrong.name}: {f'must be {EXPECTED[wrong.type]}' if wrong.name in payload else 'is required'}"


def fits(payload: Mapping[str, Any], field: FieldInfo) -> bool:
    if field.name not in payload:
        return not field.required
    try:
        msgspec.convert(payload[field.name], field.type)
    except msgspec.ValidationError:
        return False
    return True


def unknown_field(found: Iterable[str], known: Collection[str]) -> str | None:
    """Return the error for the first unknown field, if there is one."""
    for name in found:
        if name not in known:
            return f"{name[:MAX_NAMED]}: unknown field{nearest(name, known)}"
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name[:MAX_NAMED], list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def encode(message: ServerMessage, message_id: str | None = None) -> bytes:
    """Return a message as JSON."""
    document: dict[str, Any] = {"type": message.type, "payload": message}
    if message_id is not None:
        document["messageId"] = message_id
    return msgspec.json.encode(document)
