"""Where and how often the schema of documents judges: it takes long, and everybody else goes on."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker.documents.judging import Accepted, Change, Refused
from broker.errors import Rejected
from broker.features.state.queue import INLINE_BYTES, Queue
from broker.features.state.rules import Rule, Rules
from tests.features import documents
from tests.features.documents import Asker, Broker, World

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.define
class Watched:
    """A schema that refuses `no`, and knows by which threads it is asked."""

    threads: list[threading.Thread] = attrs.Factory(list)

    def faults(self, old: Any, new: Any, touched: Any) -> Mapping[str, str]:
        self.threads.append(threading.current_thread())
        return {"/no": "is forbidden"} if "no" in new else {}


async def test_large_values_are_judged_in_a_thread() -> None:
    """Small ones at once."""
    schema, nothing = Watched(), Any
    rule = Rule(pattern=">", schema=schema)  # type: ignore[arg-type]
    queue = Queue(sources=nothing, channel="a", subject="state.acme.a", question="", rule=rule)  # type: ignore[arg-type]
    change = Change(session="s", n=1, user="u", patch={"a": 1}, was=None)
    for size, inline in ((INLINE_BYTES, True), (INLINE_BYTES + 1, False)):
        for value in ({"a": 1}, {"no": 1}):
            verdict = await queue.ruled(change, None, Accepted(value, bytes(size)))
            assert isinstance(verdict, Refused if "no" in value else Accepted)
        assert [each is threading.current_thread() for each in schema.threads] == [inline] * 2
        schema.threads.clear()


async def test_a_change_is_judged_once(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where another one of the same write comes before it."""
    schema = Watched()
    monkeypatch.setattr(documents, "RULES", Rules((Rule(pattern=">", schema=schema),)))  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        world = World(random.Random(0), nursery)
        broker = Broker(world)
        await nursery.start(broker.run)

        async def send(n: int, name: str) -> None:
            change = Change(session=f"s{n}", n=1, user="u", patch={name: 1}, was={name: None})
            await broker.change(Asker("c", "u"), {"a": change})

        world.store("state.acme.a", b"{}", None)
        await send(0, "a")
        assert len(schema.threads) == 1
        with pytest.raises(Rejected):
            await send(1, "no")
        assert len(schema.threads) == 2
        schema.threads.clear()
        async with trio.open_nursery() as clients:
            for n in range(2, 6):
                clients.start_soon(send, n, f"f{n}")
        assert len(schema.threads) == 4 + 3
        nursery.cancel_scope.cancel()
