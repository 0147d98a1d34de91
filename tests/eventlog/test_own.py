"""What differs in an event for its publisher: each frame as each viewer gets it, in whatever tick it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from broker import config
from broker.eventlog.log import EventLog
from broker.eventlog.tick import merged, woven
from broker.wire import frames
from tests.eventlog.stream import Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker.eventlog.history import Checked
    from broker.eventlog.tick import Tick

NASTY = 'a",}é'  # a user whose JSON has what separates fields
ALL = 0b11111


@attrs.frozen
class Viewer:
    user: str | None
    id: str = "c"

    def connection(self) -> str:
        return self.id


def record(sequence: int, **headers: str) -> Checked:
    named = {f"Broker-{name}": value for name, value in headers.items()}
    return "a", (sequence, "events.acme.a", b'{"publisher":{"user":"x"}}', named or None)


RECORDS = [
    record(1),
    record(2, User="a%22,}%C3%A9", Id="i%2E1", Connection="c", Echo="false"),
    record(3, User="a%22,}%C3%A9", Connection="c"),
    record(4, User="bob", Id='"', Connection="d"),
    record(5, Id="x", Connection="c", Echo="false"),  # of no client
]


def log() -> EventLog:
    return EventLog(bounds=config.Ring(), incarnation="i", position=0, clock=lambda: 0.0, feed=Feed())


def one() -> Tick:
    return log().encode(RECORDS, base=0)


def several() -> list[Tick]:
    made = log()
    first = made.encode(RECORDS[:2], base=0)
    return [first, made.encode(RECORDS[2:], base=first.head)]


@pytest.mark.parametrize(
    "make",
    [one, lambda: merged(several()), lambda: woven(several(), after=0, upto=several()[-1].head)],
    ids=["as it came", "merged", "woven"],
)
@pytest.mark.parametrize(
    ("viewer", "second", "fourth"),
    [
        (None, {"user": NASTY}, {"user": "bob"}),
        (Viewer(None), {"user": NASTY}, {"user": "bob"}),
        (Viewer(NASTY), None, {"user": "bob"}),
        (Viewer(NASTY, "d"), {"user": NASTY, "id": "i.1"}, {"user": "bob"}),
        (Viewer("bob"), {"user": NASTY}, {"user": "bob", "id": '"'}),
    ],
)
def test_views(make: Callable[[], Tick], viewer: Viewer | None, second: Any, fourth: Any) -> None:
    """The id for its user alone, nothing at all for the connection without echo; the rest is as it was."""
    found: Sequence[bytes] = make().view(ALL, viewer)
    shown = [
        json.loads(frames.payload(frame))["payload"].get("publisher") if frame else None for frame in found
    ]
    assert shown == [None, second, {"user": NASTY}, fourth, None]
    assert [bool(frame) for frame in found] == [True, second is not None, True, True, True]
    assert all(json.loads(frames.payload(each))["payload"]["event"] for each in found if each)
    assert make().view(0b11000, viewer) == found[3:]
