"""The files that pages load, and in development mode a demo page, with tokens for it."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

import attrs
import msgspec

from broker import subjects
from broker.errors import BrokerError
from broker.web import origins
from broker.web.problems import Refused, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from broker.web.heads import Request

Sign: TypeAlias = "Callable[[str, str], str]"

STATIC = Path(__file__).parent / "static"
GET, POST = ("GET", "HEAD"), ("POST",)
SCRIPTS = {f"/{name}": name for name in ("client.js", "client.d.ts", "react.js", "react.d.ts")}
DEMO = {"/": "index.html", "/demo.js": "demo.js", "/demo.css": "demo.css"}
TOKEN = "/dev/token"
TOKEN_BYTES = 1024  # of a request for one
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".ts": "text/plain"}
# A script is no secret, and a page of another origin may load it as a module only where it is told so.
SHARED = (("Access-Control-Allow-Origin", "*"), ("Cross-Origin-Resource-Policy", "cross-origin"))
NO_SNIFFING = ("X-Content-Type-Options", "nosniff")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Who(msgspec.Struct, forbid_unknown_fields=True):
    """Whose token is asked for."""

    tenant: str
    user: str


@attrs.frozen(kw_only=True)
class Site:
    """What is served besides events: always the client, and the demo page where `sign` makes its tokens.

    `sign` takes tenant and user. Whoever gets an answer of it is anybody, so it is asked only by a page that
    this port itself has served, to this machine. `documents` are JSON for everybody, by their path.
    """

    sign: Sign | None = None
    documents: Mapping[str, bytes] = attrs.field(factory=dict)
    pages: dict[str, Sequence[str]] = attrs.field(init=False)

    @pages.default
    def served(self) -> dict[str, Sequence[str]]:
        pages: dict[str, Sequence[str]] = {
            path: GET for path, name in SCRIPTS.items() if (STATIC / name).is_file()
        }
        pages |= dict.fromkeys(self.documents, GET)
        return pages if self.sign is None else pages | dict.fromkeys(DEMO, GET) | {TOKEN: POST}

    @property
    def development(self) -> bool:
        """Whether this is a broker to try things out with, on the machine of who does."""
        return self.sign is not None

    def file(self, request: Request, peer: str) -> Response:
        """One of `pages`. Raises `Refused`."""
        if document := self.documents.get(request.path):
            headers = (NO_SNIFFING, *SHARED)
            return Response(status=200, body=document, media_type="application/json", headers=headers)
        shared = request.path in SCRIPTS
        if not shared:
            check_near(request, peer)
        name = SCRIPTS[request.path] if shared else DEMO[request.path]
        path = STATIC / name
        headers = (NO_SNIFFING, *(SHARED if shared else (("Content-Security-Policy", policy(request)),)))
        return Response(
            status=200,
            body=path.read_bytes(),
            media_type=f"{MEDIA_TYPES[path.suffix]}; charset=utf-8",
            headers=headers,
        )

    def check_token(self, request: Request, peer: str) -> None:
        """Raises `Refused` unless the demo page asks for a token, from this machine."""
        check_near(request, peer)
        if "origin" not in request.headers:
            raise Refused(403, "Only the demo page gets tokens here; elsewhere it is `broker token`.")
        origins.check(request, frozenset())

    def token(self, body: bytes) -> Response:
        """A token for whom the body names. Raises `Refused`."""
        try:
            who = msgspec.json.decode(body, type=Who)
            if self.sign is None or not subjects.is_tenant(who.tenant):
                raise Refused(400, "tenant: 1 to 64 of the characters A-Z a-z 0-9 _ -, the first no _.")
            document = {"token": self.sign(who.tenant, who.user)}
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Refused(400, 'The body is {"tenant": …, "user": …}.') from None
        except BrokerError as error:
            raise Refused(400, f"{error.message}.") from None
        return Response(status=200, body=msgspec.json.encode(document), media_type="application/json")


def check_near(request: Request, peer: str) -> None:
    """Raises `Refused` unless client and host name are this machine's.

    A page of somebody else whose name is made to point here (DNS rebinding) brings that name along.
    """
    address = urlsplit(f"//{peer}").hostname or ""
    try:
        near = ipaddress.ip_address(address).is_loopback
    except ValueError:
        near = False
    if not near:
        raise Refused(403, "The demo page is for this machine alone.")
    if request.host not in LOOPBACK:
        raise Refused(421, "The demo page answers to localhost and 127.0.0.1 only.")


def policy(request: Request) -> str:
    """What the demo page may do: nothing but to load its own files and to talk to this port."""
    host = f"[{request.host}]" if ":" in request.host else request.host
    port = "" if request.port is None else f":{request.port}"
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        f"connect-src 'self' ws://{host}{port} wss://{host}{port}; "
        f"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
