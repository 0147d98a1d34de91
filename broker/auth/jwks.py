"""Keys from an address: a JWK Set (RFC 7517) that is fetched and kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from broker import subjects
from broker.auth.sources import MAX_BYTES
from broker.backoff import Backoff
from broker.errors import Unavailable
from broker.metrics.statistics import KeySet
from broker.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker import config
    from broker.auth.signatures import VerifyingKey

BACKOFF = Backoff(first=2.0, longest=64.0, jitter=0.0)  # for an address that fails
MAX_MISSED = 1024  # names of keys that are remembered, of the many that anybody can make up
SOON_SECONDS = 1.0  # the shortest time after which to come again

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Timing:
    """When an address is asked, in seconds.

    `fetch_seconds`: the limit for a whole answer. `refresh_seconds`: between two regular fetches, so the
    time for which a withdrawn key is still believed. `apart_seconds`: tokens that name unknown keys cause
    no fetch within that time of the last one; anybody can send such tokens. `settled_seconds`: how long a key
    is waited for that tokens name and the set does not have, before that is an answer: a new one may be in
    use before the caches of its provider have it (those of Supabase hold a set for ten minutes).
    """

    fetch_seconds: float = 5.0
    refresh_seconds: float = 600.0
    apart_seconds: float = 60.0
    settled_seconds: float = 600.0


@attrs.define(eq=False)
class Remote:
    """One address and its last good keys, which stay when it fails. `parse` raises `ValueError`.

    Tokens do not fetch: they wake `run` and wait for its answer. So any number of them share one fetch,
    and a client that leaves while it waits neither ends that fetch nor starts another.
    """

    entry: config.Key
    url: str
    parse: Callable[[bytes], tuple[VerifyingKey, ...]]
    timing: Timing
    keys: tuple[VerifyingKey, ...] = ()
    fault: str | None = "not asked yet"  # of the last fetch
    asked_at: float = -math.inf  # Trio's time, as all of these
    read_at: float | None = None  # when the keys were asked for that there are
    due_at: float = -math.inf
    fetching: bool = False
    unknown: int = 0
    missed: dict[int, float] = attrs.field(factory=dict)  # since when, by the hash of a key's name
    wanted: Signal = attrs.field(factory=Signal)
    answered: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def run(self) -> None:
        """Fetch now, then when it is due or wanted, for ever."""
        failures = 0
        while True:
            self.wanted.clear()
            self.fetching, self.asked_at = True, trio.current_time()
            await self.fetch()
            failures = failures + 1 if self.fault else 0
            delay = BACKOFF.delay(failures - 1) if failures else self.timing.refresh_seconds
            self.due_at = trio.current_time() + delay
            self.fetching = False
            self.answered.unpark_all()
            with trio.move_on_at(self.due_at):
                await self.wanted.wait()

    async def fetch(self) -> None:
        try:
            # The HTTP client costs 25 ms and 0.5 MB, which is spared where no key comes from an address.
            from broker.auth.fetching import get

            self.keys = self.parse(await get(self.url, seconds=self.timing.fetch_seconds, limit=MAX_BYTES))
        except (Unavailable, ValueError) as error:
            self.fault = str(error)
            log.warning("jwks_failed", key=self.entry.name, error=self.fault, keys_kept=len(self.keys))
        except Exception:  # what nobody expects of an answer ends neither the fetches nor the broker
            self.fault = "this failed; the broker's log says why"
            log.exception("jwks_failed", key=self.entry.name, keys_kept=len(self.keys))
        else:
            if self.fault:
                log.info("jwks_fetched", key=self.entry.name, keys=len(self.keys))
            self.fault, self.read_at = None, self.asked_at

    async def refresh(self) -> bool:
        """Wait for the fetch that is under way or a new one; False at once where the last was too recent."""
        if not self.fetching:
            if trio.current_time() - self.asked_at < self.timing.apart_seconds:
                return False
            self.wanted.set()
        await self.answered.park()
        return True

    def wait(self, kid: str | None, *, fresh: bool) -> float | None:
        """Return in how many seconds a key that is not here may be; None once it is settled that there is
        none.

        That takes a `fresh` look, and as many seconds as the timing says since a token first named it.
        """
        now = trio.current_time()
        self.unknown += 1
        if self.fault or self.fetching:
            return max(SOON_SECONDS, self.due_at - now)
        since = self.missed.get(name := hash(kid))
        if since is None:
            if len(self.missed) >= MAX_MISSED:
                del self.missed[next(iter(self.missed))]  # the oldest; it is waited for a little longer
            since = self.missed[name] = now
            log.warning(
                "key_unknown", key=self.entry.name, kid=subjects.shown(kid or ""), keys=len(self.keys)
            )
        if fresh and now - since >= self.timing.settled_seconds:
            return None
        return max(SOON_SECONDS, self.asked_at + self.timing.apart_seconds - now)

    def statistics(self) -> KeySet:
        return KeySet(
            keys=len(self.keys),
            fault=self.fault,
            age=None if self.read_at is None else trio.current_time() - self.read_at,
            unknown=self.unknown,
        )
