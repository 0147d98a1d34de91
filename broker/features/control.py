"""Who may not come in, on whichever broker: revoked tokens, users and tenants, and suspended tenants.

A ban is one value in NATS, which forgets it when the last token that it concerns has expired. Whoever makes
one tells the other brokers at once by a message that is not stored; each broker also looks every second what
is new in the bucket, and reads it at the start and after each interruption before anybody has events.

Of two versions of a ban the higher number counts, however they come in. A ban that is lifted is another
version, one that is over: it stays for a while, so that a late replica cannot bring the old one back.
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
Unix: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=253402300800)]  # seconds, before the year 10000

BANS = "bans"  # what their keys begin with
EVERY_TENANT = "*"  # stands for the tenant of monitoring tokens
NEWS = "control"  # what brokers tell each other under, by plain NATS: the bucket has it too
LOOK_SECONDS = 1.0
LIFTED_SECONDS = 3600.0  # how long it is remembered that a ban was lifted
AT_ONCE = 1000  # bans that are learned before others have a turn: 8 ms
TRIES = 5  # at a write, against other brokers that write the same ban

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Ban:
    """Who is kept out, since when, until when and why. Times are Unix seconds; no `until`: until lifted.

    `kind` says what `name` is: a token's id (`jti`), a user (`sub`), or nothing where all of the tenant is
    meant. A revoked user or tenant may come back with a token that was issued later; a revoked token id and a
    suspended tenant may not. `version` counts nanoseconds, so far as brokers' clocks agree.
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
        """Where it stands in the bucket."""
        return f"{BANS}.{self.kind}.{subjects.digest(self.tenant, self.name)}"

    @property
    def who(self) -> Who:
        return self.kind, self.tenant, self.name

    def over(self, now: float) -> bool:
        return self.until is not None and self.until <= max(now, self.at)

    def concerns(self, issued_at: float | None) -> bool:
        """Whether a token that was issued then is meant. One that does not say when may be old."""
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
    """The bans that hold, as far as this broker knows. `changed` is called after each change.

    `clock` gives Unix seconds.
    """

    bus: Bus
    names: Names
    changed: Callable[[], None]
    clock: Callable[[], float] = time.time
    bans: dict[Who, Ban] = attrs.Factory(dict)
    listening: bool = False
    loaded: bool = False  # all that was there has been read
    mark: Mark | None = None
    stale: bool = False  # what the mark says is known may have been forgotten
    wake: Signal = attrs.Factory(Signal)
    fault: str = "revocations have not been read yet"
    channel = NEWS

    # --- asking --------------------------------------------------------------------------------------

    def ban_of(self, principal: Principal) -> Ban | None:
        """The ban that keeps a client out, if there is one."""
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
        """Raises `TokenRevoked` for a client that is kept out."""
        if self.bans and (ban := self.ban_of(principal)):
            raise TokenRevoked(str(ban))

    def trouble(self) -> str | None:
        """Why nobody can be let in; None once it is known who may not."""
        return None if self.loaded else self.fault

    def listed(self) -> Iterator[Ban]:
        """The bans that hold, newest first."""
        now = self.clock()
        return iter(sorted((ban for ban in self.bans.values() if not ban.over(now)), key=lambda ban: -ban.at))

    # --- changing ------------------------------------------------------------------------------------

    async def put(self, ban: Ban) -> Ban:
        """Puts a ban, or the lifting of one, into force on every broker; it as it was stored.

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
        """Ends a ban before its time: as one that never held, whatever another broker's clock says."""
        return await self.put(attrs.evolve(ban, until=ban.at))

    # --- learning ------------------------------------------------------------------------------------

    def heard(self, channel: str, body: bytes) -> None:
        """Another broker's word, or our own that comes back."""
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
        await self.look()  # bans that were made while we were cut off

    def up(self, _: StreamState) -> None:
        """NATS is back: what was missed is read at once."""
        self.wake.set()

    def read_again(self) -> None:
        """The clock was set: what it made us forget, as over, may hold after all."""
        self.stale = True
        self.wake.set()

    async def run(self) -> None:
        """Keeps up with the bucket, until cancelled; from the first `restored` on."""
        pause = math.inf
        while True:
            with trio.move_on_after(pause):
                await self.wake.wait()
            pause = LOOK_SECONDS
            try:
                await self.look()
            except Unavailable as error:
                if self.fault != error.message:
                    self.fault = error.message
                    log.warning("revocations_not_read", error=error.message, loaded=self.loaded)
            self.forget()

    async def look(self) -> None:
        if not self.listening:
            await self.bus.subscribe_live(f"{self.names.own}.{NEWS}")
            self.listening = True  # from now on, whatever becomes of the connection
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
        """Drops what has been over, and not been touched, for long."""
        before = self.clock() - LIFTED_SECONDS
        for who, ban in list(self.bans.items()):
            if ban.until is not None and max(ban.until, ban.version / 1e9) <= before:
                del self.bans[who]


def understood(values: list[bytes]) -> list[Ban]:
    """The bans among some values; what is none (a key that was deleted by hand) is left out."""
    bans = []
    for data in values:
        try:
            bans.append(msgspec.json.decode(data, type=Ban))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            log.warning("ban_not_understood", bytes=len(data))
    return bans
