"""HTTP responses. Every refusal is a problem document (RFC 9457)."""

from __future__ import annotations

import json
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

import attrs
from msgspec import UNSET, UnsetType

JSON, PROBLEM = "application/json", "application/problem+json"
BODILESS = (204, 304)  # RFC 9110 section 6.4.1
Framing: TypeAlias = Literal["length", "chunks", "close"]
Headers: TypeAlias = tuple[tuple[str, str], ...]


@attrs.frozen(kw_only=True)
class Problem:
    """Why a request was not served (RFC 9457). `code` and what follows are the protocol's."""

    type: str
    title: str
    status: int
    detail: str
    code: str | UnsetType = UNSET
    retry_after_ms: int | UnsetType = UNSET
    paths: dict[str, str] | UnsetType = UNSET
    conflict: list[dict[str, Any]] | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class Response:
    """A response, after which the connection is closed.

    `framing` says how the client finds the end of the body: it is complete here (`length`), or it follows in
    `chunks`, or up to the `close`, which HTTP/1.0 needs and cannot tell from a cut. A `silent` response has
    the head only.
    """

    status: int
    body: bytes
    media_type: str
    headers: Headers = ()
    caching: str = "no-store"
    framing: Framing = "length"
    silent: bool = False

    def beside(self, headers: Headers) -> Response:
        """Return the response with these headers added."""
        return attrs.evolve(self, headers=self.headers + headers) if headers else self

    def to(self, method: str) -> Response:
        """Return the response to a request of this method: HEAD gets no body (RFC 9110 section 9.3.2)."""
        return attrs.evolve(self, silent=True) if method == "HEAD" else self

    def encode(self) -> bytes:
        """Return the bytes of HTTP/1.1. No header value is the client's, but for a checked Origin."""
        lines = [
            f"HTTP/1.1 {self.status} {phrase(self.status)}",
            f"Date: {formatdate(usegmt=True)}",
            f"Cache-Control: {self.caching}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        if self.status not in BODILESS:
            lines.append(f"Content-Type: {self.media_type}")
            if self.framing == "length":
                lines.append(f"Content-Length: {len(self.body)}")
            elif self.framing == "chunks":
                lines.append("Transfer-Encoding: chunked")
        return "\r\n".join([*lines, "\r\n"]).encode("ascii") + (b"" if self.silent else self.body)


class Refused(Exception):
    """The request is not served; `response` says why."""

    def __init__(self, status: int, detail: str, *headers: tuple[str, str]) -> None:
        super().__init__(detail)
        self.response = problem(status, detail, *headers)

    @classmethod
    def by(cls, response: Response) -> Refused:
        """Return a refusal with a response that exists already."""
        made = cls(response.status, "")
        made.response = response
        return made


def problem(
    status: int,
    detail: str,
    *headers: tuple[str, str],
    code: str | UnsetType = UNSET,
    **more: object,
) -> Response:
    """Return a problem document with `more` fields; `detail` says what is wrong and where, and no secrets."""
    title = phrase(status)
    document = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        **more,
    }
    shown = {name: value for name, value in document.items() if value is not UNSET}
    return Response(status=status, body=json.dumps(shown).encode(), media_type=PROBLEM, headers=headers)


def phrase(status: int) -> str:
    """Return the reason phrase of a status: of one that has none, such as a service's own, that of its class.

    RFC 9110 section 15: a client treats a status that it does not know like the first of its class.
    """
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return HTTPStatus(status // 100 * 100).phrase
