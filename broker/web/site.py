"""The files that pages load; in development mode also a demo page, tokens for it, and the documentation."""

from __future__ import annotations

import ipaddress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

import attrs
import msgspec

from broker import subjects
from broker.errors import BrokerError
from broker.http.responses import JSON, Refused, Response
from broker.links.route import GET, POST, Route
from broker.web import docs, origins
from broker.web.files import GZIP, revalidated
from broker.web.package import pack
from broker.web.schemas import DISTRIBUTION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from broker.http.heads import Request
    from broker.links.exchange import ClientExchange
    from broker.links.route import ClientRoute

Handle: TypeAlias = "Callable[[ClientExchange], Awaitable[Response]]"
Sign: TypeAlias = "Callable[[str, str], str]"

STATIC = Path(__file__).parent / "static"
DEMO = {
    "/": "index.html",
    "/demo.js": "demo.js",
    "/demo-documents.js": "demo-documents.js",
    "/demo.css": "demo.css",
}
TOKEN_BYTES = 1024  # of the body of a request for a token
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",
    ".tgz": GZIP,
}
# Scripts are public; a page of another origin may load them as modules only with these headers.
SHARED = (("Access-Control-Allow-Origin", "*"), ("Cross-Origin-Resource-Policy", "cross-origin"))
NO_SNIFFING = ("X-Content-Type-Options", "nosniff")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Holder(msgspec.Struct, forbid_unknown_fields=True):
    """The holder of a token."""

    tenant: str
    user: str


@attrs.frozen(kw_only=True)
class Site:
    """What is served besides events: the client libraries; with `sign`, a demo page and the documentation.

    `sign` makes a token of tenant and user. Nothing says who asks it for a token, so it is called only for a
    page that this port itself has served, on this machine. `documents` make public JSON, by path, when
    somebody asks for it: a broker that starts has clients waiting.
    """

    sign: Sign | None = None
    documents: Mapping[str, Callable[[], bytes]] = attrs.field(factory=dict)

    @property
    def development(self) -> bool:
        """Whether this is a broker to try things out with, on the developer's own machine."""
        return self.sign is not None

    def routes(self) -> list[ClientRoute]:
        pages: dict[str, Handle] = {
            f"/{path}": partial(script, path, data) for path, data in library().items()
        }
        pages["/client.tgz"] = package
        pages |= {path: partial(document, cache(make)) for path, make in self.documents.items()}
        if self.sign is None:
            return [Route(path=path, methods=GET, handle=handle) for path, handle in pages.items()]
        pages |= {path: partial(demo, name, (STATIC / name).read_bytes()) for path, name in DEMO.items()}
        token = Route(path="/dev/token", methods=POST, handle=partial(token_for, self.sign))
        served = [Route(path=path, methods=GET, handle=handle) for path, handle in pages.items()]
        return [*served, token, *docs.routes()]


def library() -> dict[str, bytes]:
    """Return the files of the client libraries, by path: all scripts but the demo page's own."""
    scripts = (path for suffix in ("js", "ts") for path in sorted(STATIC.rglob(f"*.{suffix}")))
    files = {path.relative_to(STATIC).as_posix(): path.read_bytes() for path in scripts}
    return {path: data for path, data in files.items() if path not in DEMO.values()}


@cache
def packed() -> bytes:
    """Return the client libraries as npm installs them."""
    return pack(library(), name=DISTRIBUTION, version=version(DISTRIBUTION))


async def script(name: str, data: bytes, exchange: ClientExchange) -> Response:
    """Answer with a file that pages of any origin may load."""
    return revalidated(exchange.request, file(name, data, *SHARED))


async def package(exchange: ClientExchange) -> Response:
    return await script("client.tgz", packed(), exchange)


async def document(make: Callable[[], bytes], exchange: ClientExchange) -> Response:
    headers = (NO_SNIFFING, *SHARED)
    found = Response(status=200, body=make(), media_type=JSON, headers=headers)
    return revalidated(exchange.request, found)


async def demo(name: str, data: bytes, exchange: ClientExchange) -> Response:
    """Answer with a file of the demo page. Raises `Refused` (403, 421)."""
    request = exchange.request
    check_near(request, exchange.link.peer)
    return revalidated(request, file(name, data, ("Content-Security-Policy", policy(request))))


async def token_for(sign: Sign, exchange: ClientExchange) -> Response:
    """Answer the demo page, on this machine, with a token for the user that it names. Raises `Refused`."""
    request = exchange.request
    check_near(request, exchange.link.peer)
    if "origin" not in request.headers:
        raise Refused(403, "Only the demo page gets tokens here; use `broker token` elsewhere.")
    origins.check(request, frozenset())
    body = await exchange.body(TOKEN_BYTES, limit="")
    try:
        holder = msgspec.json.decode(body, type=Holder)
        if not subjects.is_tenant(holder.tenant):
            raise Refused(400, "tenant: must be 1 to 64 of the characters A-Z a-z 0-9 _ -, the first not _.")
        token = sign(holder.tenant, holder.user)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(400, 'The body must be {"tenant": …, "user": …}.') from None
    except BrokerError as error:
        raise Refused(400, f"{error.message}.") from None
    return Response(status=200, body=msgspec.json.encode({"token": token}), media_type=JSON)


def file(name: str, data: bytes, *headers: tuple[str, str]) -> Response:
    return Response(
        status=200,
        body=data,
        media_type=MEDIA_TYPES[Path(name).suffix],
        headers=(NO_SNIFFING, *headers),
    )


def check_near(request: Request, peer: str) -> None:
    """Raises `Refused` (403, 421) unless client and host name are this machine's.

    A foreign page whose name is made to point here (DNS rebinding) sends that name.
    """
    address = urlsplit(f"//{peer}").hostname or ""
    try:
        near = ipaddress.ip_address(address).is_loopback
    except ValueError:
        near = False
    if not near:
        raise Refused(403, "The demo page is served to this machine only.")
    if request.host not in LOOPBACK:
        raise Refused(421, "The demo page is served under localhost and 127.0.0.1 only.")


def policy(request: Request) -> str:
    """Return the policy of the demo page: it may load its own files and connect to this port."""
    host = f"[{request.host}]" if ":" in request.host else request.host
    port = "" if request.port is None else f":{request.port}"
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        f"connect-src 'self' ws://{host}{port} wss://{host}{port}; "
        f"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
