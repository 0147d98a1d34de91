"""Answers that come bit by bit: JSON lines in chunks (RFC 9112 section 7.1), until one side has enough."""

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

Write: TypeAlias = "Callable[[object], Awaitable[None]]"

MEDIA_TYPE = "application/x-ndjson"
WRITE_SECONDS = 10.0  # a reader that takes nothing for so long has gone


@attrs.frozen
class Lines:
    """What `run` writes, a value a line. A `BrokerError` before the first of them is an answer of its own."""

    run: Callable[[Write], Awaitable[None]]


def head() -> bytes:
    whole = Response(status=200, body=b"", media_type=MEDIA_TYPE)
    return whole.encode().replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")


def to_json(value: Any) -> bytes:
    # msgspec would put the fields of a class with slots in the order of the alphabet.
    return msgspec.json.encode(attrs.asdict(value) if attrs.has(type(value)) else value)


async def pour(link: Link, lines: Lines) -> None:
    """Sends lines until they end or the client leaves. Raises `BrokerError`, then nothing was sent."""
    begun = False

    async def write(value: object) -> None:
        nonlocal begun
        data = to_json(value) + b"\n"
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        with trio.fail_after(WRITE_SECONDS):
            await link.send_all(chunk if begun else head() + chunk)
        begun = True

    refusal: BrokerError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_left, link, nursery.cancel_scope)
        try:
            await lines.run(write)
            with trio.fail_after(WRITE_SECONDS):
                await link.send_all(b"0\r\n\r\n")
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
