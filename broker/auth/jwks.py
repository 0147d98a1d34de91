"""Keys from an address: a JWK Set (RFC 7517) that is fetched over HTTPS and kept."""

from __future__ import annotations

import ipaddress
import math
import re
import ssl
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import attrs
import h11
import structlog
import trio

from broker.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker import config
    from broker.auth.keys import VerifyingKey

MAX_BYTES = 256 * 1024  # some hundred RSA keys; real sets have two to ten
MAX_RETRY_DOUBLINGS = 6  # a failing address is asked after 2, 4 … 64 s
PRINTABLE = re.compile(r"[!-~]+\Z")

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Timing:
    """When an address is asked, in seconds.

    `fetch_seconds`: the limit for a whole answer. `refresh_seconds`: between two regular fetches, so the
    time for which a withdrawn key is still believed. `apart_seconds`: tokens that name unknown keys cause
    no fetch within that time of the last one; anybody can send such tokens.
    """

    fetch_seconds: float = 5.0
    refresh_seconds: float = 600.0
    apart_seconds: float = 60.0


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
    due_at: float = -math.inf
    fetching: bool = False
    wanted: trio.Event = attrs.field(factory=trio.Event)
    answered: trio.Event = attrs.field(factory=trio.Event)

    async def run(self) -> None:
        """Fetches now, then when it is due or wanted, for ever."""
        failures = 0
        while True:
            self.fetching, self.asked_at, self.wanted = True, trio.current_time(), trio.Event()
            await self.fetch()
            failures = failures + 1 if self.fault else 0
            delay = 2.0 ** min(failures, MAX_RETRY_DOUBLINGS) if failures else self.timing.refresh_seconds
            self.due_at = trio.current_time() + delay
            self.fetching = False
            self.answered.set()
            self.answered = trio.Event()
            with trio.move_on_at(self.due_at):
                await self.wanted.wait()

    async def fetch(self) -> None:
        try:
            self.keys = self.parse(await get(self.url, seconds=self.timing.fetch_seconds))
        except (Unavailable, ValueError) as error:
            self.fault = str(error)
            log.warning("jwks_failed", key=self.entry.name, error=self.fault, keys_kept=len(self.keys))
        else:
            if self.fault:
                log.info("jwks_fetched", key=self.entry.name, keys=len(self.keys))
            self.fault = None

    async def refresh(self) -> None:
        """Returns after the fetch that is under way or a new one; at once when the last was too recently."""
        if not self.fetching:
            if trio.current_time() - self.asked_at < self.timing.apart_seconds:
                return
            self.wanted.set()
        await self.answered.wait()


def address_fault(url: str) -> str | None:
    """Why keys cannot be fetched from `url`; None when they can."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https") or not PRINTABLE.match(url):
        return "is no https address"
    if "@" in parts.netloc:
        return "may not hold a user or password; a JWK Set is public"
    if parts.scheme == "http" and not is_loopback(host):
        return "needs https: over http anybody on the way could put in keys"
    return None


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def get(url: str, *, seconds: float) -> bytes:
    """The body at `url`: 200 only, at most 256 KiB, within `seconds`. Raises `Unavailable` with the reason.

    A redirect is not followed: the address in the configuration is the one that is trusted.
    """
    parts = urlsplit(url)
    client = h11.Connection(h11.CLIENT)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = [("Host", parts.netloc), ("Accept", "application/json"), ("Connection", "close")]
    try:
        with trio.fail_after(seconds):
            stream = await connect(parts)
            async with stream:
                request = client.send(h11.Request(method="GET", target=target, headers=headers))
                await stream.send_all(request)
                client.send(h11.EndOfMessage())
                return await read_body(client, stream)
    except trio.TooSlowError:
        raise Unavailable(f"no whole answer within {seconds:g} s") from None
    except (OSError, trio.BrokenResourceError, h11.ProtocolError, UnicodeError) as error:
        raise Unavailable(f"the address cannot be read: {error.__cause__ or error}") from error


async def connect(parts: SplitResult) -> trio.abc.Stream:
    host = parts.hostname or ""
    if parts.scheme == "http":
        return await trio.open_tcp_stream(host, parts.port or 80)
    context = ssl.create_default_context()  # made for each fetch: the system's authorities change
    return await trio.open_ssl_over_tcp_stream(
        host, parts.port or 443, ssl_context=context, https_compatible=True
    )


async def read_body(client: h11.Connection, stream: trio.abc.Stream) -> bytes:
    body = bytearray()
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise Unavailable(f"the address answered {event.status_code} instead of 200")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BYTES:
                raise Unavailable(f"the answer is longer than {MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
