"""Keys from an address: a JWK Set (RFC 7517) that is fetched and kept up to date."""

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
MAX_MISSED = 1024  # unknown key names that are remembered: anybody can make up more
SOON_SECONDS = 1.0  # the shortest `retry_after`

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Timing:
    """When an address is fetched, in seconds.

    `fetch_seconds` limits one fetch. `refresh_seconds` lie between two regular fetches, so a withdrawn key
    is accepted for that long. `apart_seconds`: a token with an unknown key causes no fetch so soon after
    the last one, since anybody can send such tokens. `settled_seconds`: a token is refused once its key has
    been unknown for that long; a provider may use a new key before its caches have it (Supabase's keep a
    set for ten minutes).
    """

    fetch_seconds: float = 5.0
    refresh_seconds: float = 600.0
    apart_seconds: float = 60.0
    settled_seconds: float = 600.0


@attrs.define(eq=False)
class Remote:
    """One address and its last good keys, which are kept when a fetch fails. `parse` raises `ValueError`.

    A verification does not fetch: it wakes `run` and waits for the result. So any number of them share one
    fetch, and a client that leaves meanwhile neither cancels it nor starts another.
    """

    entry: config.Key
    url: str
    parse: Callable[[bytes], tuple[VerifyingKey, ...]]
    timing: Timing
    keys: tuple[VerifyingKey, ...] = ()
    fault: str | None = "not asked yet"  # of the last fetch
    asked_at: float = -math.inf  # Trio's clock, as all of these
    read_at: float | None = None  # when the present keys were fetched
    due_at: float = -math.inf
    fetching: bool = False
    unknown: int = 0
    missed: dict[int, float] = attrs.field(factory=dict)  # unknown since, by the hash of the `kid`
    wanted: Signal = attrs.field(factory=Signal)
    answered: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def run(self) -> None:
        """Fetch now, then whenever it is due or wanted, for ever."""
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
            # Imported here: without keys from an address its 25 ms and 0.5 MB are saved.
            from broker.auth.fetching import get

            self.keys = self.parse(await get(self.url, seconds=self.timing.fetch_seconds, limit=MAX_BYTES))
        except (Unavailable, ValueError) as error:
            self.fault = str(error)
            log.warning("jwks_failed", key=self.entry.name, error=self.fault, keys_kept=len(self.keys))
        except Exception:  # an unforeseen answer ends neither the fetches nor the broker
            self.fault = "an unexpected error; the broker's log has it"
            log.exception("jwks_failed", key=self.entry.name, keys_kept=len(self.keys))
        else:
            if self.fault:
                log.info("jwks_fetched", key=self.entry.name, keys=len(self.keys))
            self.fault, self.read_at = None, self.asked_at

    async def refresh(self) -> bool:
        """Wait for the present fetch or a new one; return False at once when the last was too recent."""
        if not self.fetching:
            if trio.current_time() - self.asked_at < self.timing.apart_seconds:
                return False
            self.wanted.set()
        await self.answered.park()
        return True

    def wait(self, kid: str | None, *, fresh: bool) -> float | None:
        """Return the seconds after which to look for an unknown key again; None once it is settled as
        unknown.

        That needs a `fresh` set, and `settled_seconds` since a token first named the key.
        """
        now = trio.current_time()
        self.unknown += 1
        if self.fault or self.fetching:
            return max(SOON_SECONDS, self.due_at - now)
        since = self.missed.get(name := hash(kid))
        if since is None:
            if len(self.missed) >= MAX_MISSED:
                del self.missed[next(iter(self.missed))]  # the oldest; its wait begins again
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
