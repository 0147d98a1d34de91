"""A connection in the log of its tenant: how its subscriptions begin and end, and its moves. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from msgspec import UNSET

from broker.errors import Unavailable
from broker.eventlog.places import at, sequence_of
from broker.flow import lag
from broker.flow.reader import Group, Reader, swapped
from broker.flow.writer import Options, Writer
from broker.wire.messages import Gap, named

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from broker.eventlog.lanes import Held
    from broker.eventlog.log import EventLog
    from broker.eventlog.selection import Selection
    from broker.eventlog.snapshots import Snapshot
    from broker.wire.messages import Lag


@attrs.frozen(kw_only=True)
class Start:
    """Where subscriptions begin: after a place, or with a snapshot at P.

    Paced ones read from the place `lead` on, which is before, what may have been held for them. The client
    has been told of deletions up to the position `warned`.
    """

    place: int = 0
    lead: int | None = None
    snapshot: Snapshot | None = None
    warned: int = 0


@attrs.frozen
class Begun:
    """The result of beginning subscriptions: whether they are live, and the number of a catch-up, if any."""

    live: bool
    number: int | None = None


class Flow(Writer):
    """A connection in the log of its tenant: its subscriptions, from the first to the last."""

    __slots__ = ()

    # --- subscriptions: all that needs NATS is done before -----------------------------------------

    def subscribe(
        self,
        selections: Collection[Selection],
        *,
        start: Start | None,
        again: bool,
        policy: Lag | None,
        listed: bool,
        now: float,
        every_ms: int | None = None,
    ) -> Begun:
        """Begin subscriptions at a start, or at P. The flow holds the selections from here on.

        Existing subscriptions continue, under another filter or at another pace if they have one now, unless
        they are to begin `again`. Raise `Unavailable` if the connection ends meanwhile.
        """
        log = self.joined()
        self.settle()
        if again:
            for each in selections:
                self.leave(each.pattern, selections)
        if self.log is not log:  # a send within one of these has ended the connection
            raise Unavailable("the connection has ended")
        for each in selections:
            if (held := self.find(each.pattern)) is not None and held is not each:
                each.uses += 1
                self.exchange(held, each)
        for each in selections:
            self.set_pace(each, every_ms)
        for each in selections:
            if each.unstored and self.find(each.pattern) is None:
                self.join(each, floor=log.end())
                each.uses += 1  # last: what breaks before holds nothing
        stored = [each for each in selections if not each.unstored]
        if not stored:
            begun = Begun(live=True)
        elif start is None:
            begun = self.go_on(stored, listed=listed)
        else:
            begun = self.begin(stored, start, listed=listed, now=now)
        self.set_policies(selections, policy if every_ms is None else None)
        return begun

    def begin(self, stored: list[Selection], start: Start, *, listed: bool, now: float) -> Begun:
        """Begin subscriptions in the past: as a resume while there is no stored flow, else as a catch-up."""
        group = Group(stored, listed=listed)
        first = start.place if start.lead is None else start.lead
        behind = start.snapshot is not None or sequence_of(first) < sequence_of(self.place())
        if behind and (start.snapshot or self.stored or self.beside):
            options = self.opt()
            options.catch_ups += 1
            reader = Reader(
                first,
                began=now,
                told=self.place(),
                number=options.catch_ups,
                selections=tuple(stored),
                snapshot=start.snapshot,
                warned=start.warned,
            )
            reader.groups.append(group)
            self.beside = (*self.beside, reader)
            for each in stored:
                each.uses += 1
            return Begun(live=False, number=options.catch_ups)
        if behind:
            main = self.main or self.fall_behind(self.place())
            main.place, main.resuming, main.began = start.place, True, now
            main.lead = start.lead
        for each in stored:
            self.join(each, floor=start.place)
            each.uses += 1
        if behind and self.main is not None:
            self.main.warned = start.warned
        return self.live_with(group)

    def go_on(self, stored: list[Selection], *, listed: bool) -> Begun:
        """Join new subscriptions at P; existing ones stay where they are."""
        live, joined = True, []
        for each in stored:
            reader = next((reader for reader in self.beside if each in reader.selections), None)
            if reader:
                reader.groups.append(Group([each], listed=listed))
                live = False
                continue
            joined.append(each)
            if each not in self.stored:
                self.join(each)
                each.uses += 1
        begun = self.live_with(Group(joined, listed=listed)) if joined else Begun(live=True)
        return begun if live else Begun(live=False)

    def live_with(self, group: Group) -> Begun:
        """Return whether what has joined is live: at once, or with the resume in progress."""
        if self.main is None or not self.main.resuming:
            return Begun(live=True)
        self.main.groups.append(group)
        return Begun(live=False)

    def join(self, selection: Selection, *, floor: int = 0) -> None:
        """Make a selection part of the flow, from P on, or from `floor` on if that is higher."""
        if selection.unstored:
            self.unstored = (*self.unstored, selection)
        else:
            self.stored = (*self.stored, selection)
        self.enlist(selection)
        if self.main is not None and not selection.unstored:
            self.main.warned = 0  # nothing deleted has been reported for this selection
        main = self.main
        reached = 0 if main is None else main.unstored if selection.unstored else main.place
        if self.lanes:  # what is covered depends on it
            self.opt().floors[selection] = max(floor, self.place())
        elif main is not None and floor > reached:
            self.opt().floors[selection] = floor

    def set_policies(self, selections: Iterable[Selection], policy: Lag | None) -> None:
        if policy is None and self.options is None:
            return
        options = self.opt()
        for each in selections:
            if policy is None or policy == lag.default(each):
                options.policies.pop(each, None)
            else:
                options.policies[each] = policy
        options.finer.clear()
        options.strict = any(lag.strict(each, policy) for each, policy in options.policies.items())

    def policy(self, selection: Selection) -> Lag:
        return (self.options and self.options.policies.get(selection)) or lag.default(selection)

    def leave(self, pattern: str, successors: Collection[Selection] = ()) -> None:
        """End a subscription: none of its frames follows, unless it is for a successor."""
        self.settle()
        selection = self.find(pattern)
        if selection is not None and self.log is not None:
            missed = self.drop(selection)
            self.log.release(selection)
            self.pass_on(missed, successors)

    def drop(self, selection: Selection) -> list[Held]:
        """Remove a selection from wherever it is. Return what its lane had."""
        _, missed = self.withdraw(selection)
        self.swap(selection, None)
        self.beside = tuple(reader for reader in self.beside if reader.selections)
        return missed

    def retune(self, pattern: str, deny: tuple[str, ...]) -> None:
        """Change the denied channels of a subscription, for everything not written yet."""
        self.settle()
        old = self.find(pattern)
        if old is not None and self.log is not None:
            self.exchange(old, self.log.acquire(pattern, deny, old.filter))

    def exchange(self, old: Selection, new: Selection) -> None:
        """Hold another selection in the place of one, for everything not written yet."""
        log = self.joined()
        member, missed = self.withdraw(old)
        self.swap(old, new)
        if member:
            self.enlist(new)
        log.release(old)
        self.pass_on(missed)

    # --- pace --------------------------------------------------------------------------------------

    def set_pace(self, selection: Selection, every_ms: int | None) -> None:
        """Have the events of a selection come at a pace; None: all of them."""
        lane = self.lanes.get(selection)
        if (lane and lane.every_ms) == every_ms:
            return
        member, missed = self.withdraw(selection)
        self.change_lane(selection, None, every_ms)
        if member:
            self.enlist(selection)
        self.pass_on(missed)

    def change_lane(self, old: Selection, new: Selection | None, every_ms: int | None) -> None:
        """Give up the lane of a selection, and take that of another one, or at another pace."""
        options = self.opt()
        if (lane := options.lanes.pop(old, None)) is not None:
            lane.lanes.release(lane)
        if every_ms is not None:
            options.lanes[new or old] = self.joined().lanes.acquire(new or old, every_ms)

    def enlist(self, selection: Selection) -> None:
        """Become a member of a selection, or of its lane."""
        lane = self.lanes.get(selection)
        if lane is None:
            selection.members[self] = None
        else:
            lane.join(self)
        if self.options:
            self.options.finer.clear()

    def withdraw(self, selection: Selection) -> tuple[bool, list[Held]]:
        """Be no member any more. Return whether it was one, and what its lane, and no other, had for it."""
        lane = self.lanes.get(selection)
        if lane is None:
            if self.options:
                self.options.finer.clear()
            return selection.members.pop(self, self) is None, []
        member, missed = self in lane.members, lane.leave(self)
        missed = [each for each in missed if not self.covered(lane, each)]
        self.opt().finer.clear()
        return member, missed

    def pass_on(self, missed: Sequence[Held], successors: Collection[Selection] = ()) -> None:
        """Give what a lane had for it to the subscriptions that it has now, or is about to have."""
        left = (*self.selections(), *successors)
        self.give_held([each for each in missed if any(map(each.matches, left))])

    def swap(self, old: Selection, new: Selection | None) -> None:
        """Replace one selection by another, or remove it."""
        self.stored = swapped(self.stored, old, new)
        self.unstored = swapped(self.unstored, old, new)
        for reader in self.readers():
            reader.swap(old, new)
        if options := self.options:
            if (lane := options.lanes.get(old)) is not None:
                self.change_lane(old, new, None if new is None else lane.every_ms)
            options.dropped = swapped(options.dropped, old, new)
            policy, floor = options.policies.pop(old, None), options.floors.pop(old, None)
            if new is not None and policy is not None:
                options.policies[new] = policy
            if new is not None and floor is not None:
                options.floors[new] = floor

    def opt(self) -> Options:
        if self.options is None:
            self.options = Options()
        return self.options

    # --- questions ---------------------------------------------------------------------------------

    def selections(self) -> Iterator[Selection]:
        """Yield all selections, each once: a subscription has one, wherever it is."""
        yield from self.stored
        yield from self.unstored
        for reader in self.beside:
            yield from reader.selections

    def subscriptions(self) -> dict[str, tuple[str, ...]]:
        """Return the pattern of each subscription, with the patterns denied within it."""
        return {each.pattern: each.deny for each in self.selections()}

    def filtered(self) -> set[str]:
        """Return the patterns of the subscriptions that have a filter."""
        return {each.pattern for each in self.selections() if each.filter is not None}

    def find(self, pattern: str) -> Selection | None:
        """Return the selection of a subscription, wherever it is."""
        return next((each for each in self.selections() if each.pattern == pattern), None)

    def sent(self, patterns: Collection[str]) -> int:
        """Return the newest position written for some subscriptions: P, or that of their catch-up."""
        found = [
            reader.place
            for reader in self.beside
            if any(each.pattern in patterns for each in reader.selections)
        ]
        beside = {each.pattern for reader in self.beside for each in reader.selections}
        if any(pattern not in beside for pattern in patterns):
            found.append(self.place())
        return sequence_of(max(found))

    # --- life --------------------------------------------------------------------------------------

    def attach(self, log: EventLog) -> None:
        """Join the log of a tenant, without subscriptions yet."""
        self.enter(log)
        if self.rest is not None:  # it is still sending replies from before
            self.fall_behind(log.end())

    def enter(self, log: EventLog) -> None:
        self.log = log
        if self.framing is not None:
            log.framings[self.framing] += 1

    def quit(self, log: EventLog) -> None:
        self.mask = 0
        if self.framing is not None:
            log.framings[self.framing] -= 1
            if not log.framings[self.framing]:
                del log.framings[self.framing]

    def detach(self) -> None:
        """End all subscriptions, and leave the tenant. Unsent data stays."""
        log, self.log = self.log, None
        if log is None:
            return
        for each in list(self.selections()):
            self.withdraw(each)
            if self.lanes:
                self.change_lane(each, None, None)
            log.release(each)
        self.stored = self.unstored = self.beside = ()
        self.main = self.options = None
        self.quit(log)

    def move(self, log: EventLog) -> None:
        """Continue in the tenant's next log, after what was written from the one before.

        What lies between is read from the ring or the stream. Places and floors of another incarnation of the
        stream are meaningless, and so are those of unstored events in another log.
        """
        old = self.joined()
        same = old.incarnation == log.incarnation
        reached = at(sequence_of(self.place())) if same else 0
        waiting: list[Held] = []
        members, missed = {}, {}
        for each in self.selections():
            members[each], missed[each] = self.withdraw(each)
        self.quit(old)
        self.enter(log)
        for each in list(self.selections()):
            new = log.acquire(each.pattern, each.deny, each.filter)
            waiting += missed[each] if same and not each.unstored else ()
            self.swap(each, new)
            if members[each]:
                self.enlist(new)
        main = self.main or self.fall_behind(reached)
        main.place, main.unstored = reached, log.end()
        main.held = {each.channel: each for each in (*main.held.values(), *waiting)} if same else {}
        main.lead = main.lead if same else None
        for reader in self.beside:
            reader.place, reader.told = at(sequence_of(reader.place)) if same else 0, 0
            if not same:
                reader.snapshot = reader.newer = None
            elif reader.snapshot:
                reader.snapshot.base.move(log)
        if not same:
            for reader in self.readers():
                reader.warned = 0
        if self.options:
            if not same:
                self.options.dropped, self.options.count = (), 0
            floors = self.options.floors
            self.options.floors = {
                each: floor for each, floor in floors.items() if same and not each.unstored
            }
        self.client.fell_behind()
        self.tell_of_loss(log, same_stream=same)

    def tell_of_loss(self, log: EventLog, *, same_stream: bool) -> None:
        """Report what a new log cannot provide: unstored events in transit, or those of an old stream."""
        if self.unstored:
            channel = named(each.pattern for each in self.unstored)
            self.client.tell(Gap(channel=channel, reason="source"))
        if same_stream:
            return
        start = log.text(0)
        if self.stored:
            channel = named(each.pattern for each in self.stored)
            self.client.tell(Gap(channel=channel, reason="reset", end=start))
        for reader in self.beside:
            channel = named(each.pattern for each in reader.selections)
            number = UNSET if reader.number is None else reader.number
            self.client.tell(Gap(channel=channel, reason="reset", end=start, catch_up=number))
