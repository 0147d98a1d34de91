"""Answers that come bit by bit, in chunks (RFC 9112 section 7.1); JSON lines, until one side has enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import msgspec
import trio

from broker.actors.transport import LinkLost
from broker.errors import BrokerError
from broker.web.problems import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker.web.links import Link
    from broker.web.problems import Framing

Write: TypeAlias = "Callable[[object], Awaitable[None]]"

MEDIA_TYPE = "application/x-ndjson"
LAST_CHUNK = b"0\r\n\r\n"
WRITE_SECONDS = 10.0  # a reader that takes nothing for so long has gone


@attrs.frozen
class Lines:
    """What `run` writes, a value a line. A `BrokerError` before the first of them is an answer of its own."""

    run: Callable[[Write], Awaitable[None]]


def framing_for(version: str) -> Framing:
    """How an answer of unknown length is sent to a client of this HTTP version."""
    return "close" if version == "1.0" else "chunks"


def chunk(data: bytes) -> bytes:
    """One chunk; there is none of nothing, which would be the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def head(version: str) -> Response:
    """How JSON lines begin."""
    return Response(status=200, body=b"", media_type=MEDIA_TYPE, framing=framing_for(version))


def to_json(value: Any) -> bytes:
    # msgspec would put the fields of a class with slots in the order of the alphabet.
    return msgspec.json.encode(attrs.asdict(value) if attrs.has(type(value)) else value)


async def pour(link: Link, lines: Lines, version: str) -> None:
    """Sends lines until they end or the client leaves. Raises `BrokerError`, then nothing was sent."""
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
        nursery.start_soon(until_left, link, nursery.cancel_scope)
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


async def until_left(link: Link, scope: trio.CancelScope) -> None:
    """A client that has asked says nothing more; whatever it is, it ends with the end of the link."""
    while await link.receive():
        pass
    scope.cancel()
