"""The JetStream API (https://docs.nats.io/reference/reference-protocols/nats_api_reference), in JSON, over
whichever connection is up.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import trio

from broker.bus.base import PublishAck, StreamState
from broker.errors import Unavailable
from broker.nats.link import RETRY_AFTER_SECONDS, Link, Part, Said, away

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STREAM_NOT_FOUND = 10059  # the server's `err_code`s, errors.json in its source
MESSAGE_TOO_LARGE = 10054
WRONG_LAST_SEQUENCE = 10071  # the stream, or the subject, ends at another sequence than expected
WRONG_SEQUENCE = 10164  # the same, where the server does not say at which
STORE_FAILED = 10077  # "maximum bytes exceeded", "maximum messages exceeded"
NOT_THERE = (10037, 10043)  # no message found, sequence not found
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class ApiError(Unavailable):
    """The server's refusal. `number` is its `err_code`."""

    def __init__(self, error: Mapping[str, Any], path: str) -> None:
        super().__init__(f"{path}: {error.get('description', error)}", retry_after=RETRY_AFTER_SECONDS)
        self.number = error.get("err_code", 0)


@attrs.define(eq=False)
class JetStream:
    """Calls of the API. All raise `Unavailable`; `seconds` is how long an answer may take."""

    prefix: str
    seconds: float
    link: Link | None = None
    trouble: str = "NATS has not been reached yet"  # why there is no link

    async def up(self) -> Link:
        """Return the connection. Raises `Unavailable` when there is none."""
        if self.link is None:
            await trio.lowlevel.checkpoint()
            raise away(self.trouble)
        return self.link

    async def ask(self, path: str, query: Mapping[str, object]) -> list[Part]:
        """Return all parts of the answer to a direct get, the last one with its status."""
        body = json.dumps(query).encode()
        return await (await self.up()).request(f"{self.prefix}.{path}", body, seconds=self.seconds, many=True)

    async def ask_each(self, path: str, queries: Sequence[Mapping[str, object]]) -> list[Part]:
        """Return the answers, of one part each, to several direct gets."""
        link = await self.up()
        subject = f"{self.prefix}.{path}"
        said: list[Said] = [(subject, json.dumps(query).encode(), {}) for query in queries]
        return await link.request_all(said, seconds=self.seconds)

    async def call(self, path: str, query: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return the answer to one call. Raises `ApiError` for a refusal."""
        body = b"" if query is None else json.dumps(query).encode()
        parts = await (await self.up()).request(f"{self.prefix}.{path}", body, seconds=self.seconds)
        return decode(parts[0][1], path)

    async def infos(self, streams: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return the answers to `STREAM.INFO` of several streams; None for one that does not exist."""
        paths = [f"{self.prefix}.STREAM.INFO.{name}" for name in streams]
        link = await self.up()
        answers = await link.request_all([(path, b"", {}) for path in paths], seconds=self.seconds)
        found: list[dict[str, Any] | None] = []
        for path, (_, body) in zip(paths, answers, strict=True):
            try:
                found.append(decode(body, path))
            except ApiError as error:
                if error.number != STREAM_NOT_FOUND:
                    raise
                found.append(None)
        return found


def decode(body: bytes, path: str) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        raise away(f"{path}: the answer of NATS is not JSON") from None
    if not isinstance(answer, dict):
        raise away(f"{path}: the answer of NATS is not a JSON object")
    if "error" in answer:
        raise ApiError(answer["error"], path)
    return answer


def acknowledged(body: bytes, subject: str) -> PublishAck:
    """Return what a stream answers to a message that it has stored. Raises `ApiError` for its refusal."""
    answer = decode(body, subject)
    if type(answer.get("seq")) is not int:
        raise away(f"{subject}: the answer is not that of a stream; does a service reply there?")
    return PublishAck(sequence=answer["seq"], duplicate=answer.get("duplicate", False))


def incarnation(info: Mapping[str, Any], generation: int) -> str:
    """Return the incarnation of the stream in an answer to `STREAM.INFO`, see `bus.generations`."""
    return created(info) + (base36(generation) if generation else "")


def stream_state(info: Mapping[str, Any], *, incarnation: str) -> StreamState:
    """Return the state in an answer to `STREAM.INFO`."""
    state = info["state"]
    last = state["last_seq"]
    first = state["first_seq"] if state["messages"] else last + 1
    return StreamState(
        incarnation=incarnation,
        first=first,
        last=last,
        duplicate_window=info["config"].get("duplicate_window", 0) / 1e9,
    )


def created(info: Mapping[str, Any]) -> str:
    """Return the incarnation of the stream: the time at which it was created (µs, base 36)."""
    return base36(nanoseconds(info["created"]) // 1000)


def nanoseconds(text: str) -> int:
    """Return a time of the server's (RFC 3339, UTC, finer than a `datetime`) in nanoseconds since 1970."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 10**9 + int(fraction.ljust(9, "0"))


def base36(number: int) -> str:
    text = ""
    while number or not text:
        number, digit = divmod(number, 36)
        text = DIGITS[digit] + text
    return text
