"""The requests `state.open` and `state.close`, and what becomes of opened documents."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from broker import subjects
from broker.errors import (
    BrokerError,
    Forbidden,
    InvalidPosition,
    NotSubscribed,
    TooManyDocuments,
    Unavailable,
)
from broker.features.port import Feature
from broker.features.state.form import DocumentForm, content
from broker.features.state.opening import check_close, check_open, check_pattern, check_wild, key
from broker.features.state.overlaps import Overlaps
from broker.keyed.rows import Row
from broker.keyed.view import View
from broker.keyed.watch import Watch
from broker.session.requests import Page, Request
from broker.turns import Turn
from broker.wire import messages as m
from broker.wire.positions import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from broker import config
    from broker.bus.base import Keyed
    from broker.features.state.opening import Close, Open
    from broker.features.state.rules import Rules
    from broker.keyed.collection import Collection as Documents
    from broker.session.requests import Asker, Caller, Requests
    from broker.subjects import Names

HELD = msgspec.json.Decoder(m.Held)
STEPS = 16  # pages that an open writes at once, as far as the link accepts them


class Opens:
    """What one connection has open: each watch, with the patterns that it is for and those denied in each.

    It is the holder of its watches. `crowded` is called when more is open than the limits allow, `end` when a
    watch has to be closed.
    """

    def __init__(
        self,
        caller: Caller,
        view: View,
        crowded: Callable[[Opens, Watch], None],
        end: Callable[[Opens, Watch, str], None],
    ) -> None:
        self.caller = caller
        self.view = view
        self.crowded = crowded
        self.close_unasked = end
        self.watches: dict[Watch, dict[str, tuple[str, ...]]] = {}
        self.listed: set[Watch] = set()
        self.overlaps: Overlaps[Watch] = Overlaps()

    # --- the holder of watches -----------------------------------------------------------------------

    def begun(self, watch: Watch, *, recovered: bool) -> None:
        self.caller.tell(self.opened(watch, [], recovered=recovered))

    def opened(self, watch: Watch, refused: list[m.Refused], *, recovered: bool) -> m.StateOpened:
        return m.StateOpened(
            channel=list(self.watches[watch]),
            refused=refused,
            position=f"{watch.stream}-{watch.place}",
            recovered=recovered,
        )

    def ready(self, watch: Watch) -> None:
        self.caller.tell(m.StateReady(channel=self.named(watch), position=f"{watch.stream}-{watch.place}"))

    def named(self, watch: Watch) -> m.OneOrMany:
        patterns = list(self.watches[watch])
        return patterns if watch in self.listed else m.named(patterns)

    def grew(self, watch: Watch) -> None:
        self.crowded(self, watch)

    def failed(self, watch: Watch, error: BrokerError) -> None:
        self.close_unasked(self, watch, error.code)

    def owes(self) -> None:
        self.caller.flow.owed = self.step
        self.caller.fell_behind()

    def step(self) -> bool:
        """Write a page of the first watch that reads; return whether there is more to be written."""
        for watch in list(self.watches):
            if watch.reads:
                watch.step(self.view.head)
                break
        return any(watch.reads for watch in self.watches)

    # --- what is open --------------------------------------------------------------------------------

    def find(self, pattern: str) -> Watch | None:
        return next((watch for watch, patterns in self.watches.items() if pattern in patterns), None)

    def begin(self, watch: Watch, patterns: dict[str, tuple[str, ...]], *, listed: bool) -> None:
        self.watches[watch] = patterns
        if listed:
            self.listed.add(watch)
        for each in self.overlaps.add(watch, self.watches):  # differences apply to what their own has given
            each.plain = watch.plain = True

    def close(self, patterns: Iterable[str]) -> None:
        """Close some of what is open."""
        gone = set(patterns)
        for watch, held in list(self.watches.items()):
            left = {name: deny for name, deny in held.items() if name not in gone}
            if len(left) < len(held):
                self.narrow(watch, left)
        for watch in self.watches:
            if watch.plain and not self.overlaps.of[watch]:
                watch.alone()

    def narrow(self, watch: Watch, patterns: dict[str, tuple[str, ...]]) -> None:
        """Have a watch go on with a part of what it is for, or end."""
        before = watch.collection
        if patterns:
            self.watches[watch] = patterns
            self.overlaps.narrow(watch, self.watches)
            watch.move(self.view.part(before, key(before.tenant, patterns)))
            self.view.go_on(watch)
        else:
            self.end(watch)
        self.view.release(before)

    def end(self, watch: Watch) -> None:
        """End a watch, but for giving back its collection."""
        watch.end()
        self.overlaps.remove(watch)
        del self.watches[watch]
        self.listed.discard(watch)

    def close_all(self) -> None:
        for watch in list(self.watches):
            self.end(watch)
            self.view.release(watch.collection)

    def total(self) -> tuple[int, int]:
        """Return how many documents are open, and their bytes."""
        held = [watch.collection for watch in self.watches]
        return sum(each.count for each in held), sum(each.rows.size for each in held)


class Reading(Feature):
    """Opens documents for clients. `events` returns the incarnation of the stream of the events."""

    name = "state"

    def __init__(
        self, keyed: Keyed, names: Names, rules: Rules, limits: config.Limits, events: Callable[[], str]
    ) -> None:
        self.rules = rules
        self.limits = limits
        self.events = events
        self.form = DocumentForm()
        self.view = View(keyed, names.state, self.form, self.excess)
        self.held: dict[Caller, Opens] = {}  # only connections that have something open

    def requests(self) -> Requests:
        return (
            Request(
                message=m.StateOpen,
                check=partial(check_open, self.rules),
                perform=self.open,
                replies=(m.StateOpened, m.StateReady),
                unasked=True,
                page=Page(
                    path="/state",
                    about="Read documents without a connection.",
                    query=("position",),
                    status=200,
                    perform=self.read,
                    reply=m.Documents,
                ),
            ),
            Request(
                message=m.StateClose,
                check=check_close,
                perform=self.close,
                replies=(m.StateClosed,),
                unasked=True,
            ),
        )

    async def run(self) -> None:
        await self.view.run()

    def settings_changed(self, config: config.Config) -> None:
        self.limits = config.limits

    # --- opening -------------------------------------------------------------------------------------

    async def open(self, caller: Caller, wish: Open, message_id: str | None) -> None:
        """Open documents. Raise with nothing changed."""
        principal = caller.attach()
        collection = await self.view.acquire(wish.key(principal.tenant))
        try:
            place = await self.place(wish.position, collection)
            if caller.closing:
                raise Unavailable("the connection has ended")
            if caller.session.client() is not principal:
                raise Unavailable("the token has been renewed meanwhile", retry_after=0.1)
            self.check_room(caller, wish, collection)
        except BaseException:
            self.view.release(collection)
            raise
        opens = self.held.get(caller)
        if opens is None:
            opens = self.held[caller] = Opens(caller, self.view, self.crowded, self.end_all)
        opens.close(wish.patterns)
        watch = Watch(
            collection,
            flow=caller.flow,
            holder=opens,
            form=self.form,
            stream=self.view.stream or "",
            seconds=wish.seconds,
            place=place or 0,
            since=self.view.head if place is None else -1,
        )
        opens.begin(watch, wish.patterns, listed=wish.listed)
        caller.tell(
            opens.opened(watch, wish.refused, recovered=place is not None or not wish.position), message_id
        )
        for refused in wish.refused:
            caller.note_refusal(code=refused.code, message=refused.message, channel=refused.channel)
        turn = Turn()
        for _ in range(STEPS):
            if caller.flow.rest is not None or not watch.reads:
                break
            watch.step(self.view.head)
            await turn.pass_on()
        if watch.reads:
            opens.owes()

    async def place(self, position: Position | None, collection: Documents[Watch]) -> int | None:
        """Return the sequence after which documents are wanted; None where all of them are.

        That holds until the next wait, as it does that the collection is loaded. Raise `Unavailable` if it is
        loaded again.
        """
        if position is not None and position.incarnation == self.events():
            raise InvalidPosition("payload.position: a position of the events; documents have their own")
        known = position is not None and await self.view.remembers(collection, position)
        if not collection.loaded or self.view.stream is None:
            raise Unavailable("the stream of documents has just been recreated", retry_after=1.0)
        return position.sequence if position is not None and known else None

    def check_room(self, caller: Caller, wish: Open, collection: Documents[Watch]) -> None:
        """Raise `TooManyDocuments` if the connection may not have these open as well."""
        count, size = collection.count, collection.rows.size
        if opens := self.held.get(caller):
            check_wild({*wish.patterns, *(each for patterns in opens.watches.values() for each in patterns)})
            kept = [
                watch for watch, patterns in opens.watches.items() if patterns.keys() - wish.patterns.keys()
            ]
            count += sum(watch.collection.count for watch in kept)
            size += sum(watch.collection.rows.size for watch in kept)
        if fault := self.excess(count, size):
            raise TooManyDocuments(fault)

    def excess(self, count: int, size: int) -> str | None:
        if count > self.limits.documents_per_connection:
            return f"{count} documents; a connection follows at most {self.limits.documents_per_connection}"
        if size > self.limits.document_set_bytes:
            return f"{size} bytes of documents; a connection follows at most {self.limits.document_set_bytes}"
        return None

    def crowded(self, opens: Opens, watch: Watch) -> None:
        """Close what has grown, if more is open now than a connection may have."""
        if watch in opens.watches and self.excess(*opens.total()):
            self.end_all(opens, watch, TooManyDocuments.code)

    def end_all(self, opens: Opens, watch: Watch, code: str) -> None:
        """Close all that a watch is for, unasked."""
        self.end(opens, list(opens.watches[watch]), opens.named(watch), code)

    def end(self, opens: Opens, patterns: Collection[str], channel: m.OneOrMany, code: str) -> None:
        """Close something unasked."""
        opens.close(patterns)
        self.tidy(opens)
        opens.caller.tell(m.StateClosed(channel=channel, code=code))

    def tidy(self, opens: Opens) -> None:
        if not opens.watches:
            self.held.pop(opens.caller, None)
            opens.caller.flow.owed = None

    async def close(self, caller: Caller, wish: Close, _: str | None) -> m.StateClosed:
        """Close documents. Raise `NotSubscribed` unless all of them are open."""
        opens = self.held.get(caller)
        for pattern in wish.patterns:
            if opens is None or opens.find(pattern) is None:
                raise NotSubscribed(f"{subjects.shown(pattern)}: is not open")
        if opens is not None:
            opens.close(wish.patterns)
            self.tidy(opens)
        return m.StateClosed(channel=wish.channel)

    async def read(self, asker: Asker, wish: Open) -> m.Documents:
        """Return documents without a connection."""
        principal = asker.attach()
        await self.view.look_ended()
        collection = await self.view.acquire(wish.key(principal.tenant))
        try:
            place = await self.place(wish.position, collection)
            if self.view.doubts:  # nobody would be told later
                raise Unavailable("documents cannot be read yet", retry_after=1.0)
            stream, head = self.view.stream, self.view.head
            names = collection.names if place is None else ()
            rows = [
                row
                for row in collection.rows.after(place or 0)
                if place is not None or not row.deleted or row.key in names
            ]
            rows += [Row(name, 0, b"", None) for name in names if name in collection.missing()]
            if fault := self.excess(len(rows), sum(len(row.body) for row in rows)):
                raise TooManyDocuments(fault)
        finally:
            self.view.release(collection)
        documents = []
        turn = Turn()
        for row in rows:
            fields = (msgspec.json.encode(row.key), (stream or "").encode(), row.revision, content(row))
            documents.append(HELD.decode(b'{"channel":%b,"revision":"%b-%d",%b}' % fields))
            await turn.pass_on()
        return m.Documents(
            documents=documents,
            refused=wish.refused,
            position=str(Position(stream or "", head)),
            recovered=place is not None or wish.position is None,
        )

    # --- changes of the connection -------------------------------------------------------------------

    def rights_changed(self, caller: Caller) -> None:
        """Close what is no longer allowed, and leave out documents that are now denied."""
        opens = self.held.get(caller)
        if opens is None:
            return
        principal = caller.session.client()
        kept: dict[str, tuple[str, ...]] = {}
        refused: dict[str, str] = {}
        for pattern in [each for patterns in opens.watches.values() for each in patterns]:
            try:
                kept[pattern] = check_pattern(self.rules, principal, pattern)[1]
            except BrokerError as error:
                refused[pattern] = error.code
        opens.close(refused)
        self.tidy(opens)
        for pattern, code in refused.items():
            caller.tell(m.StateClosed(channel=pattern, code=code))
        for watch, patterns in list(opens.watches.items()):
            left = {each: kept[each] for each in patterns}
            if left != patterns:
                self.retune(opens, watch, left)

    def retune(self, opens: Opens, watch: Watch, patterns: dict[str, tuple[str, ...]]) -> None:
        """Have a watch leave out other documents than before."""
        before = opens.watches[watch]
        if all(set(before[pattern]) <= set(deny) for pattern, deny in patterns.items()):
            opens.narrow(watch, patterns)
        else:  # there may be documents that it has not loaded
            self.end_all(opens, watch, Forbidden.code)

    def detach(self, caller: Caller) -> None:
        """Close everything of a connection that ends."""
        opens = self.held.pop(caller, None)
        if opens is not None:
            opens.close_all()
            caller.flow.owed = None
