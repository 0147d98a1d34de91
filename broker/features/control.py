"""Bans, on all brokers: revoked tokens, users and tenants, and suspended tenants.

A ban is one value in NATS, which expires with the last token that it concerns. The broker that makes a ban
notifies the others at once by a message that is not stored; each broker also reads what is new in the bucket
every second, and at the start and after each interruption before any client gets events.

Of two versions of a ban the higher number counts, in whatever order they arrive. A lifted ban is a further
version, which is over: it is kept for a while, so that a lagging replica cannot bring the old one back.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import attrs
import msgspec
import structlog
import trio

from broker import subjects
from broker.beats import next_beat
from broker.bus.base import Mark, Stale
from broker.errors import TokenRevoked, Unavailable
from broker.features.port import Feature
from broker.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.bus.base import Bus, StreamState
    from broker.permissions import Principal
    from broker.subjects import Names

Kind: TypeAlias = Literal["token", "user", "tenant", "suspension"]
Unix: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=253402300800)]  # seconds, up to the year 9999

BANS = "bans"  # the prefix of their keys
EVERY_TENANT = "*"  # stands for the tenant of monitoring tokens
NEWS = "control"  # the channel for notifications, by plain NATS; the bucket has the same
LOOK_SECONDS = 1.0
LIFTED_SECONDS = 3600.0  # how long a lifted ban is kept
AT_ONCE = 1000  # bans applied before other tasks get a turn: 8 ms
TRIES = 5  # attempts at a write while other brokers write the same ban

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Ban:
    """Who is banned, from when, until when and why. Times are Unix seconds; without `until`: until lifted.

    `kind` says what `name` is: a token id (`jti`), a user (`sub`), or empty where the whole tenant is meant.
    A revoked user or tenant may return with a token that was issued later; a revoked token id and a suspended
    tenant may not. `version` is in nanoseconds, as far as the clocks of the brokers agree.
    """

    kind: Kind
    tenant: str
    name: str = ""
    at: Unix
    until: Unix | None = None
    reason: str = ""
    by: str = ""
    version: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0

    @property
    def key(self) -> str:
        """Return its key in the bucket."""
        return f"{BANS}.{self.kind}.{subjects.digest(self.tenant, self.name)}"

    @property
    def who(self) -> Who:
        return self.kind, self.tenant, self.name

    def over(self, now: float) -> bool:
        return self.until is not None and self.until <= max(now, self.at)

    def concerns(self, issued_at: float | None) -> bool:
        """Return whether it concerns a token issued at that time. A token without `iat` may be old."""
        later = issued_at is not None and issued_at > self.at
        return self.kind in ("token", "suspension") or not later

    def __str__(self) -> str:
        what = {
            "token": "this token was revoked",
            "user": "the tokens of this user were revoked; ask for a new one",
            "tenant": "the tokens of this tenant were revoked; ask for a new one",
            "suspension": "this tenant is suspended",
        }[self.kind]
        return f"{what}: {self.reason}" if self.reason else what


Who: TypeAlias = tuple[Kind, str, str]


@attrs.define(eq=False)
class Control(Feature):
    """The bans in force, as far as this broker knows. `changed` is called after each change.

    `clock` returns Unix seconds.
    """

    bus: Bus
    names: Names
    changed: Callable[[], None]
    clock: Callable[[], float] = time.time
    bans: dict[Who, Ban] = attrs.Factory(dict)
    listening: bool = False
    loaded: bool = False  # the bucket has been read completely
    mark: Mark | None = None
    stale: bool = False  # bans before the mark may have been forgotten
    wake: Signal = attrs.Factory(Signal)
    fault: str = "revocations have not been read yet"
    channel = NEWS

    # --- checks --------------------------------------------------------------------------------------

    def ban_of(self, principal: Principal) -> Ban | None:
        """Return the ban on a client, if there is one."""
        tenant = EVERY_TENANT if principal.monitoring else principal.tenant
        whos: list[Who] = [
            ("suspension", tenant, ""),
            ("tenant", tenant, ""),
            ("user", tenant, principal.user),
        ]
        if principal.token_id is not None:
            whos.append(("token", tenant, principal.token_id))
        now = self.clock()
        for who in whos:
            ban = self.bans.get(who)
            if ban and not ban.over(now) and ban.concerns(principal.issued_at):
                return ban
        return None

    def check(self, principal: Principal) -> None:
        """Raise `TokenRevoked` for a client that is banned."""
        if self.bans and (ban := self.ban_of(principal)):
            raise TokenRevoked(str(ban))

    def trouble(self) -> str | None:
        """Return why no client can be admitted; None once the bans are known."""
        return None if self.loaded else self.fault

    def listed(self) -> Iterator[Ban]:
        """Return the bans in force, newest first."""
        now = self.clock()
        return iter(sorted((ban for ban in self.bans.values() if not ban.over(now)), key=lambda ban: -ban.at))

    # --- changing ------------------------------------------------------------------------------------

    async def put(self, ban: Ban) -> Ban:
        """Put a ban, or the lifting of one, into force on every broker; return it as it was stored.

        Raises `Unavailable`: then it may be in force all the same, and can be put again.
        """
        for _ in range(TRIES):
            held = await self.bus.control.get(ban.key)
            known = understood([held.data]) if held else []
            if ban.who in self.bans:
                known.append(self.bans[ban.who])
            version = max([int(self.clock() * 1e9), *(each.version + 1 for each in known)])
            revision = held.revision if held else 0
            ban = attrs.evolve(ban, version=version)
            data = msgspec.json.encode(ban)
            ttl = None if ban.until is None else max(ban.until - self.clock(), LIFTED_SECONDS)
            try:
                await self.bus.control.put(ban.key, data, revision=revision, ttl=ttl)
            except Stale:
                continue
            self.learn([ban])
            await self.bus.publish_live(f"{self.names.own}.{NEWS}", data)
            return ban
        raise Unavailable("other brokers keep changing the same ban", retry_after=1.0)

    async def lift(self, ban: Ban) -> Ban:
        """End a ban before its time, as one that never was in force, whatever another broker's clock says."""
        return await self.put(attrs.evolve(ban, until=ban.at))

    # --- learning ------------------------------------------------------------------------------------

    def heard(self, channel: str, body: bytes) -> None:
        """Apply a ban that another broker, or this one, has announced."""
        if channel == NEWS:
            self.learn(understood([body]))

    def learn(self, bans: list[Ban]) -> None:
        news = False
        for ban in bans:
            held = self.bans.get(ban.who)
            if held is None or ban.version > held.version:
                self.bans[ban.who] = ban
                news = True
        if news:
            self.changed()

    async def reached(self) -> None:
        await self.look()  # bans that were made during the interruption

    def up(self, _: StreamState) -> None:
        """Read at once what was missed."""
        self.wake.set()

    def read_again(self) -> None:
        """Read all bans again: the clock was set, and those forgotten as over may still hold."""
        self.stale = True
        self.wake.set()

    async def run(self) -> None:
        """Follow the bucket, from the first `up` on, until cancelled."""
        due = math.inf
        while True:
            with trio.move_on_at(due):
                await self.wake.wait()
            try:
                await self.look()
            except Unavailable as error:
                if self.fault != error.message:
                    self.fault = error.message
                    log.warning("revocations_not_read", error=error.message, loaded=self.loaded)
            self.forget()
            due = next_beat(LOOK_SECONDS)

    async def look(self) -> None:
        if not self.listening:
            await self.bus.subscribe_live(f"{self.names.own}.{NEWS}")
            self.listening = True  # from now on, also over reconnects
        if self.stale:
            self.mark, self.stale = None, False
        values, mark = await self.bus.control.news(BANS, self.mark)
        for start in range(0, len(values), AT_ONCE):
            self.learn(understood(values[start : start + AT_ONCE]))
            await trio.lowlevel.checkpoint()
        first, self.loaded, self.mark, self.fault = not self.loaded, True, mark, ""
        if first:
            log.info("revocations_read", bans=len(self.bans))

    def forget(self) -> None:
        """Drop bans that have been over, and unchanged, for long."""
        before = self.clock() - LIFTED_SECONDS
        for who, ban in list(self.bans.items()):
            if ban.until is not None and max(ban.until, ban.version / 1e9) <= before:
                del self.bans[who]


def understood(values: list[bytes]) -> list[Ban]:
    """Return the bans among some values; anything else (a key deleted by hand) is skipped."""
    bans = []
    for data in values:
        try:
            bans.append(msgspec.json.decode(data, type=Ban))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            log.warning("ban_not_understood", bytes=len(data))
    return bans
