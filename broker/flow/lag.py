"""The lag policies: which events are left out for a slow client, as functions over shares.

Where a subscription's policy allows it, events are left out here and nowhere else; none is ever sent before
another that precedes it in the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from broker.eventlog.tick import indices

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from broker.eventlog.log import Page
    from broker.eventlog.selection import Selection
    from broker.eventlog.tick import Tick
    from broker.wire.messages import Lag

# A page that leaves events out is kept to its end, so that the count in its gap is true. Such a slow client
# holds no more than this.
THIN_PAGE_BYTES = 8192
WAITING_UNSTORED = 256  # unstored events that wait for a connection that is behind, by policy "drop"


def nothing_comes(*_: object) -> bool:
    return False


def default(selection: Selection) -> Lag:
    return "drop" if selection.unstored else "replay"


def strict(selection: Selection, policy: Lag) -> bool:
    """Return whether a policy limits how much may wait."""
    return policy == "close" or (policy == "drop" and not selection.unstored)


@attrs.frozen(kw_only=True)
class Thinning:
    """Selections by what may be left out: nothing, all but the newest of each channel, all but a few.

    What is left out of `paced` ones, all but the newest of each channel, nobody is told.
    """

    every: Collection[Selection]
    latest: Collection[Selection]
    few: Collection[Selection]
    paced: Collection[Selection]

    def __bool__(self) -> bool:
        return bool(self.latest or self.few or self.paced)

    @property
    def told(self) -> Collection[Selection]:
        """Return those of which a gap says what was left out."""
        return (*self.latest, *self.few)


def thinning(
    selections: Collection[Selection], policies: Mapping[Selection, Lag], lanes: Collection[Selection] = ()
) -> Thinning:
    kinds: dict[str, list[Selection]] = {"every": [], "latest": [], "few": [], "paced": []}
    for each in selections:
        if each in lanes:
            kinds["paced"].append(each)
            continue
        policy = policies.get(each) or default(each)
        # "drop" of stored events happens when too much waits (`overflow`); the rest is read in full.
        few = policy == "drop" and each.unstored
        kinds["latest" if policy == "latest" else "few" if few else "every"].append(each)
    return Thinning(**kinds)


def thin(
    page: Page,
    how: Thinning,
    floors: Mapping[Selection, int] | None,
    *,
    after: int,
    comes: Callable[[Selection, str, int], bool],
) -> tuple[Page, int]:
    """Return a page without the events that may be left out, cut to size, and the number left out.

    `comes` says of a paced selection, a channel and a place whether that event comes from its lane.
    """
    keep = [0] * len(page.shares)
    counted = [0] * len(page.shares)
    newest: dict[tuple[Selection, str], tuple[int, int]] = {}
    queue: list[tuple[int, int]] = []
    for number, (tick, mask) in enumerate(page.shares):
        for selection in (*how.latest, *how.paced):
            for index in indices(tick.share((selection,), floors, after=after, upto=page.end)):
                newest[selection, tick.channels[index]] = number, index
        keep[number] = tick.share(how.every, floors, after=after, upto=page.end)
        counted[number] = mask
        if how.paced:
            counted[number] = tick.share(how.told, floors, after=after, upto=page.end)
        queue += [
            (number, index) for index in indices(tick.share(how.few, floors, after=after, upto=page.end))
        ]
    for (selection, channel), (number, index) in newest.items():
        if not comes(selection, channel, page.shares[number][0].places[index]):
            keep[number] |= 1 << index
    for number, index in queue[-WAITING_UNSTORED:]:
        keep[number] |= 1 << index
    return cut(page, keep, counted)


def cut(page: Page, keep: Sequence[int], counted: Sequence[int]) -> tuple[Page, int]:
    """Return the page with the events to keep, cut to its maximum size, and the number of events left out, of
    those that are `counted`.
    """
    shares: list[tuple[Tick, int]] = []
    size = passed = 0
    for (tick, _), kept, count in zip(page.shares, keep, counted, strict=True):
        for index in indices(kept):
            size += len(tick.frames[index])
            if size >= THIN_PAGE_BYTES:
                window = (2 << index) - 1
                shares.append((tick, kept & window))
                passed += (count & ~kept & window).bit_count()
                return attrs.evolve(page, end=tick.places[index], shares=shares), passed
        shares.append((tick, kept))
        passed += (count & ~kept).bit_count()
    return attrs.evolve(page, shares=shares), passed
