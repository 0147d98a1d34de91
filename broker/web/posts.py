"""`POST /publish`: one event by a request of its own, answered as the protocol's `publish` is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from broker.web.problems import Refused, Response
from broker.web.refusals import told
from broker.wire import codec, messages

if TYPE_CHECKING:
    from broker.wire.messages import Error, Published

grammar = msgspec.json.Decoder(msgspec.Raw)


class Publish(Protocol):
    """Publishes by a `publish` message, and says what comes of it."""

    async def __call__(
        self, message: bytes, *, token: str, tenant: str | None, peer: str
    ) -> Published | Error: ...


def message_of(body: bytes) -> bytes:
    """The protocol's message with a body for its payload. Raises `Refused`."""
    try:
        grammar.decode(body)  # a value by itself, or it could be more than the payload
    except (msgspec.DecodeError, RecursionError):
        raise Refused(400, 'The body is not JSON: {"channel": …, "event": …, "id": …}.') from None
    return b'{"type":"publish","payload":%b}' % body


def answer(reply: Published | Error) -> Response:
    """202 with what became of the event, or the refusal."""
    if isinstance(reply, messages.Error):
        return told(reply)
    document = codec.converter.unstructure(reply)
    document.pop("id", None)  # who waits for the answer knows it
    return Response(status=202, body=msgspec.json.encode(document), media_type="application/json")
