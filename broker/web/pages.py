"""What both ports do with a request: is there such a page, and how an answer is sent."""

from __future__ import annotations

import gzip
import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker.web.links import LINGER_SECONDS
from broker.web.problems import Refused, Response, problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from broker.web.heads import Request
    from broker.web.links import Link

log = structlog.get_logger()

FAILED = problem(500, "This failed; the broker's log says why.")
SEND_SECONDS = 10.0
FILES = 16  # kept as they are sent
ZIPPED = re.compile(
    r"(?:^|,)\s*gzip\s*(?:,|$|;\s*q=(?!0(?:\.0*)?\s*(?:,|$)))", re.IGNORECASE
)  # section 12.5.3
SLOW_BYTES = 4096  # a second: so slow a client may be, and still gets a long answer whole


def check(request: Request, pages: Mapping[str, Sequence[str]]) -> None:
    """Raises `Refused` (400, 404, 405) unless `pages` has path and method; only a POST has a body."""
    methods = pages.get(request.path)
    if request.has_body and not (request.method == "POST" and "POST" in (methods or ())):
        raise Refused(400, "No request with a body is served here.")
    if methods is None:
        raise Refused(404, f"There is {', '.join(pages)}.")
    if request.method not in methods:
        raise Refused(405, f"Allowed here: {', '.join(methods)}.", ("Allow", ", ".join(methods)))


def health(
    request: Request, reason: Callable[[], str | None], remarks: Callable[[], Sequence[str]]
) -> Response:
    """`/healthz`: we live. `/readyz`: 503 with the `reason` why no event can travel now, if any.

    Else a line for each of the `remarks`: what does not work, and is no reason.
    """
    asked = request.path == "/readyz"
    fault = reason() if asked else None
    if fault is not None:
        return problem(503, fault, ("Retry-After", "1"))
    lines = ["ok", *(remarks() if asked else ())]
    body = "".join(f"{line}\n" for line in lines).encode()
    return Response(status=200, body=body, media_type="text/plain; charset=utf-8")


def revalidated(request: Request, response: Response) -> Response:
    """A file as its reader needs it: small; or not again (RFC 9110 section 13.1.2)."""
    headers = [("Vary", "Accept-Encoding")]
    if ZIPPED.search(request.headers.get("accept-encoding", "")):
        response = attrs.evolve(response, body=zipped(response.body))
        headers.append(("Content-Encoding", "gzip"))
    tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    known = request.headers.get("if-none-match", "").split(",")
    tagged = attrs.evolve(response.beside((*headers, ("ETag", tag))), caching="no-cache")
    if tag in [each.strip(" \t").removeprefix("W/") for each in known]:
        return attrs.evolve(tagged, status=304, body=b"")
    return tagged


@lru_cache(maxsize=FILES)
def zipped(body: bytes) -> bytes:
    return gzip.compress(body, mtime=0)  # the same bytes by the same tag on every broker


async def respond(link: Link, response: Response) -> None:
    """Sends the whole answer and leaves the client the time to read it. Raises `LinkLost`."""
    if response.status >= 400:
        log.debug("request_refused", peer=link.peer, status=response.status)
    data = response.encode()
    allowance = len(data) / SLOW_BYTES
    with trio.move_on_after(SEND_SECONDS + allowance):
        await link.send_all(data)
        await link.linger(LINGER_SECONDS + allowance)  # the kernel still holds most of it


@attrs.define(eq=False)
class Exchange:
    """One request and its answer, None once something else has begun.

    What breaks in it is answered with 500, and breaks nothing else; `event` is what the log calls it.
    """

    peer: str
    event: str
    response: Response | None = FAILED
    lost: bool = False

    def link_lost(self) -> None:
        self.lost = True

    def crashed(self, error: Exception) -> None:
        log.error(self.event, exc_info=error, peer=self.peer)
