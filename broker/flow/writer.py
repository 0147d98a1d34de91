"""What has been written of the tenant's log to a connection, and what it still has to get.

No I/O, except the link's `send`, which passes on what the kernel accepts at once.
"""

from __future__ import annotations

from itertools import compress, islice
from types import MappingProxyType
from typing import TYPE_CHECKING

from broker import subjects
from broker.eventlog.places import sequence_of
from broker.eventlog.tick import bits, indices
from broker.flow import lag
from broker.flow.pipe import Pipe
from broker.flow.reader import Reader
from broker.wire import frames as framing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from broker.eventlog.lanes import Held, Lane
    from broker.eventlog.log import EventLog, Page
    from broker.eventlog.selection import Selection
    from broker.eventlog.tick import Tick
    from broker.flow.client import Client
    from broker.wire.frames import Framing
    from broker.wire.messages import Lag


NO_LANES: Mapping[Selection, Lane] = MappingProxyType({})


class Options:
    """State that only few connections have.

    `policies`: lag policies other than the default; `floors`: places up to which a selection gets nothing;
    `lanes`: that of each paced selection; `finer`: of each lane, the selections whose events come sooner;
    `dropped`: selections of which `count` events (None: unknown) were dropped and not reported yet;
    `catch_ups`: the number begun so far; `waits`: bytes waiting, counted while a policy is `strict`.
    """

    __slots__ = ("catch_ups", "count", "dropped", "finer", "floors", "lanes", "policies", "strict", "waits")

    def __init__(self) -> None:
        self.policies: dict[Selection, Lag] = {}
        self.floors: dict[Selection, int] = {}
        self.lanes: dict[Selection, Lane] = {}
        self.finer: dict[Lane, tuple[Selection, ...]] = {}
        self.dropped: tuple[Selection, ...] = ()
        self.count: int | None = 0
        self.catch_ups = 0
        self.strict = False
        self.waits = 0


class Writer(Pipe):
    """Writes the log to a connection.

    `framing` converts event frames for its link, if it needs that. `user` is whose own events have an id
    here. `mask` is its share of the running tick until that is written. `stored` and `unstored` are its
    selections; `main` reads them while it is behind (None: it is up to date, and nothing is unsent), `beside`
    are its catch-ups. `owed` writes a page of what is not in the log, if there is any, and returns whether
    there is more.
    """

    __slots__ = ("beside", "framing", "log", "main", "mask", "options", "owed", "stored", "unstored", "user")

    def __init__(
        self, *, send: Callable[[bytes], int], client: Client, whole: bool, framing: Framing | None = None
    ) -> None:
        super().__init__(send=send, client=client, whole=whole)
        self.framing = framing
        self.user: str | None = None
        self.owed: Callable[[], bool] | None = None
        self.log: EventLog | None = None
        self.mask = 0
        self.stored: tuple[Selection, ...] = ()
        self.unstored: tuple[Selection, ...] = ()
        self.main: Reader | None = None
        self.beside: tuple[Reader, ...] = ()
        self.options: Options | None = None

    # --- P, and what is written --------------------------------------------------------------------

    def place(self) -> int:
        """Return the place of P: everything in the stored flow up to it has been written."""
        if self.main is not None:
            return self.main.place
        if self.log is None:
            return 0
        if self.mask and self.log.running:
            return self.log.running.base
        return self.log.end()

    def position(self) -> int:
        """Return P, for a frame that is written next."""
        self.settle()
        return sequence_of(self.place())

    def push(self, frame: bytes) -> None:
        """Write a reply, a heartbeat or the like in its turn: after the events up to P, before later ones."""
        self.settle()
        self.write((frame,))

    def settle(self) -> None:
        """Write the share of the running tick now, so that what is written next follows it."""
        log = self.log
        if self.mask and self.main is None and log and log.running:
            mask, self.mask = self.mask, 0
            frames = log.framed_share(log.running, mask, self.framing, self)
            data = b"".join(frames)
            sent = self.try_send(data) if data else 0
            if sent < len(data):
                self.short(log.running, mask, data, sent)
            else:
                log.traffic.add(len(frames), len(data))

    def short(self, tick: Tick, mask: int, data: bytes, sent: int) -> None:
        """Read on from the log, after a link that has not accepted all of a share of the running tick."""
        log = self.joined()
        frames = log.framed_share(tick, mask, self.framing, self)
        main = self.fall_behind(tick.head)
        written = self.keep(frames, data, sent)
        left = sum(map(len, frames[written:]))
        log.traffic.add(written, len(data) - left)
        if left:
            main.place = main.unstored = nth_place([(tick, mask)], written)
            if self.options:
                self.options.waits = left

    def give(
        self,
        page: Page,
        reader: Reader,
        after: int,
        ahead: Sequence[bytes] = (),
        *,
        all_of_it: bool = False,
    ) -> int:
        """Write the next events of a reader, after the frames in `ahead`. Return the place reached.

        Events that the link does not accept are read again later, except the rest of a partly sent frame: by
        then they may have been deleted, or be left out. With `all_of_it` all are kept instead.
        """
        events = self.render(page, reader)
        frames = [*ahead, *events]
        if not frames:
            return page.end
        if all_of_it or self.rest is not None:
            self.write([frame for frame in frames if frame])
            written = len(frames)
        else:
            written = self.offer(frames)
        given = max(0, written - len(ahead))
        self.note_read(page, reader, given)
        size = sum(map(len, events[:given]))
        if self.log:
            self.log.traffic.add(given, size)
        if self.options and reader is self.main:
            self.options.waits = max(0, self.options.waits - size)
        if written == len(frames):
            return page.end
        return nth_place(page.shares, given) if given else after

    def held_up(self) -> None:
        if self.main is None and self.log is not None:
            self.fall_behind(self.log.end())
        self.client.held_up()

    def fall_behind(self, place: int) -> Reader:
        """Read the log from a place on, from now on."""
        self.main = Reader(place, unstored=place)
        self.mask = 0
        if self.options:
            self.options.waits = 0
        return self.main

    def render(self, page: Page, reader: Reader) -> list[bytes]:
        """Return the frames of a page as written for a reader."""
        # What a channel holds, its publisher is shown as everybody is.
        viewer = None if reader.snapshot or reader.newer else self
        frames = [frame for tick, mask in page.shares for frame in tick.view(mask, viewer)]
        if self.lanes:
            return self.render_paced(page, reader, frames)
        if reader.number is not None:
            frames = [frame and framing.mark(frame, reader.number) for frame in frames]
        return framing.converted(frames, self.framing, marked=reader.number is not None)

    def rejoin(self) -> bool:
        """Become up to date if possible, without an await between the test and the change."""
        main, log = self.main, self.log
        if main is None or log is None or self.rest is not None or main.groups:
            return False
        if main.place < log.end() or main.unstored < log.end() or main.held or main.lead is not None:
            return False
        self.main = None
        for lane in self.lanes.values():
            lane.version += 1  # it may wait for the next event of a channel
        self.mask = 0  # the running tick is in the ring and was read there
        if self.options:
            if not self.lanes:  # what is covered depends on them
                self.options.floors.clear()
            self.options.waits = 0
        return True

    # --- paced selections --------------------------------------------------------------------------

    @property
    def lanes(self) -> Mapping[Selection, Lane]:
        return self.options.lanes if self.options else NO_LANES

    def will_read(self, place: int, *, unstored: bool) -> bool:
        """Return whether it is behind, and comes to the event at a place by reading the log."""
        return self.main is not None and place > (self.main.unstored if unstored else self.main.place)

    def give_due(self, due: Iterable[tuple[Lane, Held]]) -> None:
        """Write what is due in its lanes, once for all subscriptions. While it is behind, keep it instead."""
        self.settle()
        wanted = {
            held.place: held for lane, held in due if self in lane.members and not self.covered(lane, held)
        }
        self.give_held([wanted[place] for place in sorted(wanted)])

    def give_held(self, events: Sequence[Held]) -> None:
        """Write events of lanes, as far as the link accepts them; of the rest, keep the newest by channel."""
        kept: Iterable[Held] = events
        if self.rest is None and (self.main is None or not self.main.held):
            frames = [self.form(each) for each in events]
            written = self.offer(frames) if any(frames) else len(frames)
            if self.log:
                self.log.traffic.add(written, sum(map(len, frames[:written])))
            kept = events[written:]
        if kept and self.main is not None:
            self.main.held.update({each.channel: each for each in kept})
            self.client.fell_behind()

    def form(self, held: Held) -> bytes:
        """Return an event of a lane as it is written; nothing if it is not for this connection."""
        own = held.own
        if own is None or own.user != self.user:
            return held.form(self.framing)
        if own.unechoed is not None and own.unechoed == self.connection():
            return b""
        if own.id is None:
            return held.form(self.framing)
        frame = framing.paced(framing.own(held.frame, own.user, own.id))
        return self.framing(frame, True) if self.framing else frame

    def covered(self, lane: Lane, held: Held) -> bool:
        """Return whether an event of a lane has come, or comes, for another selection that is not paced, or
        has a finer pace.
        """
        options = self.options
        if options is None or len(self.stored) + len(self.unstored) == 1:
            return False
        finer = options.finer.get(lane)
        if finer is None:
            finer = options.finer[lane] = tuple(self.find_finer(lane))
        return any(held.place > options.floors.get(each, 0) and held.matches(each) for each in finer)

    def find_finer(self, lane: Lane) -> Iterator[Selection]:
        """Yield the selections that can match the same events as a lane, and bring them sooner."""
        own = lane.selection
        for each in (*self.stored, *self.unstored):
            if each is own or (own.literal and each.literal):
                continue
            other = self.lanes.get(each)
            same = each.filter == own.filter  # another may pass newer events, that take the place of ours
            if other is None:
                policy = (self.options and self.options.policies.get(each)) or lag.default(each)
                sooner = own.unstored or policy in ("replay", "close") or (policy == "latest" and same)
            else:
                sooner = same and (other.ticks, each.serial) < (lane.ticks, own.serial)
            if sooner and subjects.overlaps(each.pattern, own.pattern):
                yield each

    def render_paced(self, page: Page, reader: Reader, frames: list[bytes]) -> list[bytes]:
        """Return frames of a page with the mark of what is read for paced selections alone."""
        selections = (*self.stored, *self.unstored) if reader is self.main else reader.selections
        plain = [each for each in selections if each not in self.lanes]
        floors = self.floors() if reader is self.main else None
        found, rest = [], iter(frames)
        for tick, mask in page.shares:
            unpaced = tick.share(plain, floors) if plain else 0
            for index in indices(mask):
                frame, marked = next(rest), reader.number is not None
                if frame and not unpaced >> index & 1:
                    frame, marked = framing.paced(frame), True
                if frame and reader.number is not None:
                    frame = framing.mark(frame, reader.number)
                found.append(self.framing(frame, marked) if frame and self.framing else frame)
        return found

    def note_read(self, page: Page, reader: Reader, given: int) -> None:
        """Begin windows for the first events of a page of a reader, which have been written."""
        for selection, lane in self.lanes.items():
            if reader is not self.main and selection not in reader.selections:
                continue  # marked events are for others
            left = given
            for tick, mask in page.shares:
                matched = tick.mask(selection)
                for index in islice(indices(mask), left):
                    if matched >> index & 1:
                        lane.read(self, tick.channels[index], tick.places[index])
                left = max(0, left - mask.bit_count())

    # --- questions ---------------------------------------------------------------------------------

    def readers(self) -> Iterator[Reader]:
        if self.main is not None:
            yield self.main
        yield from self.beside

    def connection(self) -> str:
        return self.client.who()["connection"]

    def floors(self) -> Mapping[Selection, int] | None:
        return self.options.floors if self.options else None

    def joined(self) -> EventLog:
        """Return its log. Raise `LookupError` if it has none."""
        if self.log is None:
            raise LookupError("the connection is not in a tenant")
        return self.log


def nth_place(shares: Iterable[tuple[Tick, int]], count: int) -> int:
    """Return the place of the `count`-th event of some shares, from 1."""
    places = (place for tick, mask in shares for place in compress(tick.places, bits(mask)))
    return next(islice(places, count - 1, None))
