"""Overflow: more data waits for a client than its lag policies allow, so it is disconnected or events are
dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from broker.eventlog.places import sequence_of
from broker.wire.messages import Gap, named

if TYPE_CHECKING:
    from broker.eventlog.log import EventLog
    from broker.flow.reader import Reader
    from broker.flow.writer import Writer


def overflows(flow: Writer, size: int, limit: int) -> bool:
    """Record that a share of `size` bytes waits; return whether that exceeds what the lag policies allow."""
    main, options, log = flow.main, flow.options, flow.log
    if main is None or options is None or log is None or not options.strict or main.resuming:
        return False
    running = log.running
    if running and main.place > running.base:  # it has read part of the tick already
        left = len(running.frames) - running.before(main.place)
        size = size * left // len(running.frames)
    options.waits += size
    if flow.stored and sequence_of(main.place) < sequence_of(log.ring.floor):
        return True
    return options.waits + flow.unsent >= limit


def overflow(flow: Writer) -> None:
    """End the connection, or drop what may be dropped."""
    main, options, log = flow.main, flow.options, flow.log
    if main is None or options is None or log is None:
        return
    if "close" in options.policies.values():
        flow.client.too_slow()
        return
    dropped = [each for each in flow.stored if options.policies.get(each) == "drop"]
    if not dropped:
        return
    options.waits = 0
    count = log.count(dropped, options.floors, main.place)
    if count == 0:
        return
    options.floors.update(dict.fromkeys(dropped, log.end()))
    options.count = None if count is None or options.count is None else options.count + count
    options.dropped = tuple(dropped)


def tell_dropped(flow: Writer, log: EventLog, main: Reader) -> None:
    """Report what was dropped since the link last accepted anything, in one gap."""
    options = flow.options
    if options is None or not options.dropped:
        return
    dropped, count = [each for each in options.dropped if each in flow.stored], options.count
    options.dropped, options.count = (), 0
    start, everything = main.place, len(dropped) == len(flow.stored)
    if not dropped:
        return
    if everything:
        main.place = max(start, min(options.floors[each] for each in dropped))
    flow.client.tell(
        Gap(
            channel=named(each.pattern for each in dropped),
            reason="lag",
            start=log.text(sequence_of(start)),
            end=log.text(sequence_of(main.place)) if everything else UNSET,
            count=UNSET if count is None or any(each.filter for each in dropped) else count,
        )
    )
