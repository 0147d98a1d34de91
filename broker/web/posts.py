"""`POST /publish` and `POST /acknowledge`: a message by a request of its own, answered as on a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs
import msgspec

from broker.errors import BadMessage
from broker.web.problems import JSON, Refused, Response, problem
from broker.web.refusals import told
from broker.wire import codec, messages

if TYPE_CHECKING:
    from broker.wire.messages import ClientMessage

Reply: TypeAlias = messages.Published | messages.Acknowledged | messages.Error

grammar = msgspec.json.Decoder(msgspec.Raw)


class Post(Protocol):
    """Does what a message asks for, and says what comes of it."""

    async def __call__(self, message: bytes, *, token: str, tenant: str | None, peer: str) -> Reply: ...


@attrs.frozen(kw_only=True)
class Page:
    """What is posted to an address: the payload of which message, an example of it, and the good answer."""

    message: type[ClientMessage]
    example: str
    reply: type[messages.ServerMessage]
    status: int

    def message_of(self, body: bytes) -> bytes:
        """The protocol's message with a body for its payload. Raises `Refused`."""
        try:
            grammar.decode(body)  # a value by itself, or it could be more than the payload
        except (msgspec.DecodeError, RecursionError):
            told_so = problem(400, f"The body is not JSON: {self.example}.", code=BadMessage.code)
            raise Refused.by(told_so) from None
        return b'{"type":"%b","payload":%b}' % (self.message.type.encode(), body)

    def answer(self, reply: Reply) -> Response:
        """What became of it, or the refusal."""
        if isinstance(reply, messages.Error):
            return told(reply)
        document = codec.converter.unstructure(reply)
        document.pop("id", None)  # who waits for the answer knows it
        body = msgspec.json.encode(document)
        return Response(status=self.status, body=body, media_type=JSON)


PAGES = {
    "/publish": Page(
        message=messages.Publish,
        example='{"channel": …, "event": …, "id": …}',
        reply=messages.Published,
        status=202,
    ),
    "/acknowledge": Page(
        message=messages.Acknowledge,
        example='{"durable": …, "position": …}',
        reply=messages.Acknowledged,
        status=200,
    ),
}
