"""Responses of JSON lines, sent as they come until one side ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import msgspec
import trio

from broker.actors.transport import LinkLost
from broker.errors import BrokerError
from broker.http.chunks import LAST_CHUNK, chunk, framing_for
from broker.http.responses import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.links.tcp import Link

Write: TypeAlias = "Callable[[object], Awaitable[None]]"

MEDIA_TYPE = "application/x-ndjson"
WRITE_SECONDS = 10.0  # a client that takes nothing for so long has gone


@attrs.frozen
class Lines:
    """What `run` writes, one value a line. A `BrokerError` before the first line is a response of its own."""

    run: Callable[[Write], Awaitable[None]]


def head(version: str) -> Response:
    """Return the head of the response."""
    return Response(status=200, body=b"", media_type=MEDIA_TYPE, framing=framing_for(version))


def to_json(value: Any) -> bytes:
    """Return a value as JSON, the fields of a class in their order."""
    # msgspec would sort the fields of a class with slots by name.
    return msgspec.json.encode(attrs.asdict(value) if attrs.has(type(value)) else value)


async def pour(link: Link, lines: Lines, version: str) -> None:
    """Send lines until they end or the client closes. Raises `BrokerError`, if nothing has been sent."""
    begun = False
    beginning = head(version)
    in_chunks = beginning.framing == "chunks"

    async def write(value: object) -> None:
        nonlocal begun
        line = to_json(value) + b"\n"
        data = (b"" if begun else beginning.encode()) + (chunk(line) if in_chunks else line)
        with trio.fail_after(WRITE_SECONDS):
            await link.send_all(data)
        begun = True

    refusal: BrokerError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.cancel_when_closed, nursery.cancel_scope)
        try:
            await lines.run(write)
            with trio.fail_after(WRITE_SECONDS):
                await link.send_all(LAST_CHUNK if in_chunks else b"")
        except BrokerError as error:
            refusal = error
        except (LinkLost, trio.TooSlowError):
            pass
        nursery.cancel_scope.cancel()
    if refusal is not None and not begun:
        raise refusal
    await link.linger()
