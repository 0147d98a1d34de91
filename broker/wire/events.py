"""From the body that a service published to the event that clients receive.

A body is passed through unchanged; it is only validated: JSON, size, and the tenant that it names.
CloudEvents in binary mode (attributes in `ce-*` headers) become structured ones around the unchanged body:
https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/nats-protocol-binding.md
"""

from __future__ import annotations

import re
import sys
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import unquote_to_bytes

import attrs
import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DEPTH = 1024
INT64, UINT64 = -(2**63), 2**64
TOMBSTONE = b"null"
PUBLISHER = "Broker-User"  # the header that names the publishing client, encoded by the broker
CONNECTION = "Broker-Connection"  # … its connection
ID = "Broker-Id"  # … the id that it gave the event, encoded likewise
ECHO = "Broker-Echo"  # "false": the event is not for that connection

ATTRIBUTE = re.compile(r"ce-((?!data\Z)[a-z0-9]+)\Z")  # the names that the specification allows
# Also an unterminated string: a retry from each of its quotes would take quadratic time.
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
# A number that may not be finite; only then is the whole body decoded, to find out.
HUGE = re.compile(rb"[0-9][eE]\+?[0-9]{3}")
NO_BRACKET = bytes(set(range(256)) - set(b"[{]}"))
OPENS = ord("[")
STEPS = bytes.maketrans(b"{}", b"[]")

# msgspec counts nesting against the interpreter's recursion limit, whose default of 1,000, less the frames
# in use, would refuse documents that the protocol allows.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 2 * MAX_DEPTH))


Form: TypeAlias = Literal["envelope", "cloudevent", "json", "tombstone"]


class Metadata(msgspec.Struct):
    tenant_id: Any = None


class Envelope(msgspec.Struct):
    metadata: Metadata | None = None


class Shape(msgspec.Struct):
    """The members that distinguish an envelope and a CloudEvent from other objects."""

    specversion: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    type: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


envelope = msgspec.json.Decoder(Envelope)
anything = msgspec.json.Decoder(msgspec.Raw)  # checks the grammar only
everything = msgspec.json.Decoder()
shape = msgspec.json.Decoder(Shape)


@attrs.frozen
class Own:
    """What differs in an event for the user who published it: its `id`, and that it is not sent at all to
    the connection `unechoed`.
    """

    user: str
    id: str | None
    unechoed: str | None


@attrs.frozen
class Fault:
    """Why a body is not an event: a word for machines, a sentence for people."""

    reason: Literal["too_large", "not_json", "tenant_mismatch"]
    detail: str


def fault(tenant: str, body: bytes, limit: int) -> Fault | None:
    """Return why a body is not an event of `tenant`; None when it is one.

    An empty body is a tombstone. `limit` is in bytes.
    """
    if not body:
        return None
    if len(body) > limit:
        return Fault("too_large", f"{len(body)} bytes; the limit is {limit}")
    try:
        check_text(body)
        try:
            claimed = envelope.decode(body).metadata
        except msgspec.ValidationError:  # perhaps JSON, but not an envelope
            anything.decode(body)
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Fault("not_json", str(error))
    if claimed and claimed.tenant_id not in (None, tenant):
        return Fault("tenant_mismatch", "metadata.tenant_id contradicts the tenant")
    return None


def check_text(body: bytes) -> None:
    """Check what decoders that skip values do not. Raises `DecodeError` and `UnicodeDecodeError`."""
    if not body.isascii():
        body.decode()
    if is_deeper(body, MAX_DEPTH):
        raise msgspec.DecodeError(f"nested deeper than {MAX_DEPTH}")
    if HUGE.search(body):
        everything.decode(body)


def not_json(body: bytes) -> str | None:
    """Return why a body is not JSON that every client can read; None when it is."""
    try:
        check_text(body)
        anything.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return None


def has_huge_integer(value: Any) -> bool:
    """Return whether `value` contains an integer beyond 64 bits, which other languages round silently."""
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            pending.extend(each.values())
        elif isinstance(each, list):
            pending.extend(each)
        elif type(each) is int and not INT64 <= each < UINT64:
            return True
    return False


def is_deeper(body: bytes, most: int) -> bool:
    """Return whether arrays and objects are nested more than `most` levels deep.

    How much deeper a decoder goes depends on the version of Python.
    """
    return body.count(b"[") + body.count(b"{") > most and depth(body) > most


def depth(body: bytes) -> int:
    """Return how deeply arrays and objects are nested, not counting brackets within strings."""
    brackets = STRING.sub(b"", body).translate(STEPS, NO_BRACKET)
    return max(accumulate(1 if step == OPENS else -1 for step in brackets), default=0)


def to_event(body: bytes, headers: Mapping[str, str] | None) -> bytes:
    """Return the event of a body that has no `fault`."""
    if not body:
        return TOMBSTONE
    if headers:
        attributes = cloud_attributes(headers)
        if "specversion" in attributes:
            return msgspec.json.encode(attributes)[:-1] + b',"data":' + body + b"}"
    return body


def value(body: bytes, headers: Mapping[str, str] | None) -> Any:
    """Return the event of a body that has no `fault`, decoded."""
    return everything.decode(to_event(body, headers))


def cloud_attributes(headers: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        if attribute := ATTRIBUTE.match(key):
            found[attribute[1]] = header_text(value)
        elif key == "content-type":
            found["datacontenttype"] = header_text(value)
    return found


def form(body: bytes, headers: Mapping[str, str] | None) -> Form:
    """Return the kind of a body that has no `fault`, by the members that the kind requires."""
    if to_event(body, headers) == TOMBSTONE:
        return "tombstone"
    if headers and "specversion" in cloud_attributes(headers):
        return "cloudevent"
    try:
        found = shape.decode(body)
    except msgspec.ValidationError:
        return "json"
    if found.type is msgspec.UNSET:
        return "json"
    if found.specversion is not msgspec.UNSET:
        return "cloudevent"
    return "json" if found.payload is msgspec.UNSET else "envelope"


def header_text(value: str) -> str:
    """Return the text of a percent-encoded header, with anything but UTF-8 replaced."""
    return unquote_to_bytes(value.encode("utf-8", "surrogateescape")).decode(errors="replace")


def published_by(headers: Mapping[str, str] | None) -> str | None:
    """Return the client that published an event; None when it was a service."""
    user = headers.get(PUBLISHER) if headers else None
    return None if user is None else header_text(user)


def own(user: str, headers: Mapping[str, str]) -> Own | None:
    """Return what differs in an event for its publisher `user`; None if nothing does."""
    given = headers.get(ID)
    unechoed = headers.get(CONNECTION) if headers.get(ECHO) == "false" else None
    if given is None and unechoed is None:
        return None
    return Own(user, None if given is None else header_text(given), unechoed)
