"""The request `history`: which pages a client may read, and how often.

A page from memory is a request like any other. One that needs the stream waits for its turn: one at a time
for all clients of this broker, with the tenants in turn, so that many who scroll do not delay publishers.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, ClassVar

import attrs
import trio

from broker import errors, filters, limits, subjects
from broker.eventlog.gate import FairGate
from broker.features.history.reading import Before, Reading, Wish
from broker.features.history.stream import Stream
from broker.features.port import Feature
from broker.metrics.meters import RING, STREAM
from broker.session.requests import Page, Request
from broker.wire import messages as m
from broker.wire import positions
from broker.wire.starts import After, Since
from broker.wire.times import parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.features.history.reading import Start
    from broker.features.history.stream import Sources
    from broker.metrics.meters import Histogram
    from broker.session.requests import Asker, Caller, Requests, Terms

USUAL = 50  # events of a page


@attrs.define(eq=False)
class Histories(Feature):
    """Reads pages for clients. `seconds` counts how long they take, by where they are from."""

    adds: ClassVar[tuple[str, ...]] = ("history",)
    sources: Sources
    seconds: Mapping[str, Histogram]
    gate: FairGate = attrs.Factory(lambda: FairGate(1))

    def requests(self) -> Requests:
        return (
            Request(
                message=m.History,
                check=check,
                perform=self.perform,
                replies=(m.Past,),
                waits=True,
                page=Page(
                    path="/history",
                    about="Read stored events back, page by page.",
                    query=("before", "after", "since", "limit", "filter"),
                    status=200,
                    perform=self.read,
                ),
            ),
        )

    async def perform(self, caller: Caller, wish: Wish, _: str | None) -> m.Past:
        for refused in wish.refused:
            caller.note_refusal(code=refused.code, message=refused.message, channel=refused.channel)
        return await self.read(caller, wish)

    async def read(self, asker: Asker, wish: Wish) -> m.Past:
        """Return a page. Raise `Unavailable` and `RateLimited`."""
        principal, began = asker.attach(), trio.current_time()
        async with AsyncExitStack() as turn:

            async def enter() -> None:
                asker.session.spend((limits.HISTORY,), trio.current_time())
                await turn.enter_async_context(self.gate.turn(principal.tenant))

            stream = Stream(
                sources=self.sources, tenant=principal.tenant, patterns=wish.patterns, enter=enter
            )
            reading = Reading(
                stream=stream,
                user=None if principal.monitoring else principal.user,
                wish=wish,
                most_bytes=asker.session.limits.history_bytes,
                most_reads=asker.session.limits.history_reads,
            )
            page = await reading.read()
        now = asker.session.client()
        if (now.subscribe, now.deny) != wish.rights:
            raise errors.Unavailable("the permissions changed meanwhile; try again", retry_after=0.1)
        self.seconds[STREAM if stream.entered else RING].observe(trio.current_time() - began)
        return page


def check(terms: Terms, message: m.History) -> Wish:
    """Return the page to read, of the channels that are allowed. Raise the first refusal if none is."""
    texts = message.channel if isinstance(message.channel, list) else [message.channel]
    if len(texts) > terms.limits.history_channels:
        raise errors.BadMessage(
            f"payload.channel: {len(texts)} in one list; at most {terms.limits.history_channels}"
        )
    most = terms.limits.last_events
    limit = min(USUAL, most) if message.limit is None else message.limit
    if not 1 <= limit <= most:
        raise errors.BadMessage(f"payload.limit: must be 1 to {most}")
    start = start_of(message)
    wanted = None if message.filter is None else filters.parse(message.filter, "payload.filter")
    principal = terms.client()
    patterns: dict[str, tuple[str, ...]] = {}
    refused: list[m.Refused] = []
    first: errors.Forbidden | None = None
    for text in texts:
        pattern = subjects.parse_pattern(subjects.expand_me(text, principal.encoded_user))
        if subjects.is_live(pattern):
            raise errors.InvalidChannel(f"{subjects.shown(pattern)}: a live channel is not stored")
        try:
            patterns[pattern] = principal.check_subscribe(pattern)
        except errors.Forbidden as error:
            first = first or error
            refused.append(m.Refused(channel=pattern, code=error.code, message=error.message))
    if first and not patterns:
        raise first
    return Wish(
        patterns=patterns,
        refused=refused,
        rights=(principal.subscribe, principal.deny),
        start=start,
        limit=limit,
        filter=wanted,
        channel=list(patterns) if isinstance(message.channel, list) else next(iter(patterns)),
    )


def start_of(message: m.History) -> Start:
    """Return where a page begins; None: with the newest event."""
    names = [name for name in ("before", "after", "since") if getattr(message, name) is not None]
    if len(names) > 1:
        raise errors.BadMessage(f"payload: {' and '.join(names)} exclude each other")
    if message.before is not None:
        return Before(positions.parse(message.before))
    if message.after is not None:
        return After(positions.parse(message.after))
    return None if message.since is None else Since(parse_time(message.since))
