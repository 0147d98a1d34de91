"""Between JSON text and the message classes.

Decoding is strict: no value is coerced, and an unknown field is refused by name, with the nearest known one.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

import attrs
import cattrs
import msgspec
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from broker.errors import BadMessage, UnknownType
from broker.wire import messages
from broker.wire.messages import CLIENT_MESSAGES, ClientMessage, ServerMessage

MAX_MESSAGE_ID_BYTES = 64
MAX_NAMED = 40  # characters of a client's own text that a message repeats
# What the outline of a frame is made of, in one pass whatever it is: an id, other strings, brackets.
OUTLINE = re.compile(
    rb'"messageId"[ \t\r\n]*:[ \t\r\n]*(?P<id>"(?:[^"\\]|\\.)*+")'
    rb'|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|(?P<begin>[\[{]+)|(?P<end>[\]}]+)',
    re.DOTALL,
)


@attrs.frozen
class Decoded:
    """A client's message, and the id that its replies carry."""

    message: ClientMessage
    message_id: str | None


class Undecodable(Exception):
    """A message that cannot be read: the error for the client, and its id where that could be read."""

    def __init__(self, error: BadMessage | UnknownType, message_id: str | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.message_id = message_id


class WrongType(Exception):
    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


def decode(data: bytes) -> Decoded:
    """The message in one text frame. Raises `Undecodable`."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Undecodable(BadMessage(f"not JSON: {error}"), stray_id(data)) from None
    except RecursionError:
        raise Undecodable(BadMessage("not JSON: nested too deeply"), stray_id(data)) from None
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
    """The id of a frame that is not JSON, by its outline: whoever waits for the answer is to get it."""
    if data.lstrip(b" \t\r\n")[:1] != b"{":
        return None
    depth, found = 0, None
    for token in OUTLINE.finditer(data):
        depth += len(token["begin"] or b"") - len(token["end"] or b"")
        if depth == 1 and token["id"] is not None:
            found = token["id"]  # of doubled keys the last counts
    try:
        message_id = None if found is None else msgspec.json.decode(found)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return message_id if is_message_id(message_id) else None


def structure(document: dict[str, Any]) -> ClientMessage:
    name = document.get("type")
    if not isinstance(name, str):
        raise BadMessage("type: a string is required")
    refuse_unknown(document, {"type", "payload", "messageId"}, where="")
    cls = CLIENT_MESSAGES.get(name)
    if cls is None:
        raise UnknownType(f"type: {name[:MAX_NAMED]!r} is unknown{nearest(name, CLIENT_MESSAGES)}")
    payload = document.get("payload", {})
    if not isinstance(payload, dict):
        raise BadMessage("payload: an object is required")
    try:
        return converter.structure(payload, cls)
    except cattrs.ClassValidationError as group:
        raise BadMessage(first_fault(group, cls, payload)) from None


def first_fault(group: cattrs.ClassValidationError, cls: type, payload: dict[str, Any]) -> str:
    refuse_unknown(payload, {field.name for field in attrs.fields(cls)}, where="payload.")
    error, note = group.group_exceptions()[0][0]
    fault = f"must be {error.expected}" if isinstance(error, WrongType) else "is required"
    return f"payload.{note.name}: {fault}"


def refuse_unknown(found: dict[str, Any], known: set[str], *, where: str) -> None:
    for key in found:
        if key not in known:
            raise BadMessage(f"{where}{key[:MAX_NAMED]}: unknown field{nearest(key, known)}")


def nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name[:MAX_NAMED], list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def encode(message: ServerMessage, message_id: str | None = None) -> bytes:
    """A message as JSON."""
    document = {"type": message.type, "payload": converter.unstructure(message)}
    if message_id is not None:
        document["messageId"] = message_id
    return msgspec.json.encode(document)


def strict(expected: str, *types: type) -> Any:
    def check(value: Any, _: Any) -> Any:
        if type(value) not in types:
            raise WrongType(expected)
        return value

    return check


def one_or_many(value: Any, _: Any) -> str | list[str]:
    if isinstance(value, str) or (
        isinstance(value, list) and value and all(isinstance(each, str) for each in value)
    ):
        return value
    raise WrongType("a channel, or a list of at least one")


def lag(value: Any, _: Any) -> str:
    if value in get_args(messages.Lag):
        return str(value)
    raise WrongType(f"one of {', '.join(get_args(messages.Lag))}")


def make_converter() -> cattrs.Converter:
    made = cattrs.Converter(forbid_extra_keys=True)
    made.register_structure_hook(str, strict("a string", str))
    made.register_structure_hook(int, strict("a whole number", int))
    made.register_structure_hook(bool, strict("true or false", bool))
    made.register_structure_hook_func(lambda cls: cls == messages.OneOrMany, one_or_many)
    made.register_structure_hook_func(lambda cls: cls == messages.Lag, lag)
    for cls in CLIENT_MESSAGES.values():
        made.register_structure_hook(cls, make_dict_structure_fn(cls, made, _cattrs_forbid_extra_keys=True))
    for cls in (*get_args(ServerMessage), messages.Refused):
        renamed: Any = {
            field.name: override(rename=field.metadata.get("wire"), omit_if_default=True)
            for field in attrs.fields(cls)
            if field.default is not attrs.NOTHING
        }
        made.register_unstructure_hook(cls, make_dict_unstructure_fn(cls, made, **renamed))
    return made


converter = make_converter()
