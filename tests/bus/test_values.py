"""Values put together, as servers answer that know of batches, that do not, and that refuse them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from broker.bus import api
from broker.bus.values import BATCHES_DISABLED, Values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.bus.base import Put
    from broker.nats.link import Part

STALE = {"error": {"code": 400, "err_code": api.WRONG_LAST_SEQUENCE, "description": "wrong last sequence"}}
DISABLED = {"error": {"code": 400, "err_code": BATCHES_DISABLED, "description": "disabled"}}
PUTS = [("a", b"1", 0), ("b", b"1", 7), ("c", b"1", 0)]


def stored(sequence: int, **more: object) -> dict[str, Any]:
    return {"stream": "KV_test", "seq": sequence, **more}


@attrs.define(eq=False)
class Answered(Values):
    """The server's answers, one list for each time that it is asked."""

    script: list[list[dict[str, Any] | None]] = attrs.Factory(list)

    async def ask(self, puts: Sequence[Put], fields: Sequence[Mapping[str, str]]) -> list[Part]:
        return [(b"", json.dumps(each).encode() if each else b"") for each in self.script.pop(0)]


@pytest.mark.parametrize(
    ("script", "found", "atomic"),
    [
        ([[None, None, stored(12, batch="x", count=3)]], [10, 11, 12], True),
        ([[None, None, STALE], [stored(10), STALE, stored(11)]], [10, None, 11], True),
        # nats-server 2.11 passes the headers over, and takes each by itself.
        ([[stored(10), stored(11), stored(12)]], [10, 11, 12], False),
        ([[stored(10), STALE, stored(11)]], [10, None, 11], False),
        ([[stored(10), stored(11), STALE]], [10, 11, None], False),
        ([[STALE, STALE, STALE], [STALE, STALE, STALE]], [None, None, None], True),
        ([[DISABLED] * 3, [stored(10), STALE, stored(11)]], [10, None, 11], False),
    ],
    ids=["batch", "refused", "ignored", "ignored, one stale", "ignored, last stale", "all stale", "disabled"],
)
async def test_answers(script: list[list[Any]], found: list[int | None], atomic: bool) -> None:
    """Each put has its own outcome, and a server without batches is asked for one once."""
    nobody: Any = None
    values = Answered(nobody, "test", script=script)
    assert await values.put_all(PUTS) == found
    assert values.atomic == atomic
    assert not values.script
