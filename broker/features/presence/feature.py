"""Presence as a feature: what clients ask for, the rooms that are held for them, and the other brokers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import structlog
import trio
from msgspec import UNSET

from broker.beats import beat, next_beat
from broker.bus.base import OutcomeUnknown, Stale
from broker.errors import (
    BrokerError,
    CloseCode,
    NotEntered,
    NotSubscribed,
    TooManyPresent,
    Unavailable,
)
from broker.features.port import Feature
from broker.features.presence import records
from broker.features.presence.entries import LOST_SECONDS, Entry, Writer
from broker.features.presence.lives import LEASE_SECONDS, RENEW_SECONDS, Lives
from broker.features.presence.room import Room
from broker.features.presence.watching import Screen, Watcher, Watching
from broker.features.presence.wishes import check_channel, check_enter, check_update, check_watch
from broker.keyed.view import View
from broker.metrics.statistics import Presence as Statistics
from broker.session.requests import Page, Request
from broker.signals import Signal
from broker.wire import messages as m
from broker.wire.times import rfc3339

if TYPE_CHECKING:
    from broker import config
    from broker.bus.base import AnyPut, Keyed, Record
    from broker.features.presence.wishes import Enter, Update
    from broker.features.presence.wishes import Watching as Wish
    from broker.keyed.collection import Collection
    from broker.keyed.watch import Watch
    from broker.permissions import Principal
    from broker.session.requests import Asker, Caller, Requests
    from broker.subjects import Names

    Rooms: TypeAlias = dict[Collection[Watch], Room]

JUDGE_SECONDS = 1.0
LEFT_SECONDS = 10.0  # that a page which said goodbye (1001) may stay away: it may be a reload
CLAIM_SECONDS = 20.0  # within which a broker has cleared up after a dead one
AT_ONCE = 500
# Ends after which the client may not be present any more.
VERDICTS = {
    CloseCode.TOKEN_EXPIRED, CloseCode.TOKEN_INVALID, CloseCode.TOKEN_REVOKED, CloseCode.FORBIDDEN,
}  # fmt: skip

log = structlog.get_logger("broker.presence")


class Presence(Feature):
    """Who is present. `broker` names this process in leases and in what it writes."""

    name = "presence"
    adds = ("presence",)

    def __init__(self, keyed: Keyed, names: Names, broker: str, limits: config.Limits) -> None:
        self.keyed = keyed
        self.names = names
        self.limits = limits
        self.view = View(keyed, names.presence, None, lambda *_: None, lasting=False)
        self.view.heard = self.hear
        self.lives = Lives(broker)
        self.rooms: Rooms = {}
        self.entered: dict[Caller, dict[str, Entry]] = {}
        self.screens: dict[Caller, Screen] = {}
        self.watching = Watching()
        self.writer = Writer(keyed, broker, lambda: self.view.stream, self.finished, self.taken)
        self.epoch: str | None = None
        self.begun = Signal()  # another epoch
        self.judged = 0
        self.registered = False  # in the stream, so that others clear up after us

    def requests(self) -> Requests:
        return (
            Request(
                message=m.PresenceEnter,
                check=check_enter,
                perform=self.enter,
                replies=(m.PresenceEntered,),
            ),
            Request(
                message=m.PresenceUpdate,
                check=check_update,
                perform=self.update,
                replies=(m.PresenceUpdated,),
            ),
            Request(
                message=m.PresenceLeave,
                check=check_channel,
                perform=self.leave,
                replies=(m.PresenceLeft,),
                unasked=True,
            ),
            Request(
                message=m.PresenceWatch,
                check=check_watch,
                perform=self.watch,
                replies=(m.PresenceWatched, m.Presence),
                unasked=True,
                page=Page(
                    path="/presence",
                    about="See who is present, without a connection.",
                    query=(),
                    status=200,
                    perform=self.read,
                    reply=m.Members,
                ),
            ),
            Request(
                message=m.PresenceUnwatch,
                check=check_channel,
                perform=self.unwatch,
                replies=(m.PresenceUnwatched,),
                unasked=True,
            ),
        )

    def settings_changed(self, config: config.Config) -> None:
        self.limits = config.limits
        for room in self.rooms.values():
            room.linger = self.limits.presence_linger_seconds

    @property
    def prefix(self) -> str:
        """The beginning of the subjects that brokers use among themselves."""
        return f"{self.names.presence}._broker"

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.view.run)
            nursery.start_soon(self.writer.run)
            nursery.start_soon(self.watching.run)
            nursery.start_soon(self.renew)
            nursery.start_soon(self.judge)

    def statistics(self) -> Statistics:
        return Statistics(
            members=sum(map(len, self.entered.values())),
            watchers=sum(len(screen.watchers) for screen in self.screens.values()),
            brokers=self.lives.alive,
            judged=self.judged,
        )

    # --- rooms ---------------------------------------------------------------------------------------

    async def acquire(self, tenant: str, channel: str) -> Room:
        """Return a room with its members, for one more use. Raise `Unavailable`."""
        head = f"{self.names.presence}.{tenant}."
        pattern = self.names.members(tenant, channel).removeprefix(head)
        try:
            collection = await self.view.acquire((tenant, (pattern,), ()))
        finally:  # what others have released meanwhile, and this one in vain
            for each in [each for each in self.rooms if not each.uses]:
                del self.rooms[each]
        room = self.rooms.get(collection)
        if room is None:
            room = self.rooms[collection] = Room(
                channel, collection, self.view, self.lives, self.watching.note
            )
            room.linger = self.limits.presence_linger_seconds
        return room

    def release(self, room: Room) -> None:
        self.view.release(room.collection)
        if not room.collection.uses:
            self.rooms.pop(room.collection, None)

    # --- entering ------------------------------------------------------------------------------------

    async def enter(self, caller: Caller, wish: Enter, _: str | None) -> m.PresenceEntered:
        """Have a client be present. Raise with nothing changed."""
        principal = caller.attach()
        entry = self.entered.get(caller, {}).get(wish.channel)
        if entry is not None and entry.session == wish.session and entry.goal == "here":
            entry.state, entry.away, entry.brief = wish.state, wish.away, None
            self.writer.say(entry, trio.current_time())
        else:
            if entry is None and len(self.entered.get(caller, ())) >= self.limits.presence_entered:
                raise TooManyPresent(
                    f"a connection is present in at most {self.limits.presence_entered} channels"
                )
            room = await self.acquire(principal.tenant, wish.channel)
            try:
                self.check_still(caller, principal)
                fresh = self.make(caller, principal, wish, room)
                if fresh.key not in room.members and len(room.members) >= self.limits.presence_members:
                    raise TooManyPresent(
                        f"{wish.channel}: has {len(room.members)} members; at most "
                        f"{self.limits.presence_members} are allowed",
                        retry_after=5.0,
                    )
            except BaseException:
                self.release(room)
                raise
            if entry is not None:
                self.depart(entry)
            entry = fresh
            self.take_over(entry)
            self.writer.write(entry)
        await entry.outcome.wait()
        if entry.error is not None:
            self.forget(entry)
            raise entry.error
        return m.PresenceEntered(channel=wish.channel, position=entry.room.position)

    def make(self, caller: Caller, principal: Principal, wish: Enter, room: Room) -> Entry:
        key = f"{wish.channel.count('.') + 1}.{wish.channel}.{principal.encoded_user}.{wish.session}"
        there = room.collection.rows.get(key)
        before = records.understood(key, there.body) if there is not None else None
        return Entry(
            caller=caller,
            connection=caller.id,
            tenant=principal.tenant,
            user=principal.user,
            session=wish.session,
            channel=wish.channel,
            key=key,
            subject=f"{self.names.presence}.{principal.tenant}.{key}",
            room=room,
            writes=self.writer,
            revision=there.revision if there is not None else 0,
            since=rfc3339(time.time()) if before is None else before.since,
            info=principal.info,
            state=wish.state,
            away=wish.away,
        )

    def take_over(self, entry: Entry) -> None:
        """Have an entry be the one of its key at this broker."""
        before = entry.room.own.get(entry.key)
        entry.room.own[entry.key] = entry
        if isinstance(before, Entry):
            entry.since, entry.revision = before.since, before.revision
            self.writer.replaced(before)
        self.entered.setdefault(entry.caller, {})[entry.channel] = entry

    def check_still(self, caller: Caller, principal: Principal) -> None:
        """Raise where something has changed while a room was loaded."""
        if caller.closing:
            raise Unavailable("the connection has ended")
        if caller.session.client() is not principal:
            raise Unavailable("the token has been renewed meanwhile", retry_after=0.1)

    async def update(self, caller: Caller, wish: Update, message_id: str | None) -> m.PresenceUpdated | None:
        entry = self.find(caller, wish.channel)
        now = trio.current_time()
        if wish.away is not UNSET:
            entry.away = wish.away
        if wish.state is not UNSET:
            if wish.seconds is None:
                entry.state, entry.brief = wish.state, None
            else:
                entry.brief = (b"null" if wish.state is None else wish.state, now + wish.seconds)
        self.writer.say(entry, now)
        return m.PresenceUpdated(channel=wish.channel) if message_id is not None else None

    def find(self, caller: Caller, channel: str) -> Entry:
        entry = self.entered.get(caller, {}).get(channel)
        if entry is None or entry.goal != "here":
            raise NotEntered(f"{channel}: enter it first")
        return entry

    async def leave(self, caller: Caller, channel: str, _: str | None) -> m.PresenceLeft:
        self.depart(self.find(caller, channel))
        return m.PresenceLeft(channel=channel)

    def depart(self, entry: Entry) -> None:
        """Have a member go at once."""
        self.forget(entry)
        entry.goal = "gone"
        self.writer.write(entry)

    def forget(self, entry: Entry) -> None:
        """Have a connection be present in a channel no longer."""
        entries = self.entered.get(entry.caller, {})
        if entries.get(entry.channel) is entry:
            del entries[entry.channel]
            if not entries:
                del self.entered[entry.caller]

    def finished(self, entry: Entry) -> None:
        """Forget a member for which nothing more is written here."""
        self.forget(entry)
        room = entry.room
        if room.own.get(entry.key) is entry:
            room.disown(entry.key)
        self.release(room)

    def taken(self, entry: Entry) -> None:
        """Tell a client that another connection has its place."""
        if not entry.outcome.is_set():
            entry.error = Unavailable("another connection has entered with this session meanwhile")
            entry.outcome.set()
        elif entry.goal == "here" and not entry.caller.closing:
            entry.caller.tell(m.PresenceLeft(channel=entry.channel, code="replaced"))

    # --- watching ------------------------------------------------------------------------------------

    async def watch(self, caller: Caller, wish: Wish, message_id: str | None) -> None:
        """Have a client see who is present. Raise with nothing changed."""
        principal = caller.attach()
        screen = self.screens.get(caller)
        held = screen.watchers if screen is not None else {}
        if wish.channel not in held and len(held) >= self.limits.presence_watched:
            raise TooManyPresent(f"a connection watches at most {self.limits.presence_watched} channels")
        room = await self.acquire(principal.tenant, wish.channel)
        try:
            self.check_still(caller, principal)
        except BaseException:
            self.release(room)
            raise
        screen = self.screens.setdefault(caller, Screen(caller))
        if (before := screen.watchers.get(wish.channel)) is not None:
            self.end(before)
            self.screens[caller] = screen
        watcher = Watcher(screen, room, principal.user, room.detail)
        screen.watchers[wish.channel] = watcher
        self.watching.begin(watcher, wish.position, message_id)

    async def unwatch(self, caller: Caller, channel: str, _: str | None) -> m.PresenceUnwatched:
        screen = self.screens.get(caller)
        if screen is None or channel not in screen.watchers:
            raise NotSubscribed(f"{channel}: is not watched")
        self.end(screen.watchers[channel])
        return m.PresenceUnwatched(channel=channel)

    def end(self, watcher: Watcher) -> None:
        screen = watcher.screen
        self.watching.end(watcher)
        del screen.watchers[watcher.room.channel]
        if not screen.watchers:
            self.screens.pop(screen.caller, None)
        self.release(watcher.room)

    async def read(self, asker: Asker, wish: Wish) -> m.Members:
        """Return who is present, without a connection."""
        principal = asker.attach()
        room = await self.acquire(principal.tenant, wish.channel)
        try:
            members = [
                msgspec.json.decode(member.data, type=m.Member)
                for key, member in room.members.items()
                if room.detail == "full" or key in room.sample or member.user == principal.user
            ]
            return m.Members(
                channel=wish.channel,
                position=room.position,
                set=members,
                users=len(room.keys),
                sessions=len(room.members),
                detail=room.detail,
            )
        finally:
            self.release(room)

    # --- changes of the connection -------------------------------------------------------------------

    def rights_changed(self, caller: Caller) -> None:
        principal = caller.session.client() if caller in self.entered or caller in self.screens else None
        if principal is None:
            return
        for entry in list(self.entered.get(caller, {}).values()):
            try:
                principal.check_enter(entry.channel)
            except BrokerError as error:
                self.depart(entry)
                caller.tell(m.PresenceLeft(channel=entry.channel, code=error.code))
                continue
            if entry.info != principal.info:
                entry.info = principal.info
                self.writer.say(entry, trio.current_time())
        screen = self.screens.get(caller)
        for watcher in list(screen.watchers.values()) if screen is not None else ():
            try:
                principal.check_watch(watcher.room.channel)
            except BrokerError as error:
                self.end(watcher)
                caller.tell(m.PresenceUnwatched(channel=watcher.room.channel, code=error.code))

    def silent(self, caller: Caller, *, late: bool) -> None:
        """Show a client as lost before its link is given up."""
        for entry in self.entered.get(caller, {}).values():
            entry.late = late
            self.writer.say(entry, trio.current_time())

    def detach(self, caller: Caller) -> None:
        """Wait for the client to come back, unless its end is final."""
        screen = self.screens.get(caller)
        for watcher in list(screen.watchers.values()) if screen is not None else ():
            self.end(watcher)
        now = trio.current_time()
        for entry in list(self.entered.get(caller, {}).values()):
            if caller.close_code in VERDICTS:
                self.depart(entry)
                continue
            self.forget(entry)
            away = LEFT_SECONDS if (caller.ended_by, caller.close_code) == ("client", 1001) else None
            entry.goal = "lost"
            entry.until = now + (self.limits.presence_linger_seconds if away is None else away)
            self.writer.write(entry, at=now + LOST_SECONDS)

    async def flush(self) -> None:
        """Say goodbye: those who do not come back to another broker vanish by themselves."""
        await self.writer.flush()
        if self.registered and self.view.up:
            farewell: list[AnyPut] = [
                (f"{self.prefix}.{kind}.{self.lives.broker}", b"", self.headers(ttl=CLAIM_SECONDS), None)
                for kind in ("lease", "broker")
            ]
            await self.put(farewell)

    # --- other brokers -------------------------------------------------------------------------------

    def headers(self, *, ttl: float | None = None) -> dict[str, str]:
        found = {records.EPOCH: self.view.stream or "", records.INSTANCE: self.lives.broker}
        return found if ttl is None else found | {records.TTL: f"{ttl:.0f}s"}

    async def put(self, puts: list[AnyPut]) -> bool:
        """Write something, if NATS can be reached."""
        try:
            await self.keyed.put_each(puts)
        except (Unavailable, OutcomeUnknown) as error:
            log.debug("presence_not_written", error=repr(error))
            return False
        return True

    def hear(self, brought: list[Record]) -> None:
        """Take what the stream brings, before the rooms do."""
        if self.view.stream != self.epoch:
            self.begin()
        now = trio.current_time()
        prefix = f"{self.prefix}."
        for _, subject, body, headers in brought:
            if not subject.startswith(prefix):
                continue
            kind, _, name = subject.removeprefix(prefix).partition(".")
            if kind == "lease" and body and records.field(headers, records.EPOCH) == self.epoch:
                if self.lives.lease(name, now):
                    self.say_again()  # what others took for lost is there again with a new message
            elif kind == "broker" and body:
                self.lives.met(name)
            elif kind == "broker" and name == self.lives.broker:
                self.registered = False  # others took us for dead
            elif kind == "broker":
                self.lives.forget(name)

    def begin(self) -> None:
        """Begin with another epoch: what was in the stream is lost, and everybody says it again."""
        self.epoch = self.view.stream
        self.registered = False
        self.begun.set()
        self.lives.begin()
        for room in self.rooms.values():
            for own in room.own.values():
                own.missing()

    def say_again(self) -> None:
        """Write all members that this broker has."""
        for room in self.rooms.values():
            for entry in room.own.values():
                if isinstance(entry, Entry) and not entry.entering:
                    self.writer.write(entry)

    async def renew(self) -> None:
        """Say that this broker is alive, for ever."""
        while True:
            if self.epoch is not None:
                if not self.registered:
                    await self.register()
                lease = f"{self.prefix}.lease.{self.lives.broker}"
                await self.put([(lease, b"{}", self.headers(ttl=LEASE_SECONDS), None)])
            with trio.move_on_at(next_beat(RENEW_SECONDS)):
                await self.begun.wait()

    async def register(self) -> None:
        """Leave a word for others to clear up after this broker, and read which others there are."""
        mine = f"{self.prefix}.broker.{self.lives.broker}"
        epoch = self.epoch
        try:
            for _, subject, body, _ in await self.load(f"{self.prefix}.broker.*"):
                if body:
                    self.lives.met(subject.rpartition(".")[2])
        except Unavailable:
            return
        if await self.put([(mine, b"{}", self.headers(), None)]):
            self.registered = epoch == self.epoch

    async def load(self, filter_: str) -> list[Record]:
        found: list[Record] = []
        await self.keyed.load([filter_], at_least=self.view.head, take=found.extend)
        return found

    async def judge(self) -> None:
        """Find out which brokers have died, and clear up after them."""
        while True:
            await beat(JUDGE_SECONDS)
            now = trio.current_time()
            if not self.view.up:
                self.lives.interrupted()
                continue
            for broker in self.lives.dying(now, self.view.head):
                log.warning("broker_died", broker=broker, next="its members are waited for")
                for room in list(self.rooms.values()):
                    room.overlay(broker)
            for room in list(self.rooms.values()):
                room.expire(now)
            for broker in self.lives.overdue(now, self.limits.presence_linger_seconds):
                try:
                    await self.clear_up(broker)
                except (Unavailable, OutcomeUnknown, Stale) as error:  # another broker, or later
                    log.debug("presence_not_cleared", broker=broker, error=repr(error))

    async def clear_up(self, broker: str) -> None:
        """Have the members of a dead broker go, unless another broker does."""
        claim = f"{self.prefix}.claim.{broker}"
        there = await self.keyed.get(claim)
        if there is not None and there[2]:
            return
        claimed = await self.keyed.put_each(
            [(claim, b"{}", self.headers(ttl=CLAIM_SECONDS), there[0] if there else 0)]
        )
        if not isinstance(claimed[0], int):
            return
        left = [
            each
            for each in await self.load(f"{self.names.presence}.>")
            if each[2] and records.field(each[3], records.INSTANCE) == broker
        ]
        members = [each for each in left if not each[1].startswith(f"{self.prefix}.")]
        for start in range(0, len(members), AT_ONCE):
            if broker not in self.lives.died:  # it is back
                return
            await self.keyed.put_each(
                [
                    (subject, b"", self.headers(ttl=records.GONE_SECONDS), sequence)
                    for sequence, subject, _, _ in members[start : start + AT_ONCE]
                ]
            )
        self.judged += 1
        log.warning("broker_cleared_up", broker=broker, members=len(members))
        await self.keyed.put_each(
            [(f"{self.prefix}.broker.{broker}", b"", self.headers(ttl=records.GONE_SECONDS), None)]
        )
        self.lives.forget(broker)
