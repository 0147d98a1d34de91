"""Asking the service that owns documents what it says of changes.

It is asked by a NATS request on `changes.<tenant>.<channel>`: the document, its revision, and all changes
that wait for it. It agrees to each, amends it or refuses it; or it says that it has written them itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import msgspec

from broker.documents import judging, values
from broker.documents.judging import OUT
from broker.documents.patches import pointer
from broker.errors import BadAnswer, Rejected, Timeout, UnknownOutcome
from broker.features.port import refusal
from broker.wire import events, positions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.bus.base import Bus
    from broker.documents.judging import Change, Version
    from broker.documents.values import Value

ANSWER_SECONDS = 3.0
WORDS_MOST = 1024  # characters of a refusal that are passed on
PATHS_MOST = 64


@attrs.frozen
class Agreed:
    """The service agrees to the change, or to `patch` in its place."""

    patch: Value | judging.Left | None = OUT


@attrs.frozen
class Written:
    """The service has written all changes itself; the version at `revision` has them."""

    revision: str


Saying: TypeAlias = "Agreed | Rejected"


async def ask(
    bus: Bus, subject: str, version: Version, revision: str, changes: Sequence[Change]
) -> list[Saying] | Written:
    """Return what the owner of a document says of each change.

    Raises `Unavailable` where nobody can have heard the question, `UnknownOutcome` where somebody may have,
    `Rejected` where all are refused, and `BadAnswer`.
    """
    question = {
        "changes": [described(each) for each in changes],
        "value": version.value,
        "revision": revision,
    }
    headers = {events.PUBLISHER: changes[0].user}
    try:
        fields, body = await bus.request(
            subject, values.encode(question), headers=headers, seconds=ANSWER_SECONDS
        )
    except Timeout as error:
        raise UnknownOutcome(error.message) from error
    if said := refusal(fields):
        raise said
    return understand(body, len(changes))


def described(change: Change) -> dict[str, Any]:
    parts = {"id": change.id, "user": change.user, "patch": change.patch, "was": change.was}
    found = {name: part for name, part in parts.items() if part is not OUT}
    if change.add:
        found["add"] = {pointer(path): amount for path, amount in change.add.items()}
    return found


def understand(body: bytes, count: int) -> list[Saying] | Written:
    """Return what an answer says of `count` changes. Raises `BadAnswer`, and `Rejected` for all of them."""
    if reason := events.not_json(body):
        raise BadAnswer(f"the answer of the service is not JSON: {reason}")
    answer = msgspec.json.decode(body)
    if answer == {}:
        return [Agreed()] * count
    if not isinstance(answer, dict) or len(answer) != 1:
        raise BadAnswer("the answer of the service is neither {}, {changes}, {error} nor {revision}")
    ((name, said),) = answer.items()
    if name == "error":
        raise refused(said)
    if name == "revision":
        if not isinstance(said, str) or not positions.FORM.match(said):
            raise BadAnswer("the revision of the service is none; it is the position of its message")
        return Written(said)
    if name != "changes" or not isinstance(said, list) or len(said) != count:
        raise BadAnswer(f"the answer of the service does not speak of {count} changes")
    return [saying(each) for each in said]


def saying(answer: Any) -> Saying:
    """Return what the service says of one change."""
    match answer:
        case {"error": error, **rest} if not rest:
            return refused(error)
        case {"patch": dict() | None as patch, **rest} if not rest:
            if reason := values.fault(patch):
                raise BadAnswer(f"the patch of the service: {reason}")
            return Agreed(patch)
        case {**rest} if not rest:
            return Agreed()
    raise BadAnswer("what the service says of a change is neither {}, {patch} nor {error}")


def refused(error: Any) -> Rejected:
    """Return a service's refusal. Raises `BadAnswer`."""
    if not isinstance(error, dict):
        raise BadAnswer("the error of the service is no object: {code, message, paths}")
    code, message, paths = error.get("code"), error.get("message"), error.get("paths")
    words = message if isinstance(message, str) and message else f"the service refuses the change: {code}"
    return Rejected(
        words[:WORDS_MOST],
        status=code if type(code) is int and 0 <= code < 10**9 else None,
        paths=texts(paths),
    )


def texts(paths: Any) -> Mapping[str, str] | None:
    """Return what is wrong at which JSON Pointer, where the service says it: as an object, or a list."""
    if isinstance(paths, list):
        paths = {each: "" for each in paths if isinstance(each, str)}
    if not isinstance(paths, dict):
        return None
    said = {
        name: each if isinstance(each, str) else msgspec.json.encode(each).decode()
        for name, each in paths.items()
    }
    return {name: text[:WORDS_MOST] for name, text in list(said.items())[:PATHS_MOST]}
