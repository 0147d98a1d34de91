"""The streams that the broker works with: list them, and adopt one."""

# Without `from __future__ import annotations`: msgspec reads these annotations at run time.

from typing import TYPE_CHECKING

import attrs

from broker.errors import NotFound

if TYPE_CHECKING:
    from broker.bus.base import Bus, Standing


@attrs.frozen(kw_only=True)
class Difference:
    """A setting of the stream, what it is and what the configuration has (`key`, where it is one of ours).

    With `loses` the change would delete events, copies of them, or the memory of ids, or leave out subjects
    that are kept or published again.
    """

    setting: str
    key: str | None
    found: str
    wanted: str
    loses: bool


@attrs.frozen(kw_only=True)
class StreamReport:
    """A stream: whether the broker made or adopted it, why it cannot be used, and in what it differs."""

    stream: str
    ours: bool
    fault: str | None
    differences: list[Difference]


@attrs.frozen(kw_only=True)
class StreamList:
    streams: list[StreamReport]


@attrs.define(eq=False)
class Streams:
    """Raises `BrokerError`s: `NotFound` for a stream that the broker does not work with."""

    bus: "Bus"

    async def streams(self) -> StreamList:
        found = []
        for name in self.bus.streams:
            try:
                found.append(await self.stream(name))
            except NotFound:  # it is made when it is needed
                continue
        return StreamList(streams=found)

    async def stream(self, name: str) -> StreamReport:
        return report(await self.bus.examine(name))

    async def adopt(self, name: str) -> StreamReport:
        """Make it ours, and as the configuration has it; what it was before."""
        return report(await self.bus.adopt(name))


def report(found: "Standing") -> StreamReport:
    return StreamReport(
        stream=found.stream,
        ours=found.ours,
        fault=found.fault,
        differences=[Difference(**attrs.asdict(each)) for each in found.changes],
    )
