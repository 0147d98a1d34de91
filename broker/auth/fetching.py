"""One GET over HTTPS: of an address in the configuration, through the proxy that the environment names."""

from __future__ import annotations

import base64
import ipaddress
import re
import ssl
from importlib.metadata import version
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import h11
import trio

from broker.errors import Unavailable

MAX_BYTES = 256 * 1024  # some hundred RSA keys; real sets have two to ten
PRINTABLE = re.compile(r"[!-~]+\Z")
PORTS = {"http": 80, "https": 443}
# Some providers refuse who says none.
USER_AGENT = f"nats-websocket-broker/{version('nats-websocket-broker')}"


def address_fault(url: str) -> str | None:
    """Why keys cannot be fetched from `url`; None when they can."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in PORTS or not PRINTABLE.match(url):
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
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = [
        ("Host", parts.netloc),
        ("User-Agent", USER_AGENT),
        ("Accept", "application/json"),
        ("Connection", "close"),
    ]
    try:
        with trio.fail_after(seconds):
            stream = await connect(parts)
            async with stream:
                client = h11.Connection(h11.CLIENT)
                await ask(client, stream, h11.Request(method="GET", target=target, headers=headers))
                return await read_body(client, stream)
    except trio.TooSlowError:
        raise Unavailable(f"no whole answer within {seconds:g} s") from None
    except (OSError, trio.BrokenResourceError, h11.ProtocolError, UnicodeError) as error:
        raise Unavailable(f"the address cannot be read: {error.__cause__ or error}") from error


async def ask(client: h11.Connection, stream: trio.abc.Stream, request: h11.Request) -> None:
    await stream.send_all(client.send(request) or b"")
    client.send(h11.EndOfMessage())


async def read_body(client: h11.Connection, stream: trio.abc.Stream) -> bytes:
    body = bytearray()
    while True:
        event = await next_event(client, stream)
        if isinstance(event, h11.Response) and event.status_code != 200:
            raise Unavailable(f"the address answered {event.status_code} instead of 200")
        if isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BYTES:
                raise Unavailable(f"the answer is longer than {MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)


async def next_event(client: h11.Connection, stream: trio.abc.Stream) -> object:
    while (event := client.next_event()) is h11.NEED_DATA:
        client.receive_data(bytes(await stream.receive_some(65536)))
    return event


# --- the way there ------------------------------------------------------------------------------------


async def connect(parts: SplitResult) -> trio.abc.Stream:
    if proxy := proxy_for(parts):
        return await through(proxy, parts)
    return await open_stream(parts)


async def open_stream(parts: SplitResult) -> trio.abc.Stream:
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    if parts.scheme == "http":
        return await trio.open_tcp_stream(host, port)
    return await trio.open_ssl_over_tcp_stream(host, port, ssl_context=trust(), https_compatible=True)


def trust() -> ssl.SSLContext:
    return ssl.create_default_context()  # made for each fetch: the system's authorities change


def proxy_for(parts: SplitResult) -> SplitResult | None:
    """The proxy that HTTPS_PROXY (ALL_PROXY) names, unless NO_PROXY has the host. Never one to loopback.

    Raises `Unavailable` for one that cannot be used, without repeating it: it may hold a password.
    """
    host = parts.hostname or ""
    named = getproxies()
    proxy = named.get("https") or named.get("all")
    if not proxy or parts.scheme == "http" or is_loopback(host):
        return None
    if proxy_bypass(f"{host}:{parts.port or PORTS[parts.scheme]}"):
        return None
    try:
        found = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        usable = found.scheme in PORTS and found.hostname and found.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise Unavailable("HTTPS_PROXY is not http://[USER:PASSWORD@]HOST[:PORT], nor https")
    return found


async def through(proxy: SplitResult, parts: SplitResult) -> trio.abc.Stream:
    """A tunnel to the address (RFC 9110 section 9.3.6) with TLS inside: the proxy sees only the host."""
    host = parts.hostname or ""
    authority = f"[{host}]:{parts.port or 443}" if ":" in host else f"{host}:{parts.port or 443}"
    headers = [("Host", authority), ("User-Agent", USER_AGENT)]
    if proxy.username is not None:
        who = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
        headers.append(("Proxy-Authorization", f"Basic {base64.b64encode(who).decode()}"))
    try:
        stream = await open_stream(proxy)
    except OSError as error:
        raise Unavailable(
            f"the proxy of HTTPS_PROXY cannot be reached: {error.__cause__ or error}"
        ) from error
    try:
        client = h11.Connection(h11.CLIENT)
        await ask(client, stream, h11.Request(method="CONNECT", target=authority, headers=headers))
        event = await next_event(client, stream)
        if not isinstance(event, h11.Response) or event.status_code // 100 != 2:
            status = event.status_code if isinstance(event, h11.Response) else "nothing"
            raise Unavailable(f"the proxy of HTTPS_PROXY answered {status} instead of 200")
        return trio.SSLStream(stream, trust(), server_hostname=host, https_compatible=True)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
