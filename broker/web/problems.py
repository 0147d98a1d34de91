"""Answers of the HTTP side. Whatever is refused is a problem document (RFC 9457)."""

from __future__ import annotations

import json
from email.utils import formatdate
from http import HTTPStatus
from typing import Literal, TypeAlias

import attrs
from msgspec import UNSET, UnsetType

JSON, PROBLEM = "application/json", "application/problem+json"
BODILESS = (204, 304)  # RFC 9110 section 6.4.1
Framing: TypeAlias = Literal["length", "chunks", "close"]


@attrs.frozen(kw_only=True)
class Problem:
    """Why a request was not served (RFC 9457). `code` and `retry_after_ms` are the protocol's."""

    type: str
    title: str
    status: int
    detail: str
    code: str | UnsetType = UNSET
    retry_after_ms: int | UnsetType = UNSET


@attrs.frozen(kw_only=True)
class Response:
    """An answer, after which the connection is closed.

    `framing`: how the reader finds its end. All of the body is here (`length`), or it follows in chunks, or
    up to the close, which an HTTP/1.0 client needs and cannot tell from a cut. `silent`: it stays away.
    """

    status: int
    body: bytes
    media_type: str
    headers: tuple[tuple[str, str], ...] = ()
    caching: str = "no-store"
    framing: Framing = "length"
    silent: bool = False

    def beside(self, headers: tuple[tuple[str, str], ...]) -> Response:
        """With further headers."""
        return attrs.evolve(self, headers=self.headers + headers)

    def to(self, method: str) -> Response:
        """As the answer to a request of this method: one to HEAD has no body (RFC 9110 section 9.3.2)."""
        return attrs.evolve(self, silent=True) if method == "HEAD" else self

    def encode(self) -> bytes:
        """As HTTP/1.1 bytes. Header values are ours, never the client's."""
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
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
        """With an answer that is there already."""
        made = cls(response.status, "")
        made.response = response
        return made


def problem(
    status: int,
    detail: str,
    *headers: tuple[str, str],
    code: str | UnsetType = UNSET,
    retry_after_ms: int | UnsetType = UNSET,
) -> Response:
    """`detail` is a sentence for the client's developer: what and where, never a secret."""
    document = Problem(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        retry_after_ms=retry_after_ms,
    )
    shown = attrs.asdict(document, filter=lambda _, value: value is not UNSET)
    return Response(status=status, body=json.dumps(shown).encode(), media_type=PROBLEM, headers=headers)
