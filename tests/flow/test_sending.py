"""The sending task as its connection ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, cast

import attrs

from broker.errors import Unavailable
from broker.eventlog.log import Missing
from broker.flow.client import NOBODY
from tests.support.flows import Bench, Link

if TYPE_CHECKING:
    import trio


@attrs.define(eq=False)
class Ending:
    """A history that cannot be read, which turns out when the connection has gone."""

    link: Link

    async def fetch(self, *_: object) -> NoReturn:
        self.link.flow.detach()
        self.link.flow.client = NOBODY
        raise Unavailable("the connection to NATS is lost")


async def test_a_read_that_fails_after_the_end(autojump_clock: trio.abc.Clock) -> None:
    """A request to NATS is not broken off with its connection: its failure is nobody's any more."""
    bench = Bench()
    link = bench.attach()
    selection = bench.join(link, "a")
    bench.log.history = cast("Any", Ending(link))
    await link.sending.fetch(bench.log, Missing((selection,), 0))
    await link.sending.run()
    assert not link.taken
