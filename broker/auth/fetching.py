"""One GET over HTTPS, of an address in the configuration, through the proxy that the environment names."""

from __future__ import annotations

import ssl
from contextlib import aclosing
from importlib.metadata import version
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore2
import trio

from broker.auth.addresses import PORTS, is_loopback
from broker.errors import Unavailable

# Some providers refuse a request without one.
USER_AGENT = f"nats-websocket-broker/{version('nats-websocket-broker')}"


async def get(url: str, *, seconds: float, limit: int) -> bytes:
    """Return the body of the 200 at `url`: whole within `seconds`, at most `limit` bytes.

    A redirect is not followed: the address in the configuration is the one that is trusted. Raises
    `Unavailable` with the reason.
    """
    parts = urlsplit(url)
    proxy, steps = proxy_for(parts), list[str]()

    async def trace(step: str, _info: object) -> None:
        steps.append(step)

    try:
        with trio.fail_after(seconds):
            async with (
                httpcore2.AsyncConnectionPool(ssl_context=trust(parts), proxy=proxy) as pool,
                pool.stream(
                    "GET",
                    target(parts, proxied=proxy is not None),
                    headers=[
                        ("Host", parts.netloc),
                        ("User-Agent", USER_AGENT),
                        ("Accept", "application/json"),
                        ("Connection", "close"),
                    ],
                    extensions={"sni_hostname": parts.hostname, "trace": trace},
                ) as answer,
            ):
                return await read_body(answer, limit)
    except trio.TooSlowError:
        raise Unavailable(f"no whole answer within {seconds:g} s") from None
    except httpcore2.ProxyError as error:  # as in "407 Proxy Authentication Required"
        raise Unavailable(f"the proxy of HTTPS_PROXY answered {str(error)[:3]} instead of 200") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError, UnicodeError) as error:
        lost = proxy is not None and "connection.connect_tcp.failed" in steps
        what = "the proxy of HTTPS_PROXY cannot be reached" if lost else "the address cannot be read"
        raise Unavailable(f"{what}: {root(error)}") from error


async def read_body(answer: httpcore2.Response, limit: int) -> bytes:
    if answer.status != 200:
        raise Unavailable(f"the address answered {answer.status} instead of 200")
    body = bytearray()
    async with aclosing(answer.aiter_stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > limit:
                raise Unavailable(f"the answer is longer than {limit} bytes")
    return bytes(body)


def root(error: BaseException) -> BaseException:
    """Return what the operating system, TLS or HTTP said, which the library only wraps."""
    wrapped = [each for each in (error.__cause__, *error.args) if isinstance(each, BaseException)]
    return root(wrapped[0]) if wrapped else error


def trust(parts: SplitResult) -> ssl.SSLContext | None:
    """Return the system's authorities, read for each fetch since they change; None for http."""
    return ssl.create_default_context() if parts.scheme == "https" else None


def target(parts: SplitResult, *, proxied: bool) -> httpcore2.URL:
    host = parts.hostname or ""
    if proxied and ":" in host:
        host = f"[{host}]"  # of an IPv6 address in a CONNECT, RFC 9110 section 9.3.6; the library adds none
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return httpcore2.URL(scheme=parts.scheme, host=host, port=parts.port, target=path)


def proxy_for(parts: SplitResult) -> httpcore2.Proxy | None:
    """Return the proxy in HTTPS_PROXY (ALL_PROXY), unless NO_PROXY has the host or the host is this machine.

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
    shown = None
    if found.username is not None:
        shown = unquote(found.username).encode(), unquote(found.password or "").encode()
    return httpcore2.Proxy(
        httpcore2.URL(scheme=found.scheme, host=found.hostname or "", port=found.port, target="/"),
        auth=shown,
        headers={"User-Agent": USER_AGENT},
        ssl_context=trust(found),
    )
