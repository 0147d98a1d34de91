"""The sending task as its connection ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, cast

import attrs

from broker.actors.chunks import Reading
from broker.actors.outlet import NOBODY
from broker.actors.sending import Sending
from broker.errors import Unavailable
from broker.metrics.meters import Meters
from tests.actors.test_fanout import Bench, Link

if TYPE_CHECKING:
    import trio


@attrs.define(eq=False)
class Ending:
    """A history that cannot be read, which turns out when the connection has gone."""

    bench: Bench
    link: Link

    async def span(self, *_: object, **__: object) -> NoReturn:
        self.bench.fanout.detach(self.link.outlet)
        self.link.outlet.client = NOBODY
        raise Unavailable("the connection to NATS is lost")


async def test_a_read_that_fails_after_the_end(autojump_clock: trio.abc.Clock) -> None:
    """A request to NATS is not broken off with its connection: its failure is nobody's any more."""
    bench = Bench()
    link = bench.attach()
    topic = bench.join(link, "a")
    bench.fanout.history = cast("Any", Ending(bench, link))
    sending = Sending(
        send_some=link_takes,
        outlet=link.outlet,
        tenant=lambda: None,
        catch_ups_at_once=1,
        progressed=lambda: None,
        meters=Meters(),
    )
    reading = Reading(every={topic: 0}, latest={}, few={})
    assert await sending.from_stream(bench.fanout, reading, after=0) is None


async def link_takes(data: memoryview) -> int:
    return len(data)
