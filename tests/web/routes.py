"""Some routes for an admin port under test."""

from __future__ import annotations

from typing import Annotated

import attrs
import msgspec
import trio

from broker.errors import NotFound, Unavailable
from broker.web.router import Endpoint
from broker.web.streaming import Lines, Write

TOKEN = "operator-token-of-the-tests"
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]


@attrs.frozen(kw_only=True)
class Paint:
    colour: str
    percent: Percent = 100


@attrs.frozen(kw_only=True)
class Said:
    text: str


def paint(wall: str, wish: Paint) -> Said:
    return Said(text=f"{wall} {wish.colour} {wish.percent}")


async def later() -> Said:
    await trio.lowlevel.checkpoint()
    raise Unavailable("NATS is out of reach", retry_after=0.4)


def missing(wall: str) -> Said:
    raise NotFound(f"{wall}: there is no such wall")


def broken() -> Said:
    raise ZeroDivisionError


def count() -> Lines:
    async def run(write: Write) -> None:
        for number in range(3):
            await write(Said(text=str(number)))

    return Lines(run)


ROUTES = [
    Endpoint(
        method="PUT",
        path="/api/v1/walls/{wall}",
        summary="Paints",
        handle=paint,
        body=Paint,
        answer=Said,
        status=202,
    ),
    Endpoint(method="GET", path="/api/v1/walls/{wall}", summary="Misses", handle=missing, answer=Said),
    Endpoint(
        method="GET",
        path="/api/v1/paint/{wall}",
        summary="Looks",
        handle=paint,
        query=Paint,
        answer=Said,
    ),
    Endpoint(method="GET", path="/api/v1/later", summary="Is late", handle=later, answer=Said),
    Endpoint(method="GET", path="/api/v1/count", summary="Counts", handle=count, answer=Said),
    Endpoint(method="GET", path="/api/v1/broken", summary="Breaks", handle=broken, answer=Said),
]
